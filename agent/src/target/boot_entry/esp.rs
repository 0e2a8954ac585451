//! Finds the loader that an installed disk boots by: on the EFI system partition of its GPT.
//!
//! A vendor's loader (`\EFI\debian\shimx64.efi`) is preferred: it is what the system's own installer would have
//! registered. The fallback (`\EFI\BOOT\BOOTX64.EFI`) is found by any firmware without an entry.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result};
use gpt::{GptConfig, partition::Partition, partition_types};

use super::load_option::Loader;

/// What firmware starts from a disk that no boot entry names.
pub(super) const FALLBACK: &str = "\\EFI\\BOOT\\BOOTX64.EFI";
/// Loaders below a vendor's folder, the best first.
const LOADERS: &[&str] =
    &["shimx64.efi", "grubx64.efi", "systemd-bootx64.efi", "Boot/bootmgfw.efi"];
/// The block of an image's partition table.
const BLOCK: u64 = 512;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// The loader on `disk`; nothing when it has no EFI system partition or no loader there.
///
/// # Errors
/// The partition table or the file system cannot be read.
pub(super) fn find(disk: &File) -> Result<Option<Loader>> {
    let Ok(table) = GptConfig::new().writable(false).open_from_device(disk) else {
        // A disk without GPT: made for BIOS.
        return Ok(None);
    };
    for (number, partition) in table.partitions() {
        if partition.part_type_guid == partition_types::EFI
            && let Some(path) = loader_on(disk, partition)?
        {
            return Ok(Some(Loader {
                partition: *number,
                first_block: partition.first_lba,
                blocks: blocks(partition),
                guid: partition.part_guid.to_bytes_le(),
                path,
            }));
        }
    }
    Ok(None)
}

const fn blocks(partition: &Partition) -> u64 {
    (partition.last_lba + 1).saturating_sub(partition.first_lba)
}

fn loader_on(disk: &File, partition: &Partition) -> Result<Option<String>> {
    let slice = Slice::of(disk, partition.first_lba * BLOCK, blocks(partition) * BLOCK);
    let fat = fatfs::FileSystem::new(slice, fatfs::FsOptions::new())
        .context("open the EFI system partition")?;
    let root = fat.root_dir();
    let mut vendors = Vec::new();
    if let Ok(efi) = root.open_dir("EFI") {
        for entry in efi.iter().take(MAX_ENTRIES) {
            let entry = entry.context("read the EFI system partition")?;
            let name = entry.file_name();
            if entry.is_dir() && !name.starts_with('.') && !name.eq_ignore_ascii_case("BOOT") {
                vendors.push(name);
            }
        }
    }
    vendors.sort_unstable();
    let of_vendors = vendors
        .iter()
        .flat_map(|vendor| LOADERS.iter().map(move |loader| format!("EFI/{vendor}/{loader}")));
    let mut found = of_vendors.chain([FALLBACK[1..].replace('\\', "/")]);
    let path = found.find(|path| root.open_file(path).is_ok());
    Ok(path.map(|path| format!("\\{}", path.replace('/', "\\"))))
}

/// A part of a disk, to be read only.
struct Slice<'a> {
    disk: &'a File,
    start: u64,
    length: u64,
    at: u64,
}

impl<'a> Slice<'a> {
    const fn of(disk: &'a File, start: u64, length: u64) -> Self {
        Self { disk, start, length, at: 0 }
    }
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let read = self.disk.read_at(&mut buffer[..count], self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Slice<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The file system's library asks for a writer; an installed disk is never written here.
impl Write for Slice<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use super::*;

    const ESP_BLOCKS: u64 = 8192;

    /// A disk with an EFI system partition that holds these files.
    pub(in super::super) fn disk_with(files: &[&str]) -> File {
        let mut fat = vec![0; usize::try_from(ESP_BLOCKS * BLOCK).unwrap()];
        fatfs::format_volume(Cursor::new(&mut fat), fatfs::FormatVolumeOptions::new()).unwrap();
        let system =
            fatfs::FileSystem::new(Cursor::new(&mut fat), fatfs::FsOptions::new()).unwrap();
        for file in files {
            let parts: Vec<&str> = file.split('/').collect();
            for end in 1..parts.len() {
                system.root_dir().create_dir(&parts[..end].join("/")).unwrap();
            }
            system.root_dir().create_file(file).unwrap().write_all(b"MZ").unwrap();
        }
        drop(system);
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(16 << 20).unwrap();
        let mut table = GptConfig::new().writable(true).create_from_device(&disk, None).unwrap();
        table.add_partition("root", 1 << 20, partition_types::LINUX_FS, 0, None).unwrap();
        let number =
            table.add_partition("esp", ESP_BLOCKS * BLOCK, partition_types::EFI, 0, None).unwrap();
        let first = table.partitions()[&number].first_lba;
        table.write().unwrap();
        disk.write_all_at(&fat, first * BLOCK).unwrap();
        disk
    }

    fn path_on(files: &[&str]) -> Option<String> {
        find(&disk_with(files)).unwrap().map(|loader| loader.path)
    }

    #[test]
    fn a_vendors_loader_is_preferred_and_shim_before_grub() {
        let debian = ["EFI/BOOT/BOOTX64.EFI", "EFI/debian/grubx64.efi", "EFI/debian/shimx64.efi"];
        assert_eq!(path_on(&debian).unwrap(), "\\EFI\\debian\\shimx64.efi");
        assert_eq!(path_on(&debian[..2]).unwrap(), "\\EFI\\debian\\grubx64.efi");
        assert_eq!(path_on(&debian[..1]).unwrap(), FALLBACK);
        let windows = path_on(&["EFI/Microsoft/Boot/bootmgfw.efi"]).unwrap();
        assert_eq!(windows, "\\EFI\\Microsoft\\Boot\\bootmgfw.efi");
    }

    #[test]
    fn the_partition_is_named_as_on_the_disk() {
        let disk = disk_with(&["EFI/BOOT/BOOTX64.EFI"]);
        let loader = find(&disk).unwrap().unwrap();
        assert_eq!((loader.partition, loader.blocks), (2, ESP_BLOCKS));
        // Entries of the table begin at its third block and have 128 bytes; the GUID is the second field.
        let mut guid = [0; 16];
        disk.read_exact_at(&mut guid, 2 * BLOCK + 128 + 16).unwrap();
        assert_eq!(loader.guid, guid);
    }

    #[test]
    fn a_disk_without_a_loader_has_none() {
        assert_eq!(path_on(&[]), None);
        assert_eq!(path_on(&["EFI/debian/readme.txt"]), None);
        let blank = tempfile::tempfile().unwrap();
        blank.set_len(1 << 20).unwrap();
        assert_eq!(find(&blank).unwrap(), None);
    }

    #[test]
    fn a_broken_file_system_is_an_error_not_a_crash() {
        let disk = disk_with(&["EFI/BOOT/BOOTX64.EFI"]);
        let first = find(&disk).unwrap().unwrap().first_block;
        disk.write_all_at(&[0xff; 512], first * BLOCK).unwrap();
        find(&disk).unwrap_err();
    }
}
