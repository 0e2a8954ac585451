//! Segments made again from the disk that is being written, for neighbours, when they are not in memory any more.
//!
//! The blocks that the plan writes from a segment are read back, compressed and sealed as they were. When the image uses only a
//! part of the segment, or another zstd has made it, the bytes differ: the segment's id decides.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use cairn_core::{
    id::SegmentId,
    segment::SegmentBuilder,
    units::{BLOCK_BYTES, FrameIndex, SegmentIndex},
};

use super::{
    Image,
    disk::TargetDisk,
    plan::{Need, Plan, read_to_end},
};
use crate::{frame::FrameCompressor, swarm::Reseal};

/// The disk as a source of segments.
pub(super) struct DiskSource {
    pub(super) image: Arc<Image>,
    pub(super) disk: Arc<TargetDisk>,
    pub(super) plan: Arc<Plan>,
    pub(super) places: HashMap<SegmentId, SegmentIndex>,
}

impl Reseal for DiskSource {
    fn reseal(&self, id: SegmentId) -> Option<Bytes> {
        let index = *self.places.get(&id)?;
        let key = self.image.secret.data_keys.get(index.0 as usize)?;
        let mut compressor = FrameCompressor::new().ok()?;
        let mut builder = SegmentBuilder::new(key);
        let needs = self.plan.of_segment(index);
        for (number, needs) in (0..).zip(needs.chunk_by(|a, b| a.frame == b.frame)) {
            let plain = self.frame(FrameIndex(number), needs)?;
            let frame = compressor.compress(&plain).ok()?;
            builder.fits(&frame).then(|| builder.push(frame))?;
        }
        let mut sealed = Vec::new();
        builder.finish(&mut sealed);
        (SegmentId::of(&sealed) == id).then(|| sealed.into())
    }
}

impl DiskSource {
    /// The plain bytes of a frame, when all of its blocks are written somewhere.
    fn frame(&self, number: FrameIndex, needs: &[Need]) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        for need in needs {
            let from = usize::from(need.block) * BLOCK_BYTES;
            let to = from + usize::from(need.blocks) * BLOCK_BYTES;
            // The same block may be wanted in several places; a gap is a block that this image does not use.
            if need.frame != number || from > plain.len() {
                return None;
            }
            if to > plain.len() {
                let skipped = plain.len() - from;
                plain.resize(to, 0);
                let offset = need.to.byte_offset() + skipped as u64;
                read_to_end(&self.disk, offset, plain.get_mut(from + skipped..)?).ok()?;
            }
        }
        Some(plain)
    }
}
