//! Blocks into segments.
//!
//! ```text
//!   blocks ─► frames ─► compressed, a few at once ─► sealed, one segment while the next is filled ─► whoever packs
//! ```
//!
//! Only the work is done by others: what comes back comes at the same calls every time, however fast they are.

use std::{collections::VecDeque, io, sync::mpsc::Receiver, thread};

use bytes::Bytes;
use cairn_core::{
    seal::SealKey,
    segment::{CompressedFrame, SegmentBuilder},
    units::{BLOCK_BYTES, BlockIndex, FrameIndex},
    volume::VOLUME_FRAME_BLOCKS,
};

use super::SealError;
use crate::{
    dsf::{CheckError, CheckedSegment},
    random,
    workers::{WorkerGone, Workers},
};

/// Frames that are compressed or wait for it.
const FRAMES_AHEAD: usize = 64;
const FRAME_BYTES: usize = VOLUME_FRAME_BLOCKS * BLOCK_BYTES;

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

/// A frame that is being compressed.
struct Compressing {
    first: BlockIndex,
    blocks: u16,
    done: Receiver<io::Result<CompressedFrame>>,
}

/// A segment that is being filled.
struct Open {
    key: SealKey,
    builder: SegmentBuilder,
    frames: Vec<Contents>,
}

/// A segment that is being sealed.
struct Sealing {
    key: SealKey,
    frames: Vec<Contents>,
    done: Receiver<Result<CheckedSegment, CheckError>>,
}

/// Takes blocks in ascending order and packs those in a row into frames, those into segments.
pub(super) struct Packer {
    workers: Workers,
    /// Of the frame that is being filled.
    first: BlockIndex,
    plain: Vec<u8>,
    compressing: VecDeque<Compressing>,
    open: Option<Open>,
    sealing: Option<Sealing>,
}

impl Packer {
    pub(super) fn new() -> Result<Self, SealError> {
        let parallel = thread::available_parallelism().map_or(2, std::num::NonZero::get);
        // They end by themselves once this is gone.
        let (workers, _) = Workers::start("volume-pack", parallel).map_err(SealError::Threads)?;
        Ok(Self {
            workers,
            first: BlockIndex(0),
            plain: Vec::new(),
            compressing: VecDeque::new(),
            open: None,
            sealing: None,
        })
    }

    /// Takes one block. What comes back is full.
    pub(super) fn block(
        &mut self,
        at: BlockIndex,
        bytes: &[u8],
    ) -> Result<Option<Packed>, SealError> {
        let held = self.plain.len();
        let follows = self.first.0 + (held / BLOCK_BYTES) as u64 == at.0;
        if held == FRAME_BYTES || (held > 0 && !follows) {
            self.close_frame()?;
        }
        if self.plain.is_empty() {
            self.plain.reserve_exact(FRAME_BYTES);
            self.first = at;
        }
        self.plain.extend_from_slice(bytes);
        if self.compressing.len() > FRAMES_AHEAD { self.take_frame() } else { Ok(None) }
    }

    /// The last segments.
    pub(super) fn finish(mut self) -> Result<Vec<Packed>, SealError> {
        let mut packed = Vec::new();
        self.close_frame()?;
        while !self.compressing.is_empty() {
            packed.extend(self.take_frame()?);
        }
        packed.extend(self.close_segment()?);
        packed.extend(self.take_segment()?);
        Ok(packed)
    }

    fn close_frame(&mut self) -> Result<(), SealError> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let blocks = u16::try_from(self.plain.len() / BLOCK_BYTES).unwrap_or(u16::MAX);
        let plain = Bytes::from(std::mem::take(&mut self.plain));
        let done = self.workers.compress(vec![plain])?;
        self.compressing.push_back(Compressing { first: self.first, blocks, done });
        Ok(())
    }

    /// Puts the first frame that is being compressed into a segment. A segment comes back when it was full and another one
    /// was being sealed: that one.
    fn take_frame(&mut self) -> Result<Option<Packed>, SealError> {
        let Some(Compressing { first, blocks, done }) = self.compressing.pop_front() else {
            return Ok(None);
        };
        let frame = done.recv().map_err(|_| WorkerGone)?.map_err(SealError::Compress)?;
        let packed = match &self.open {
            Some(open) if !open.builder.fits(&frame) => self.close_segment()?,
            _ => None,
        };
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let key = SealKey(random::array().map_err(SealError::Random)?);
                let builder = SegmentBuilder::new(&key);
                self.open.insert(Open { key, builder, frames: Vec::new() })
            }
        };
        let frame = open.builder.push(frame);
        open.frames.push(Contents { frame, first, blocks });
        Ok(packed)
    }

    /// Has the segment that was filled sealed; the one that was being sealed before.
    fn close_segment(&mut self) -> Result<Option<Packed>, SealError> {
        let before = self.take_segment()?;
        if let Some(Open { key, builder, frames }) = self.open.take() {
            let done = self.workers.seal(builder)?;
            self.sealing = Some(Sealing { key, frames, done });
        }
        Ok(before)
    }

    fn take_segment(&mut self) -> Result<Option<Packed>, SealError> {
        let Some(Sealing { key, frames, done }) = self.sealing.take() else { return Ok(None) };
        let segment = done.recv().map_err(|_| WorkerGone)?.map_err(SealError::Segment)?;
        Ok(Some(Packed { segment, key, frames }))
    }
}
