//! The storage partition: where a client keeps its storage file across installs.
//!
//! An install overwrites a disk as far as the image reaches. A partition behind that, called `cairn-storage`, is left as it is
//! by every install; only the tables that name it have to be made again:
//!
//! ```text
//!   before       sectors 0..33: the old system's table         … storage …   end: its copy
//!   under way    sectors 0..7:  zeros, nothing boots           … storage …   end: a copy that names the storage alone
//!   afterwards   sectors 0..33: the image's, and the storage   … storage …   end: the same
//! ```
//!
//! So the partition is found again after a power cut at any moment, from the first table or from its copy. The copy is written
//! and flushed before the first table is touched; firmware and kernels use it while the first is torn.
//!
//! Tables are read and written by the crate `gptman`, which keeps the numbers of partitions (the crate `gpt` counts them anew);
//! what is foreign is looked at before, because it asserts what it expects.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::FileExt as _,
};

use cairn_core::units::ByteCount;
use gptman::{GPTHeader, GPTPartitionEntry};

use super::disk::{DiskError, TargetDisk};
use crate::random;

/// What the partition is called in the table.
pub(super) const NAME: &str = "cairn-storage";
/// The type of a Linux file system: 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it stands in the table.
const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
const SECTOR: u64 = SECTOR_BYTES as u64;
const SECTOR_BYTES: usize = 512;
const ALIGN_SECTORS: u64 = (1 << 20) / SECTOR;
/// As all tools write them. Others are not read.
const HEADER_BYTES: u32 = 92;
const ENTRY_BYTES: u32 = 128;
const ENTRIES: u32 = 128;
const ARRAY_BYTES: usize = ENTRIES as usize * ENTRY_BYTES as usize;
/// Sectors of a copy at the end of a disk: entries, then the header.
const COPY_SECTORS: u64 = ARRAY_BYTES as u64 / SECTOR + 1;

/// The partition, as a table names it.
#[derive(Clone, Debug)]
pub struct StoragePartition(GPTPartitionEntry);

/// Bytes to write, by their place.
type Writes = BTreeMap<u64, Vec<u8>>;

impl StoragePartition {
    /// A new one of `size` bytes at the end of a disk; none when the disk is too small for it.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(size: ByteCount, disk: ByteCount) -> anyhow::Result<Option<Self>> {
        let end = (disk.0 / SECTOR).saturating_sub(COPY_SECTORS) / ALIGN_SECTORS * ALIGN_SECTORS;
        let sectors = size.0.div_ceil(SECTOR).next_multiple_of(ALIGN_SECTORS).max(ALIGN_SECTORS);
        let Some(first) = end.checked_sub(sectors).filter(|first| *first >= ALIGN_SECTORS) else {
            return Ok(None);
        };
        Ok(Some(Self(GPTPartitionEntry {
            partition_type_guid: LINUX,
            unique_partition_guid: random::array()?,
            starting_lba: first,
            ending_lba: end - 1,
            attribute_bits: 0,
            partition_name: NAME.into(),
        })))
    }

    /// The one on a disk, by its first table or the copy at its end.
    #[must_use]
    pub fn find(disk: &File, size: ByteCount) -> Option<Self> {
        let last = (size.0 / SECTOR).checked_sub(1)?;
        [1, last].into_iter().find_map(|header| {
            let (_, entries) = read(disk, header)?;
            let named = |entry: &GPTPartitionEntry| {
                entry.is_used() && entry.partition_name.as_str() == NAME
            };
            let entry = entries.into_iter().find(named)?;
            let sound = entry.starting_lba <= entry.ending_lba
                && entry.ending_lba <= last.saturating_sub(COPY_SECTORS);
            sound.then_some(Self(entry))
        })
    }

    /// The first byte that is its own.
    #[must_use]
    pub const fn start(&self) -> ByteCount {
        ByteCount(self.0.starting_lba * SECTOR)
    }

    /// Its bytes.
    #[must_use]
    pub const fn size(&self) -> ByteCount {
        ByteCount((self.0.ending_lba + 1 - self.0.starting_lba) * SECTOR)
    }

    /// The end of a disk that has nothing but this: what stands there while the rest is written.
    pub(super) fn alone(&self, disk: &TargetDisk) -> Result<(u64, Vec<u8>), DiskError> {
        let last = disk.size().0 / SECTOR - 1;
        let mut header = GPTHeader {
            primary_lba: last,
            backup_lba: 1,
            first_usable_lba: COPY_SECTORS + 1,
            last_usable_lba: last - COPY_SECTORS,
            partition_entry_lba: last + 1 - COPY_SECTORS,
            disk_guid: self.0.unique_partition_guid,
            number_of_partition_entries: ENTRIES,
            size_of_partition_entry: ENTRY_BYTES,
            ..blank()
        };
        let mut entries = vec![GPTPartitionEntry::empty(); ENTRIES as usize];
        if let Some(first) = entries.first_mut() {
            *first = self.0.clone();
        }
        let copy = table(&mut header, &entries).map_err(|source| odd(disk, source))?;
        Ok((header.partition_entry_lba * SECTOR, copy.concat(header.partition_entry_lba)))
    }

    /// Adds it to the table of the system that was installed. False when that has no table that it could be added to.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn add(&self, disk: &TargetDisk) -> Result<bool, DiskError> {
        let Some((mut header, mut entries)) = read(disk.file(), 1) else { return Ok(false) };
        // Of the machine that the image was taken from.
        let old = |entry: &GPTPartitionEntry| entry.partition_name.as_str() == NAME;
        for entry in entries.iter_mut().filter(|entry| old(entry)) {
            *entry = GPTPartitionEntry::empty();
        }
        // Behind all others, so that it is in nobody's way: a later version may have more partitions than this one.
        let Some(free) = entries.iter_mut().rev().find(|entry| entry.is_unused()) else {
            return Ok(false);
        };
        *free = self.0.clone();
        let last = disk.size().0 / SECTOR - 1;
        header.backup_lba = last;
        header.last_usable_lba = last - COPY_SECTORS;
        let mut copy = GPTHeader {
            primary_lba: last,
            backup_lba: 1,
            partition_entry_lba: last + 1 - COPY_SECTORS,
            ..header.clone()
        };
        let at = copy.partition_entry_lba;
        let end = table(&mut copy, &entries).map_err(|source| odd(disk, source))?;
        disk.write(at * SECTOR, &end.concat(at))?;
        disk.flush()?;
        let first = table(&mut header, &entries).map_err(|source| odd(disk, source))?;
        disk.write(SECTOR, &first.concat(1))?;
        disk.flush()?;
        Ok(true)
    }
}

