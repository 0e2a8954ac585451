//! What happens to a volume as a whole: it begins as something, gets another size, says what it refers to.

use std::sync::atomic::Ordering;

use cairn_core::{
    id::SegmentId,
    units::{BLOCK_BYTES, BlockIndex, ByteCount},
    volume::{Place, extent_map::ExtentMap, table::SegmentTable},
};

use super::{Medium, SealError, Volume, checkpoint::Page, lock};

/// What a volume takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of sealed blocks that are not zeros, plain, in segments of its own.
    pub live: ByteCount,
    /// Sealed, in segments of its own.
    pub stored: ByteCount,
    /// Of the journal, not sealed yet.
    pub journal: ByteCount,
}

impl<M: Medium> Volume<M> {
    /// Makes a volume that was just created begin as what these say. It is so for good after [`Self::seal`].
    pub fn begin_as(&self, table: SegmentTable, map: ExtentMap<Place>) {
        let mut sealer = lock(&self.sealer);
        for page in map.pages() {
            sealer.pages.touch(Page::Map(page));
        }
        let mut maps = lock(&self.maps);
        maps.table = table;
        maps.sealed = map;
    }

    /// Gives it a size of so many blocks. What is behind a smaller size is gone; what a larger one adds is zeros.
    ///
    /// # Errors
    /// [`SealError`]: then it has its old size when it is opened again.
    pub fn resize(&self, blocks: u64) -> Result<(), SealError> {
        self.cut(blocks, self.mapped_end())?;
        self.seal()
    }

    /// The block after the last that may be something else than zeros.
    fn mapped_end(&self) -> u64 {
        let maps = lock(&self.maps);
        let fresh = maps.fresh.end().max(maps.sealing.end());
        fresh.max(maps.sealed.end()).min(BlockIndex(maps.blocks)).0
    }

    /// What it takes.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let journal = ByteCount(self.pending() * BLOCK_BYTES as u64);
        let maps = lock(&self.maps);
        let (mut live, mut stored) = (0, 0);
        for (_, slot) in maps.table.iter().filter(|(_, slot)| slot.own) {
            live += u64::from(slot.live) * BLOCK_BYTES as u64;
            stored += u64::from(slot.bytes);
        }
        Usage { live: ByteCount(live), stored: ByteCount(stored), journal }
    }

    /// Every segment that it refers to: by its maps, by its pages, or by its last durable root only.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentId> {
        self.segments_that(|_| true)
    }

    /// Every segment that it made.
    #[must_use]
    pub fn own_segments(&self) -> Vec<SegmentId> {
        self.segments_that(|own| own)
    }

    fn segments_that(&self, counts: impl Fn(bool) -> bool) -> Vec<SegmentId> {
        let mut ids = lock(&self.sealer).segments();
        let maps = lock(&self.maps);
        ids.extend(maps.table.iter().filter(|(_, slot)| counts(slot.own)).map(|(_, slot)| slot.id));
        ids
    }

    /// Takes no changes any more, as if its disk had failed.
    pub(super) fn give_up(&self) {
        self.faulty.store(true, Ordering::Release);
        self.room.notify_all();
    }
}
