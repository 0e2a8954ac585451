//! The plan: what of the image is not on the disk yet.
//!
//! A page of the map is compared with the disk, block by block by hash. What is right stays; what differs is needed
//! from a segment; what must be zero and is not is zeroed. So a second run after a crash plans only the rest.

use std::{
    num::NonZero,
    panic::resume_unwind,
    sync::atomic::{AtomicU64, Ordering},
    thread::{self, ScopedJoinHandle},
};

use cairn_core::{
    id::BlockHash,
    map::{MapPage, Origin, PAGE_BLOCKS},
    units::{BLOCK_BYTES, BlockIndex, ByteCount, FrameIndex, SegmentIndex, blocks_for},
};

use super::disk::{DiskError, TargetDisk, bytes_of};

/// Blocks at the end of an image that hold a backup GPT: 33 sectors, rounded up.
const TAIL_BLOCKS: u64 = 5;
/// Bytes compared at once.
const READ_BYTES: usize = 256 << 10;

/// A run of blocks to write, from one frame. 24 bytes for up to 256 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    pub(super) segment: SegmentIndex,
    pub(super) frame: FrameIndex,
    /// First block in the frame.
    pub(super) block: u16,
    pub(super) blocks: u16,
    pub(super) to: BlockIndex,
}

/// Everything to do. Built page by page, then [`Plan::seal`]ed.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Sorted by segment and frame once sealed.
    pub(super) needs: Vec<Need>,
    /// Byte ranges to make zero: offset, length.
    pub(super) zeros: Vec<(u64, u64)>,
    /// Where the blocks come from that are written last; some are in `needs` when they differ.
    held: Vec<Need>,
    /// Bytes that are right already.
    pub(super) already: u64,
    /// The next block that no page has spoken of.
    next: u64,
    /// Room for a run that is compared.
    scratch: Vec<u8>,
}

/// Blocks that make a disk boot: the first (boot code, partition table) and the last (backup GPT).
#[derive(Clone, Copy, Debug)]
pub(super) struct BootBlocks {
    image_blocks: u64,
}

impl BootBlocks {
    pub(super) const fn of(size: ByteCount) -> Self {
        Self { image_blocks: blocks_for(size) }
    }

    pub(super) const fn contains(self, block: BlockIndex) -> bool {
        block.0 == 0 || block.0 + TAIL_BLOCKS >= self.image_blocks
    }

    /// Byte ranges to clear before anything is written, so that nothing half-written boots: the image's boot blocks,
    /// and the end of a larger disk, where an earlier system has its backup GPT.
    pub(super) fn disarm(self, disk: ByteCount) -> Vec<(u64, u64)> {
        let tail = bytes_of(self.image_blocks.saturating_sub(TAIL_BLOCKS));
        let image = bytes_of(self.image_blocks).min(disk.0);
        let end = disk.0.saturating_sub(bytes_of(TAIL_BLOCKS)).max(image);
        let ranges =
            [(0, image.min(BLOCK_BYTES as u64)), (tail, image - tail), (end, disk.0 - end)];
        ranges.into_iter().filter(|(_, length)| *length > 0).collect()
    }
}

impl Plan {
    /// Compares a page with the disk. Pages come in ascending order.
    fn page(
        &mut self,
        page: &MapPage,
        disk: &TargetDisk,
        boot: BootBlocks,
    ) -> Result<(), DiskError> {
        self.zero_until(page.first.0, disk)?;
        let mut hashes = page.data();
        for extent in &page.extents {
            self.zero_until(extent.first.0, disk)?;
            if let Origin::Segment { segment, frame, block } = extent.origin {
                let (_, expected) = hashes.next().unwrap_or((extent, &[]));
                let need = Need { segment, frame, block, blocks: extent.blocks, to: extent.first };
                self.data(need, expected, disk, boot)?;
            }
            self.next = extent.end().0;
        }
        self.zero_until(page.first.0 + PAGE_BLOCKS, disk)
    }

    /// Compares pages that follow each other with the disk, on as many threads as there are processors. `compared` grows
    /// by the bytes of each page.
    pub(super) fn pages(
        &mut self,
        pages: &[MapPage],
        disk: &TargetDisk,
        boot: BootBlocks,
        compared: &AtomicU64,
    ) -> Result<(), DiskError> {
        let parallel = thread::available_parallelism().map_or(2, NonZero::get);
        let parts = thread::scope(|scope| {
            let mut next = self.next;
            let mut threads = Vec::new();
            for pages in pages.chunks(pages.len().div_ceil(parallel).max(1)) {
                let part = Self { next, ..Self::default() };
                next = pages.last().map_or(next, |last| last.first.0 + PAGE_BLOCKS);
                threads.push(scope.spawn(move || part.over(pages, disk, boot, compared)));
            }
            let parts = threads.into_iter().map(ScopedJoinHandle::join);
            parts.map(|part| part.unwrap_or_else(|panic| resume_unwind(panic))).collect::<Vec<_>>()
        });
        parts.into_iter().try_for_each(|part| {
            self.append(part?);
            Ok(())
        })
    }

