//! The disks of a machine, read from sysfs and procfs.
//!
//! There is no udev in the boot payload, so names, serials and WWNs come from where udev has them from.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use cairn_array::{install::StoragePartition, wire::DiskLine};
use cairn_core::units::ByteCount;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::identity::{entries, text};

/// sysfs counts in these, whatever the disk's own sector size is.
const SYSFS_SECTOR: u64 = 512;
/// Block devices that are no disks of this machine.
const NOT_DISKS: &[&str] = &["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtd"];

/// Where the kernel shows itself; another root in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    pub sys: PathBuf,
    pub proc: PathBuf,
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// All disks that hold anything, in the order of their names.
#[must_use]
pub fn disks(roots: &Roots) -> Vec<DiskLine> {
    let used = used_devices(&roots.proc);
    entries(&roots.sys.join("block"))
        .iter()
        .filter_map(|folder| {
            let name = folder.file_name()?.to_str()?;
            if NOT_DISKS.iter().any(|other| name.starts_with(other)) {
                return None;
            }
            // sysfs writes a '/' in a device's name as '!'.
            let device = roots.dev.join(name.replace('!', "/"));
            disk(folder, &device, &used).filter(|disk| disk.size.0 > 0)
        })
        .collect()
}

/// A disk or a file that the operator named, under the path he gave.
///
/// # Errors
/// When it is neither a block device nor an ordinary file.
pub fn named(roots: &Roots, path: &Path) -> Result<DiskLine> {
    let what = || format!("look at target disk {}", path.display());
    let meta = match fs::metadata(path) {
        // A file is made; a device that is not there is a mistake.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.starts_with("/dev") => {
            return Ok(file_line(path, ByteCount(0), false));
        }
        meta => meta.with_context(what)?,
    };
    if meta.file_type().is_block_device() {
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let folder = roots.sys.join(format!("dev/block/{major}:{minor}"));
        let folder = fs::canonicalize(&folder).with_context(what)?;
        return disk(&folder, path, &used_devices(&roots.proc)).with_context(what);
    }
    ensure!(meta.is_file(), "{} is neither a disk nor a file; name one of these", path.display());
    Ok(file_line(path, ByteCount(meta.len()), meta.permissions().readonly()))
}

fn file_line(path: &Path, size: ByteCount, read_only: bool) -> DiskLine {
    DiskLine {
        path: path.display().to_string(),
        size,
        model: None,
        serial: None,
        wwn: None,
        read_only,
        removable: false,
        rotational: false,
        busy: false,
        storage: None,
    }
}

fn disk(folder: &Path, device: &Path, used: &HashSet<String>) -> Option<DiskLine> {
    let flag = |name: &str| text(&folder.join(name)).as_deref() == Some("1");
    let sectors: u64 = text(&folder.join("size"))?.parse().ok()?;
    let wwn = text(&folder.join("wwid")).or_else(|| text(&folder.join("device/wwid")));
    Some(DiskLine {
        path: device.display().to_string(),
        size: ByteCount(sectors.checked_mul(SYSFS_SECTOR)?),
        model: text(&folder.join("device/model")).map(|model| squeeze(&model)),
        serial: serial(folder),
        wwn: wwn.map(|wwn| squeeze(&wwn)),
        read_only: flag("ro"),
        removable: flag("removable"),
        rotational: flag("queue/rotational"),
        busy: is_used(folder, used) || is_held(device),
        storage: File::open(device).ok().and_then(|file| storage(&file)),
    })
}

/// Bytes of the partition in which a client keeps its storage.
fn storage(disk: &File) -> Option<ByteCount> {
    let size = rustix::fs::seek(disk, rustix::fs::SeekFrom::End(0)).ok()?;
    StoragePartition::find(disk, ByteCount(size)).map(|storage| storage.size())
}

/// virtio has it on the disk, NVMe and MMC on the device, SCSI and ATA in page 0x80 of the vital product data.
fn serial(folder: &Path) -> Option<String> {
    let plain = text(&folder.join("serial")).or_else(|| text(&folder.join("device/serial")));
    let page = || {
        let page = fs::read(folder.join("device/vpd_pg80")).ok()?;
        // Peripheral, page code 0x80, length in two bytes, then the serial.
        let (header, rest) = page.split_first_chunk::<4>()?;
        let serial = rest.get(..usize::from(u16::from_be_bytes([header[2], header[3]])))?;
        let serial = String::from_utf8_lossy(serial).trim_matches([' ', '\0']).to_owned();
        (header[1] == 0x80 && !serial.is_empty()).then_some(serial)
    };
    plain.or_else(page)
}

