//! Volumes: a journal in front of a map of sealed segments (`cairn_core::volume`), read and written by many threads.
//!
//! ```text
//!   change ─► writer ─► journal        one at a time, in the order that counts
//!                │
//!                ▼
//!   read ───► maps  ◄─── sealer ─► segments, map pages, root     in the background, one at a time
//! ```
//!
//! Three locks, taken in this order: `sealer` (what a checkpoint is made of), `writer` (where the next record goes), `maps`
//! (where each block is). `maps` is never held over a disk; `writer` is held over the journal, and over the store only when
//! a change leaves a part of a block, which is read then.
//!
//! Invariants:
//! - A change is in the journal before a read can see it.
//! - Journal space is used again only when a durable root covers it, and, when clients mirror the journal, one that they know; a segment is deleted only when no durable root names it,
//!   be it the volume's or one that is kept as a snapshot.
//! - What is being sealed does not change: it was frozen, and newer changes lie over it.
//! - After a write or a sync failed, nothing is written any more: what the disk has is in doubt until it is replayed.

mod checkpoint;
mod disk;
mod export;
mod frames;
mod life;
mod medium;
mod mirrored;
mod open;
mod pack;
mod reader;
mod running;
mod scattered;
mod sealer;
mod segments;
mod snapshot;
mod tail;
mod writer;

use std::{
    collections::HashSet,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_core::{
    bytes::DecodeError,
    id::{SegmentId, VolumeId},
    seal::SealKey,
    sign::SigningKey,
    units::{BLOCK_BYTES, BlockIndex, ByteCount, Generation},
    volume::{
        Fresh, Place,
        extent_map::ExtentMap,
        journal::{Cursor, Ring},
        table::SegmentTable,
    },
};

pub use disk::{DiskMedium, journal_blocks, root_name};
pub use life::Usage;
pub use medium::{Medium, MediumError, RootName, SegmentReader, Wait};
pub use mirrored::{Cut, TailFeed, TailHolder};
pub use open::restore;
pub use reader::Stretch;
pub use running::{RunningVolume, VolumeState};
pub use scattered::Checkpoint;
pub use sealer::SealError;
pub use segments::{Elsewhere, StoreSegments};
pub use snapshot::{Base, Snapshot, segments_of_root};
pub use tail::{TailError, TailRing};

use crate::frame::FrameError;
use checkpoint::Pages;
use frames::Frames;
use mirrored::Mirroring;
use sealer::Sealer;

/// What opens and signs a volume.
#[derive(Clone)]
pub struct VolumeKeys {
    pub content_key: SealKey,
    /// The content key as an age file, for the server and the recovery key.
    pub wrapped_key: Vec<u8>,
    pub signer: Arc<SigningKey>,
}

impl std::fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeKeys(..)")
    }
}

/// Who a volume is, and who opens it.
#[derive(Clone, Debug)]
pub struct VolumeName {
    pub id: VolumeId,
    pub name: String,
    /// Of the controller that opens it: one of a newer generation fences it off.
    pub generation: Generation,
    /// The last root that clients know. Of a volume whose journal they mirror, what it does not cover is kept for them.
    pub known: Option<Bytes>,
}

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Medium(#[from] MediumError),
    #[error("its root is missing")]
    NoRoot,
    #[error("its root is not readable")]
    Root(#[source] DecodeError),
    #[error("its journal is not readable")]
    Journal(#[source] DecodeError),
    #[error("its journal is another volume's")]
    ForeignJournal,
    #[error("its map names segments that its table lacks")]
    Map,
    #[error("a page of its map or table is not readable")]
    Page(#[source] DecodeError),
    #[error("a page of its map or table cannot be read")]
    Frame(#[from] ReadError),
    #[error("a controller of generation {0} has used it: this one is older")]
    Fenced(Generation),
    #[error("the system gives no random bytes")]
    Random,
}

/// Why blocks cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the range is not in the volume")]
    Range,
    #[error(transparent)]
    Medium(#[from] MediumError),
    #[error("a frame is damaged")]
    Frame(#[from] FrameError),
    #[error("the map names a segment that the table lacks")]
    Map,
}

/// Why a change was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("the range is not in the volume")]
    Range,
    /// Nobody seals, and the journal is full.
    #[error("the journal is full")]
    NoRoom,
    #[error("the store is full")]
    StoreFull,
    #[error("the store fails")]
    StoreFails,
    #[error(
        "an earlier write or sync failed: the volume takes no changes until it is opened again"
    )]
    Faulty,
    #[error("the volume is being closed")]
    Closing,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Medium(#[from] MediumError),
}

/// A change, in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Write { offset: u64, bytes: &'a [u8] },
    Zero { offset: u64, length: u64 },
}

impl Change<'_> {
    const fn range(&self) -> (u64, u64) {
        match self {
            Self::Write { offset, bytes } => (*offset, bytes.len() as u64),
            Self::Zero { offset, length } => (*offset, *length),
        }
    }
}

/// Where the next record goes.
#[derive(Debug)]
struct Writer {
    cursor: Cursor,
    life: u64,
    store: StoreHealth,
    closing: bool,
}

/// What sealing came upon last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreHealth {
    Well,
    Full,
    Fails,
}

