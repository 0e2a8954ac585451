//! Snapshots: a root that is kept under a name of its own, and what it tells, to be read.
//!
//! ```text
//!   seal ─► root ─► pinned: no segment that it names is cleaned or deleted ─► the same root again, as the snapshot's
//! ```
//!
//! Invariants: what a snapshot's root names is pinned before that root is stored; it is unpinned only when no root of a
//! snapshot, and no origin, names it, as whoever keeps the volume says.

use std::{collections::HashSet, fmt};

use cairn_core::{
    id::{SegmentId, SnapshotId, VolumeId},
    manifest::SegmentEntry,
    seal::SealKey,
    sign::VerifyingKey,
    units::{BLOCK_BYTES, BlockIndex, ByteCount},
    volume::{Place, extent_map::ExtentMap, journal::Cursor, table::SegmentTable},
};

use super::{
    Maps, Medium, MediumError, OpenError, ReadError, RootName, SealError, SegmentReader, TailRing,
    Volume, Wait,
    frames::Frames,
    lock,
    open::{Loaded, load, load_table, opened},
    reader::{self, Source, Stretch},
};

/// A volume as one root tells it: it does not change. Reads block, as [`Wait`] says.
pub struct Snapshot<S> {
    maps: Maps,
    frames: Frames,
    segments: S,
    /// The journal's record that its root does not cover.
    cursor: Cursor,
    tail: Option<TailRing>,
}

impl<S> fmt::Debug for Snapshot<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot(..)")
    }
}

/// What a volume can begin as: so many blocks, and where they are.
#[derive(Debug)]
pub struct Base {
    pub blocks: u64,
    pub table: SegmentTable,
    pub map: ExtentMap<Place>,
}

impl Base {
    /// It, to be read as it is.
    pub fn into_snapshot<S: SegmentReader>(self, segments: S) -> Snapshot<S> {
        let Self { blocks, table, map } = self;
        let maps = Maps { blocks, table, sealed: map, ..Maps::default() };
        Snapshot { maps, frames: Frames::new(), segments, cursor: Cursor::START, tail: None }
    }
}

