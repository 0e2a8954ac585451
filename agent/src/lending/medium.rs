//! What the storage file lies on: hard disk, flash, or a rewritable medium that can be taken out.
//!
//! ```text
//!   file ─► device number ─► /sys/dev/block/MAJ:MIN ─► whole disk ─► queue/rotational, removable, device/type
//!                                     │ partition: its parent
//!                                     │ loop: what its backing file lies on
//!                                     └ RAID, LVM, encryption: what it is made of (slaves), the most delicate counts
//! ```
//!
//! Source: Linux, Documentation/ABI/stable/sysfs-block.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Devices that are made of devices that are made of devices.
const MAX_DEPTH: u8 = 8;
/// SCSI peripheral device types 4, 5 and 7: write-once, CD/DVD, optical memory.
const OPTICAL_TYPES: [&str; 3] = ["4", "5", "7"];

/// Kinds of media, the least delicate first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediumClass {
    Flash,
    Rotational,
    /// The system does not say.
    Unknown,
    /// A card, a stick, or a disk behind USB.
    Removable,
    /// A rewritable disc.
    Optical,
}

/// What the storage file lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Medium {
    pub class: MediumClass,
    /// The kernel's name of the disk, where it has one.
    pub device: Option<String>,
}

impl MediumClass {
    /// Whether writing wears it out, so that a day's writes are bounded.
    #[must_use]
    pub const fn wears(self) -> bool {
        !matches!(self, Self::Rotational)
    }

    /// Segments that are fetched, and so written, at once: heads that move and slow media get one after the other.
    #[must_use]
    pub const fn fetches_at_once(self) -> usize {
        match self {
            Self::Flash => 6,
            Self::Rotational | Self::Unknown => 4,
            Self::Removable | Self::Optical => 1,
        }
    }

    /// The pause after each segment that is scrubbed: a DSF of 20 GiB takes three hours, six, or a day.
    #[must_use]
    pub const fn scrub_pause(self) -> Duration {
        match self {
            Self::Flash => Duration::from_secs(2),
            Self::Rotational | Self::Unknown => Duration::from_secs(4),
            Self::Removable | Self::Optical => Duration::from_secs(16),
        }
    }

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flash => "flash",
            Self::Rotational => "hard disk",
            Self::Unknown => "medium of unknown kind",
            Self::Removable => "removable medium",
            Self::Optical => "rewritable disc",
        }
    }
}

/// What `path` lies on, by the kernel's files below `sys` (`/sys`) and `proc` (`/proc`).
#[must_use]
pub fn medium_of(path: &Path, sys: &Path, proc: &Path) -> Medium {
    let unknown = Medium { class: MediumClass::Unknown, device: None };
    let Ok(meta) = fs::metadata(path) else { return unknown };
    System { sys, proc }.of_number(meta.dev(), MAX_DEPTH).unwrap_or(unknown)
}

#[derive(Clone, Copy)]
struct System<'a> {
    sys: &'a Path,
    proc: &'a Path,
}

impl System<'_> {
    fn of_number(self, device: u64, depth: u8) -> Option<Medium> {
        let depth = depth.checked_sub(1)?;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        if major == 0 {
            // A file system over several devices has a number of its own; the mount table names one of them.
            let source = self.mounted_from(&format!("{major}:{minor}"))?;
            return self.of_number(fs::metadata(source).ok()?.rdev(), depth);
        }
        let entry = self.sys.join(format!("dev/block/{major}:{minor}"));
        self.of_entry(&fs::canonicalize(entry).ok()?, depth)
    }

    fn of_entry(self, entry: &Path, depth: u8) -> Option<Medium> {
        let depth = depth.checked_sub(1)?;
        let disk = if entry.join("partition").exists() { entry.parent()? } else { entry };
        if let Some(backing) = read(&disk.join("loop/backing_file")) {
            let below =
                fs::metadata(backing).ok().and_then(|meta| self.of_number(meta.dev(), depth));
            if below.is_some() {
                return below;
            }
        }
        let below = fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten();
        let below = below.filter_map(|slave| fs::canonicalize(slave.path()).ok());
        let below = below.filter_map(|slave| self.of_entry(&slave, depth));
        below.max_by_key(|medium| medium.class).or_else(|| Some(of_disk(disk)))
    }

    /// The device that a file system was mounted from, by its device number in `mountinfo` (proc(5)).
    fn mounted_from(self, number: &str) -> Option<PathBuf> {
        let table = fs::read_to_string(self.proc.join("self/mountinfo")).ok()?;
        table.lines().find_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            (mount.split(' ').nth(2)? == number).then_some(())?;
            let source = system.split(' ').nth(1)?;
            source.starts_with("/dev/").then(|| PathBuf::from(source))
        })
    }
}

