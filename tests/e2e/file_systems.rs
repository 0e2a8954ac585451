//! File systems on a volume, by nbdfuse and a loop device, with a database on them, through kills of the server.

use std::{fs, path::PathBuf, time::Duration};

use cairn_tests::{
    cairn::eventually,
    process::{Process, Program},
    site::{NetworkBoot, Site},
    tool,
};

const SOON: Duration = Duration::from_secs(60);

/// Commits one number after the other and says which; ends when the disk does. What the database says is durable.
const WRITER: &str = r"
import sqlite3, sys
try:
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    # The folder too: a commit is the end of a file in it.
    db.execute('pragma synchronous = extra')
    db.execute('create table if not exists t (n integer primary key, filler blob)')
    n = db.execute('select coalesce(max(n), 0) from t').fetchone()[0]
    while True:
        n += 1
        db.execute('insert into t values (?, randomblob(3000))', (n,))
        print('committed', n, flush=True)
except sqlite3.Error:
    sys.exit(0)
";

/// Checks the database, and says how far it is.
const READER: &str = r"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
verdict = db.execute('pragma integrity_check').fetchone()[0]
assert verdict == 'ok', verdict
count, last = db.execute('select count(*), max(n) from t').fetchone()
assert count == last, f'{count} rows up to {last}'
print(last)
";

/// Mounts a device for a program, and for nobody else: namespaces that other tests make would hold on to it.
const MOUNTED: &str = r#"
mount "$1" "$2" || exit 1
/usr/bin/python3 -c "$3" "$2/db"
ended=$?
umount "$2" || exit 1
exit $ended
"#;

/// A volume as a block device of this machine. Everything is undone when it goes.
struct Disk {
    fuse: PathBuf,
    mount: PathBuf,
    device: String,
    process: Option<Process>,
}

impl Disk {
    fn attach(site: &Site, uri: &str) -> Self {
        let (fuse, mount) = (site.lab.dir().join("fuse"), site.lab.dir().join("mount"));
        for folder in [&fuse, &mount] {
            fs::create_dir_all(folder).unwrap();
        }
        // Only the network is another: `ip netns exec` would keep the mount to itself.
        let namespace = format!("--net=/run/netns/{}", site.server.host().namespace());
        let file = fuse.join("disk");
        let process = Program::new("nbdfuse", "nsenter")
            .args([&*namespace, "nbdfuse", file.to_str().unwrap(), uri])
            .start()
            .unwrap();
        let shown = || Ok(fs::metadata(&file).is_ok_and(|file| file.len() > 0).then_some(()));
        eventually("the disk as a file", SOON, shown).unwrap();
        let device = tool::run("losetup", ["--find", "--show", file.to_str().unwrap()]).unwrap();
        let device = device.trim().to_owned();
        Self { fuse, mount, device, process: Some(process) }
    }

    /// Starts a Python program with a database on the file system.
    fn program(&self, program: &str) -> Process {
        let mount = self.mount.to_str().unwrap();
        Program::new("database", "unshare")
            .args(["--mount", "sh", "-c", MOUNTED, "sh", &self.device, mount, program])
            .start()
            .unwrap()
    }

    /// The number up to which the database is whole.
    fn read(&self) -> u32 {
        let mut reader = self.program(READER);
        reader.wait_success(SOON).unwrap();
        reader.transcript().text(0).trim().parse().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        tool::run("losetup", ["--detach", &self.device]).ok();
        tool::run("umount", ["--lazy", self.fuse.to_str().unwrap()]).ok();
        drop(self.process.take());
    }
}

/// A file system, and how it is made and checked.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
}

const KINDS: [Kind; 2] = [
    Kind { name: "ext4", make: &["mkfs.ext4", "-q"], check: &["e2fsck", "-f", "-n"] },
    Kind { name: "xfs", make: &["mkfs.xfs", "-q"], check: &["xfs_repair", "-n"] },
];

fn with_device(words: &[&str], device: &str) {
    tool::run(words[0], words[1..].iter().copied().chain([device])).unwrap();
}

/// Kills the server `cycles` times while a database commits; each time the file system is clean once its journal was
/// replayed, and the database whole, without a lack of what it had committed.
fn kill_under(kind: &Kind, cycles: u32) {
    let mut site = Site::start(&format!("files-{}", kind.name), NetworkBoot::Off).unwrap();
    site.server.run(&["volume", "create", "disk", "--size", "512MiB"]).unwrap();
    let uri = "nbd://127.0.0.1:10809/disk";
    let mut disk = Disk::attach(&site, uri);
    with_device(kind.make, &disk.device);
    for cycle in 1..=cycles {
        let before = if cycle == 1 { 0 } else { disk.read() };
        let mut writer = disk.program(WRITER);
        // Each time at another moment.
        let until = before + 20 + cycle % 5 * 40;
        writer.wait_for_line(&format!("committed {until}$"), SOON).unwrap();
        site.server.process().kill().unwrap();
        writer.wait_success(SOON).unwrap();
        let said = writer.transcript().text(0);
        let mut committed = said.lines().filter_map(|line| line.strip_prefix("committed "));
        let committed: u32 = committed.next_back().unwrap().parse().unwrap();
        drop(disk);
        site.server.restart(&site.lab, &[]).unwrap();
        disk = Disk::attach(&site, uri);
        let last = disk.read();
        assert!(last >= committed, "cycle {cycle}: {committed} was committed, {last} is there");
        with_device(kind.check, &disk.device);
    }
}

#[test]
fn ext4_is_clean_after_every_kill_and_a_database_on_it_whole() {
    kill_under(&KINDS[0], 3);
}

#[test]
fn xfs_is_clean_after_every_kill_and_a_database_on_it_whole() {
    kill_under(&KINDS[1], 2);
}

/// What takes long: `cargo xtask test --long`.
mod long {
    #[test]
    fn file_systems_are_clean_after_thirty_kills_each() {
        for kind in &super::KINDS {
            super::kill_under(kind, 30);
        }
    }
}
