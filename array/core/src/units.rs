//! Sizes and indices, each with its unit in its type.

use serde::{Deserialize, Serialize};

/// Bytes in a block, the unit of addressing and of deduplication.
pub const BLOCK_BYTES: usize = 4096;
/// The most blocks a frame holds (256 KiB of plain data).
pub const FRAME_BLOCKS: usize = 64;
/// The most plain bytes a frame holds.
pub const FRAME_MAX_BYTES: usize = BLOCK_BYTES * FRAME_BLOCKS;
/// The most sealed bytes a segment holds: the unit of transfer, placement and parity.
pub const SEGMENT_MAX_BYTES: usize = 4 << 20;
/// The most frames a segment can hold; bounds every frame table a decoder accepts.
pub const SEGMENT_MAX_FRAMES: usize = 4096;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A block's position in an image or volume, counted in blocks of [`BLOCK_BYTES`].
    BlockIndex(u64)
}
number! {
    /// A segment's position in the segment table of one manifest.
    SegmentIndex(u32)
}
number! {
    /// A frame's position in its segment; also the nonce it is sealed with.
    FrameIndex(u16)
}
number! {
    /// A size in bytes.
    ByteCount(u64)
}
number! {
    /// A counter that only grows: a newer signed document replaces an older one, never the reverse.
    Generation(u64)
}

impl BlockIndex {
    /// The byte offset at which this block starts.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        self.0 * BLOCK_BYTES as u64
    }
}

/// The number of blocks that `bytes` bytes occupy, the last one counted whole.
#[must_use]
pub const fn blocks_for(bytes: ByteCount) -> u64 {
    bytes.0.div_ceil(BLOCK_BYTES as u64)
}