fn of_disk(disk: &Path) -> Medium {
    let name = disk.file_name().map(|name| name.to_string_lossy().into_owned());
    let is = |file: &str, value: &str| read(&disk.join(file)).as_deref() == Some(value);
    let kind = read(&disk.join("device/type"));
    let optical = kind.as_deref().is_some_and(|kind| OPTICAL_TYPES.contains(&kind));
    let behind_usb =
        disk.components().any(|part| part.as_os_str().to_string_lossy().starts_with("usb"));
    let class = if optical {
        MediumClass::Optical
    } else if is("removable", "1") || kind.as_deref() == Some("SD") || behind_usb {
        MediumClass::Removable
    } else if is("queue/rotational", "0") {
        MediumClass::Flash
    } else if is("queue/rotational", "1") {
        MediumClass::Rotational
    } else {
        MediumClass::Unknown
    };
    Medium { class, device: name }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A disk as the kernel shows it; `place` is its folder below `devices`.
    fn disk(sys: &Path, place: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = sys.join("devices").join(place);
        for (file, text) in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        folder
    }

    fn class_of(place: &str, files: &[(&str, &str)]) -> MediumClass {
        let sys = tempfile::tempdir().unwrap();
        of_disk(&disk(sys.path(), place, files)).class
    }

    #[test]
    fn each_kind_of_disk_is_told() {
        let fixed = ("removable", "0");
        assert_eq!(
            class_of("pci/nvme0n1", &[fixed, ("queue/rotational", "0")]),
            MediumClass::Flash
        );
        let disk = [fixed, ("queue/rotational", "1"), ("device/type", "0")];
        assert_eq!(class_of("pci/ata1/sda", &disk), MediumClass::Rotational);
        assert_eq!(class_of("pci/usb1/1-1/sdb", &disk), MediumClass::Removable);
        let card = [fixed, ("queue/rotational", "0"), ("device/type", "SD")];
        assert_eq!(class_of("mmc0/mmcblk0", &card), MediumClass::Removable);
        let disc = [("removable", "1"), ("queue/rotational", "1"), ("device/type", "5")];
        assert_eq!(class_of("pci/ata2/sr0", &disc), MediumClass::Optical);
        assert_eq!(class_of("pci/xyz", &[fixed]), MediumClass::Unknown);
    }

    #[test]
    fn a_volume_is_as_delicate_as_the_most_delicate_disk_under_it() {
        let sys = tempfile::tempdir().unwrap();
        let flash = disk(
            sys.path(),
            "pci/nvme0n1",
            &[("queue/rotational", "0"), ("nvme0n1p2/partition", "2")],
        );
        let stick = disk(sys.path(), "pci/usb1/sdb", &[("removable", "1")]);
        let volume = disk(sys.path(), "virtual/block/dm-0", &[("queue/rotational", "0")]);
        let system = System { sys: sys.path(), proc: sys.path() };
        fs::create_dir_all(volume.join("slaves")).unwrap();
        symlink(flash.join("nvme0n1p2"), volume.join("slaves/nvme0n1p2")).unwrap();
        let medium = system.of_entry(&volume, MAX_DEPTH).unwrap();
        assert_eq!(medium, Medium { class: MediumClass::Flash, device: Some("nvme0n1".into()) });
        symlink(&stick, volume.join("slaves/sdb")).unwrap();
        assert_eq!(system.of_entry(&volume, MAX_DEPTH).unwrap().class, MediumClass::Removable);
        // A device that claims to be made of itself ends too.
        let odd = disk(sys.path(), "virtual/block/dm-1", &[("removable", "0")]);
        fs::create_dir_all(odd.join("slaves")).unwrap();
        symlink(&odd, odd.join("slaves/dm-1")).unwrap();
        assert_eq!(system.of_entry(&odd, MAX_DEPTH).unwrap().class, MediumClass::Unknown);
    }

    #[test]
    fn the_mount_table_names_the_device_of_a_file_system_with_its_own_number() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        let table = "22 1 0:21 / /proc rw - proc proc rw\n\
                     36 35 0:33 / /data rw,noatime shared:1 - btrfs /dev/sda2 rw,space_cache\n";
        fs::write(proc.path().join("self/mountinfo"), table).unwrap();
        let system = System { sys: proc.path(), proc: proc.path() };
        assert_eq!(system.mounted_from("0:33"), Some(PathBuf::from("/dev/sda2")));
        assert_eq!(system.mounted_from("0:21"), None);
    }
}
