//! The reader: where blocks come from, and which of them count.

use std::{
    io::{self, BufRead, Read},
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
};

use cairn_core::{
    bytes::DecodeError,
    free::{FreeFilter, Use},
    sparse,
    units::{BLOCK_BYTES, BlockIndex, ByteCount, blocks_for},
};
use tokio_util::sync::CancellationToken;

use super::{Counters, Run, StageGone, sequence::Piece};
use crate::{
    pool::{Pool, Pooled},
    workers::Workers,
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Read buffers that are kept: about as many as the queues behind the reader hold on to.
const READ_BUFFERS: usize = 32;
/// The largest image: what the manifest's tables and page numbers are dimensioned for.
pub const MAX_IMAGE_BYTES: u64 = 16 << 40;

/// Why an image's bytes cannot be taken. Each is the sender's to mend.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the image ends after {got} bytes, {declared} were declared: send it whole")]
    Truncated { declared: ByteCount, got: ByteCount },
    #[error(
        "the image goes on after the {declared} bytes that were declared: declare its real size"
    )]
    TooLong { declared: ByteCount },
    #[error("the image is empty")]
    Empty,
    #[error("the image is larger than {limit} bytes, the most that can be registered")]
    TooLarge { limit: ByteCount },
    #[error(
        "the image holds neither a partition table nor a file system: it does not look like a disk image"
    )]
    NotAnImage,
    #[error("the image cannot be read")]
    Read(#[source] io::Error),
    #[error("the upload is malformed")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Gives an image's blocks in ascending order.
pub trait BlockSource: Send {
    /// The next run; none at the end. Zeros may be left out or not.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn next_run(&mut self) -> Result<Option<Run>, SourceError>;

    /// The image's size in bytes, when it is known before the end.
    fn declared(&self) -> Option<ByteCount>;

    /// The image's size in bytes: known for certain once [`BlockSource::next_run`] gave none.
    fn size(&self) -> ByteCount;
}

/// What is registered.
pub struct Input {
    pub source: Box<dyn BlockSource>,
    /// Take bytes that look like no disk image at all.
    pub any_content: bool,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Input {{ any_content: {} }}", self.any_content)
    }
}

/// Raw bytes of a disk, in order.
#[derive(Debug)]
pub struct RawSource<R> {
    input: R,
    declared: Option<ByteCount>,
    position: u64,
    buffers: Pool,
}

impl<R: Read + Send> RawSource<R> {
    /// Reads `input` to its end, which must come after `declared` bytes when that is given.
    #[must_use]
    pub fn new(input: R, declared: Option<ByteCount>) -> Self {
        Self { input, declared, position: 0, buffers: Pool::new(READ_BUFFERS) }
    }

    fn check_end(&self) -> Result<(), SourceError> {
        let got = ByteCount(self.position);
        match self.declared {
            Some(declared) if got < declared => Err(SourceError::Truncated { declared, got }),
            _ if got.0 == 0 => Err(SourceError::Empty),
            _ => Ok(()),
        }
    }
}

impl<R: Read + Send> BlockSource for RawSource<R> {
    fn next_run(&mut self) -> Result<Option<Run>, SourceError> {
        loop {
            let mut chunk = self.buffers.take();
            chunk.resize(CHUNK_BYTES, 0);
            let length = read_full(&mut self.input, &mut chunk).map_err(SourceError::Read)?;
            let first = BlockIndex(self.position / BLOCK_BYTES as u64);
            self.position += length as u64;
            if let Some(declared) = self.declared.filter(|declared| self.position > declared.0) {
                return Err(SourceError::TooLong { declared });
            }
            if self.position > MAX_IMAGE_BYTES {
                return Err(SourceError::TooLarge { limit: ByteCount(MAX_IMAGE_BYTES) });
            }
            if length == 0 {
                return self.check_end().map(|()| None);
            }
            // Only the image's last block can be short: it counts as padded with zeros.
            let whole = length.next_multiple_of(BLOCK_BYTES);
            chunk.truncate(length);
            chunk.resize(whole, 0);
            if !is_zero(&chunk) {
                return Ok(Some(Run { first, bytes: chunk.freeze() }));
            }
        }
    }

    fn declared(&self) -> Option<ByteCount> {
        self.declared
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.position)
    }
}

/// A sparse stream ([`cairn_core::sparse`]): only what is not zero.
#[derive(Debug)]
pub struct SparseSource<R> {
    input: R,
    decoder: sparse::Decoder,
    total: ByteCount,
    /// Data that came and is not handed out yet, and its offset.
    open: Option<(u64, Pooled)>,
    buffers: Pool,
}

