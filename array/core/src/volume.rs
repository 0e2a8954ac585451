//! The volume: a map with a log in front of it (LSVD, EuroSys 2022).
//!
//! ```text
//!   write ─► journal record ─► fresh map ──┐ frozen while it is sealed
//!                                          ▼
//!                               segments ◄─┴─► map pages ─► checkpoint
//!   read  ─► fresh map, else the map being sealed, else the map of segments
//! ```
//!
//! Nothing is overwritten in place. A checkpoint covers the journal up to a record; what lies behind it is replayed.
//! So a volume that is opened again is as it was after some change, and never before one that was flushed.

pub mod checkpoint;
pub mod clean;
pub mod extent_map;
pub mod journal;
pub mod table;
pub mod tail;

use crate::units::{BLOCK_BYTES, ByteCount, FrameIndex, SegmentIndex};

/// The most blocks of a volume: 64 TiB.
pub const MAX_BLOCKS: u64 = (64 << 40) / BLOCK_BYTES as u64;
/// The longest name of a volume in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// The most blocks that a volume puts into one frame: a random read opens no more than 16 KiB.
pub const VOLUME_FRAME_BLOCKS: usize = 4;

/// Why no volume can have a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("a volume has at least one block of 4096 bytes")]
    Empty,
    #[error("a volume's size is a multiple of 4096 bytes")]
    Ragged,
    #[error("a volume has at most 64 TiB")]
    TooLarge,
}

/// The blocks of a volume of `size` bytes.
///
/// # Errors
/// [`SizeError`] when no volume can have that size.
pub const fn blocks_of(size: ByteCount) -> Result<u64, SizeError> {
    let blocks = size.0 / BLOCK_BYTES as u64;
    if size.0 == 0 {
        Err(SizeError::Empty)
    } else if !size.0.is_multiple_of(BLOCK_BYTES as u64) {
        Err(SizeError::Ragged)
    } else if blocks > MAX_BLOCKS {
        Err(SizeError::TooLarge)
    } else {
        Ok(blocks)
    }
}

/// When a flush of a volume is answered. It is so from the volume's first day on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once the journal is durable on the controller's disk.
    Local,
    /// Once a client has what the journal has, too ([`tail`]).
    Mirrored,
}

/// Where a sealed block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub segment: SegmentIndex,
    pub frame: FrameIndex,
    /// In the frame.
    pub block: u16,
}

impl extent_map::Run for Place {
    fn after(self, blocks: u16) -> Self {
        Self { block: self.block + blocks, ..self }
    }
}

/// Where a block is that no checkpoint covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// At this block of the journal, counted from its first record on.
    Journal(u64),
    /// Zeros: trimmed, or written as such.
    Zero,
}

impl extent_map::Run for Fresh {
    fn after(self, blocks: u16) -> Self {
        match self {
            Self::Journal(at) => Self::Journal(at + u64::from(blocks)),
            Self::Zero => Self::Zero,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_blocks_up_to_64_tib() {
        assert_eq!(blocks_of(ByteCount(8192)), Ok(2));
        assert_eq!(blocks_of(ByteCount(64 << 40)), Ok(MAX_BLOCKS));
        assert_eq!(blocks_of(ByteCount(0)), Err(SizeError::Empty));
        assert_eq!(blocks_of(ByteCount(4097)), Err(SizeError::Ragged));
        assert_eq!(blocks_of(ByteCount((64 << 40) + 4096)), Err(SizeError::TooLarge));
    }
}
