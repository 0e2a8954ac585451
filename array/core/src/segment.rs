//! The segment: frames packed until the sealed size is close to, never above, 4 MiB.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNSEG"
//!      8     2  version = 1
//!     10     2  frame count n (1 ..= 4096)
//!     12     4  reserved, zero
//!     16   8×n  frame table: sealed bytes (u32), plain bytes (u32, a multiple of 4096, at most 262144)
//! 16+8×n     …  the sealed frames, one after the other, nothing between or after them
//! ```
//!
//! The table comes first so that a reader of one frame needs the head and that frame only. All integers are
//! little-endian. A frame is zstd, then sealed ([`crate::seal`]); its plain length is associated data, so a holder
//! cannot change the table unnoticed even by somebody who did not check the segment's id.

use crate::{
    bytes::{DecodeError, Reader, Writer},
    seal::{SealKey, Sealer, TAG_BYTES},
    units::{BLOCK_BYTES, FRAME_MAX_BYTES, FrameIndex, SEGMENT_MAX_BYTES, SEGMENT_MAX_FRAMES},
};

const MAGIC: [u8; 8] = *b"CAIRNSEG";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 8;
/// The longest head of a segment: what precedes its frames.
pub const SEGMENT_HEAD_BYTES: usize = HEAD_BYTES + ENTRY_BYTES * SEGMENT_MAX_FRAMES;

/// A frame before sealing: compressed, and how long it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedFrame {
    pub zstd: Vec<u8>,
    /// A multiple of [`BLOCK_BYTES`], at most [`FRAME_MAX_BYTES`].
    pub plain_bytes: u32,
}

impl CompressedFrame {
    /// The bytes this frame takes up in a segment, with its entry in the table.
    const fn cost(&self) -> usize {
        ENTRY_BYTES + self.zstd.len() + TAG_BYTES
    }
}

/// Packs frames into one segment.
#[derive(Debug)]
pub struct SegmentBuilder {
    sealer: Sealer,
    frames: Vec<CompressedFrame>,
    /// Bytes of the segment so far.
    bytes: usize,
}

impl SegmentBuilder {
    /// An empty segment sealed with `key`, which must never have sealed another.
    #[must_use]
    pub fn new(key: &SealKey) -> Self {
        Self { sealer: Sealer::new(key), frames: Vec::new(), bytes: HEAD_BYTES }
    }

    /// Whether `frame` still goes in.
    #[must_use]
    pub const fn fits(&self, frame: &CompressedFrame) -> bool {
        self.bytes + frame.cost() <= SEGMENT_MAX_BYTES && self.frames.len() < SEGMENT_MAX_FRAMES
    }

    /// Takes a frame that [`SegmentBuilder::fits`].
    ///
    /// # Panics
    /// When the frame does not fit: the caller did not ask.
    pub fn push(&mut self, frame: CompressedFrame) -> FrameIndex {
        assert!(self.fits(&frame), "a frame is pushed only after it was seen to fit");
        let index = FrameIndex(u16::try_from(self.frames.len()).unwrap_or(u16::MAX));
        self.bytes += frame.cost();
        self.frames.push(frame);
        index
    }

    /// Seals the frames: `segment` becomes the sealed bytes. Only here, because the table comes before the frames, and
    /// each frame is then copied once, to where it is sealed.
    pub fn finish(self, segment: &mut Vec<u8>) {
        let mut head = Writer::with_header(MAGIC, VERSION);
        head.u16(u16::try_from(self.frames.len()).unwrap_or(u16::MAX));
        head.u32(0);
        for frame in &self.frames {
            head.u32(u32::try_from(frame.zstd.len() + TAG_BYTES).unwrap_or(u32::MAX));
            head.u32(frame.plain_bytes);
        }
        segment.clear();
        segment.reserve_exact(SEGMENT_MAX_BYTES.max(self.bytes));
        segment.extend_from_slice(&head.finish());
        for (index, frame) in (0_u64..).zip(self.frames) {
            let from = segment.len();
            segment.extend_from_slice(&frame.zstd);
            let tag = self.sealer.seal_in_place(
                index,
                &associated(frame.plain_bytes),
                segment.get_mut(from..).unwrap_or_default(),
            );
            segment.extend_from_slice(&tag);
        }
    }
}

fn associated(plain_bytes: u32) -> [u8; 17] {
    let mut bytes = *b"cairn frame 1\0\0\0\0";
    bytes[13..].copy_from_slice(&plain_bytes.to_le_bytes());
    bytes
}

/// Where a frame lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// Byte offset of the sealed frame from the start of the segment.
    pub offset: usize,
    pub sealed_bytes: usize,
    pub plain_bytes: u32,
}

/// A parsed frame table. Holds no frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameTable {
    places: Vec<FramePlace>,
}

impl FrameTable {
    /// Reads the head of a whole segment and checks that the frames fill the rest exactly.
    ///
    /// # Errors
    /// When the bytes are no segment of this version, or a length is above its limit or inconsistent.
    pub fn parse(segment: &[u8]) -> Result<Self, DecodeError> {
        Self::parse_head(segment, segment.len())
    }