/// The fields that are the same in every header.
const fn blank() -> GPTHeader {
    GPTHeader {
        signature: *b"EFI PART",
        revision: [0, 0, 1, 0],
        header_size: HEADER_BYTES,
        crc32_checksum: 0,
        reserved: [0; 4],
        primary_lba: 0,
        backup_lba: 0,
        first_usable_lba: 0,
        last_usable_lba: 0,
        disk_guid: [0; 16],
        partition_entry_lba: 0,
        number_of_partition_entries: ENTRIES,
        size_of_partition_entry: ENTRY_BYTES,
        partition_entry_array_crc32: 0,
    }
}

/// The header at a sector and its entries, when they are whole and as all tools write them.
fn read(disk: &File, header: u64) -> Option<(GPTHeader, Vec<GPTPartitionEntry>)> {
    let mut sector = [0; SECTOR_BYTES];
    disk.read_exact_at(&mut sector, header * SECTOR).ok()?;
    let number = |at: usize| {
        let bytes = sector.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let known = sector.starts_with(b"EFI PART")
        && number(12) == Some(HEADER_BYTES)
        && number(80) == Some(ENTRIES)
        && number(84) == Some(ENTRY_BYTES);
    if !known {
        return None;
    }
    let mut found = GPTHeader::read_from(&mut io::Cursor::new(sector)).ok()?;
    // gptman reads more than an entry at once, also of the last one.
    let mut entries = vec![0; ARRAY_BYTES + SECTOR_BYTES];
    // The entries stand at the beginning of what is read here.
    let lba = std::mem::take(&mut found.partition_entry_lba);
    disk.read_exact_at(entries.get_mut(..ARRAY_BYTES)?, lba.checked_mul(SECTOR)?).ok()?;
    let entries = found.read_partitions(&mut io::Cursor::new(entries), SECTOR).ok()?;
    found.partition_entry_lba = lba;
    Some((found, entries))
}

/// What is written: gptman seeks and writes in small pieces.
#[derive(Debug, Default)]
struct Sheet {
    at: u64,
    writes: Writes,
}

impl Sheet {
    /// All of it as one run from a sector on; gaps are zeros.
    fn concat(&self, from: u64) -> Vec<u8> {
        let mut run = Vec::new();
        for (at, bytes) in &self.writes {
            let at = usize::try_from(at.saturating_sub(from * SECTOR)).unwrap_or(0);
            if run.len() < at + bytes.len() {
                run.resize(at + bytes.len(), 0);
            }
            if let Some(place) = run.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        run.resize(run.len().next_multiple_of(SECTOR_BYTES), 0);
        run
    }
}

impl Write for Sheet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes.insert(self.at, bytes.to_vec());
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Sheet {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(at) => self.at = at,
            SeekFrom::Current(by) => {
                self.at = self.at.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
            }
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(self.at)
    }
}

/// Header and entries, with their checksums.
fn table(header: &mut GPTHeader, entries: &[GPTPartitionEntry]) -> io::Result<Sheet> {
    let mut sheet = Sheet::default();
    header.write_into(&mut sheet, SECTOR, entries).map_err(io::Error::other)?;
    Ok(sheet)
}

fn odd(disk: &TargetDisk, source: io::Error) -> DiskError {
    disk.error("describe the partitions of", 0, source)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const DISK: ByteCount = ByteCount(64 << 20);

    fn blank_disk() -> (tempfile::TempDir, TargetDisk) {
        let folder = tempfile::tempdir().unwrap();
        let disk = TargetDisk::open(&folder.path().join("disk"), DISK).unwrap();
        (folder, disk)
    }

    /// What an image of half the disk has: partitions 1 and 14.
    fn with_table(disk: &TargetDisk) -> Vec<GPTPartitionEntry> {
        let mut entries = vec![GPTPartitionEntry::empty(); ENTRIES as usize];
        for (number, first) in [(1, 4096), (14, 2048)] {
            entries[number - 1] = GPTPartitionEntry {
                partition_type_guid: LINUX,
                unique_partition_guid: [u8::try_from(number).unwrap(); 16],
                starting_lba: first,
                ending_lba: first + 2047,
                attribute_bits: 4,
                partition_name: "system".into(),
            };
        }
        let half = DISK.0 / 2 / SECTOR;
        let mut header = GPTHeader {
            primary_lba: 1,
            backup_lba: half - 1,
            first_usable_lba: 34,
            last_usable_lba: half - 34,
            partition_entry_lba: 2,
            disk_guid: [9; 16],
            ..blank()
        };
        disk.write(SECTOR, &table(&mut header, &entries).unwrap().concat(1)).unwrap();
        entries
    }

    #[test]
    fn it_is_added_to_the_images_table_and_found_by_either() {
        let (_folder, disk) = blank_disk();
        let entries = with_table(&disk);
        assert!(disk.found_storage().is_none());
        let storage = StoragePartition::new(ByteCount(10 << 20), DISK).unwrap().unwrap();
        assert_eq!(storage.size(), ByteCount(10 << 20));
        assert!(storage.start().0.is_multiple_of(1 << 20) && storage.start().0 >= DISK.0 / 2);
        assert!(storage.add(&disk).unwrap());
        for lba in [1, DISK.0 / SECTOR - 1] {
            let (header, found) = read(disk.file(), lba).unwrap();
            assert_eq!(header.disk_guid, [9; 16]);
            assert_eq!(found[..127], entries[..127]);
            assert_eq!(found[127], storage.0);
        }
        // Again, as an install that finds nothing to do does.
        assert!(storage.add(&disk).unwrap());
        let (_, found) = read(disk.file(), 1).unwrap();
        assert_eq!(found.iter().filter(|entry| entry.is_used()).count(), 3);
        // The first table is torn.
        disk.write(SECTOR + 16, &[1]).unwrap();
        assert_eq!(disk.found_storage().unwrap().0, storage.0);
    }

    #[test]
    fn while_an_install_is_under_way_the_end_of_the_disk_names_it_alone() {
        let (_folder, disk) = blank_disk();
        with_table(&disk);
        let storage = StoragePartition::new(ByteCount(1), DISK).unwrap().unwrap();
        storage.add(&disk).unwrap();
        let (at, end) = storage.alone(&disk).unwrap();
        assert_eq!(at + end.len() as u64, DISK.0);
        disk.write(at, &end).unwrap();
        disk.zero(0, 1 << 20).unwrap();
        assert_eq!(disk.found_storage().unwrap().0, storage.0);
        let (_, entries) = read(disk.file(), DISK.0 / SECTOR - 1).unwrap();
        assert_eq!(entries.iter().filter(|entry| entry.is_used()).count(), 1);
    }

    #[test]
    fn a_disk_that_is_too_small_or_has_no_table_gets_none() {
        assert!(StoragePartition::new(DISK, DISK).unwrap().is_none());
        assert!(StoragePartition::new(ByteCount(u64::MAX >> 1), DISK).unwrap().is_none());
        assert!(StoragePartition::new(ByteCount(1), ByteCount(0)).unwrap().is_none());
        let (_folder, disk) = blank_disk();
        let storage = StoragePartition::new(ByteCount(1), DISK).unwrap().unwrap();
        assert!(!storage.add(&disk).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn foreign_tables_never_panic(
            header in vec(any::<u8>(), 512),
            at in prop_oneof![Just(1), Just(DISK.0 / SECTOR - 1)],
            fixed in any::<bool>(),
        ) {
            let (_folder, disk) = blank_disk();
            let mut header = header;
            if fixed {
                header[..8].copy_from_slice(b"EFI PART");
                header[12..16].copy_from_slice(&HEADER_BYTES.to_le_bytes());
                header[80..84].copy_from_slice(&ENTRIES.to_le_bytes());
                header[84..88].copy_from_slice(&ENTRY_BYTES.to_le_bytes());
            }
            disk.write(at * SECTOR, &header).unwrap();
            prop_assert!(disk.found_storage().is_none());
        }
    }
}
