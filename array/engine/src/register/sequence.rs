//! The sequencer: decides, in the order of the image, which blocks are new and which frame each goes into.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender},
    },
};

use bytes::Bytes;
use cairn_core::{
    id::BlockHash,
    manifest::SegmentEntry,
    map::{Origin, PAGE_BLOCKS},
    seal::SealKey,
    segment::CompressedFrame,
    units::{BLOCK_BYTES, BlockIndex, FRAME_BLOCKS},
};

use super::{Counters, Place, StageGone, index::BlockIndexCache};
use crate::{
    map_reader::PriorVersion,
    workers::{WorkerGone, Workers},
};

/// What the reader hands on, ascending.
pub(super) enum Piece {
    Data { first: BlockIndex, bytes: Bytes, hashes: Receiver<Vec<BlockHash>> },
    Free { first: BlockIndex, blocks: u64 },
}

/// What the packer is to do, in this order.
pub(super) enum Step {
    Frame(Receiver<std::io::Result<CompressedFrame>>),
    /// All frames that the page refers to went before it.
    Page(DraftPage),
}

/// A page whose places are not yet known by segment.
pub(super) struct DraftPage {
    /// The page's first block.
    pub(super) first: BlockIndex,
    /// Ascending, each at most once.
    pub(super) blocks: Vec<DraftBlock>,
    /// Runs of free blocks, ascending: first block, count.
    pub(super) free: Vec<(BlockIndex, u16)>,
}

pub(super) struct DraftBlock {
    pub(super) block: BlockIndex,
    pub(super) hash: BlockHash,
    pub(super) place: Place,
}

/// Enters the blocks of an earlier version, and returns the segments that their places count by.
pub(super) fn preload(
    known: &mut BlockIndexCache,
    prior: PriorVersion<'_>,
) -> anyhow::Result<Vec<(SegmentEntry, SealKey)>> {
    prior.for_each_page(|page| {
        for (extent, hashes) in page.data() {
            let Origin::Segment { segment, frame, block } = extent.origin else { continue };
            for (hash, block) in hashes.iter().zip(block..) {
                if known.get(hash).is_none() {
                    let block = u8::try_from(block)?;
                    known.insert(hash, Place::Prior { segment: segment.0, frame: frame.0, block });
                }
            }
        }
        Ok(())
    })?;
    Ok(prior.public.data.iter().copied().zip(prior.secret.data_keys.iter().cloned()).collect())
}

/// Runs until the reader ends.
pub(super) fn run(
    known: BlockIndexCache,
    pieces: &Receiver<Piece>,
    workers: &Workers,
    steps: &SyncSender<Step>,
    counters: &Arc<Counters>,
) -> anyhow::Result<()> {
    let frame = Frame::default();
    let mut sequencer = Sequencer { known, workers, steps, frame, frames: 0, page: None };
    while let Ok(piece) = pieces.recv() {
        match piece {
            Piece::Data { first, bytes, hashes } => {
                let hashes = hashes.recv().map_err(|_| WorkerGone)?;
                let blocks = (0..bytes.len()).step_by(BLOCK_BYTES).zip(hashes);
                for (number, (at, hash)) in (first.0..).zip(blocks) {
                    let shared = sequencer.block(BlockIndex(number), (&bytes, at), hash)?;
                    Counters::add(&counters.deduplicated, if shared { BLOCK_BYTES } else { 0 });
                }
            }
            Piece::Free { first, blocks } => sequencer.free(first, blocks)?,
        }
    }
    sequencer.end_page()
}

/// Blocks of a run that is not worth keeping a whole read buffer for.
const FEW_BLOCKS: usize = 16;

/// The blocks of a frame, left where they are: mostly they follow each other. Where only a few of a buffer are new they are
/// copied, so that a frame holds on to a handful of buffers and not to one for each of its blocks.
#[derive(Default)]
struct Frame {
    runs: Vec<(Bytes, Range<usize>)>,
    blocks: usize,
}

impl Frame {
    /// Adds the block at byte `at` of `piece`.
    fn push(&mut self, piece: &Bytes, at: usize) {
        self.blocks += 1;
        match self.runs.last_mut() {
            Some((last, run)) if last.as_ptr() == piece.as_ptr() && run.end == at => {
                run.end += BLOCK_BYTES;
            }
            _ => {
                self.settle();
                self.runs.push((piece.clone(), at..at + BLOCK_BYTES));
            }
        }
    }

