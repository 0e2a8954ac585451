//! The map page: where the blocks of 16 MiB of an image are, and what they hash to.
//!
//! ```text
//! offset   size  field
//!      0      2  version = 1
//!      2      2  extent count E (1 ..= 4096)
//!      4      4  reserved, zero
//!      8      8  number of the page's first block, a multiple of 4096
//!     16   16×E  extents, ascending, not overlapping:
//!                  first block, counted from the page's first (u16)
//!                  block count (u16, 1 ..= 4096)
//!                  segment (u32, index in the manifest's segment table; 0xffff_ffff: free)
//!                  frame in the segment (u16), block in the frame (u16), both zero when free, reserved (u32)
//!      …   32×B  SHA-256 of each block of the data extents, in order
//! ```
//!
//! Extents come before the hashes, for an install needs all the former before the first byte is fetched and the
//! latter only to compare. A page is one frame of a *map segment*; it is never larger than a frame holds (full
//! page: 16 + 4096×16 + 4096×32 = 192.02 KiB), padded with zeros to whole blocks. What no extent names is zero.
//! A *free* extent is space that the file system does not use: an installer may leave there what it finds.
//! A data extent lies within one frame.

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::BlockHash,
    units::{BLOCK_BYTES, BlockIndex, FRAME_BLOCKS, FrameIndex, SEGMENT_MAX_FRAMES, SegmentIndex},
};

/// Blocks that one page covers.
pub const PAGE_BLOCKS: u64 = 4096;

const VERSION: u16 = 1;
const EXTENT_BYTES: usize = 16;
const FREE: u32 = u32::MAX;

/// Where the blocks of an extent come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Segment {
        segment: SegmentIndex,
        frame: FrameIndex,
        block: u16,
    },
    /// Unused by the file system: of no content.
    Free,
}

/// A run of blocks of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub first: BlockIndex,
    /// 1 ..= 64 for data (a frame), 1 ..= 4096 for free space.
    pub blocks: u16,
    pub origin: Origin,
}

impl Extent {
    /// The block after the last.
    #[must_use]
    pub const fn end(&self) -> BlockIndex {
        BlockIndex(self.first.0 + self.blocks as u64)
    }
}

/// One page. See the module's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPage {
    /// The first block covered, a multiple of [`PAGE_BLOCKS`].
    pub first: BlockIndex,
    pub extents: Vec<Extent>,
    /// One for each block of the data extents, in order.
    pub hashes: Vec<BlockHash>,
}

impl MapPage {
    /// The page's bytes, padded to whole blocks.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.u16(VERSION);
        writer.u16(u16::try_from(self.extents.len()).unwrap_or(u16::MAX));
        writer.u32(0);
        writer.u64(self.first.0);
        for extent in &self.extents {
            writer.u16(u16::try_from(extent.first.0 - self.first.0).unwrap_or(u16::MAX));
            writer.u16(extent.blocks);
            let (segment, frame, block) = match extent.origin {
                Origin::Segment { segment, frame, block } => (segment.0, frame.0, block),
                Origin::Free => (FREE, 0, 0),
            };
            writer.u32(segment);
            writer.u16(frame);
            writer.u16(block);
            writer.u32(0);
        }
        for hash in &self.hashes {
            writer.put(hash.as_bytes());
        }
        let mut bytes = writer.finish();
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    /// Reads a page of an image with `segments` segments in its table.
    ///
    /// # Errors
    /// When a field is above its limit, extents overlap or leave the page, or bytes other than zeros follow.
    pub fn decode(bytes: &[u8], segments: usize) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16()?;
        if found != VERSION {
            return Err(DecodeError::Version { found, known: VERSION });
        }
        let count = usize::from(reader.u16()?);
        if count == 0 || count as u64 > PAGE_BLOCKS {
            return Err(DecodeError::Limit {
                field: "extent count",
                value: count as u64,
                limit: PAGE_BLOCKS,
            });
        }
        reader.reserved(4)?;
        let first = reader.u64()?;
        if !first.is_multiple_of(PAGE_BLOCKS) || first > u64::MAX / 2 / BLOCK_BYTES as u64 {
            return Err(DecodeError::Inconsistent { field: "first block" });
        }
        let need = count * EXTENT_BYTES;
        if need > reader.remaining() {
            return Err(DecodeError::Truncated { need, have: reader.remaining() });
        }
        let mut extents = Vec::with_capacity(count);
        let mut end = BlockIndex(first);
        for _ in 0..count {
            let extent = extent(&mut reader, BlockIndex(first), segments)?;
            if extent.first < end {
                return Err(DecodeError::Inconsistent { field: "extent order" });
            }
            end = extent.end();
            extents.push(extent);
        }
        if end.0 > first + PAGE_BLOCKS {
            return Err(DecodeError::Inconsistent { field: "extent end" });
        }
        let data = extents.iter().filter(|extent| extent.origin != Origin::Free);
        let hashed: usize = data.map(|extent| usize::from(extent.blocks)).sum();
        let hashes =
            (0..hashed).map(|_| reader.array().map(BlockHash)).collect::<Result<_, _>>()?;
        if reader.remaining() >= BLOCK_BYTES {
            return Err(DecodeError::Trailing { count: reader.remaining() });
        }
        reader.reserved(reader.remaining())?;
        Ok(Self { first: BlockIndex(first), extents, hashes })
    }

    /// Each data extent with the hashes of its blocks.
    pub fn data(&self) -> impl Iterator<Item = (&Extent, &[BlockHash])> {
        let mut rest = &self.hashes[..];
        self.extents.iter().filter(|extent| extent.origin != Origin::Free).map(move |extent| {
            let (head, tail) = rest.split_at_checked(extent.blocks.into()).unwrap_or((rest, &[]));
            rest = tail;
            (extent, head)
        })
    }
}

