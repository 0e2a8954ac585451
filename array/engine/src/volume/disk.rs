//! A volume's medium on the controller: a journal file on a local disk, segments and root in the store.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, IoSlice},
    os::unix::fs::{DirBuilderExt as _, FileExt as _},
    path::Path,
    sync::Mutex,
};

use bytes::Bytes;
use cairn_core::{
    id::{SegmentId, VolumeId},
    units::{BLOCK_BYTES, ByteCount},
    volume::journal::MIN_CAPACITY,
};
use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::{
    Medium, MediumError, RootName, SegmentReader, StoreSegments, Wait, lock, segments::read,
};
use crate::{
    dsf::CheckedSegment,
    store::{BlobName, StoreError},
};

/// What replaying reads at once.
const CHUNK: usize = 4 << 20;
/// Direct reads begin and end on these.
const ALIGNMENT: usize = 4096;

/// The ring of a journal file of about `size` bytes, in blocks.
#[must_use]
pub fn journal_blocks(size: ByteCount) -> u64 {
    (size.0 / BLOCK_BYTES as u64).saturating_sub(1).max(MIN_CAPACITY)
}

/// See the module. Calls block; none may come from a thread of the runtime that must not.
#[derive(Debug)]
pub struct DiskMedium {
    journal: File,
    /// The same file past the page cache, where the file system can do that: only this tells what a failed sync lost.
    direct: Option<File>,
    chunk: Mutex<Chunk>,
    volume: VolumeId,
    segments: StoreSegments,
}

/// A piece of the journal, read to be replayed.
#[derive(Debug, Default)]
struct Chunk {
    offset: u64,
    bytes: Vec<u8>,
}

fn journal(operation: &'static str) -> impl FnOnce(io::Error) -> MediumError {
    move |source| MediumError::Journal { operation, source }
}

impl DiskMedium {
    /// Makes the journal file, with all its space, and what goes with it.
    ///
    /// # Errors
    /// [`MediumError::Journal`] when there is such a file, or no space for it.
    pub fn create(
        file: &Path,
        capacity: u64,
        volume: VolumeId,
        segments: StoreSegments,
    ) -> Result<Self, MediumError> {
        make_journal(file, capacity).map_err(journal("make"))?;
        Self::open(file, volume, segments)
    }

    /// # Errors
    /// [`MediumError::Journal`] when the file cannot be opened.
    pub fn open(
        file: &Path,
        volume: VolumeId,
        segments: StoreSegments,
    ) -> Result<Self, MediumError> {
        let opened = File::options().read(true).write(true).open(file).map_err(journal("open"))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        let direct = rustix::fs::open(file, flags, Mode::empty()).ok().map(File::from);
        Ok(Self { journal: opened, direct, chunk: Mutex::default(), volume, segments })
    }

    /// Reads a chunk at `offset`, as much of it as the file has.
    fn load_chunk(&self, offset: u64) -> io::Result<Chunk> {
        // The alignment that direct reads need of memory, too.
        let mut bytes = vec![0; CHUNK + ALIGNMENT];
        let skip = bytes.as_ptr().align_offset(ALIGNMENT);
        let file = self.direct.as_ref().unwrap_or(&self.journal);
        let target = bytes.get_mut(skip..skip + CHUNK).ok_or(io::ErrorKind::InvalidInput)?;
        let mut filled = 0;
        while filled < CHUNK {
            match file.read_at(&mut target[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
            if !filled.is_multiple_of(ALIGNMENT) {
                break;
            }
        }
        bytes.drain(..skip);
        bytes.truncate(filled);
        Ok(Chunk { offset, bytes })
    }
}

/// The name of a volume's root in the store.
///
/// # Errors
/// Never: ids are a blob's name.
pub fn root_name(volume: VolumeId, name: RootName) -> Result<BlobName, MediumError> {
    let name = match name {
        RootName::Live => format!("volume/{volume}"),
        RootName::Snapshot(snapshot) => format!("volume/{volume}-{snapshot}"),
    };
    name.parse().map_err(|_| StoreError::NotFound { object: name }.into())
}

fn make_journal(path: &Path, capacity: u64) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let bytes = (capacity + 1) * BLOCK_BYTES as u64;
    let made = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
        .map_err(io::Error::from)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(folder)?.sync_all());
    if made.is_err() {
        // A journal is whole or none; that it cannot be removed either is the smaller worry.
        fs::remove_file(path).ok();
    }
    made
}

/// Writes all parts, however many calls that takes.
fn write_all(file: &File, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let written = rustix::io::pwritev(file, parts, offset)?;
    if written == length {
        return Ok(());
    }
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).skip(written).collect();
    file.write_all_at(&bytes, offset + written as u64)
}

impl SegmentReader for DiskMedium {
    fn read_segment(
        &self,
        id: SegmentId,
        offset: u64,
        into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, MediumError> {
        self.segments.read_segment(id, offset, into, wait)
    }

    fn renew(&self, id: SegmentId) -> Result<bool, MediumError> {
        self.segments.renew(id)
    }
}

impl Medium for DiskMedium {
    fn read_journal(&self, offset: u64, into: &mut [u8], wait: Wait) -> Result<bool, MediumError> {
        read(&self.journal, offset, into, wait).map_err(journal("read"))
    }

    fn replay_journal(&self, offset: u64, into: &mut [u8]) -> Result<(), MediumError> {
        let mut chunk = lock(&self.chunk);
        let mut filled = 0;
        while filled < into.len() {
            let at = offset + filled as u64;
            let inside =
                at.checked_sub(chunk.offset).and_then(|inside| usize::try_from(inside).ok());
            let held = inside.and_then(|inside| chunk.bytes.get(inside..)).unwrap_or_default();
            if held.is_empty() {
                *chunk = self.load_chunk(at).map_err(journal("read"))?;
                if chunk.bytes.is_empty() {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(MediumError::Journal { operation: "read", source });
                }
                continue;
            }
            let count = held.len().min(into.len() - filled);
            into[filled..filled + count].copy_from_slice(&held[..count]);
            filled += count;
        }
        Ok(())
    }

    fn write_journal(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), MediumError> {
        write_all(&self.journal, offset, parts).map_err(journal("write"))
    }

    fn sync_journal(&self) -> Result<(), MediumError> {
        self.journal.sync_data().map_err(journal("sync"))
    }

    fn put_segment(&self, segment: &CheckedSegment) -> Result<(), MediumError> {
        Ok(self.segments.runtime().block_on(self.segments.store().put_checked(segment))?)
    }

    fn delete_segment(&self, id: SegmentId) -> Result<(), MediumError> {
        self.segments.close(id);
        self.segments.runtime().block_on(self.segments.store().delete_segment(id))?;
        Ok(())
    }

    fn put_root(&self, name: RootName, root: Bytes) -> Result<(), MediumError> {
        Ok(self
            .segments
            .runtime()
            .block_on(self.segments.store().put_blob(&root_name(self.volume, name)?, root))?)
    }

    fn root(&self, name: RootName) -> Result<Option<Bytes>, MediumError> {
        match self
            .segments
            .runtime()
            .block_on(self.segments.store().get_blob(&root_name(self.volume, name)?))
        {
            Ok(root) => Ok(Some(root)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn delete_root(&self, name: RootName) -> Result<(), MediumError> {
        let name = root_name(self.volume, name)?;
        self.segments.runtime().block_on(self.segments.store().delete_blob(&name))?;
        Ok(())
    }

    fn sync_store(&self) -> Result<(), MediumError> {
        Ok(self.segments.runtime().block_on(self.segments.store().flush())?)
    }
}
