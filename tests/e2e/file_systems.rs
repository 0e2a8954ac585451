//! File systems on a volume, by nbdfuse and a loop device, with databases on them, through kills of the server.

use std::{fs, path::PathBuf, time::Duration};

use cairn_tests::{
    cairn::eventually,
    postgres,
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
print('last', last)
";

/// Starts PostgreSQL on the file system, which is made ready for it when it is new. Expects the folder of its programs.
const POSTGRES: &str = r#"
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
query() { as psql -h /mnt -U postgres -qAtX -c "$1"; }
cd /mnt
if ! [ -d pg ]; then
    chown postgres /mnt
    as "$1/initdb" -A trust -U postgres --locale C.UTF-8 -E UTF8 -D /mnt/pg > /dev/null || exit 1
fi
rm -f pg/postmaster.pid
# Not by the function, which would be a shell that signals end.
setpriv --reuid postgres --regid postgres --clear-groups "$1/postgres" -D /mnt/pg -h "" -k /mnt -c max_wal_size=64MB -c shared_buffers=16MB -c jit=off &
server=$!
i=0
while ! query "select 1" > /dev/null 2>&1; do
    sleep 0.1
    i=$((i + 1))
    [ $i -lt 300 ] && kill -0 $server || exit 1
done
"#;

/// As [`WRITER`].
const POSTGRES_WRITER: &str = r#"
query "create table if not exists t (n integer primary key, filler text)" || exit 1
while n=$(query "insert into t select coalesce(max(n), 0) + 1, repeat(md5(random()::text), 90) from t returning n"); do
    echo committed $n
done
kill -QUIT $server
wait $server
cd /
exit 0
"#;

/// As [`READER`]: every row and every index is read.
const POSTGRES_READER: &str = r#"
query "create extension if not exists amcheck" || exit 1
query "select bt_index_check(oid, true) from pg_class where relname = 't_pkey'" > /dev/null || exit 1
[ "$(query "select count(*) = max(n) and min(length(filler)) = 2880 from t")" = t ] || exit 1
query "select 'last ' || max(n) from t" || exit 1
kill -INT $server
wait $server
cd /
"#;

/// Mounts a device for a program, and for nobody else: namespaces that other tests make would hold on to it.
const MOUNTED: &str = r#"
mount "$1" /mnt || exit 1
shift
"$@"
ended=$?
umount /mnt || exit 1
exit $ended
"#;

/// What commits on a file system.
#[derive(Clone, Copy)]
enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    fn writer(self) -> Vec<String> {
        match self {
            Self::Sqlite => python(WRITER),
            Self::Postgres => shell(POSTGRES_WRITER),
        }
    }

    fn reader(self) -> Vec<String> {
        match self {
            Self::Sqlite => python(READER),
            Self::Postgres => shell(POSTGRES_READER),
        }
    }
}

fn python(program: &str) -> Vec<String> {
    ["/usr/bin/python3", "-c", program, "/mnt/db"].map(str::to_owned).into()
}

fn shell(program: &str) -> Vec<String> {
    let programs = postgres::programs().unwrap();
    let program = format!("{POSTGRES}{program}");
    ["sh", "-c", &program, "sh", programs.to_str().unwrap()].map(str::to_owned).into()
}

/// A volume as a block device of this machine. Everything is undone when it goes.
struct Disk {
    fuse: PathBuf,
    device: String,
    process: Option<Process>,
}

impl Disk {
    fn attach(site: &Site, uri: &str) -> Self {
        let fuse = site.lab.dir().join("fuse");
        fs::create_dir_all(&fuse).unwrap();
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
        Self { fuse, device, process: Some(process) }
    }

    /// Starts a program with a database on the file system, at `/mnt`.
    fn program(&self, words: &[String]) -> Process {
        Program::new("database", "unshare")
            .args(["--mount", "sh", "-c", MOUNTED, "sh", &self.device])
            .args(words)
            .start()
            .unwrap()
    }

