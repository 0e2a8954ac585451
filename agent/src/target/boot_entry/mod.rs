//! Tells UEFI firmware how an installed disk boots: the last step of an install.
//!
//! ```text
//!   Boot####    one entry called "Cairn": a later install replaces it
//!   BootOrder   new: right behind what this boot came from, so a machine that boots from the network first keeps
//!               doing so, and what comes next is the installed system; known: unchanged
//!   BootNext    the entry: the restart leads into the installed system without another round over the network
//! ```
//!
//! Invariant: the entry is written before the order that names it, and the order before `BootNext`; whatever was in
//! the order stays there in its order.

mod esp;
mod load_option;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};

/// `EFI_GLOBAL_VARIABLE`, which holds all that is about booting.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Where the kernel shows the firmware's variables, below `/sys`.
const EFIVARS: &str = "firmware/efi/efivars";
/// Kept without power, readable before and after the operating system has started.
const ATTRIBUTES: u32 = 7;
const ATTRIBUTE_BYTES: usize = 4;
const DESCRIPTION: &str = "Cairn";

/// What became of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The machine was not started by UEFI.
    NotUefi,
    /// The disk has nothing that UEFI could start.
    NoLoader,
    /// This loader comes up next.
    Written { loader: String },
    /// Firmware that looks at the disk finds it without an entry.
    FallbackOnly { reason: String },
}

/// Writes the boot entry for the system on `disk` into the firmware below `sys` (`/sys`).
///
/// # Errors
/// The disk cannot be read; or the firmware refuses the entry, and the disk does not boot without one.
pub fn write(sys: &Path, disk: &Path) -> Result<Outcome> {
    if !sys.join("firmware/efi").is_dir() {
        return Ok(Outcome::NotUefi);
    }
    let file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
    let Some(loader) = esp::find(&file)? else { return Ok(Outcome::NoLoader) };
    let option = load_option::encode(DESCRIPTION, &loader)
        .with_context(|| format!("the path {} is too long for a boot entry", loader.path))?;
    let variables = Variables { folder: sys.join(EFIVARS) };
    match variables.enter(&option) {
        Ok(()) => Ok(Outcome::Written { loader: loader.path }),
        Err(error) if loader.path == esp::FALLBACK => {
            Ok(Outcome::FallbackOnly { reason: format!("{error:#}") })
        }
        Err(error) => Err(error.context(format!(
            "the disk is installed, but the firmware has no boot entry for {}: add one in its setup, or free its memory of old entries and try again",
            loader.path
        ))),
    }
}

struct Variables {
    folder: PathBuf,
}

impl Variables {
    fn enter(&self, option: &[u8]) -> Result<()> {
        let entries = self.entries()?;
        let number = number_for(&entries).context("all numbers of boot entries are taken")?;
        if entries.get(&number).is_none_or(|known| known != option) {
            self.set(&format!("Boot{number:04X}"), option)?;
        }
        let order = numbers(&self.get("BootOrder")?.unwrap_or_default());
        let current = self.get("BootCurrent")?.and_then(|bytes| numbers(&bytes).first().copied());
        let new = with(&order, number, current);
        if new != order {
            let bytes: Vec<u8> = new.into_iter().flat_map(u16::to_le_bytes).collect();
            self.set("BootOrder", &bytes)?;
        }
        self.set("BootNext", &number.to_le_bytes())
    }

    /// All boot entries by number.
    fn entries(&self) -> Result<BTreeMap<u16, Vec<u8>>> {
        let mut entries = BTreeMap::new();
        let unreadable = || format!("list the firmware's variables in {}", self.folder.display());
        for entry in fs::read_dir(&self.folder).with_context(unreadable)? {
            let name = entry.with_context(unreadable)?.file_name();
            let Some(number) = name.to_str().and_then(entry_number) else { continue };
            if let Some(option) = self.get(&format!("Boot{number:04X}"))? {
                entries.insert(number, option);
            }
        }
        Ok(entries)
    }