impl<R: BufRead + Send> SparseSource<R> {
    /// Reads the head of `input`, which declares the image's size.
    ///
    /// # Errors
    /// [`SourceError`] when there is none, or it declares too much.
    pub fn open(mut input: R) -> Result<Self, SourceError> {
        let mut decoder = sparse::Decoder::new(ByteCount(MAX_IMAGE_BYTES));
        let total = loop {
            let chunk = fill(&mut input)?;
            let (length, mut rest) = (chunk.len(), chunk);
            let start = match decoder.next(&mut rest).map_err(malformed)? {
                Some(sparse::Event::Start { total }) => Some(total),
                _ => None,
            };
            let used = length - rest.len();
            input.consume(used);
            match start {
                Some(ByteCount(0)) => return Err(SourceError::Empty),
                Some(total) => break total,
                None if length == 0 => decoder.finish().map_err(malformed)?,
                None => {}
            }
        };
        Ok(Self { input, decoder, total, open: None, buffers: Pool::new(READ_BUFFERS) })
    }
}

impl<R: BufRead + Send> BlockSource for SparseSource<R> {
    fn next_run(&mut self) -> Result<Option<Run>, SourceError> {
        loop {
            let chunk = fill(&mut self.input)?;
            if chunk.is_empty() {
                self.decoder.finish().map_err(malformed)?;
                return Ok(self.open.take().map(run_of));
            }
            let mut rest = chunk;
            let mut full = None;
            while full.is_none()
                && let Some(event) = self.decoder.next(&mut rest).map_err(malformed)?
            {
                let sparse::Event::Data { offset, bytes } = event else { continue };
                full = gather(&mut self.open, &self.buffers, offset, bytes);
            }
            let used = chunk.len() - rest.len();
            self.input.consume(used);
            if let Some(full) = full {
                return Ok(Some(run_of(full)));
            }
        }
    }

    fn declared(&self) -> Option<ByteCount> {
        Some(self.total)
    }

    fn size(&self) -> ByteCount {
        self.total
    }
}

fn malformed(error: DecodeError) -> SourceError {
    SourceError::Malformed(Box::new(error))
}

fn fill(input: &mut impl BufRead) -> Result<&[u8], SourceError> {
    input.fill_buf().map_err(SourceError::Read)
}

/// Adds a piece to the open data; what was open before, when it is full or the piece does not go on where it ends.
/// Records start at blocks and a full run is whole blocks, so data is only ever cut between blocks.
fn gather(
    open: &mut Option<(u64, Pooled)>,
    buffers: &Pool,
    mut offset: u64,
    mut bytes: &[u8],
) -> Option<(u64, Pooled)> {
    if let Some((first, data)) = open
        && *first + data.len() as u64 == offset
    {
        let (head, tail) = bytes.split_at(bytes.len().min(CHUNK_BYTES - data.len()));
        data.extend_from_slice(head);
        if tail.is_empty() {
            return None;
        }
        (offset, bytes) = (offset + head.len() as u64, tail);
    }
    let mut data = buffers.take();
    data.clear();
    data.reserve(CHUNK_BYTES);
    data.extend_from_slice(bytes);
    open.replace((offset, data))
}

/// Only the image's last block can be short: it counts as padded with zeros.
fn run_of((offset, mut data): (u64, Pooled)) -> Run {
    let whole = data.len().next_multiple_of(BLOCK_BYTES);
    data.resize(whole, 0);
    Run { first: BlockIndex(offset / BLOCK_BYTES as u64), bytes: data.freeze() }
}

/// Reads until `buffer` is full or the input ends.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether all bytes are zero. Compares with itself shifted, which is a memcmp.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        None => true,
        Some((first, _)) => *first == 0 && bytes[1..] == bytes[..bytes.len() - 1],
    }
}

