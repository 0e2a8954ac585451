//! Which disk is installed to: a pure choice that refuses whatever it could get wrong.
//!
//! Invariants: a disk is never chosen that is read-only, busy or too small; a removable one only when it is
//! named by serial, WWN or path; when two disks fit, none is chosen. Every refusal says what to do.

use cairn_array::wire::{DiskLine, DiskSelector};
use cairn_core::units::ByteCount;

use crate::size;

/// Why no disk was chosen, before a byte was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskRefusal {
    #[error(
        "this machine shows no disk; check cables and the firmware's storage mode (AHCI rather than RAID), then try again"
    )]
    NoDisk,
    #[error("no disk has {wanted}; this machine has {present}. Deploy again with one of these")]
    NoMatch { wanted: String, present: String },
    #[error(
        "no disk can be installed to: {reasons}. Free one, or deploy again naming a disk by serial or WWN"
    )]
    NoneUsable { reasons: String },
    #[error(
        "{wanted} fits more than one disk: {fitting}. Deploy again naming one by its serial or WWN"
    )]
    Ambiguous { wanted: String, fitting: String },
    #[error("{disk} holds {}, the image needs {}; use a larger disk or a smaller image", size::show(*.size), size::show(*.needed))]
    TooSmall { disk: String, size: ByteCount, needed: ByteCount },
    #[error("{disk} is read-only; remove its write protection or choose another disk")]
    ReadOnly { disk: String },
    #[error(
        "{disk} is in use: unmount its file systems, turn off swap and RAID on it, then try again"
    )]
    Busy { disk: String },
    #[error("{disk} is removable; name it by its serial or WWN if it is really meant")]
    Removable { disk: String },
}

/// The one disk that the selector means, when the image fits it and nothing else is on the way.
///
/// # Errors
/// [`DiskRefusal`] in every doubtful case.
pub fn select_disk<'a>(
    disks: &'a [DiskLine],
    selector: &DiskSelector,
    needed: ByteCount,
) -> Result<&'a DiskLine, DiskRefusal> {
    let disk = match selector {
        DiskSelector::Only => only(disks)?,
        _ => named(disks, selector)?,
    };
    let name = || disk.path.clone();
    if disk.read_only {
        return Err(DiskRefusal::ReadOnly { disk: name() });
    }
    if disk.busy {
        return Err(DiskRefusal::Busy { disk: name() });
    }
    if disk.removable && matches!(selector, DiskSelector::Size(_)) {
        return Err(DiskRefusal::Removable { disk: name() });
    }
    if disk.size < needed {
        return Err(DiskRefusal::TooSmall { disk: name(), size: disk.size, needed });
    }
    Ok(disk)
}

/// The only disk that could be meant. One that could be but is too small still makes a second one ambiguous:
/// what is meant must not depend on the image's size.
fn only(disks: &[DiskLine]) -> Result<&DiskLine, DiskRefusal> {
    if disks.is_empty() {
        return Err(DiskRefusal::NoDisk);
    }
    let usable: Vec<&DiskLine> = disks.iter().filter(|disk| hindrance(disk).is_none()).collect();
    match usable.as_slice() {
        [disk] => Ok(disk),
        [] => {
            let reasons =
                disks.iter().filter_map(|disk| Some(format!("{} {}", disk.path, hindrance(disk)?)));
            Err(DiskRefusal::NoneUsable { reasons: join(reasons) })
        }
        many => Err(DiskRefusal::Ambiguous {
            wanted: "\"the only disk\"".to_owned(),
            fitting: join(many.iter().map(|disk| describe(disk))),
        }),
    }
}

fn named<'a>(disks: &'a [DiskLine], selector: &DiskSelector) -> Result<&'a DiskLine, DiskRefusal> {
    let fitting: Vec<&DiskLine> = disks.iter().filter(|disk| fits(disk, selector)).collect();
    let wanted = match selector {
        DiskSelector::Only => "\"the only disk\"".to_owned(),
        DiskSelector::Serial(serial) => format!("serial {serial}"),
        DiskSelector::Wwn(wwn) => format!("WWN {wwn}"),
        DiskSelector::Size(bytes) => format!("exactly {bytes} bytes"),
        DiskSelector::Path(path) => format!("the path {path}"),
    };
    match fitting.as_slice() {
        [disk] => Ok(disk),
        [] if disks.is_empty() => Err(DiskRefusal::NoDisk),
        [] => Err(DiskRefusal::NoMatch { wanted, present: join(disks.iter().map(describe)) }),
        many => Err(DiskRefusal::Ambiguous {
            wanted,
            fitting: join(many.iter().map(|disk| describe(disk))),
        }),
    }
}

fn fits(disk: &DiskLine, selector: &DiskSelector) -> bool {
    match selector {
        DiskSelector::Only => true,
        DiskSelector::Serial(serial) => disk.serial.as_deref() == Some(serial.trim()),
        DiskSelector::Wwn(wwn) => {
            let bare = |wwn: &str| {
                let wwn = wwn.trim().to_ascii_lowercase();
                wwn.trim_start_matches("0x").trim_start_matches("naa.").to_owned()
            };
            disk.wwn.as_deref().map(bare) == Some(bare(wwn))
        }
        DiskSelector::Size(bytes) => disk.size == *bytes,
        DiskSelector::Path(path) => disk.path == *path,
    }
}