    /// The value of a variable, without its attributes.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path(name)) {
            Ok(bytes) => Ok(bytes.get(ATTRIBUTE_BYTES..).map(<[u8]>::to_vec)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(anyhow!(error).context(format!("read the firmware's {name}"))),
        }
    }

    /// One write call: the kernel hands it to the firmware as a whole.
    fn set(&self, name: &str, value: &[u8]) -> Result<()> {
        let mut bytes = ATTRIBUTES.to_le_bytes().to_vec();
        bytes.extend(value);
        fs::write(self.path(name), bytes).with_context(|| format!("write the firmware's {name}"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{GLOBAL}"))
    }
}

/// The number in `Boot0001-8be4…`.
fn entry_number(file: &str) -> Option<u16> {
    let digits = file.strip_suffix(GLOBAL)?.strip_suffix('-')?.strip_prefix("Boot")?;
    let hex = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks().0.iter().copied().map(u16::from_le_bytes).collect()
}

/// The number of our entry, else the lowest free one.
fn number_for(entries: &BTreeMap<u16, Vec<u8>>) -> Option<u16> {
    let ours = entries.iter().find(|(_, option)| load_option::is_described(option, DESCRIPTION));
    match ours {
        Some((number, _)) => Some(*number),
        None => (0..=u16::MAX).find(|number| !entries.contains_key(number)),
    }
}

/// `order` with `number` in it: behind `current`, else at the end.
fn with(order: &[u16], number: u16, current: Option<u16>) -> Vec<u16> {
    let mut order = order.to_vec();
    if !order.contains(&number) {
        let behind = order.iter().position(|other| Some(*other) == current);
        order.insert(behind.map_or(order.len(), |place| place + 1), number);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        sys: tempfile::TempDir,
        disk: PathBuf,
    }

    impl Machine {
        fn with(files: &[&str]) -> Self {
            let sys = tempfile::tempdir().unwrap();
            fs::create_dir_all(sys.path().join(EFIVARS)).unwrap();
            let disk = sys.path().join("disk");
            let mut from = esp::tests::disk_with(files);
            io::Seek::rewind(&mut from).unwrap();
            io::copy(&mut from, &mut File::create(&disk).unwrap()).unwrap();
            Self { sys, disk }
        }

        fn variables(&self) -> Variables {
            Variables { folder: self.sys.path().join(EFIVARS) }
        }

        fn write(&self) -> Result<Outcome> {
            write(self.sys.path(), &self.disk)
        }

        fn numbers(&self, name: &str) -> Vec<u16> {
            numbers(&self.variables().get(name).unwrap().unwrap_or_default())
        }
    }

    const DEBIAN: &[&str] = &["EFI/debian/grubx64.efi"];

    #[test]
    fn the_entry_follows_what_was_booted_and_comes_next() {
        let machine = Machine::with(DEBIAN);
        let variables = machine.variables();
        for (name, value) in [
            ("Boot0000", &b"a"[..]),
            ("Boot0001", b"b"),
            ("Boot0003", b"c"),
            ("BootCurrent", &[1, 0]),
        ] {
            variables.set(name, value).unwrap();
        }
        variables.set("BootOrder", &[3, 0, 1, 0, 0, 0]).unwrap();
        let outcome = machine.write().unwrap();
        assert_eq!(outcome, Outcome::Written { loader: "\\EFI\\debian\\grubx64.efi".into() });
        assert_eq!(machine.numbers("BootOrder"), [3, 1, 2, 0]);
        assert_eq!(machine.numbers("BootNext"), [2]);
        let option = variables.get("Boot0002").unwrap().unwrap();
        assert!(load_option::is_described(&option, DESCRIPTION));
        let raw = fs::read(variables.path("Boot0002")).unwrap();
        assert_eq!(raw[..4], [7, 0, 0, 0]);
    }

    #[test]
    fn a_second_install_keeps_the_number_and_the_order_that_an_owner_chose() {
        let machine = Machine::with(DEBIAN);
        machine.write().unwrap();
        assert_eq!(machine.numbers("BootOrder"), [0]);
        let variables = machine.variables();
        variables.set("Boot0001", b"other").unwrap();
        variables.set("BootOrder", &[1, 0, 0, 0]).unwrap();
        let other = Machine::with(DEBIAN);
        write(machine.sys.path(), &other.disk).unwrap();
        assert_eq!(machine.numbers("BootOrder"), [1, 0]);
        assert_eq!(machine.numbers("BootNext"), [0]);
        assert_eq!(variables.entries().unwrap().len(), 2);
        let (first, second) = (
            esp::find(&File::open(&machine.disk).unwrap()),
            esp::find(&File::open(&other.disk).unwrap()),
        );
        assert_ne!(first.unwrap(), second.unwrap());
    }

    #[test]
    fn a_refused_entry_fails_the_install_only_when_the_disk_needs_it() {
        let refuse = |machine: &Machine| {
            fs::create_dir(machine.variables().path("BootNext")).unwrap();
        };
        let machine = Machine::with(DEBIAN);
        refuse(&machine);
        let error = format!("{:#}", machine.write().unwrap_err());
        assert!(
            error.contains("\\EFI\\debian\\grubx64.efi") && error.contains("BootNext"),
            "{error}"
        );
        let machine = Machine::with(&["EFI/BOOT/BOOTX64.EFI"]);
        refuse(&machine);
        let outcome = machine.write().unwrap();
        assert!(matches!(outcome, Outcome::FallbackOnly { .. }), "{outcome:?}");
    }

    #[test]
    fn bios_machines_and_disks_for_bios_have_none() {
        let machine = Machine::with(&[]);
        assert_eq!(machine.write().unwrap(), Outcome::NoLoader);
        fs::remove_dir_all(machine.sys.path().join("firmware")).unwrap();
        assert_eq!(machine.write().unwrap(), Outcome::NotUefi);
    }

    #[test]
    fn only_boot_entries_are_numbered() {
        assert_eq!(entry_number(&format!("Boot00aF-{GLOBAL}")), Some(0xaf));
        for other in ["BootOrder", "BootNext", "Boot+001", "Boot00001", "Driver0001"] {
            assert_eq!(entry_number(&format!("{other}-{GLOBAL}")), None, "{other}");
        }
        assert_eq!(entry_number("Boot0001-00000000-0000-0000-0000-000000000000"), None);
    }
}