fn extent(
    reader: &mut Reader<'_>,
    page: BlockIndex,
    segments: usize,
) -> Result<Extent, DecodeError> {
    let first = BlockIndex(page.0 + u64::from(reader.u16()?));
    let blocks = reader.u16()?;
    let segment = reader.u32()?;
    let frame = reader.u16()?;
    let block = reader.u16()?;
    reader.reserved(4)?;
    if segment == FREE {
        if blocks == 0 || u64::from(blocks) > PAGE_BLOCKS {
            return Err(DecodeError::Limit {
                field: "free blocks",
                value: blocks.into(),
                limit: PAGE_BLOCKS,
            });
        }
        if (frame, block) != (0, 0) {
            return Err(DecodeError::Inconsistent { field: "place of a free extent" });
        }
        return Ok(Extent { first, blocks, origin: Origin::Free });
    }
    if segment as usize >= segments {
        return Err(DecodeError::Limit {
            field: "segment",
            value: segment.into(),
            limit: segments as u64,
        });
    }
    if usize::from(frame) >= SEGMENT_MAX_FRAMES {
        return Err(DecodeError::Limit {
            field: "frame",
            value: frame.into(),
            limit: SEGMENT_MAX_FRAMES as u64,
        });
    }
    if blocks == 0 || usize::from(block) + usize::from(blocks) > FRAME_BLOCKS {
        return Err(DecodeError::Limit {
            field: "blocks in frame",
            value: blocks.into(),
            limit: FRAME_BLOCKS as u64,
        });
    }
    let origin =
        Origin::Segment { segment: SegmentIndex(segment), frame: FrameIndex(frame), block };
    Ok(Extent { first, blocks, origin })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::units::FRAME_MAX_BYTES;

    #[test]
    fn a_free_extent_that_names_a_place_is_refused() {
        let free = Extent { first: BlockIndex(0), blocks: 3, origin: Origin::Free };
        let page = MapPage { first: BlockIndex(0), extents: vec![free], hashes: Vec::new() };
        let mut bytes = page.encode();
        assert_eq!(MapPage::decode(&bytes, 1).unwrap(), page);
        bytes[26] = 1;
        let field = "place of a free extent";
        assert_eq!(MapPage::decode(&bytes, 1), Err(DecodeError::Inconsistent { field }));
    }

    prop_compose! {
        fn page()(
            number in 0_u64..1000,
            runs in vec((0_u64..50, 1_u16..=64, any::<Option<(u32, u16)>>()), 1..60),
        ) -> MapPage {
            let first = BlockIndex(number * PAGE_BLOCKS);
            let mut page = MapPage { first, extents: Vec::new(), hashes: Vec::new() };
            let mut at = first.0;
            for (gap, blocks, origin) in runs {
                let start = at + gap;
                if start + u64::from(blocks) > first.0 + PAGE_BLOCKS { break }
                at = start + u64::from(blocks);
                let origin = match origin {
                    None => Origin::Free,
                    Some((segment, frame)) => {
                        for block in start..at {
                            page.hashes.push(BlockHash::of(&block.to_le_bytes()));
                        }
                        Origin::Segment {
                            segment: SegmentIndex(segment % 1000), frame: FrameIndex(frame % 4096), block: 64 - blocks,
                        }
                    }
                };
                page.extents.push(Extent { first: BlockIndex(start), blocks, origin });
            }
            page
        }
    }

    proptest! {
        #[test]
        fn pages_round_trip(page in page()) {
            prop_assume!(!page.extents.is_empty());
            let bytes = page.encode();
            prop_assert!(bytes.len() <= FRAME_MAX_BYTES);
            prop_assert_eq!(MapPage::decode(&bytes, 1000).unwrap(), page);
        }

        #[test]
        fn a_flipped_bit_never_panics(page in page(), at in any::<usize>(), bit in 0_u8..8) {
            prop_assume!(!page.extents.is_empty());
            let mut bytes = page.encode();
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            if let Ok(page) = MapPage::decode(&bytes, 1000) {
                prop_assert!(page.data().all(|(extent, hashes)| hashes.len() == usize::from(extent.blocks)));
            }
        }
    }

    #[test]
    fn the_fullest_page_fits_a_frame() {
        let extents: Vec<_> = (0..PAGE_BLOCKS)
            .map(|block| Extent {
                first: BlockIndex(block),
                blocks: 1,
                origin: Origin::Segment {
                    segment: SegmentIndex(0),
                    frame: FrameIndex(0),
                    block: 0,
                },
            })
            .collect();
        let hashes = vec![BlockHash([1; 32]); extents.len()];
        let bytes = MapPage { first: BlockIndex(0), extents, hashes }.encode();
        assert!(bytes.len() <= FRAME_MAX_BYTES, "{}", bytes.len());
        assert!(MapPage::decode(&bytes, 1).is_ok());
        assert!(matches!(
            MapPage::decode(&bytes, 0),
            Err(DecodeError::Limit { field: "segment", .. })
        ));
    }
}
