//! Registering: raw blocks in, sealed segments and a map out, in one pass and in bounded memory.
//!
//! ```text
//!  source ──► reader ──► workers ──► sequencer ──► workers ──► packer ──► sink
//!  (runs)     zero?       hash        seen before?   zstd       seal, id    (store)
//!             free?                   frame, page               map pages
//! ```
//!
//! Three threads keep the order, a few workers do what costs. Each queue between them is bounded, so a slow sink
//! slows the source down. Nothing here knows where bytes come from or go to.
//!
//! Invariants: a segment key is random and seals one segment; a block is only ever shared after its whole hash was
//! compared; the map names every block that is neither zero nor free, once.

mod index;
mod pack;
mod sequence;
mod source;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::Context as _;
use bytes::Bytes;
use cairn_core::{
    id::sha256,
    manifest::{MapSegmentKey, SegmentEntry},
    seal::SealKey,
    units::{BlockIndex, ByteCount},
};
use tokio_util::sync::CancellationToken;

pub use source::{BlockSource, Input, MAX_IMAGE_BYTES, RawSource, SourceError, SparseSource};

use crate::dsf::CheckedSegment;

use crate::map_reader::PriorVersion;
use crate::workers::Workers;
use index::BlockIndexCache;

/// Results that may wait between two stages: enough to keep the workers busy, a few MiB of memory each.
const QUEUE: usize = 8;

/// Blocks of an image in ascending order. What no run names is zero.
#[derive(Clone, Debug)]
pub struct Run {
    pub first: BlockIndex,
    /// Whole blocks, at most 1 MiB.
    pub bytes: Bytes,
}

/// Takes sealed segments, in the order in which they are made. May block: that slows registering down.
pub trait SegmentSink: Send {
    /// Keeps a segment.
    ///
    /// # Errors
    /// When it cannot be kept; registering ends with this error.
    fn put(&mut self, segment: CheckedSegment) -> anyhow::Result<()>;
}

/// What came out: the parts of a manifest.
#[derive(Debug)]
pub struct Registered {
    pub size: ByteCount,
    /// Data segments used, new ones and those of earlier versions.
    pub data: Vec<SegmentEntry>,
    pub data_keys: Vec<SealKey>,
    pub map: Vec<SegmentEntry>,
    pub map_keys: Vec<MapSegmentKey>,
    pub data_blocks: u64,
    /// SHA-256 over size, positions and hashes of all data blocks: equal for equal content.
    pub content: [u8; 32],
}

/// How far it is: read by others while it runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the image that were passed, zeros included.
    pub position: AtomicU64,
    /// Bytes that are neither zero nor free.
    pub data: AtomicU64,
    /// Bytes that the file system does not use.
    pub free: AtomicU64,
    /// Bytes that were stored already, in this image or an earlier version.
    pub deduplicated: AtomicU64,
    /// Sealed bytes of new segments.
    pub stored: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Where a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a frame of this run, counted from its start (64 TiB of frames fit).
    New { frame: u32, block: u8 },
    /// In a segment of an earlier version, by its position among the earlier segments.
    Prior { segment: u32, frame: u16, block: u8 },
}

impl Place {
    fn pack(self) -> u64 {
        match self {
            Self::New { frame, block } => u64::from(frame) << 8 | u64::from(block),
            Self::Prior { segment, frame, block } => {
                1 << 62 | u64::from(segment) << 24 | u64::from(frame) << 8 | u64::from(block)
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes apart what pack put together")]
    const fn unpack(packed: u64) -> Self {
        let block = packed as u8;
        if packed >> 62 == 0 {
            Self::New { frame: (packed >> 8) as u32, block }
        } else {
            Self::Prior { segment: (packed >> 24) as u32, frame: (packed >> 8) as u16, block }
        }
    }
}

/// Registers the image that `input` gives. Blocks its thread; call it where that is allowed.
///
/// # Errors
/// When the source, the sink or a worker fails, or `cancel` fires. Segments given to the sink until then belong to
/// no image: the caller drops them.
pub fn register(
    input: Input,
    prior: Option<PriorVersion<'_>>,
    sink: &mut dyn SegmentSink,
    counters: &Arc<Counters>,
    cancel: &CancellationToken,
) -> anyhow::Result<Registered> {
    let mut known = BlockIndexCache::new();
    let earlier = match prior {
        Some(prior) => {
            sequence::preload(&mut known, prior).context("read the map of the version before")?
        }
        None => Vec::new(),
    };
    let parallel = thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let (workers, threads) =
        Workers::start("register", parallel).context("start worker threads")?;
    let (hashed, to_sequence) = mpsc::sync_channel(QUEUE);
    let (sequenced, to_pack) = mpsc::sync_channel(QUEUE * 4);
    let (reader, sequencer) = (workers.clone(), workers);
    let result = thread::scope(|scope| {
        let read = scope.spawn(move || source::read(input, &reader, &hashed, counters, cancel));
        let sequence = scope
            .spawn(move || sequence::run(known, &to_sequence, &sequencer, &sequenced, counters));
        let packed = pack::run(&to_pack, earlier, sink, counters);
        // Dropping the queue's end lets the stages before it end, whatever happened.
        drop(to_pack);
        let sequence =
            sequence.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the sequencer panicked")));
        let read = read.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the reader panicked")));
        first_error(read, sequence, packed)
    });
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a worker thread panicked"))?;
    }
    result
}

/// The error that came first in the flow caused the others. A stage that failed only because its neighbour was gone
/// says [`StageGone`], which never hides the neighbour's own error.
fn first_error(
    read: anyhow::Result<ByteCount>,
    sequence: anyhow::Result<()>,
    packed: anyhow::Result<Registered>,
) -> anyhow::Result<Registered> {
    let mut errors = Vec::new();
    let size = read.map_err(|error| errors.push(error));
    sequence.map_err(|error| errors.push(error)).ok();
    let packed = packed.map_err(|error| errors.push(error));
    let cause = errors.iter().position(|error| !error.is::<StageGone>()).unwrap_or(0);
    match (size, packed) {
        (Ok(size), Ok(registered)) if errors.is_empty() => {
            let content = sha256(&[&registered.content[..], &size.0.to_le_bytes()].concat());
            Ok(Registered { size, content, ..registered })
        }
        _ => Err(errors.swap_remove(cause)),
    }
}

/// The next stage ended before this one: its own error says why.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the next stage of registering ended early")]
struct StageGone;
