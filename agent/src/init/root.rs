//! Coming up from a volume: its root file system is found and mounted, and the system in it takes over.
//!
//! ```text
//!   worker: keeper ─► /dev/nbd0 ─► partitions, tried in order ─► /sysroot ─► ends
//!   PID 1:  frees the payload's memory, moves /sysroot to / and becomes the system's init
//! ```
//!
//! Invariant: nothing is written to the volume before its own system does.

use std::{
    convert::Infallible,
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount};

use super::{
    keeper::{self, RemoteDisk},
    modules,
};

/// Where the volume's root is mounted before it is the root.
const SYSROOT: &str = "/sysroot";
const FILE_SYSTEMS: &[&str] = &["ext4", "xfs"];
/// By one of these a file system is known as a system's root, and started.
const INITS: &[&str] = &["sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "bin/init"];
/// What the payload mounted and the system takes over.
const MOVED: &[&str] = &["dev", "proc", "sys", "run"];

/// Gets the disk, finds the root file system in it and mounts it.
///
/// # Errors
/// Without a disk, or without a system in it.
pub(super) fn mount_volume(disk: &RemoteDisk, say: impl Fn(&str)) -> Result<()> {
    modules::load(&["nbd"]);
    modules::load(FILE_SYSTEMS);
    let device = keeper::start(disk)?;
    // Looking at it makes the kernel look for partitions.
    drop(
        File::open(Path::new("/dev").join(&device))
            .with_context(|| format!("open /dev/{device}"))?,
    );
    fs::create_dir_all(SYSROOT).context("make a place for the volume's root")?;
    let found = partitions(Path::new("/sys"), &device);
    for name in &found {
        let path = Path::new("/dev").join(name);
        let Some(kind) = mount_one(&path) else { continue };
        if INITS.iter().any(|init| fs::symlink_metadata(Path::new(SYSROOT).join(init)).is_ok()) {
            say(&format!("system: {kind} on {}", path.display()));
            return writable_unless_it_says(SYSROOT);
        }
        unmount(SYSROOT, UnmountFlags::empty()).context("leave a file system without a system")?;
    }
    bail!(
        "volume {} has no system that can be started: of {} none is {} with an init",
        disk.volume,
        found.join(", "),
        FILE_SYSTEMS.join(" or ")
    )
}

/// The partitions of a disk in their order; the disk itself when it has none.
fn partitions(sys: &Path, device: &str) -> Vec<String> {
    let entries =
        fs::read_dir(sys.join("class/block").join(device)).into_iter().flatten().flatten();
    let mut found: Vec<(u32, String)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = fs::read_to_string(entry.path().join("partition")).ok()?;
            Some((number.trim().parse().ok()?, name))
        })
        .collect();
    found.sort();
    if found.is_empty() {
        return vec![device.to_owned()];
    }
    found.into_iter().map(|(_, name)| name).collect()
}

/// Mounts a file system for reading, as one of those that can be a root.
fn mount_one(path: &Path) -> Option<&'static str> {
    FILE_SYSTEMS
        .iter()
        .copied()
        .find(|kind| mount(path, SYSROOT, *kind, MountFlags::RDONLY, None).is_ok())
}

/// A system that names its root in its table of file systems makes it writable itself, after it was checked.
fn writable_unless_it_says(root: &str) -> Result<()> {
    let table = fs::read_to_string(Path::new(root).join("etc/fstab")).unwrap_or_default();
    if names_root(&table) {
        return Ok(());
    }
    mount_remount(root, MountFlags::empty(), "").context("make the volume's root writable")
}

fn names_root(table: &str) -> bool {
    let lines = table.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().nth(1)).any(|target| target == Some("/"))
}

/// Becomes the volume's system. Returns only when that does not work.
///
/// # Errors
/// Why it does not.
pub(super) fn enter() -> Result<Infallible> {
    let root = Path::new(SYSROOT);
    let init = INITS.iter().find(|init| fs::symlink_metadata(root.join(init)).is_ok());
    let init = PathBuf::from("/").join(init.context("the volume has no init any more")?);
    let console = || {
        let console = File::options().read(true).write(true).open("/dev/console");
        console.map_or_else(|_| Stdio::null(), Stdio::from)
    };
    let mut system = Command::new(init);
    system.stdin(console()).stdout(console()).stderr(console());
    if let Err(error) = unmount("/tmp", UnmountFlags::DETACH) {
        tracing::debug!(%error, "leave the payload's /tmp");
    }
    for folder in MOVED {
        let to = root.join(folder);
        if to.is_dir() {
            let from = Path::new("/").join(folder);
            mount_move(&from, &to).with_context(|| format!("move {}", from.display()))?;
        }
    }
    let payload = fs::metadata("/").context("look at the payload")?.dev();
    forget(Path::new("/"), payload);
    std::env::set_current_dir(root).context("go to the volume's root")?;
    mount_move(".", "/").context("make the volume's root the root")?;
    rustix::process::chroot(".").context("make the volume's root the root")?;
    std::env::set_current_dir("/").context("go to the root")?;
    Err(system.exec()).context("start the volume's system")
}

/// Frees the memory of the payload's files. Whatever is mounted is another device and stays.
fn forget(folder: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            forget(&path, device);
            // One that has something mounted in it stays.
            drop(fs::remove_dir(&path));
        } else {
            drop(fs::remove_file(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_tried_in_their_order() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("class/block/nbd0");
        fs::create_dir_all(disk.join("queue")).unwrap();
        assert_eq!(partitions(sys.path(), "nbd0"), ["nbd0"]);
        for number in [10, 2, 1] {
            let folder = disk.join(format!("nbd0p{number}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("partition"), format!("{number}\n")).unwrap();
        }
        assert_eq!(partitions(sys.path(), "nbd0"), ["nbd0p1", "nbd0p2", "nbd0p10"]);
    }

    #[test]
    fn a_system_that_names_its_root_makes_it_writable_itself() {
        assert!(names_root("# / x\nUUID=1 / ext4 errors=remount-ro 0 1\n"));
        assert!(!names_root("# UUID=1 / ext4\nUUID=2 /boot ext4 defaults 0 2\n"));
        assert!(!names_root(""));
    }

    #[test]
    fn forgetting_frees_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("link")).unwrap();
        let device = fs::metadata(folder.path()).unwrap().dev();
        forget(folder.path(), device + 1);
        assert!(folder.path().join("a/b/file").exists());
        forget(folder.path(), device);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