impl<S: SegmentReader> Snapshot<S> {
    /// Opens what a root of `volume` tells, with the volume's content key.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        segments: S,
        signed: &[u8],
        volume: VolumeId,
        verifier: &VerifyingKey,
        key: &SealKey,
    ) -> Result<Self, OpenError> {
        let (root, secret) = opened(signed, volume, verifier, key)?;
        let Loaded { maps, .. } = load(&segments, &root, &secret)?;
        Ok(Self { maps, frames: Frames::new(), segments, cursor: secret.cursor, tail: None })
    }

    /// It, and what the journal had beyond its root.
    ///
    /// # Errors
    /// When the file of the journal cannot be read.
    pub fn with_tail(mut self, tail: TailRing) -> Result<Self, MediumError> {
        tail.replay(self.cursor, |record| self.maps.apply(record))?;
        self.tail = Some(tail);
        Ok(self)
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn size(&self) -> ByteCount {
        ByteCount(self.maps.blocks * BLOCK_BYTES as u64)
    }

    /// Fills `into` from `offset` on; false when it would have to wait.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, offset: u64, into: &mut [u8], wait: Wait) -> Result<bool, ReadError> {
        reader::read(self.size(), offset, into, |first, into| self.read_blocks(first, into, wait))
    }

    /// Tells which parts of a range are stored, in order, the first `limit` of them.
    #[must_use]
    pub fn stretches(&self, first: BlockIndex, blocks: u64, limit: usize) -> Vec<Stretch> {
        self.maps.stretches(first, blocks, limit)
    }

    /// What a volume needs to begin as this.
    #[must_use]
    pub fn into_base(self) -> Base {
        Base { blocks: self.maps.blocks, table: self.maps.table, map: self.maps.sealed }
    }

    fn read_blocks(
        &self,
        first: BlockIndex,
        mut into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, ReadError> {
        for found in self.maps.find(first, (into.len() / BLOCK_BYTES) as u64)? {
            let part = reader::take(&mut into, found.blocks);
            match &found.source {
                Source::Zero => part.fill(0),
                Source::Journal(at) => {
                    // A snapshot without one has nothing there.
                    self.tail.as_ref().ok_or(ReadError::Map)?.read(*at, part)?;
                }
                Source::Sealed(sealed) => {
                    if !sealed.read(&self.frames, &self.segments, part, wait)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// The segments that a root of `volume` names: of its pages, and of its blocks.
///
/// # Errors
/// [`OpenError`].
pub fn segments_of_root<S: SegmentReader>(
    segments: &S,
    signed: &[u8],
    volume: VolumeId,
    verifier: &VerifyingKey,
    key: &SealKey,
) -> Result<Vec<SegmentEntry>, OpenError> {
    let (root, secret) = opened(signed, volume, verifier, key)?;
    let table = load_table(segments, &root, &secret)?;
    let mut entries = root.metas;
    entries.extend(table.iter().map(|(_, slot)| SegmentEntry { id: slot.id, bytes: slot.bytes }));
    Ok(entries)
}

impl<M: Medium> Volume<M> {
    /// Keeps these segments, whatever becomes of the volume's own map: somebody else's root names them too.
    pub fn pin(&self, ids: impl IntoIterator<Item = SegmentId>) {
        lock(&self.maps).pinned.extend(ids);
    }

    /// Opens a snapshot of it, to read segments by `segments`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_snapshot<S: SegmentReader>(
        &self,
        segments: S,
        id: SnapshotId,
    ) -> Result<Snapshot<S>, OpenError> {
        let root = self.medium.root(RootName::Snapshot(id))?.ok_or(OpenError::NoRoot)?;
        let verifier = self.keys.signer.verifying_key();
        Snapshot::open(segments, &root, self.id, &verifier, &self.keys.content_key)
    }

    /// The segments that a snapshot of it names.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn segments_of_snapshot(&self, id: SnapshotId) -> Result<Vec<SegmentEntry>, OpenError> {
        let root = self.medium.root(RootName::Snapshot(id))?.ok_or(OpenError::NoRoot)?;
        let verifier = self.keys.signer.verifying_key();
        segments_of_root(&self.medium, &root, self.id, &verifier, &self.keys.content_key)
    }

    /// Takes a snapshot: the volume as it is now, durable.
    ///
    /// # Errors
    /// [`SealError`]; the snapshot's root may be there then.
    pub fn take_snapshot(&self, id: SnapshotId) -> Result<(), SealError> {
        let mut sealer = lock(&self.sealer);
        self.seal_all(&mut sealer)?;
        {
            let mut maps = lock(&self.maps);
            let maps = &mut *maps;
            maps.pinned.extend(maps.table.iter().map(|(_, slot)| slot.id));
            maps.pinned.extend(sealer.pages.segments());
        }
        let root = self.medium.root(RootName::Live)?.ok_or(SealError::NoRoot)?;
        self.medium.put_root(RootName::Snapshot(id), root)?;
        Ok(self.medium.sync_store()?)
    }

    /// Deletes a snapshot, and the segments that only it named: those that are neither `pinned` from now on nor the
    /// volume's.
    ///
    /// # Errors
    /// [`SealError`]; the snapshot may be there still, and segments that nobody names may stay.
    pub fn delete_snapshot(
        &self,
        id: SnapshotId,
        pinned: HashSet<SegmentId>,
    ) -> Result<(), SealError> {
        let sealer = lock(&self.sealer);
        self.medium.delete_root(RootName::Snapshot(id))?;
        self.medium.sync_store()?;
        let gone: Vec<SegmentId> = {
            let mut maps = lock(&self.maps);
            let before = std::mem::replace(&mut maps.pinned, pinned);
            let mut kept: HashSet<SegmentId> = sealer.segments().into_iter().collect();
            kept.extend(maps.table.iter().map(|(_, slot)| slot.id));
            let gone = before.into_iter().filter(|id| !kept.contains(id));
            gone.filter(|id| !maps.keeps(id)).collect()
        };
        for id in gone {
            self.medium.delete_segment(id)?;
        }
        Ok(())
    }

    /// Makes it be what `base` says, and nothing of what it was, durably. Nobody may change it meanwhile.
    ///
    /// # Errors
    /// [`SealError`]: then it has to be opened again, as what it was.
    pub fn become_base(&self, base: Base) -> Result<(), SealError> {
        let mut sealer = lock(&self.sealer);
        {
            let mut maps = lock(&self.maps);
            let maps = &mut *maps;
            sealer.forget(maps, &base);
            maps.blocks = base.blocks;
            maps.table = base.table;
            maps.sealed = base.map;
            maps.fresh = ExtentMap::default();
            maps.sealing = ExtentMap::default();
        }
        // What the journal says from here on does not follow what it said: nobody is to replay the one after the other.
        let mut writer = lock(&self.writer);
        writer.cursor.sequence += 1;
        drop(writer);
        self.seal_all(&mut sealer)
    }
}
