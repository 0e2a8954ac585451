//! What happens to a volume as a whole: it gets another size, says what it takes and refers to.

use std::sync::atomic::Ordering;

use cairn_core::{
    id::SegmentId,
    units::{BLOCK_BYTES, BlockIndex, ByteCount},
};

use super::{Medium, SealError, Volume, lock};

/// What a volume takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of sealed blocks that are not zeros, plain, in segments that nobody else names.
    pub live: ByteCount,
    /// Sealed, in segments that nobody else names.
    pub stored: ByteCount,
    /// Of the journal, not sealed yet.
    pub journal: ByteCount,
}

impl<M: Medium> Volume<M> {
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
        for (_, slot) in maps.table.iter().filter(|(_, slot)| !maps.pinned.contains(&slot.id)) {
            live += u64::from(slot.live) * BLOCK_BYTES as u64;
            stored += u64::from(slot.bytes);
        }
        Usage { live: ByteCount(live), stored: ByteCount(stored), journal }
    }

    /// Every segment that it refers to: by its maps, by its pages, by its last durable root only, or for others.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentId> {
        let mut ids = lock(&self.sealer).segments();
        let maps = lock(&self.maps);
        ids.extend(maps.table.iter().map(|(_, slot)| slot.id));
        ids.extend(&maps.pinned);
        ids
    }

    /// Every segment that goes with it.
    #[must_use]
    pub fn own_segments(&self) -> Vec<SegmentId> {
        let mut ids = self.segments();
        let maps = lock(&self.maps);
        ids.retain(|id| !maps.pinned.contains(id));
        ids
    }

    /// Takes no changes any more, as if its disk had failed.
    pub(super) fn give_up(&self) {
        self.faulty.store(true, Ordering::Release);
        self.room.notify_all();
    }
}
