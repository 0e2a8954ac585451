//! A boot entry as UEFI firmware keeps it (UEFI specification 2.10, sections 3.1.3 and 10.3). Numbers are
//! little-endian; the order is the specification's, not ours.
//!
//! ```text
//!   EFI_LOAD_OPTION                             offset  bytes
//!     attributes: 1, active                          0      4
//!     length of the path list                        4      2
//!     description, UTF-16, ends with NUL             6   2 (n + 1)
//!     path list:
//!       hard drive: type 4, subtype 1, length 42     0      4
//!         partition number, from 1                   4      4
//!         first block, blocks                        8     16
//!         the partition's GUID, as on the disk      24     16
//!         2: the table is GPT, 2: named by GUID     40      2
//!       file: type 4, subtype 4, length              0      4
//!         path with \, UTF-16, ends with NUL         4   2 (n + 1)
//!       end: 7f ff 04 00                             0      4
//! ```
//!
//! A hard drive without the hardware above it is the short form (section 3.1.2): the firmware looks for the
//! partition on all disks, so the entry still holds when the disk was moved to another port.

/// Where the entry leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loader {
    pub(super) partition: u32,
    pub(super) first_block: u64,
    pub(super) blocks: u64,
    /// As the bytes lie on the disk: its first three numbers little-endian.
    pub(super) guid: [u8; 16],
    /// From the root of the partition: `\EFI\debian\shimx64.efi`
    pub(super) path: String,
}

const ACTIVE: u32 = 1;
const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE: u8 = 4;
const GPT: u8 = 2;
const BY_GUID: u8 = 2;
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
const NODE_HEADER: usize = 4;

/// The bytes of an entry. Nothing when a text is too long for the format.
#[must_use]
pub(super) fn encode(description: &str, loader: &Loader) -> Option<Vec<u8>> {
    let mut drive = Vec::new();
    drive.extend(loader.partition.to_le_bytes());
    drive.extend(loader.first_block.to_le_bytes());
    drive.extend(loader.blocks.to_le_bytes());
    drive.extend(loader.guid);
    drive.extend([GPT, BY_GUID]);
    let mut paths = node(HARD_DRIVE, &drive)?;
    paths.extend(node(FILE, &text(&loader.path))?);
    paths.extend(END);
    let mut option = ACTIVE.to_le_bytes().to_vec();
    option.extend(u16::try_from(paths.len()).ok()?.to_le_bytes());
    option.extend(text(description));
    option.extend(paths);
    Some(option)
}

/// Whether the bytes of some entry begin as those of one with this description.
#[must_use]
pub(super) fn is_described(option: &[u8], description: &str) -> bool {
    option.get(6..).is_some_and(|rest| rest.starts_with(&text(description)))
}

fn node(subtype: u8, body: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(NODE_HEADER + body.len()).ok()?;
    let mut node = vec![MEDIA, subtype];
    node.extend(length.to_le_bytes());
    node.extend(body);
    Some(node)
}

fn text(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader(path: &str) -> Loader {
        Loader {
            partition: 2,
            first_block: 4096,
            blocks: 8192,
            guid: *b"0123456789abcdef",
            path: path.to_owned(),
        }
    }

    #[test]
    fn the_bytes_are_the_specifications() {
        let option = encode("A", &loader("\\b")).unwrap();
        let wanted = hex::decode(concat!(
            "01000000", // active
            "3800",     // 42 + 10 + 4
            "41000000", // "A"
            "04012a00", // hard drive
            "02000000",
            "0010000000000000",
            "0020000000000000",
            "30313233343536373839616263646566",
            "0202",
            "04040a00", // file
            "5c0062000000",
            "7fff0400",
        ));
        assert_eq!(option, wanted.unwrap());
    }

    #[test]
    fn an_entry_is_known_by_its_whole_description() {
        let option = encode("Cairn", &loader("\\b")).unwrap();
        assert!(is_described(&option, "Cairn"));
        assert!(!is_described(&option, "Cair"));
        assert!(!is_described(&option, "Cairn "));
        assert!(!is_described(&option[..8], "Cairn"));
        assert!(!is_described(&[], "Cairn"));
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        assert_eq!(encode("A", &loader(&"x".repeat(40_000))), None);
    }
}