/// Reads the source to its end. The image's size.
pub(super) fn read(
    mut input: Input,
    workers: &Workers,
    pieces: &SyncSender<Piece>,
    counters: &Arc<Counters>,
    cancel: &CancellationToken,
) -> anyhow::Result<ByteCount> {
    let filter = FreeFilter::new(input.source.declared().unwrap_or(ByteCount(MAX_IMAGE_BYTES)));
    let mut reader = Reader { workers, pieces, counters, filter, next: 0, free: None };
    let mut looks_right = input.any_content;
    while let Some(run) = input.source.next_run()? {
        anyhow::ensure!(!cancel.is_cancelled(), "registering was cancelled");
        looks_right = looks_right || looks_like_a_disk(&run);
        if !looks_right {
            return Err(SourceError::NotAnImage.into());
        }
        reader.run(&run)?;
        counters
            .position
            .store(run.first.byte_offset() + run.bytes.len() as u64, Ordering::Relaxed);
    }
    if !looks_right {
        return Err(SourceError::NotAnImage.into());
    }
    let size = input.source.size();
    reader.zeros_until(blocks_for(size))?;
    reader.end_free()?;
    counters.position.store(size.0, Ordering::Relaxed);
    Ok(size)
}

/// Divides runs into pieces: zeros are dropped, free blocks are only named.
struct Reader<'a> {
    workers: &'a Workers,
    pieces: &'a SyncSender<Piece>,
    counters: &'a Arc<Counters>,
    filter: FreeFilter,
    /// The next block not looked at.
    next: u64,
    /// A run of free blocks not yet handed on: first, count.
    free: Option<(BlockIndex, u64)>,
}

static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

impl Reader<'_> {
    fn run(&mut self, run: &Run) -> anyhow::Result<()> {
        self.zeros_until(run.first.0)?;
        let mut data = None;
        for (number, block) in run.bytes.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
            let index = BlockIndex(self.next);
            self.next += 1;
            let is_data = match (self.filter.observe(index, block), is_zero(block)) {
                (Use::Free, zero) => {
                    Counters::add(&self.counters.free, if zero { 0 } else { BLOCK_BYTES });
                    self.free_block(index)?;
                    false
                }
                (Use::Keep, zero) => !zero,
            };
            match (is_data, data) {
                (true, None) => data = Some(number),
                (false, Some(start)) => {
                    self.data(run, start, number)?;
                    data = None;
                }
                _ => {}
            }
        }
        match data {
            Some(start) => self.data(run, start, run.bytes.len() / BLOCK_BYTES),
            None => Ok(()),
        }
    }

    /// What the source left out is zero, and of that the file system may call some free.
    fn zeros_until(&mut self, end: u64) -> anyhow::Result<()> {
        while self.next < end {
            let index = BlockIndex(self.next);
            self.next += 1;
            if self.filter.observe(index, &ZERO_BLOCK) == Use::Free {
                self.free_block(index)?;
            }
        }
        Ok(())
    }

    fn free_block(&mut self, block: BlockIndex) -> anyhow::Result<()> {
        match &mut self.free {
            Some((first, blocks)) if first.0 + *blocks == block.0 => *blocks += 1,
            _ => {
                self.end_free()?;
                self.free = Some((block, 1));
            }
        }
        Ok(())
    }

    fn end_free(&mut self) -> anyhow::Result<()> {
        match self.free.take() {
            Some((first, blocks)) => self.send(Piece::Free { first, blocks }),
            None => Ok(()),
        }
    }

    /// Hands on blocks `start..end` of a run.
    fn data(&mut self, run: &Run, start: usize, end: usize) -> anyhow::Result<()> {
        // Pieces go on in ascending order: free blocks before this one first.
        self.end_free()?;
        let bytes = run.bytes.slice(start * BLOCK_BYTES..end * BLOCK_BYTES);
        Counters::add(&self.counters.data, bytes.len());
        let first = BlockIndex(run.first.0 + start as u64);
        self.send(Piece::Data { first, bytes: bytes.clone(), hashes: self.workers.hash(bytes)? })
    }

    fn send(&self, piece: Piece) -> anyhow::Result<()> {
        self.pieces.send(piece).map_err(|_| StageGone.into())
    }
}

/// Whether the first blocks that hold anything show a partition table or a file system that we know.
fn looks_like_a_disk(run: &Run) -> bool {
    // (offset from the start of the disk, magic)
    const SIGNS: [(usize, &[u8]); 9] = [
        (510, &[0x55, 0xaa]),
        (512, b"EFI PART"),
        (512, b"LABELONE"),
        (1080, &[0x53, 0xef]),
        (0, b"XFSB"),
        (3, b"NTFS    "),
        (0x10040, b"_BHRfS_M"),
        (0x8001, b"CD001"),
        (0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ];
    let Ok(base) = usize::try_from(run.first.byte_offset()) else { return false };
    SIGNS.iter().any(|(offset, magic)| {
        offset.checked_sub(base).and_then(|at| run.bytes.get(at..at + magic.len())) == Some(*magic)
    })
}