    /// The last run is complete.
    fn settle(&mut self) {
        if let Some((piece, run)) = self.runs.last_mut()
            && run.len() < FEW_BLOCKS * BLOCK_BYTES
            && let Some(few) = piece.get(run.clone())
        {
            *piece = Bytes::copy_from_slice(few);
            *run = 0..piece.len();
        }
    }

    fn parts(self) -> Vec<Bytes> {
        self.runs.into_iter().map(|(piece, run)| piece.slice(run)).collect()
    }
}

struct Sequencer<'a> {
    known: BlockIndexCache,
    workers: &'a Workers,
    steps: &'a SyncSender<Step>,
    /// The open frame.
    frame: Frame,
    /// Frames closed; the number of the open one.
    frames: u32,
    page: Option<DraftPage>,
}

impl Sequencer<'_> {
    /// Places one block. Whether it was known before.
    fn block(
        &mut self,
        block: BlockIndex,
        (piece, at): (&Bytes, usize),
        hash: BlockHash,
    ) -> anyhow::Result<bool> {
        self.turn_to(block)?;
        let known = self.known.get(&hash);
        let place = match known {
            Some(place) => place,
            None => {
                let number = u8::try_from(self.frame.blocks)?;
                let place = Place::New { frame: self.frames, block: number };
                self.frame.push(piece, at);
                self.known.insert(&hash, place);
                place
            }
        };
        self.page(block).blocks.push(DraftBlock { block, hash, place });
        if self.frame.blocks == FRAME_BLOCKS {
            self.end_frame()?;
        }
        Ok(known.is_some())
    }

    fn free(&mut self, first: BlockIndex, blocks: u64) -> anyhow::Result<()> {
        let end = first.0 + blocks;
        let mut start = first.0;
        while start < end {
            let stop = end.min((start / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
            let count = u16::try_from(stop - start)?;
            self.turn_to(BlockIndex(start))?;
            let page = self.page(BlockIndex(start));
            match page.free.last_mut() {
                Some((last, run)) if last.0 + u64::from(*run) == start => *run += count,
                _ => page.free.push((BlockIndex(start), count)),
            }
            start = stop;
        }
        Ok(())
    }

    fn page(&mut self, block: BlockIndex) -> &mut DraftPage {
        self.page.get_or_insert_with(|| DraftPage {
            first: BlockIndex(block.0 / PAGE_BLOCKS * PAGE_BLOCKS),
            blocks: Vec::new(),
            free: Vec::new(),
        })
    }

    /// Ends the open page when `block` lies behind it.
    fn turn_to(&mut self, block: BlockIndex) -> anyhow::Result<()> {
        match &self.page {
            Some(page) if block.0 >= page.first.0 + PAGE_BLOCKS => self.end_page(),
            _ => Ok(()),
        }
    }

    /// A frame ends with its page, so that a page never waits for a frame that is still open.
    fn end_page(&mut self) -> anyhow::Result<()> {
        self.end_frame()?;
        match self.page.take() {
            Some(page) => self.steps.send(Step::Page(page)).map_err(|_| StageGone.into()),
            None => Ok(()),
        }
    }

    fn end_frame(&mut self) -> anyhow::Result<()> {
        if self.frame.blocks == 0 {
            return Ok(());
        }
        let plain = std::mem::take(&mut self.frame).parts();
        self.frames += 1;
        self.steps.send(Step::Frame(self.workers.compress(plain)?)).map_err(|_| StageGone.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(number: u8) -> Bytes {
        vec![number; FRAME_BLOCKS * BLOCK_BYTES].into()
    }

    #[test]
    fn a_frame_of_scattered_blocks_holds_on_to_one_buffer() {
        let pieces: Vec<_> = (0..64).map(piece).collect();
        let mut frame = Frame::default();
        for piece in &pieces {
            frame.push(piece, 5 * BLOCK_BYTES);
        }
        assert_eq!(pieces.iter().filter(|piece| !piece.is_unique()).count(), 1);
        let expected: Vec<u8> = (0..64).flat_map(|number| [number; BLOCK_BYTES]).collect();
        assert!(frame.parts().concat() == expected);
    }

    #[test]
    fn blocks_that_follow_each_other_are_not_copied() {
        let (first, second) = (piece(1), piece(2));
        let mut frame = Frame::default();
        for block in 0..FEW_BLOCKS {
            frame.push(&first, block * BLOCK_BYTES);
        }
        frame.push(&second, 0);
        assert_eq!(frame.runs[0].0.as_ptr(), first.as_ptr());
        let parts: Vec<_> = frame.parts().iter().map(Bytes::len).collect();
        assert_eq!(parts, [FEW_BLOCKS * BLOCK_BYTES, BLOCK_BYTES]);
    }
}
