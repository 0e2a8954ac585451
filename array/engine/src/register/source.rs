//! The reader: where blocks come from, and which of them count.

use std::{
    io::{self, Read},
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
};

use cairn_core::units::{BLOCK_BYTES, BlockIndex, ByteCount};
use tokio_util::sync::CancellationToken;

use super::{Counters, Run, StageGone, sequence::Piece, workers::Workers};

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;
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
    /// The last chunk's memory, when nobody else has it any more.
    spare: Vec<u8>,
}

impl<R: Read + Send> RawSource<R> {
    /// Reads `input` to its end, which must come after `declared` bytes when that is given.
    pub const fn new(input: R, declared: Option<ByteCount>) -> Self {
        Self { input, declared, position: 0, spare: Vec::new() }
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
            let mut chunk = std::mem::take(&mut self.spare);
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
            if is_zero(&chunk) {
                self.spare = chunk;
                continue;
            }
            return Ok(Some(Run { first, bytes: chunk.into() }));
        }
    }

    fn size(&self) -> ByteCount {
        ByteCount(self.position)
    }
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
    let mut reader = Reader { workers, pieces, counters };
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
            .store((run.first.0 * BLOCK_BYTES as u64) + run.bytes.len() as u64, Ordering::Relaxed);
    }
    let size = input.source.size();
    if !looks_right {
        return Err(SourceError::NotAnImage.into());
    }
    counters.position.store(size.0, Ordering::Relaxed);
    Ok(size)
}

/// Divides runs into pieces: zeros are dropped, free blocks are only named.
struct Reader<'a> {
    workers: &'a Workers,
    pieces: &'a SyncSender<Piece>,
    counters: &'a Arc<Counters>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zero,
    Free,
    Data,
}

impl Reader<'_> {
    fn run(&mut self, run: &Run) -> anyhow::Result<()> {
        let mut start = 0;
        let mut kind = Kind::Zero;
        let count = run.bytes.len() / BLOCK_BYTES;
        let blocks = run.bytes.as_chunks::<BLOCK_BYTES>().0;
        for (number, block) in blocks.iter().enumerate() {
            let now = if is_zero(block) { Kind::Zero } else { Kind::Data };
            if now != kind {
                self.piece(run, kind, start, number)?;
                (start, kind) = (number, now);
            }
        }
        self.piece(run, kind, start, count)
    }

    /// Hands on blocks `start..end` of a run.
    fn piece(&self, run: &Run, kind: Kind, start: usize, end: usize) -> anyhow::Result<()> {
        if start == end {
            return Ok(());
        }
        let first = BlockIndex(run.first.0 + start as u64);
        let bytes = (end - start) * BLOCK_BYTES;
        let piece = match kind {
            Kind::Zero => return Ok(()),
            Kind::Free => {
                Counters::add(&self.counters.free, bytes);
                Piece::Free { first, blocks: (end - start) as u64 }
            }
            Kind::Data => {
                Counters::add(&self.counters.data, bytes);
                let bytes = run.bytes.slice(start * BLOCK_BYTES..end * BLOCK_BYTES);
                Piece::Data { first, bytes: bytes.clone(), hashes: self.workers.hash(bytes)? }
            }
        };
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
