//! Which blocks an ext4 file system calls free, read while it streams past from its start to its end.
//!
//! Little-endian, by the kernel's `Documentation/filesystems/ext4`:
//!
//! | where | what is used of it |
//! |---|---|
//! | byte 1024 | superblock: block count at 4 (high part at 0x150), first block at 0x14, log2 of block size − 10 at 0x18, blocks per group at 0x20, magic `53 ef` at 0x38, state at 0x3a, revision at 0x4c, features at 0x60 and 0x64, last orphan at 0xe8, descriptor size at 0xfe |
//! | the block after it | group descriptors of 32 or more bytes: bitmap's block at 0 (high part at 0x20), free count at 0x0c (0x2c), flags at 0x12 |
//! | where they say | block bitmaps, one block each: bit *n* of a group is its block *n*; set = used |
//!
//! ```text
//!   superblock ─► descriptors ─► bitmaps of 16 groups ─► data of these groups ─► bitmaps of the next 16 ─► …
//!                                 kept until their group has passed
//! ```
//!
//! Whoever asks drops what is free here, so every doubt means "used": a file system that was not unmounted cleanly, has features
//! that are not known here, a descriptor or bitmap that contradicts another number, a bitmap that comes after its blocks.
//!
//! Invariants: a block that the file system uses is never called free; memory is bounded by [`MAX_GROUPS`] and [`MAX_BITMAPS`].

use std::collections::BTreeMap;

use crate::units::{BLOCK_BYTES, ByteCount};

/// The most groups of a file system that is looked into: 32 TiB in blocks of 4 KiB.
pub const MAX_GROUPS: u64 = 1 << 18;
/// The most bitmaps kept at a time (16 MiB): two hundred times what `mke2fs` lays out together.
pub const MAX_BITMAPS: usize = 4096;

/// The superblock's place in a partition.
const SUPERBLOCK_START: usize = 1024;
const SUPERBLOCK_END: usize = 2048;
const MAGIC: u16 = 0xef53;
/// Unmounted cleanly, and without the flag for errors.
const CLEAN: u16 = 1;

/// Features under which bitmaps mean what they mean here: filetype, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed,
/// largedir, inline_data, encrypt, casefold. Not among them: recover (the journal is to be replayed), journal_dev, meta_bg.
const INCOMPAT_KNOWN: u32 = 0x2
    | 0x40
    | 0x80
    | 0x100
    | 0x200
    | 0x400
    | 0x1000
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
const INCOMPAT_64BIT: u32 = 0x80;
/// Likewise: sparse_super, large_file, huge_file, gdt_csum, dir_nlink, extra_isize, quota, metadata_csum, readonly, project,
/// verity. Not among them: bigalloc (bits are clusters), snapshot, shared_blocks, orphan_present.
const RO_COMPAT_KNOWN: u32 =
    0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x8000;
const GROUP_BLOCKS_UNINITIALISED: u16 = 2;

/// What a superblock says about where things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// 1024, 2048 or 4096.
    block_bytes: usize,
    blocks: u64,
    first_block: u64,
    group_blocks: u64,
    descriptor_bytes: usize,
    groups: u64,
}

impl Superblock {
    /// Reads it from a partition's first 4 KiB; `None` when there is no ext4 in `partition` bytes whose bitmaps can be
    /// trusted.
    #[must_use]
    pub fn read(first: &[u8; BLOCK_BYTES], partition: ByteCount) -> Option<Self> {
        let bytes = first.get(SUPERBLOCK_START..SUPERBLOCK_END)?;
        let (incompat, ro_compat) = (u32_at(bytes, 0x60)?, u32_at(bytes, 0x64)?);
        let trusted = u16_at(bytes, 0x38)? == MAGIC
            && u16_at(bytes, 0x3a)? == CLEAN
            && u32_at(bytes, 0x4c)? == 1
            && u32_at(bytes, 0xe8)? == 0
            && incompat & !INCOMPAT_KNOWN == 0
            && ro_compat & !RO_COMPAT_KNOWN == 0;
        let log = u32_at(bytes, 0x18)?;
        if !trusted || log > 2 {
            return None;
        }
        let block_bytes = 1024_usize << log;
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide { u32_at(bytes, 0x150)? } else { 0 };
        let descriptor_bytes = if wide { usize::from(u16_at(bytes, 0xfe)?) } else { 32 };
        let blocks = u64::from(high) << 32 | u64::from(u32_at(bytes, 4)?);
        let first_block = u64::from(u32_at(bytes, 0x14)?);
        let group_blocks = u64::from(u32_at(bytes, 0x20)?);
        let sound = descriptor_bytes.is_power_of_two()
            && (if wide { 64..=1024 } else { 32..=32 }).contains(&descriptor_bytes)
            && first_block == u64::from(block_bytes == 1024)
            && blocks > first_block
            && blocks.checked_mul(block_bytes as u64)? <= partition.0
            && (8..=8 * block_bytes as u64).contains(&group_blocks)
            && group_blocks.is_multiple_of(8);
        if !sound {
            return None;
        }
        let groups = (blocks - first_block).div_ceil(group_blocks);
        let found =
            Self { block_bytes, blocks, first_block, group_blocks, descriptor_bytes, groups };
        (groups <= MAX_GROUPS).then_some(found)
    }

    /// The group of a block, and the block's bit in it.
    fn bit(&self, block: u64) -> Option<(u64, usize)> {
        let at = block.checked_sub(self.first_block).filter(|_| block < self.blocks)?;
        Some((at / self.group_blocks, usize::try_from(at % self.group_blocks).ok()?))
    }