    /// Reads the head of a segment of `length` bytes, of which `head` is the beginning: [`SEGMENT_HEAD_BYTES`] are enough.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_head(head: &[u8], length: usize) -> Result<Self, DecodeError> {
        let limit = SEGMENT_MAX_BYTES;
        if length > limit {
            return Err(DecodeError::Limit {
                field: "segment",
                value: length as u64,
                limit: limit as u64,
            });
        }
        let mut reader = Reader::new(head);
        reader.header(MAGIC, VERSION)?;
        let count = usize::from(reader.u16()?);
        reader.reserved(4)?;
        if count == 0 || count > SEGMENT_MAX_FRAMES {
            return Err(DecodeError::Limit {
                field: "frame count",
                value: count as u64,
                limit: SEGMENT_MAX_FRAMES as u64,
            });
        }
        let mut places = Vec::with_capacity(count);
        let mut offset = HEAD_BYTES + ENTRY_BYTES * count;
        for _ in 0..count {
            let sealed = reader.u32()?;
            let plain_bytes = reader.u32()?;
            if plain_bytes == 0
                || plain_bytes as usize > FRAME_MAX_BYTES
                || !(plain_bytes as usize).is_multiple_of(BLOCK_BYTES)
            {
                return Err(DecodeError::Limit {
                    field: "plain bytes",
                    value: plain_bytes.into(),
                    limit: FRAME_MAX_BYTES as u64,
                });
            }
            let sealed_bytes = sealed as usize;
            if sealed_bytes <= TAG_BYTES || sealed_bytes > limit {
                return Err(DecodeError::Limit {
                    field: "sealed bytes",
                    value: sealed.into(),
                    limit: limit as u64,
                });
            }
            places.push(FramePlace { offset, sealed_bytes, plain_bytes });
            offset += sealed_bytes;
        }
        if offset != length {
            return Err(DecodeError::Inconsistent { field: "frame lengths" });
        }
        Ok(Self { places })
    }

    /// Frames in the segment.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    /// A segment has at least one frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Where frame `index` lies.
    #[must_use]
    pub fn place(&self, index: FrameIndex) -> Option<FramePlace> {
        self.places.get(usize::from(index.0)).copied()
    }
}

/// Opens frames of one segment.
#[derive(Debug)]
pub struct FrameOpener {
    sealer: Sealer,
}

impl FrameOpener {
    #[must_use]
    pub fn new(key: &SealKey) -> Self {
        Self { sealer: Sealer::new(key) }
    }

    /// The compressed bytes of frame `index`, opened from a copy of its sealed bytes.
    ///
    /// # Errors
    /// [`DecodeError::Unsealable`] under another key, index or length than it was sealed with.
    pub fn open<'a>(
        &self,
        index: FrameIndex,
        plain_bytes: u32,
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], DecodeError> {
        self.sealer.open(index.0.into(), &associated(plain_bytes), sealed).map(|plain| &*plain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn sealed(builder: SegmentBuilder) -> Vec<u8> {
        let mut segment = b"from before".to_vec();
        builder.finish(&mut segment);
        segment
    }

    fn frame(bytes: Vec<u8>, blocks: u32) -> CompressedFrame {
        CompressedFrame { zstd: bytes, plain_bytes: blocks * 4096 }
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_went_in(
            frames in vec((vec(any::<u8>(), 1..2000), 1_u32..=64), 1..40),
            key in any::<[u8; 32]>(),
        ) {
            let key = SealKey(key);
            let mut builder = SegmentBuilder::new(&key);
            for (bytes, blocks) in &frames {
                builder.push(frame(bytes.clone(), *blocks));
            }
            let segment = sealed(builder);
            let table = FrameTable::parse(&segment).unwrap();
            let opener = FrameOpener::new(&key);
            prop_assert_eq!(table.len(), frames.len());
            for (index, (bytes, blocks)) in frames.iter().enumerate() {
                let index = FrameIndex(u16::try_from(index).unwrap());
                let place = table.place(index).unwrap();
                prop_assert_eq!(place.plain_bytes, blocks * 4096);
                let mut sealed = segment[place.offset..][..place.sealed_bytes].to_vec();
                prop_assert_eq!(opener.open(index, place.plain_bytes, &mut sealed).unwrap(), &bytes[..]);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            let mut segment = MAGIC.to_vec();
            segment.extend_from_slice(&[1, 0]);
            segment.extend(bytes);
            if let Ok(table) = FrameTable::parse(&segment) {
                let place = table.place(FrameIndex(0)).unwrap();
                prop_assert!(place.offset + place.sealed_bytes <= segment.len());
            }
        }
    }

    #[test]
    fn a_segment_never_grows_above_its_limit() {
        let mut builder = SegmentBuilder::new(&SealKey([0; 32]));
        let full = frame(vec![1; FRAME_MAX_BYTES], 64);
        while builder.fits(&full) {
            builder.push(full.clone());
        }
        let segment = sealed(builder);
        assert!(
            segment.len() <= SEGMENT_MAX_BYTES && segment.len() > SEGMENT_MAX_BYTES - full.cost()
        );
    }

    #[test]
    fn a_changed_table_is_noticed() {
        let key = SealKey([5; 32]);
        let mut builder = SegmentBuilder::new(&key);
        builder.push(frame(vec![1; 100], 2));
        let mut segment = sealed(builder);
        segment[20] = 0;
        segment[21] = 0x30;
        let place = FrameTable::parse(&segment).unwrap().place(FrameIndex(0)).unwrap();
        let mut sealed = segment[place.offset..].to_vec();
        assert_eq!(
            FrameOpener::new(&key).open(FrameIndex(0), place.plain_bytes, &mut sealed),
            Err(DecodeError::Unsealable)
        );
    }
}
