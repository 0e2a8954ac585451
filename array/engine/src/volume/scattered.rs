//! A volume whose segments clients hold too: what they are to hold, and what may leave the store.
//!
//! Invariant: a segment that parity was made of is in the store until it is released, whoever names it.

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::Ordering,
};

use bytes::Bytes;
use cairn_core::{
    id::{SegmentId, SnapshotId},
    manifest::SegmentEntry,
};

use super::{
    Medium, MediumError, OpenError, RootName, Volume, lock, open::opened,
    snapshot::segments_of_root,
};

/// What a durable root tells.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Signed.
    pub root: Bytes,
    /// Of its pages, and of its blocks.
    pub segments: Vec<SegmentEntry>,
}

impl<M: Medium> Volume<M> {
    /// The number of the last durable root: it grows with each. Does not wait.
    #[must_use]
    pub fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Acquire)
    }

    /// The last durable root. From now on what it names is retained.
    ///
    /// # Errors
    /// [`OpenError`] when it cannot be read.
    pub fn checkpoint(&self) -> Result<Checkpoint, OpenError> {
        // Nothing is deleted meanwhile.
        let _sealer = lock(&self.sealer);
        let root = self.medium.root(RootName::Live)?.ok_or(OpenError::NoRoot)?;
        let verifier = self.keys.signer.verifying_key();
        let key = &self.keys.content_key;
        let segments = segments_of_root(&self.medium, &root, self.id, &verifier, key)?;
        self.retain(segments.iter().map(|entry| entry.id));
        Ok(Checkpoint { root, segments })
    }

    /// The pages of map and table that a snapshot of it names.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn pages_of_snapshot(&self, id: SnapshotId) -> Result<Vec<SegmentId>, OpenError> {
        let root = self.medium.root(RootName::Snapshot(id))?.ok_or(OpenError::NoRoot)?;
        let verifier = self.keys.signer.verifying_key();
        let (root, _) = opened(&root, self.id, &verifier, &self.keys.content_key)?;
        Ok(root.metas.iter().map(|meta| meta.id).collect())
    }

    /// Lets go from the store what clients hold, but for the pages of map and table, without which it could not be opened.
    ///
    /// # Errors
    /// [`MediumError`]; what was not deleted by then is there still.
    pub fn offload(&self, held: &BTreeSet<SegmentId>) -> Result<(), MediumError> {
        let pages: HashSet<SegmentId> = lock(&self.sealer).segments().into_iter().collect();
        for id in held.iter().filter(|id| !pages.contains(id)) {
            self.medium.delete_segment(*id)?;
        }
        Ok(())
    }

    /// Keeps these segments in the store until they are released.
    pub fn retain(&self, ids: impl IntoIterator<Item = SegmentId>) {
        lock(&self.maps).retained.extend(ids);
    }

    /// Retains these segments no longer; those that nothing else keeps are deleted.
    ///
    /// # Errors
    /// [`MediumError`]; what was not deleted by then is cleared away when the store is looked through.
    pub fn release(&self, ids: &[SegmentId]) -> Result<(), MediumError> {
        let sealer = lock(&self.sealer);
        let gone: Vec<SegmentId> = {
            let mut maps = lock(&self.maps);
            for id in ids {
                maps.retained.remove(id);
            }
            let mut named: HashSet<SegmentId> = sealer.segments().into_iter().collect();
            named.extend(maps.table.iter().map(|(_, slot)| slot.id));
            let gone = ids.iter().filter(|id| !named.contains(id) && !maps.pinned.contains(id));
            gone.copied().collect()
        };
        for id in gone {
            self.medium.delete_segment(id)?;
        }
        Ok(())
    }
}