    /// How many blocks a group has; the last one may have fewer.
    fn blocks_of(&self, group: u64) -> u64 {
        let start = self.first_block + group * self.group_blocks;
        self.group_blocks.min(self.blocks.saturating_sub(start))
    }
}

/// The part of a group descriptor that matters here.
#[derive(Clone, Copy, Debug)]
struct Group {
    number: u64,
    free: u64,
}

/// A file system on its way past.
#[derive(Debug)]
pub struct Ext4 {
    superblock: Superblock,
    /// Groups whose bitmap is still to come, by its block; `None` where several claim it.
    coming: BTreeMap<u64, Option<Group>>,
    /// Bitmaps by group, until the group has passed.
    bitmaps: BTreeMap<u64, Box<[u8]>>,
}

impl Ext4 {
    #[must_use]
    pub const fn new(superblock: Superblock) -> Self {
        Self { superblock, coming: BTreeMap::new(), bitmaps: BTreeMap::new() }
    }

    /// Takes the next 4 KiB of the partition, counted from its start in units of 4 KiB. What was left out in between was zero.
    /// True when all of it is free.
    pub fn observe(&mut self, at: u64, bytes: &[u8; BLOCK_BYTES]) -> bool {
        let per = (BLOCK_BYTES / self.superblock.block_bytes) as u64;
        let Some(first) = at.checked_mul(per) else { return false };
        self.pass(first);
        for (block, bytes) in (first..).zip(bytes.chunks_exact(self.superblock.block_bytes)) {
            self.learn(block, bytes);
        }
        (first..first + per).all(|block| self.is_free(block))
    }

    fn is_free(&self, block: u64) -> bool {
        let Some((group, bit)) = self.superblock.bit(block) else { return false };
        let bitmap = self.bitmaps.get(&group);
        bitmap.and_then(|bits| bits.get(bit / 8)).is_some_and(|byte| byte >> (bit % 8) & 1 == 0)
    }

    /// Everything before a block has passed: bitmaps that did not come were zero, those of groups behind are dropped.
    fn pass(&mut self, block: u64) {
        while let Some(entry) = self.coming.first_entry().filter(|entry| *entry.key() < block) {
            if let Some(group) = entry.remove() {
                self.keep(group, &vec![0; self.superblock.block_bytes]);
            }
        }
        let Some((group, _)) = self.superblock.bit(block) else { return };
        while let Some(entry) = self.bitmaps.first_entry().filter(|entry| *entry.key() < group) {
            entry.remove();
        }
    }

    fn learn(&mut self, block: u64, bytes: &[u8]) {
        let SuperblockTable { start, per_block } = self.superblock.table();
        if let Some(at) = block.checked_sub(start)
            && let Some(first) =
                at.checked_mul(per_block).filter(|first| *first < self.superblock.groups)
        {
            let descriptors = bytes.chunks_exact(self.superblock.descriptor_bytes);
            for (number, descriptor) in (first..self.superblock.groups).zip(descriptors) {
                self.expect(block, number, descriptor);
            }
        } else if let Some(group) = self.coming.remove(&block).flatten() {
            self.keep(group, bytes);
        }
    }

    /// Notes where a group's bitmap will come. One that lies behind, or where another one is, is not believed.
    fn expect(&mut self, now: u64, number: u64, descriptor: &[u8]) -> Option<()> {
        let wide = descriptor.len() >= 64;
        let high = |at| if wide { u32_at(descriptor, at) } else { Some(0) };
        let bitmap = u64::from(high(0x20)?) << 32 | u64::from(u32_at(descriptor, 0)?);
        let free_high = if wide { u16_at(descriptor, 0x2c)? } else { 0 };
        let free = u64::from(free_high) << 16 | u64::from(u16_at(descriptor, 0x0c)?);
        let known = u16_at(descriptor, 0x12)? & GROUP_BLOCKS_UNINITIALISED == 0;
        if known && bitmap > now && bitmap < self.superblock.blocks {
            let group = Some(Group { number, free });
            self.coming.entry(bitmap).and_modify(|claimed| *claimed = None).or_insert(group);
        }
        Some(())
    }

    /// Keeps a bitmap whose free bits are as many as the descriptor says.
    fn keep(&mut self, group: Group, bits: &[u8]) {
        let blocks = usize::try_from(self.superblock.blocks_of(group.number)).unwrap_or(usize::MAX);
        let Some(bits) = bits.get(..blocks.div_ceil(8)) else { return };
        let padding = bits.len() * 8 - blocks;
        // The bits behind the last block of a short group are no blocks, whatever they are.
        let mut bits: Box<[u8]> = bits.into();
        if let Some(last) = bits.last_mut().filter(|_| padding > 0) {
            *last |= 0xff << (8 - padding);
        }
        let free: u64 = bits.iter().map(|byte| u64::from(byte.count_zeros())).sum();
        if free == group.free && self.bitmaps.len() < MAX_BITMAPS {
            self.bitmaps.insert(group.number, bits);
        }
    }
}

/// Where the group descriptors are.
struct SuperblockTable {
    start: u64,
    per_block: u64,
}

impl Superblock {
    const fn table(&self) -> SuperblockTable {
        SuperblockTable {
            start: self.first_block + 1,
            per_block: (self.block_bytes / self.descriptor_bytes) as u64,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}