/// What the thread that seals is asked.
#[derive(Debug, Default)]
struct Asked {
    seal: bool,
    ending: bool,
}

/// Where each block is.
#[derive(Debug, Default)]
struct Maps {
    blocks: u64,
    fresh: ExtentMap<Fresh>,
    /// Frozen, while it is sealed.
    sealing: ExtentMap<Fresh>,
    sealed: ExtentMap<Place>,
    table: SegmentTable,
    /// Segments that others name too: snapshots, and what the volume began as. They are neither cleaned nor deleted.
    pinned: HashSet<SegmentId>,
    /// Segments that stay in the store until they are released, named or not: parity was made of them.
    retained: HashSet<SegmentId>,
}

impl Maps {
    /// Whether a segment that no map of the volume names is to stay.
    fn keeps(&self, id: &SegmentId) -> bool {
        self.pinned.contains(id) || self.retained.contains(id)
    }
}

/// A volume, open. See the module.
#[derive(Debug)]
pub struct Volume<M> {
    id: VolumeId,
    name: String,
    generation: Generation,
    keys: VolumeKeys,
    medium: M,
    ring: Ring,
    sealer: Mutex<Sealer>,
    writer: Mutex<Writer>,
    /// With `writer`: space became free.
    room: Condvar,
    maps: Mutex<Maps>,
    frames: Frames,
    /// Journal positions before this are free.
    tail: AtomicU64,
    /// A durable root covers the positions before this.
    covered: AtomicU64,
    /// When clients keep what the journal has.
    mirroring: Option<Arc<Mirroring>>,
    /// The number of the last durable root.
    checkpoints: AtomicU64,
    faulty: AtomicBool,
    /// Somebody seals when asked, so that it is worth to wait for room.
    attended: AtomicBool,
    asked: Mutex<Asked>,
    /// With `asked`.
    to_seal: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Medium> Volume<M> {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        ByteCount(lock(&self.maps).blocks * BLOCK_BYTES as u64)
    }

    /// Blocks of the journal that no checkpoint covers.
    #[must_use]
    pub fn pending(&self) -> u64 {
        let position = lock(&self.writer).cursor.position;
        position.saturating_sub(self.covered.load(Ordering::Acquire))
    }

    /// Makes every change that was taken so far durable.
    ///
    /// # Errors
    /// [`ChangeError::Faulty`] now and ever after when the disk did not do it.
    pub fn sync(&self) -> Result<(), ChangeError> {
        self.check_health()?;
        self.medium.sync_journal().map_err(|error| self.fail(error))
    }

    /// Asks for the journal to be sealed, if somebody does that.
    fn ask_to_seal(&self) {
        lock(&self.asked).seal = true;
        self.to_seal.notify_one();
    }

    fn check_health(&self) -> Result<(), ChangeError> {
        if self.faulty.load(Ordering::Acquire) { Err(ChangeError::Faulty) } else { Ok(()) }
    }

    /// Takes the volume out of use for changes.
    fn fail(&self, error: MediumError) -> ChangeError {
        self.faulty.store(true, Ordering::Release);
        self.room.notify_all();
        ChangeError::Medium(error)
    }
}

/// The blocks that a range of bytes touches: the first, and how many.
fn covering(offset: u64, length: u64) -> (BlockIndex, u64) {
    let first = offset / BLOCK_BYTES as u64;
    (BlockIndex(first), (offset + length).div_ceil(BLOCK_BYTES as u64) - first)
}

#[cfg(test)]
mod mirrored_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;