    /// The number up to which the database is whole.
    fn read(&self, database: Database) -> u32 {
        let mut reader = self.program(&database.reader());
        reader.wait_success(SOON).unwrap();
        let said = reader.transcript().text(0);
        let last = said.lines().find_map(|line| line.strip_prefix("last "));
        last.unwrap_or_else(|| panic!("{said}")).parse().unwrap()
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
fn kill_under(kind: &Kind, database: Database, cycles: u32) {
    let lab = match database {
        Database::Sqlite => format!("files-{}", kind.name),
        Database::Postgres => format!("files-pg-{}", kind.name),
    };
    let mut site = Site::start(&lab, NetworkBoot::Off).unwrap();
    site.server.run(&["volume", "create", "disk", "--size", "512MiB"]).unwrap();
    let uri = "nbd://127.0.0.1:10809/disk";
    let mut disk = Disk::attach(&site, uri);
    with_device(kind.make, &disk.device);
    for cycle in 1..=cycles {
        let before = if cycle == 1 { 0 } else { disk.read(database) };
        let mut writer = disk.program(&database.writer());
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
        let last = disk.read(database);
        assert!(last >= committed, "cycle {cycle}: {committed} was committed, {last} is there");
        with_device(kind.check, &disk.device);
    }
}

#[test]
fn ext4_is_clean_after_every_kill_and_a_database_on_it_whole() {
    kill_under(&KINDS[0], Database::Sqlite, 3);
}

#[test]
fn postgresql_on_a_volume_has_all_that_it_committed_after_every_kill() {
    kill_under(&KINDS[0], Database::Postgres, 2);
}

#[test]
fn xfs_is_clean_after_every_kill_and_a_database_on_it_whole() {
    kill_under(&KINDS[1], Database::Sqlite, 2);
}

/// What takes long: `cargo xtask test --long`.
mod long {
    use std::{fs, path::PathBuf, time::Duration};

    use cairn_tests::{
        paths,
        process::Program,
        site::{NetworkBoot, Site},
    };

    use super::{Database, Disk, KINDS, kill_under, with_device};

    /// It reads back what it wrote, cut and punched, all the time.
    const FSX: Duration = Duration::from_secs(500);
    /// On a disk: its size stays, and nothing maps it into memory.
    const ON_DISK: &str = "
blockmode = true
flen = 67108864
[opsize]
max = 262144
[weights]
read = 10.0
write = 10.0
fsync = 1.0
fdatasync = 1.0
punch_hole = 3.0
close_open = 0.0
truncate = 0.0
mapread = 0.0
mapwrite = 0.0
invalidate = 0.0
";
    const ON_FILES: &str = "
flen = 16777216
[opsize]
max = 262144
[weights]
punch_hole = 1.0
fsync = 1.0
";

    fn fsx() -> PathBuf {
        let path = paths::target().join("tools/fsx/bin/fsx");
        assert!(
            path.is_file(),
            "{} is missing: `cargo xtask test --long` installs it",
            path.display()
        );
        path
    }

    #[test]
    fn file_systems_are_clean_after_thirty_kills_each() {
        for kind in &KINDS {
            kill_under(kind, Database::Sqlite, 30);
        }
    }

    #[test]
    fn postgresql_has_all_that_it_committed_after_thirty_kills() {
        kill_under(&KINDS[1], Database::Postgres, 30);
    }

    #[test]
    fn fsx_finds_nothing_on_a_volume_and_on_a_file_system_on_it() {
        let site = Site::start("files-fsx", NetworkBoot::Off).unwrap();
        site.server.run(&["volume", "create", "disk", "--size", "64MiB"]).unwrap();
        let disk = Disk::attach(&site, "nbd://127.0.0.1:10809/disk");
        let words = |config: &str, operations: &str| {
            let file = site.lab.dir().join("fsx.toml");
            fs::write(&file, config).unwrap();
            let [file, folder] =
                [&file, site.lab.dir()].map(|path| path.to_str().unwrap().to_owned());
            let fixed = ["-N", operations, "-S", "7", "-f", &file, "-P", &folder];
            fixed.map(str::to_owned).to_vec()
        };
        let raw = disk.fuse.join("disk");
        let on_disk = Program::new("fsx", fsx()).args(words(ON_DISK, "20000")).args([raw]);
        on_disk.start().unwrap().wait_success(FSX).unwrap();
        with_device(KINDS[0].make, &disk.device);
        let program = vec![fsx().to_str().unwrap().to_owned()];
        let file = vec!["/mnt/file".to_owned()];
        let mut on_files = disk.program(&[program, words(ON_FILES, "20000"), file].concat());
        on_files.wait_success(FSX).unwrap();
        with_device(KINDS[0].check, &disk.device);
    }
}
