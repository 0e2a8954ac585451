//! Blocks into segments.

use bytes::Bytes;
use cairn_core::{
    seal::SealKey,
    segment::SegmentBuilder,
    units::{BLOCK_BYTES, BlockIndex, FrameIndex},
    volume::VOLUME_FRAME_BLOCKS,
};

use super::SealError;
use crate::{dsf::CheckedSegment, frame::FrameCompressor, random};

/// A segment that was filled, and what is in it.
pub(super) struct Packed {
    pub(super) segment: CheckedSegment,
    pub(super) key: SealKey,
    /// First block and blocks of each frame.
    pub(super) frames: Vec<Contents>,
}

impl Packed {
    /// The block after its last.
    pub(super) fn end(&self) -> BlockIndex {
        let last = self.frames.last();
        last.map_or(BlockIndex(0), |last| BlockIndex(last.first.0 + u64::from(last.blocks)))
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    pub(super) frame: FrameIndex,
    pub(super) first: BlockIndex,
    pub(super) blocks: u16,
}

/// Takes blocks in ascending order and packs those in a row into frames, those into segments.
pub(super) struct Packer {
    compressor: FrameCompressor,
    open: Option<(SealKey, SegmentBuilder, Vec<Contents>)>,
    /// Of the frame that is being filled.
    first: BlockIndex,
    plain: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> Result<Self, SealError> {
        Ok(Self {
            compressor: FrameCompressor::new().map_err(SealError::Compress)?,
            open: None,
            first: BlockIndex(0),
            plain: Vec::with_capacity(VOLUME_FRAME_BLOCKS * BLOCK_BYTES),
        })
    }

    /// Takes one block. What comes back is full.
    pub(super) fn block(
        &mut self,
        at: BlockIndex,
        bytes: &[u8],
    ) -> Result<Option<Packed>, SealError> {
        let held = (self.plain.len() / BLOCK_BYTES) as u64;
        let mut full = None;
        if held > 0 && (held == VOLUME_FRAME_BLOCKS as u64 || self.first.0 + held != at.0) {
            full = self.close_frame()?;
        }
        if self.plain.is_empty() {
            self.first = at;
        }
        self.plain.extend_from_slice(bytes);
        Ok(full)
    }

    /// The last segment.
    pub(super) fn finish(mut self) -> Result<Vec<Packed>, SealError> {
        let mut packed = Vec::new();
        packed.extend(self.close_frame()?);
        packed.extend(self.close_segment()?);
        Ok(packed)
    }

    fn close_frame(&mut self) -> Result<Option<Packed>, SealError> {
        if self.plain.is_empty() {
            return Ok(None);
        }
        let frame = self.compressor.compress(&self.plain).map_err(SealError::Compress)?;
        let blocks = u16::try_from(self.plain.len() / BLOCK_BYTES).unwrap_or(u16::MAX);
        self.plain.clear();
        let full = match &self.open {
            Some((_, builder, _)) if !builder.fits(&frame) => self.close_segment()?,
            _ => None,
        };
        if self.open.is_none() {
            let key = SealKey(random::array().map_err(SealError::Random)?);
            let builder = SegmentBuilder::new(&key);
            self.open = Some((key, builder, Vec::new()));
        }
        if let Some((_, builder, frames)) = &mut self.open {
            let frame = builder.push(frame);
            frames.push(Contents { frame, first: self.first, blocks });
        }
        Ok(full)
    }

    fn close_segment(&mut self) -> Result<Option<Packed>, SealError> {
        let Some((key, builder, frames)) = self.open.take() else { return Ok(None) };
        Ok(Some(Packed { segment: sealed(builder)?, key, frames }))
    }
}

/// A segment of what was put into it.
pub(super) fn sealed(builder: SegmentBuilder) -> Result<CheckedSegment, SealError> {
    let mut bytes = Vec::new();
    builder.finish(&mut bytes);
    CheckedSegment::of(Bytes::from(bytes)).map_err(SealError::Segment)
}
