//! Where the partitions of a disk image are: GPT (UEFI 2.10, section 5.3) and MBR, read from the image's first bytes.
//!
//! Used to leave out blocks, so it answers only when it is sure: a table that is damaged, overlaps itself or leaves the image is
//! [`Table::Unknown`]. Read by hand because what is read is foreign: the `gptman` crate asserts on header sizes and allocates for
//! whatever entry count a header names. Logical partitions inside an extended one are not looked for.
//!
//! | where | what |
//! |---|---|
//! | sector 0, byte 446 | MBR: four entries of 16 bytes: type at 4, first sector at 8, sector count at 12 |
//! | sector 0, byte 510 | `55 aa` |
//! | sector 1 | GPT header: `EFI PART`, size at 12, CRC at 16, entry array's sector at 72, count at 80, entry size at 84, CRC at 88 |
//! | from sector 2 on | GPT entries: type GUID at 0, first sector at 32, last sector at 40 |

use crate::units::ByteCount;

/// The bytes from the start of an image that [`Table::read`] looks at.
pub const HEAD_BYTES: usize = 64 << 10;

const GPT_HEADER_BYTES: usize = 92;
const GPT_ENTRY_BYTES: usize = 128;
const MBR_SECTOR: u64 = 512;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition, in bytes from the start of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
}

/// What the start of an image says about partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// There is no table: the image may be one file system.
    Absent,
    /// There is one that is damaged, or not understood.
    Unknown,
    /// In the order of their places; they do not overlap and lie inside the image.
    Partitions(Vec<Partition>),
}

impl Table {
    /// Reads the table from the first [`HEAD_BYTES`] of an image, or all of it when it is shorter.
    #[must_use]
    pub fn read(head: &[u8], image: ByteCount) -> Self {
        let partitions = match (gpt(head, 512), gpt(head, 4096), mbr(head)) {
            (Gpt::Valid(partitions), ..) | (_, Gpt::Valid(partitions), _) => partitions,
            (Gpt::Damaged, ..) | (_, Gpt::Damaged, _) | (.., Mbr::Protective) => {
                return Self::Unknown;
            }
            (.., Mbr::Valid(partitions)) => partitions,
            (.., Mbr::Absent) => return Self::Absent,
        };
        checked(partitions, image).map_or(Self::Unknown, Self::Partitions)
    }
}

fn checked(mut partitions: Vec<Partition>, image: ByteCount) -> Option<Vec<Partition>> {
    partitions.sort_unstable();
    let sound = partitions.iter().all(|p| p.start < p.end && p.end <= image.0);
    let apart = partitions.is_sorted_by(|a, b| a.end <= b.start);
    (sound && apart).then_some(partitions)
}

enum Gpt {
    Absent,
    Damaged,
    Valid(Vec<Partition>),
}

fn gpt(head: &[u8], sector: u64) -> Gpt {
    let header = usize::try_from(sector).ok().and_then(|at| head.get(at..)).unwrap_or_default();
    if !header.starts_with(b"EFI PART") {
        return Gpt::Absent;
    }
    gpt_partitions(head, header, sector).map_or(Gpt::Damaged, Gpt::Valid)
}

fn gpt_partitions(head: &[u8], header: &[u8], sector: u64) -> Option<Vec<Partition>> {
    let size = usize::try_from(u32_at(header, 12)?).ok()?;
    if size < GPT_HEADER_BYTES || u64::try_from(size).ok()? > sector || u64_at(header, 24)? != 1 {
        return None;
    }
    let mut checked = header.get(..size)?.to_vec();
    checked.get_mut(16..20)?.fill(0);
    if crc32(&checked) != u32_at(header, 16)? {
        return None;
    }
    let start = usize::try_from(u64_at(header, 72)?.checked_mul(sector)?).ok()?;
    let count = usize::try_from(u32_at(header, 80)?).ok()?;
    let bytes = usize::try_from(u32_at(header, 84)?).ok()?;
    if bytes < GPT_ENTRY_BYTES || !bytes.is_multiple_of(8) {
        return None;
    }
    let array = head.get(start..start.checked_add(count.checked_mul(bytes)?)?)?;
    if crc32(array) != u32_at(header, 88)? {
        return None;
    }
    let used = array.chunks_exact(bytes).filter(|entry| !entry.starts_with(&[0; 16]));
    used.map(|entry| {
        let start = u64_at(entry, 32)?.checked_mul(sector)?;
        let end = u64_at(entry, 40)?.checked_add(1)?.checked_mul(sector)?;
        Some(Partition { start, end })
    })
    .collect()
}

enum Mbr {
    Absent,
    Protective,
    Valid(Vec<Partition>),
}

