//! The disk that is installed to: a block device or a plain file, by the same code.

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZero,
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{bottleneck::AtWork, storage::StoragePartition};
use cairn_core::units::{BLOCK_BYTES, ByteCount};
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom};

/// Zeros written at once where the device cannot zero by itself.
const ZERO_BYTES: usize = 1 << 20;

/// Why a disk cannot be used. Nothing was written to it.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    #[error("target disk {path} does not exist")]
    Missing { path: PathBuf },
    #[error("target disk {path} is in use: unmount its file systems and stop what holds it")]
    Busy { path: PathBuf },
    #[error("target disk {path} is read-only")]
    ReadOnly { path: PathBuf },
    #[error("target disk {path} has {size} bytes, the image needs {needed}: choose a larger disk")]
    TooSmall { path: PathBuf, size: ByteCount, needed: ByteCount },
    #[error("{path} is neither a disk nor a file")]
    NotADisk { path: PathBuf },
    #[error("cannot open target disk {path}")]
    Other { path: PathBuf, source: io::Error },
}

/// Reading or writing the disk failed while it was in use.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} target disk {path} at byte {offset}: the disk may be failing or gone")]
pub struct DiskError {
    pub doing: &'static str,
    pub path: PathBuf,
    pub offset: u64,
    pub source: io::Error,
}

/// An open target disk. A device is held exclusively: nobody can mount it meanwhile.
#[derive(Debug)]
pub struct TargetDisk {
    file: File,
    path: PathBuf,
    size: ByteCount,
    device: bool,
    storage: Option<StoragePartition>,
    /// A file system lets one write to a file in at a time, and those that wait spin: here they sleep.
    writing: Mutex<()>,
    /// Who is in a call that writes.
    at_work: AtWork,
}

impl TargetDisk {
    /// Opens a device, or a file which is created or grown to `needed` bytes.
    ///
    /// # Errors
    /// See [`OpenDiskError`].
    pub fn open(path: &Path, needed: ByteCount) -> Result<Self, OpenDiskError> {
        let owned = path.to_path_buf();
        let kind = match path.metadata() {
            Ok(metadata) => Some(metadata.file_type()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(OpenDiskError::Other { path: owned, source }),
        };
        let device = match kind {
            Some(kind) if kind.is_block_device() => true,
            Some(kind) if kind.is_file() => false,
            Some(_) => return Err(OpenDiskError::NotADisk { path: owned }),
            None if path.starts_with("/dev") => return Err(OpenDiskError::Missing { path: owned }),
            None => false,
        };
        let file = open_file(path, device)?;
        let size = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|error| OpenDiskError::Other { path: owned.clone(), source: error.into() })?;
        let size = ByteCount(size);
        if device && size < needed {
            return Err(OpenDiskError::TooSmall { path: owned, size, needed });
        }
        if !device && size < needed {
            file.set_len(needed.0)
                .map_err(|source| OpenDiskError::Other { path: owned.clone(), source })?;
        }
        Ok(Self {
            file,
            path: owned,
            size: ByteCount(size.0.max(needed.0)),
            device,
            storage: None,
            writing: Mutex::new(()),
            at_work: AtWork::default(),
        })
    }

    /// The same disk; the install leaves this partition as it is.
    #[must_use]
    pub fn keeping(self, storage: Option<StoragePartition>) -> Self {
        Self { storage, ..self }
    }

    /// The storage partition that it has.
    #[must_use]
    pub fn found_storage(&self) -> Option<StoragePartition> {
        StoragePartition::find(&self.file, self.size)
    }

    pub(super) const fn storage(&self) -> Option<&StoragePartition> {
        self.storage.as_ref()
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn size(&self) -> ByteCount {
        self.size
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(buffer, offset).map_err(|source| self.error("read", offset, source))
    }

    /// Says that a range is about to be read: the disk can begin. Holes are left holes.
    pub(super) fn will_read(&self, offset: u64, length: u64) {
        let length = length.min(self.size.0.saturating_sub(offset));
        if let Some(some) = NonZero::new(length)
            && !self.is_hole(offset, length)
        {
            // It is advice: whether it was taken shows in nothing but the time.
            rustix::fs::fadvise(&self.file, offset, Some(some), Advice::WillNeed).ok();
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let _at_work = self.at_work.begin();
        let turn =
            (!self.device).then(|| self.writing.lock().unwrap_or_else(PoisonError::into_inner));
        let written = self.file.write_all_at(bytes, offset);
        drop(turn);
        written.map_err(|source| self.error("write", offset, source))
    }

    /// Makes `length` bytes zero, by the device or file system where it can.
    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let flags = if self.device {
            FallocateFlags::ZERO_RANGE
        } else {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        };
        let sectors = self.device && !(offset.is_multiple_of(4096) && length.is_multiple_of(4096));
        if !sectors && rustix::fs::fallocate(&self.file, flags, offset, length).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; ZERO_BYTES];
        let mut at = offset;
        while at < offset + length {
            let count = usize::try_from(offset + length - at).unwrap_or(ZERO_BYTES).min(ZERO_BYTES);
            self.write(at, &zeros[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    /// Whether `length` bytes from `offset` are known to be zero without reading them: a hole in a file.
    pub(super) fn is_hole(&self, offset: u64, length: u64) -> bool {
        if self.device {
            return false;
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset + length,
            // No data up to the end of the file.
            Err(rustix::io::Errno::NXIO) => true,
            Err(_) => false,
        }
    }

    /// Waits until everything written so far is on the disk. An error is told once: the install ends with it.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        let _at_work = self.at_work.begin();
        self.file.sync_data().map_err(|source| self.error("flush", 0, source))
    }

    /// Waits until everything written is on the disk, and forgets what memory holds of it, so that reading it back
    /// reads the disk.
    pub(super) fn settle(&self) -> Result<(), DiskError> {
        self.flush()?;
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|error| self.error("drop the cache of", 0, error.into()))
    }

    /// How many threads wait for the disk to write.
    pub(super) fn busy(&self) -> usize {
        self.at_work.count()
    }

    pub(super) fn error(&self, doing: &'static str, offset: u64, source: io::Error) -> DiskError {
        DiskError { doing, path: self.path.clone(), offset, source }
    }
}

fn open_file(path: &Path, device: bool) -> Result<File, OpenDiskError> {
    let owned = path.to_path_buf();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if device {
        // O_EXCL on a block device: refused while it is mounted or held.
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
    } else {
        options.create(true).truncate(false);
    }
    let error = match options.open(path) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    Err(match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::BUSY) => OpenDiskError::Busy { path: owned },
        Some(rustix::io::Errno::ROFS | rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            OpenDiskError::ReadOnly { path: owned }
        }
        _ => OpenDiskError::Other { path: owned, source: error },
    })
}

/// Bytes in `blocks` blocks.
pub(super) const fn bytes_of(blocks: u64) -> u64 {
    blocks * BLOCK_BYTES as u64
}