/// `major:minor` of what is mounted or swapped on.
fn used_devices(proc: &Path) -> HashSet<String> {
    let mut used = HashSet::new();
    // 36 35 98:0 / /mnt rw - ext4 /dev/sda1 rw: the third field is the device.
    for line in fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default().lines() {
        used.extend(line.split(' ').nth(2).map(str::to_owned));
    }
    for line in fs::read_to_string(proc.join("swaps")).unwrap_or_default().lines().skip(1) {
        if let Some(path) = line.split_whitespace().next()
            && let Ok(meta) = fs::metadata(path)
            && meta.file_type().is_block_device()
        {
            let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            used.insert(format!("{major}:{minor}"));
        }
    }
    used
}

/// Whether the disk or a partition of it is mounted, swapped on, or part of a RAID, a mapping or a pool.
fn is_used(folder: &Path, used: &HashSet<String>) -> bool {
    let here = |folder: &Path| {
        text(&folder.join("dev")).is_some_and(|device| used.contains(&device))
            || !entries(&folder.join("holders")).is_empty()
    };
    here(folder)
        || entries(folder).iter().any(|inner| inner.join("partition").exists() && here(inner))
}

/// The kernel lets nobody open a disk exclusively that something else has claimed.
fn is_held(device: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    matches!(rustix::fs::open(device, flags, Mode::empty()), Err(Errno::BUSY))
}

/// One space where the firmware pads with many.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::identity::tests::put;

    fn machine() -> (tempfile::TempDir, Roots) {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let roots = Roots { sys: at("sys"), proc: at("proc"), dev: at("dev") };
        let put = |path: &str, text: &str| put(root.path(), path, text);
        put("dev/sda", "");
        put("sys/block/sda/size", "41943040\n");
        put("sys/block/sda/ro", "0\n");
        put("sys/block/sda/removable", "0\n");
        put("sys/block/sda/dev", "8:0\n");
        put("sys/block/sda/queue/rotational", "1\n");
        put("sys/block/sda/device/model", "QEMU HARDDISK   \n");
        put("sys/block/sda/device/wwid", "t10.ATA     QEMU HARDDISK    QM00001\n");
        put("sys/block/sda/device/vpd_pg80", "\0\u{1}");
        put("sys/block/sda/sda1/partition", "1\n");
        put("sys/block/sda/sda1/dev", "8:1\n");
        put("sys/block/vda/size", "2048\n");
        put("sys/block/vda/serial", "disk-7\n");
        put("sys/block/sr0/size", "2048\n");
        put("sys/block/sdb/size", "0\n");
        put("proc/self/mountinfo", "22 1 0:21 / /sys rw - sysfs sysfs rw\n");
        put("proc/swaps", "Filename Type Size Used Priority\n");
        (root, roots)
    }

    #[test]
    fn disks_are_read_from_sysfs() {
        let (root, roots) = machine();
        let page = [b"\0\x80\0\x08".as_slice(), b" QM00001"].concat();
        fs::write(root.path().join("sys/block/sda/device/vpd_pg80"), page).unwrap();
        let found = disks(&roots);
        assert_eq!(found.len(), 2, "no CD, no empty card reader: {found:?}");
        let [sda, vda] = found.as_slice() else { panic!("two disks") };
        assert_eq!(sda.path, roots.dev.join("sda").display().to_string());
        assert_eq!(sda.size, ByteCount(20 << 30));
        assert_eq!(sda.model.as_deref(), Some("QEMU HARDDISK"));
        assert_eq!(sda.serial.as_deref(), Some("QM00001"));
        assert_eq!(sda.wwn.as_deref(), Some("t10.ATA QEMU HARDDISK QM00001"));
        assert!(sda.rotational && !sda.busy && !sda.read_only && !sda.removable);
        assert_eq!(vda.serial.as_deref(), Some("disk-7"));
    }

    #[test]
    fn a_disk_with_a_mounted_or_held_partition_is_busy() {
        let (root, roots) = machine();
        put(root.path(), "proc/self/mountinfo", "25 22 8:1 / / rw - ext4 /dev/sda1 rw\n");
        assert!(disks(&roots)[0].busy);
        put(root.path(), "proc/self/mountinfo", "");
        assert!(!disks(&roots)[0].busy);
        put(root.path(), "sys/block/sda/sda1/holders/md0", "");
        assert!(disks(&roots)[0].busy);
    }

    #[test]
    fn a_file_is_a_disk_too_and_a_folder_is_not() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "disk.img", [0; 8192]);
        let line = named(&Roots::default(), &folder.path().join("disk.img")).unwrap();
        assert_eq!(line.size, ByteCount(8192));
        let absent = named(&Roots::default(), &folder.path().join("new.img")).unwrap();
        assert_eq!(absent.size, ByteCount(0));
        assert!(named(&Roots::default(), Path::new("/dev/no-such-disk")).is_err());
        let refusal = named(&Roots::default(), folder.path()).unwrap_err();
        assert!(refusal.to_string().contains("neither a disk nor a file"));
    }
}