    fn over(
        mut self,
        pages: &[MapPage],
        disk: &TargetDisk,
        boot: BootBlocks,
        compared: &AtomicU64,
    ) -> Result<Self, DiskError> {
        for page in pages {
            disk.will_read(page.first.byte_offset(), bytes_of(PAGE_BLOCKS));
            self.page(page, disk, boot)?;
            compared.fetch_add(bytes_of(PAGE_BLOCKS), Ordering::Relaxed);
        }
        Ok(self)
    }

    /// Adds what was found behind this.
    fn append(&mut self, mut part: Self) {
        self.needs.append(&mut part.needs);
        self.held.append(&mut part.held);
        self.already += part.already;
        self.next = part.next;
        for (offset, length) in part.zeros {
            self.zero(offset, length);
        }
    }

    /// What is written from one segment, by frame and block.
    pub(super) fn of_segment(&self, index: SegmentIndex) -> &[Need] {
        let start = self.needs.partition_point(|need| need.segment < index);
        let end = self.needs.partition_point(|need| need.segment <= index);
        self.needs.get(start..end).unwrap_or_default()
    }

    /// Ends the plan for an image of `size` bytes.
    pub(super) fn seal(&mut self, size: ByteCount, disk: &TargetDisk) -> Result<(), DiskError> {
        self.zero_until(blocks_for(size), disk)?;
        // Beyond the image's last byte the disk is not ours.
        if let Some((offset, length)) = self.zeros.last_mut() {
            *length = (*length).min(size.0.saturating_sub(*offset));
        }
        self.zeros.retain(|(_, length)| *length > 0);
        if !self.is_done() {
            for need in std::mem::take(&mut self.held) {
                self.already = self.already.saturating_sub(bytes_of(need.blocks.into()));
                self.needs.push(need);
            }
        }
        self.needs.sort_unstable();
        Ok(())
    }

    /// The disk is right as it is.
    pub(super) const fn is_done(&self) -> bool {
        self.needs.is_empty() && self.zeros.is_empty()
    }

    fn data(
        &mut self,
        whole: Need,
        expected: &[BlockHash],
        disk: &TargetDisk,
        boot: BootBlocks,
    ) -> Result<(), DiskError> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.resize(expected.len() * BLOCK_BYTES, 0);
        let blank = disk.is_hole(whole.to.byte_offset(), bytes.len() as u64);
        if !blank {
            read_to_end(disk, whole.to.byte_offset(), &mut bytes)?;
        }
        let blocks = bytes.as_chunks::<BLOCK_BYTES>().0;
        for (offset, (block, hash)) in (0_u16..).zip(blocks.iter().zip(expected)) {
            let to = BlockIndex(whole.to.0 + u64::from(offset));
            let need = Need { block: whole.block + offset, blocks: 1, to, ..whole };
            // A data block is never all zeros, so a hole cannot be right.
            if blank || BlockHash::of(block) != *hash {
                push(&mut self.needs, need);
            } else {
                self.already += BLOCK_BYTES as u64;
                if boot.contains(to) {
                    push(&mut self.held, need);
                }
            }
        }
        self.scratch = bytes;
        Ok(())
    }

    /// Everything from the last block spoken of to `end` is zero in the image.
    fn zero_until(&mut self, end: u64, disk: &TargetDisk) -> Result<(), DiskError> {
        let (mut at, end) = (bytes_of(self.next), bytes_of(end).min(disk.size().0));
        self.next = self.next.max(end.div_ceil(BLOCK_BYTES as u64));
        let mut buffer = Vec::new();
        while at < end {
            let left = end - at;
            if disk.is_hole(at, left) {
                return Ok(());
            }
            let length = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
            buffer.resize(length, 0);
            disk.read(at, &mut buffer)?;
            if buffer.iter().any(|byte| *byte != 0) {
                self.zero(at, length as u64);
            }
            at += length as u64;
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) {
        match self.zeros.last_mut() {
            Some((last, run)) if *last + *run == offset => *run += length,
            _ => self.zeros.push((offset, length)),
        }
    }
}

/// Adds a block to the last run where it goes on in frame and image.
fn push(needs: &mut Vec<Need>, need: Need) {
    match needs.last_mut() {
        Some(last)
            if (last.segment, last.frame) == (need.segment, need.frame)
                && last.block + last.blocks == need.block
                && last.to.0 + u64::from(last.blocks) == need.to.0 =>
        {
            last.blocks += 1;
        }
        _ => needs.push(need),
    }
}

/// Reads whole blocks; what lies behind the end of the disk (a last, short block) reads as zeros.
pub(super) fn read_to_end(
    disk: &TargetDisk,
    offset: u64,
    bytes: &mut [u8],
) -> Result<(), DiskError> {
    let there = usize::try_from(disk.size().0.saturating_sub(offset))
        .unwrap_or(bytes.len())
        .min(bytes.len());
    let (head, tail) = bytes.split_at_mut(there);
    tail.fill(0);
    disk.read(offset, head)
}