/// Why a disk is not taken for "the only one".
fn hindrance(disk: &DiskLine) -> Option<&'static str> {
    if disk.read_only {
        Some("is read-only")
    } else if disk.busy {
        Some("is in use")
    } else if disk.removable {
        Some("is removable")
    } else {
        None
    }
}

/// A disk as people tell it from others.
#[must_use]
pub fn describe(disk: &DiskLine) -> String {
    let mut line = format!("{} ({}", disk.path, size::show(disk.size));
    for (label, value) in [("", &disk.model), ("serial ", &disk.serial), ("WWN ", &disk.wwn)] {
        if let Some(value) = value {
            line.push_str(", ");
            line.push_str(label);
            line.push_str(value);
        }
    }
    line.push(')');
    line
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: ByteCount = ByteCount(10 << 30);

    fn disk(path: &str) -> DiskLine {
        DiskLine {
            path: path.to_owned(),
            size: ByteCount(20 << 30),
            model: None,
            serial: Some(format!("S-{path}")),
            wwn: None,
            read_only: false,
            removable: false,
            rotational: false,
            busy: false,
            storage: None,
        }
    }

    fn chosen(disks: &[DiskLine], selector: &DiskSelector) -> Result<String, DiskRefusal> {
        select_disk(disks, selector, NEEDED).map(|disk| disk.path.clone())
    }

    #[test]
    fn the_only_usable_disk_is_taken() {
        let stick = DiskLine { removable: true, ..disk("/dev/sdb") };
        let root = DiskLine { busy: true, ..disk("/dev/sdc") };
        let sealed = DiskLine { read_only: true, ..disk("/dev/sdd") };
        let disks = [disk("/dev/sda"), stick.clone(), root.clone(), sealed.clone()];
        assert_eq!(chosen(&disks, &DiskSelector::Only), Ok("/dev/sda".to_owned()));
        let refusal = chosen(&[stick, root, sealed], &DiskSelector::Only).unwrap_err().to_string();
        assert!(
            refusal.contains("/dev/sdb is removable; /dev/sdc is in use; /dev/sdd is read-only")
        );
        assert_eq!(chosen(&[], &DiskSelector::Only), Err(DiskRefusal::NoDisk));
    }

    #[test]
    fn two_disks_are_ambiguous_even_when_only_one_is_large_enough() {
        let small = DiskLine { size: ByteCount(1 << 30), ..disk("/dev/sdb") };
        let refusal = chosen(&[disk("/dev/sda"), small], &DiskSelector::Only).unwrap_err();
        assert!(matches!(refusal, DiskRefusal::Ambiguous { .. }));
        let text = refusal.to_string();
        assert!(text.contains("serial S-/dev/sda") && text.contains("naming one"), "{text}");
    }

    #[test]
    fn a_named_disk_is_found_whatever_else_is_there() {
        let mut second = disk("/dev/sdb");
        second.wwn = Some("naa.5000C500A1B2C3D4".to_owned());
        second.removable = true;
        let disks = [disk("/dev/sda"), second];
        for selector in [
            DiskSelector::Serial("S-/dev/sdb".to_owned()),
            DiskSelector::Wwn("0x5000c500a1b2c3d4".to_owned()),
            DiskSelector::Path("/dev/sdb".to_owned()),
        ] {
            assert_eq!(chosen(&disks, &selector), Ok("/dev/sdb".to_owned()), "{selector:?}");
        }
        let missing = chosen(&disks, &DiskSelector::Serial("X".to_owned())).unwrap_err();
        assert!(matches!(missing, DiskRefusal::NoMatch { .. }));
        assert!(missing.to_string().contains("no disk has serial X"));
    }

    #[test]
    fn a_size_means_one_fixed_disk() {
        let by_size = DiskSelector::Size(ByteCount(20 << 30));
        let disks = [disk("/dev/sda"), disk("/dev/sdb")];
        assert!(matches!(chosen(&disks, &by_size), Err(DiskRefusal::Ambiguous { .. })));
        let stick = DiskLine { removable: true, ..disk("/dev/sda") };
        assert!(matches!(chosen(&[stick], &by_size), Err(DiskRefusal::Removable { .. })));
    }

    #[test]
    fn a_named_disk_that_cannot_be_written_is_refused() {
        let path = DiskSelector::Path("/dev/sda".to_owned());
        for (line, expected) in [
            (DiskLine { busy: true, ..disk("/dev/sda") }, "is in use"),
            (DiskLine { read_only: true, ..disk("/dev/sda") }, "is read-only"),
            (
                DiskLine { size: ByteCount(NEEDED.0 - 1), ..disk("/dev/sda") },
                "the image needs 10 GiB",
            ),
        ] {
            let refusal = chosen(&[line], &path).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
        let exact = DiskLine { size: NEEDED, ..disk("/dev/sda") };
        assert!(chosen(&[exact], &path).is_ok());
    }
}