fn mbr(head: &[u8]) -> Mbr {
    let Some(entries) = head.get(446..510).filter(|_| head.get(510..512) == Some(&[0x55, 0xaa]))
    else {
        return Mbr::Absent;
    };
    let mut partitions = Vec::new();
    let mut used = false;
    for entry in entries.chunks_exact(16) {
        let fields = (entry.get(4).copied(), u32_at(entry, 8), u32_at(entry, 12));
        let (Some(kind), Some(first), Some(count)) = fields else { return Mbr::Absent };
        used |= kind != 0;
        match kind {
            PROTECTIVE => return Mbr::Protective,
            0 => {}
            _ if EXTENDED.contains(&kind) => {}
            _ => {
                let start = u64::from(first) * MBR_SECTOR;
                partitions.push(Partition { start, end: start + u64::from(count) * MBR_SECTOR });
            }
        }
    }
    if used { Mbr::Valid(partitions) } else { Mbr::Absent }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// CRC-32 (ISO-HDLC), bit by bit: a table has 16 KiB, once for an image.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const IMAGE: ByteCount = ByteCount(64 * MIB);

    /// The head of a disk with a GPT of partitions given in sectors, first and last. `crate::free` has the test against a
    /// table that another program wrote.
    fn gpt_head(partitions: &[(u64, u64)], sector: usize) -> Vec<u8> {
        let mut head = mbr_disk(&[(PROTECTIVE, 1, u32::MAX)]);
        let array = 2 * sector..2 * sector + 128 * GPT_ENTRY_BYTES;
        for ((first, last), entry) in partitions.iter().zip(head[array.clone()].chunks_mut(128)) {
            entry[..16].fill(5);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let checksum = crc32(&head[array]);
        let header = &mut head[sector..sector + GPT_HEADER_BYTES];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        header[24] = 1;
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        header[88..92].copy_from_slice(&checksum.to_le_bytes());
        let checksum = crc32(header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        head
    }

    fn mbr_disk(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        for ((kind, first, count), entry) in entries.iter().zip(head[446..510].chunks_mut(16)) {
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&first.to_le_bytes());
            entry[12..16].copy_from_slice(&count.to_le_bytes());
        }
        head
    }

    fn read(disk: &[u8]) -> Table {
        Table::read(&disk[..HEAD_BYTES], IMAGE)
    }

    #[test]
    fn gpt_of_both_sector_sizes_is_read() {
        let expected =
            [Partition { start: MIB, end: 9 * MIB }, Partition { start: 9 * MIB, end: 60 * MIB }];
        let disk = gpt_head(&[(18_432, 122_879), (2048, 18_431)], 512);
        assert_eq!(read(&disk), Table::Partitions(expected.to_vec()));
        let disk = gpt_head(&[(256, 2303), (2304, 15_359)], 4096);
        assert_eq!(read(&disk), Table::Partitions(expected.to_vec()));
    }

    #[test]
    fn mbr_is_read_without_extended_partitions() {
        let disk = mbr_disk(&[(0x83, 2048, 2048), (0x05, 8192, 8192), (0x82, 4096, 2048)]);
        let expected =
            [Partition { start: MIB, end: 2 * MIB }, Partition { start: 2 * MIB, end: 3 * MIB }];
        assert_eq!(read(&disk), Table::Partitions(expected.to_vec()));
    }

    #[test]
    fn no_table_is_told_from_one_that_cannot_be_trusted() {
        assert_eq!(read(&vec![0; HEAD_BYTES]), Table::Absent);
        assert_eq!(read(&mbr_disk(&[])), Table::Absent);
        assert_eq!(Table::read(&[], IMAGE), Table::Absent);
        let overlap = mbr_disk(&[(0x83, 2048, 2049), (0x83, 4096, 2048)]);
        assert_eq!(read(&overlap), Table::Unknown);
        assert_eq!(read(&mbr_disk(&[(0x83, 2048, 1 << 20)])), Table::Unknown);
        assert_eq!(read(&mbr_disk(&[(0x83, 2048, 0)])), Table::Unknown);
        assert_eq!(read(&mbr_disk(&[(PROTECTIVE, 1, 131_071)])), Table::Unknown);
    }

    #[test]
    fn the_checksum_is_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn a_damaged_gpt_is_not_trusted(at in 512..17_408_usize, flip in 1..=255_u8) {
            let mut disk = gpt_head(&[(2048, 18_431)], 512);
            let whole = read(&disk);
            disk[at] ^= flip;
            // What is behind the header in its sector is reserved, and no checksum covers it.
            let covered = !(512 + GPT_HEADER_BYTES..1024).contains(&at);
            prop_assert_eq!(read(&disk), if covered { Table::Unknown } else { whole });
        }

        #[test]
        fn foreign_bytes_never_panic(mut head in prop::collection::vec(any::<u8>(), 0..2000), valid: bool) {
            if valid && head.len() > 600 {
                head[510..520].copy_from_slice(b"\x55\xaaEFI PART");
            }
            let table = Table::read(&head, IMAGE);
            prop_assert!(!matches!(table, Table::Partitions(p) if p.iter().any(|p| p.end > IMAGE.0)));
        }
    }
}
