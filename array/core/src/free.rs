//! Which blocks of an image need not be stored because its file systems call them free.
//!
//! The image streams past once, in ascending order, without its zero blocks if the caller likes. The first 64 KiB tell the
//! partitions, or that the image is one file system; then each partition's first block tells whether it holds an ext4 that can be
//! looked into, see [`crate::ext4`]. Everything else is kept: other file systems, damaged tables, what lies between partitions.
//!
//! ```text
//!   blocks 0 … 15 ──► partition table ──► partition's first block ──► ext4 ──► Keep or Free
//!      (kept)          none or unknown: all kept     no ext4: all kept
//! ```
//!
//! Invariants: a block that a file system uses is never [`Use::Free`]; blocks that come out of order are kept; memory is
//! bounded, whatever the image says.

use crate::ext4::{Ext4, Superblock};
use crate::partition::{HEAD_BYTES, Partition, Table};
use crate::units::{BLOCK_BYTES, BlockIndex, ByteCount};

const BLOCK: u64 = BLOCK_BYTES as u64;
const HEAD_BLOCKS: u64 = (HEAD_BYTES / BLOCK_BYTES) as u64;

/// What to do with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is, or may be, in use.
    Keep,
    /// Its file system does not use it: nobody will miss what is in it.
    Free,
}

/// Watches an image go past and says which blocks may be left out.
#[derive(Debug)]
pub struct FreeFilter {
    image: ByteCount,
    /// The block after the last one that was seen.
    next: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The start of the image, as far as it came.
    Head(Vec<u8>),
    Volumes(Vec<Volume>),
}

/// A partition, or a whole image, that may hold a file system. In blocks.
#[derive(Debug)]
struct Volume {
    start: u64,
    end: u64,
    bytes: ByteCount,
    ext4: Option<Ext4>,
}

impl FreeFilter {
    /// A filter for an image of this size.
    #[must_use]
    pub fn new(image: ByteCount) -> Self {
        Self { image, next: 0, state: State::Head(vec![0; HEAD_BYTES]) }
    }

    /// Takes the next block that is not zero and says whether it is needed. Zero blocks may be given too.
    pub fn observe(&mut self, block: BlockIndex, bytes: &[u8; BLOCK_BYTES]) -> Use {
        let Some(next) = block.0.checked_add(1).filter(|_| block.0 >= self.next) else {
            return Use::Keep;
        };
        self.next = next;
        if let State::Head(head) = &mut self.state {
            let start = usize::try_from(block.0).ok().and_then(|at| at.checked_mul(BLOCK_BYTES));
            let place = start.and_then(|start| head.get_mut(start..)?.first_chunk_mut());
            if let Some(place) = place {
                *place = *bytes;
                return Use::Keep;
            }
            self.state = State::Volumes(volumes(head, self.image));
        }
        let State::Volumes(volumes) = &mut self.state else { return Use::Keep };
        let volume =
            volumes.iter_mut().find(|volume| (volume.start..volume.end).contains(&block.0));
        volume.map_or(Use::Keep, |volume| volume.observe(block.0, bytes))
    }
}

impl Volume {
    /// `None` when its blocks are not blocks of the image.
    fn new(partition: Partition) -> Option<Self> {
        let Partition { start, end } = partition;
        let aligned = start.is_multiple_of(BLOCK);
        let bytes = ByteCount(end.checked_sub(start)?);
        aligned.then_some(Self { start: start / BLOCK, end: end / BLOCK, bytes, ext4: None })
    }

    fn observe(&mut self, block: u64, bytes: &[u8; BLOCK_BYTES]) -> Use {
        let at = block - self.start;
        if at == 0 {
            self.ext4 = Superblock::read(bytes, self.bytes).map(Ext4::new);
        }
        let free = self.ext4.as_mut().is_some_and(|ext4| ext4.observe(at, bytes));
        if free { Use::Free } else { Use::Keep }
    }
}

/// The volumes that the start of the image names, with what it already shows of them.
fn volumes(head: &[u8], image: ByteCount) -> Vec<Volume> {
    let partitions = match Table::read(head, image) {
        Table::Absent => vec![Partition { start: 0, end: image.0 }],
        Table::Unknown => Vec::new(),
        Table::Partitions(partitions) => partitions,
    };
    let mut volumes: Vec<_> = partitions.into_iter().filter_map(Volume::new).collect();
    let (blocks, _) = head.as_chunks::<BLOCK_BYTES>();
    for volume in &mut volumes {
        for (block, bytes) in (0..HEAD_BLOCKS.min(volume.end)).zip(blocks) {
            if block >= volume.start {
                volume.observe(block, bytes);
            }
        }
    }
    volumes
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "real file systems are made in a temporary folder")]
mod tests;
