//! What a machine says it is, read from sysfs: SMBIOS names, network addresses, firmware.
//!
//! Firmware lies: boards come with a UUID of zeros or with "To Be Filled By O.E.M." as serial number. Such a
//! value would make two machines look like one, so it counts as absent.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cairn_array::wire::{Firmware, MachineIdentity};

/// A longer text is no name (SMBIOS strings have at most 64 characters in practice).
const MAX_NAME_CHARS: usize = 128;
/// Serial numbers of boards that have none, in lower case.
const PLACEHOLDERS: &[&str] = &[
    "0",
    "00000000",
    "0123456789",
    "123456789",
    "default string",
    "n/a",
    "none",
    "not applicable",
    "not specified",
    "o.e.m.",
    "system product name",
    "system manufacturer",
    "system serial number",
    "to be filled by o.e.m.",
    "unknown",
];
/// EFI's global variable that says whether the firmware verified what it booted.
const SECURE_BOOT: &str = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// ARPHRD_ETHER.
const ETHERNET: &str = "1";

/// The identity below `sys` (`/sys`). What cannot be read is absent: the UUID, for one, is root's alone.
#[must_use]
pub fn identity(sys: &Path) -> MachineIdentity {
    let dmi = |name: &str| text(&sys.join("class/dmi/id").join(name)).filter(|text| is_name(text));
    MachineIdentity {
        uuid: dmi("product_uuid")
            .map(|uuid| uuid.to_ascii_lowercase())
            .filter(|uuid| is_uuid(uuid)),
        serial: dmi("product_serial"),
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        macs: macs(sys),
    }
}

/// How this machine was booted.
#[must_use]
pub fn firmware(sys: &Path) -> Firmware {
    if sys.join("firmware/efi").is_dir() { Firmware::Uefi } else { Firmware::Bios }
}

/// Whether the firmware says that it verified what it booted.
#[must_use]
pub fn secure_boot(sys: &Path) -> bool {
    // Four bytes of attributes, then the value.
    fs::read(sys.join(SECURE_BOOT)).is_ok_and(|value| matches!(value.as_slice(), [_, _, _, _, 1]))
}

/// The machine in one line, for people.
#[must_use]
pub fn describe(identity: &MachineIdentity) -> String {
    let names: Vec<&str> =
        [&identity.vendor, &identity.product].into_iter().flatten().map(String::as_str).collect();
    let mut line = if names.is_empty() { "unnamed machine".to_owned() } else { names.join(" ") };
    if let Some(serial) = &identity.serial {
        line.push_str(", serial ");
        line.push_str(serial);
    }
    if let Some(mac) = identity.macs.first() {
        line.push_str(", ");
        line.push_str(mac);
    }
    line
}

/// Ethernet addresses of the network cards that are hardware.
fn macs(sys: &Path) -> Vec<String> {
    let mut macs = BTreeSet::new();
    for link in entries(&sys.join("class/net")) {
        // A bridge, a tunnel or the loopback has no device behind it.
        let hardware =
            link.join("device").exists() && text(&link.join("type")).as_deref() == Some(ETHERNET);
        if hardware && let Some(mac) = text(&link.join("address")) {
            let mac = mac.to_ascii_lowercase();
            if mac.len() == 17 && mac != "00:00:00:00:00:00" {
                macs.insert(mac);
            }
        }
    }
    macs.into_iter().collect()
}

fn is_name(text: &str) -> bool {
    !PLACEHOLDERS.contains(&text.to_ascii_lowercase().as_str())
        && text.chars().count() <= MAX_NAME_CHARS
        && !text.chars().any(char::is_control)
}

/// Thirty-two hex digits that are not all the same.
fn is_uuid(text: &str) -> bool {
    let digits: Vec<char> = text.chars().filter(|c| *c != '-').collect();
    digits.len() == 32
        && digits.iter().all(char::is_ascii_hexdigit)
        && digits.iter().any(|digit| Some(digit) != digits.first())
}

/// The trimmed text of a small file of sysfs; absent when it is empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text).trim_matches(['\0', ' ', '\n', '\t']).to_owned();
    (!text.is_empty()).then_some(text)
}

/// The entries of a folder of sysfs in the order of their names.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes `text` to a file below `root`, with its folders.
    pub(in crate::target) fn put(root: &Path, path: &str, text: impl AsRef<[u8]>) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_machine_is_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| put(sys.path(), path, text);
        put("class/dmi/id/product_uuid", "4C4C4544-0042-3510-8052-B4C04F4A4D32\n");
        put("class/dmi/id/product_serial", "7XB5RJ2\n");
        put("class/dmi/id/sys_vendor", "Dell Inc.\n");
        put("class/dmi/id/product_name", "OptiPlex 7050\n");
        for (name, mac, kind) in [
            ("eth1", "52:54:00:AB:00:02\n", "1\n"),
            ("eth0", "52:54:00:ab:00:01\n", "1\n"),
            ("ib0", "80:00:02:08:fe:80:00:00:00:00\n", "32\n"),
        ] {
            put(&format!("class/net/{name}/address"), mac);
            put(&format!("class/net/{name}/type"), kind);
            put(&format!("class/net/{name}/device/vendor"), "0x8086\n");
        }
        put("class/net/br0/address", "02:00:00:00:00:01\n");
        put("class/net/br0/type", "1\n");
        let found = identity(sys.path());
        assert_eq!(found.uuid.as_deref(), Some("4c4c4544-0042-3510-8052-b4c04f4a4d32"));
        assert_eq!(found.macs, ["52:54:00:ab:00:01", "52:54:00:ab:00:02"]);
        assert_eq!(describe(&found), "Dell Inc. OptiPlex 7050, serial 7XB5RJ2, 52:54:00:ab:00:01");
        assert_eq!(firmware(sys.path()), Firmware::Bios);
        assert!(!secure_boot(sys.path()));
    }

    #[test]
    fn what_boards_without_identity_say_counts_as_absent() {
        let sys = tempfile::tempdir().unwrap();
        put(sys.path(), "class/dmi/id/product_uuid", "00000000-0000-0000-0000-000000000000\n");
        put(sys.path(), "class/dmi/id/product_serial", "To Be Filled By O.E.M.\n");
        put(sys.path(), "class/dmi/id/sys_vendor", " \n");
        put(sys.path(), "class/dmi/id/product_name", "a\u{1b}[2J");
        assert_eq!(identity(sys.path()), MachineIdentity::default());
        assert_eq!(describe(&MachineIdentity::default()), "unnamed machine");
    }

    #[test]
    fn secure_boot_is_the_fifth_byte() {
        let sys = tempfile::tempdir().unwrap();
        put(sys.path(), SECURE_BOOT, [6, 0, 0, 0, 1]);
        assert!(secure_boot(sys.path()));
        assert_eq!(firmware(sys.path()), Firmware::Uefi);
        put(sys.path(), SECURE_BOOT, [6, 0, 0, 0, 0]);
        assert!(!secure_boot(sys.path()));
    }
}
