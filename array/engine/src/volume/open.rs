//! Making a volume, and opening one: the last root, then what the journal has beyond it.

use std::{
    collections::HashSet,
    io::IoSlice,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_core::{
    bytes::DecodeError,
    id::VolumeId,
    seal::SealKey,
    sign::VerifyingKey,
    units::BLOCK_BYTES,
    volume::{
        Durability,
        checkpoint::{Draft, PagePlace, Root, Secret, decode_page},
        extent_map::ExtentMap,
        journal::{Cursor, Record, Ring},
        table::SegmentTable,
    },
};

use super::{
    Maps, Medium, MediumError, OpenError, Pages, ReadError, RootName, Sealer, SegmentReader,
    StoreHealth, Volume, VolumeKeys, VolumeName, Wait, Writer,
    checkpoint::Meta,
    frames::{Frames, Sealed},
    mirrored::Mirroring,
};
use crate::random;

impl<M: Medium> Volume<M> {
    /// Makes a volume of `blocks` blocks, all zeros, on a medium that has none, with a ring of `capacity` blocks.
    ///
    /// # Errors
    /// [`OpenError`]; what is left then is no volume.
    pub fn create(
        medium: M,
        name: VolumeName,
        keys: VolumeKeys,
        durability: Durability,
        (blocks, capacity): (u64, u64),
    ) -> Result<Self, OpenError> {
        restore(&medium, name.id, capacity)?;
        let draft = Draft {
            volume: name.id,
            generation: name.generation,
            number: 1,
            salt: random::array().map_err(|_| OpenError::Random)?,
            metas: Vec::new(),
            wrapped_key: keys.wrapped_key.clone(),
            secret: Secret {
                name: name.name.clone(),
                durability,
                blocks,
                cursor: Cursor::START,
                meta_keys: Vec::new(),
                table: Vec::new(),
                map: Vec::new(),
            },
        };
        let root = draft.seal(&keys.content_key, &keys.signer);
        medium.put_root(RootName::Live, Bytes::from(root))?;
        medium.sync_store()?;
        Self::open(medium, name, keys)
    }

    /// Opens a volume as it was after the last change that its journal has whole, which is none before one that was
    /// flushed.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(medium: M, name: VolumeName, keys: VolumeKeys) -> Result<Self, OpenError> {
        // A process that was killed may have left a root that the disk does not have yet: journal space that it frees must
        // not be used before.
        medium.sync_store()?;
        let signed = medium.root(RootName::Live)?.ok_or(OpenError::NoRoot)?;
        let verifier = keys.signer.verifying_key();
        let (root, secret) = opened(&signed, name.id, &verifier, &keys.content_key)?;
        if root.generation > name.generation {
            return Err(OpenError::Fenced(root.generation));
        }
        let mut head = vec![0; BLOCK_BYTES];
        medium.replay_journal(0, &mut head)?;
        let ring = Ring::decode(&head).map_err(OpenError::Journal)?;
        if ring.volume != name.id {
            return Err(OpenError::ForeignJournal);
        }
        let Loaded { maps, pages } = load(&medium, &root, &secret)?;
        let covered = secret.cursor.position;
        let mirroring = match (secret.durability, &name.known) {
            (Durability::Local, _) => None,
            (Durability::Mirrored, None) => Some(Arc::new(Mirroring::new(0, covered))),
            (Durability::Mirrored, Some(signed)) => {
                let (_, known) = opened(signed, name.id, &verifier, &keys.content_key)?;
                Some(Arc::new(Mirroring::new(known.cursor.position, covered)))
            }
        };
        // What clients need is in the journal still: it was not freed.
        let tail = mirroring.as_ref().map_or(covered, |mirroring| mirroring.known().min(covered));
        let life = u64::from_le_bytes(random::array().map_err(|_| OpenError::Random)?);
        let volume = Self {
            id: name.id,
            name: secret.name,
            generation: name.generation,
            keys,
            medium,
            ring,
            sealer: Mutex::new(Sealer::new(pages, root.number)),
            writer: Mutex::new(Writer {
                cursor: secret.cursor,
                life,
                store: StoreHealth::Well,
                closing: false,
            }),
            room: Condvar::new(),
            maps: Mutex::new(maps),
            frames: Frames::new(),
            tail: AtomicU64::new(tail),
            covered: AtomicU64::new(covered),
            mirroring,
            checkpoints: AtomicU64::new(root.number),
            faulty: AtomicBool::new(false),
            attended: AtomicBool::new(false),
            asked: Mutex::default(),
            to_seal: Condvar::new(),
        };
        volume.replay(secret.cursor)?;
        Ok(volume)
    }

    /// Applies the records behind a checkpoint, up to the first that is not whole.
    fn replay(&self, from: Cursor) -> Result<(), OpenError> {
        let cursor = replay(
            &self.ring,
            from,
            |offset, into| self.medium.replay_journal(offset, into),
            |record| self.apply(record),
        )?;
        self.clear_torn(cursor, self.tail.load(Ordering::Acquire))?;
        super::lock(&self.writer).cursor = cursor;
        Ok(())
    }

    /// Clears where the next record goes: what is left there of one that was torn could, together with a part of the next
    /// that is torn, become whole, long after it was seen to be lost.
    fn clear_torn(&self, cursor: Cursor, tail: u64) -> Result<(), OpenError> {
        for candidate in self.ring.candidates(cursor) {
            if candidate.position + 1 - tail <= self.ring.capacity {
                let offset = self.ring.offset(candidate.position);
                self.medium.write_journal(offset, &[IoSlice::new(&[0; BLOCK_BYTES])])?;
            }
        }
        Ok(self.medium.sync_journal()?)
    }
}

/// Shows the records behind a checkpoint, up to the first that is not whole. `read` reads from a byte of the journal's file
/// on. Where the next record goes.
pub(super) fn replay(
    ring: &Ring,
    from: Cursor,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), MediumError>,
    mut show: impl FnMut(&Record),
) -> Result<Cursor, MediumError> {
    let mut cursor = from;
    let mut head = vec![0; BLOCK_BYTES];
    let mut payload = Vec::new();
    'records: loop {
        for candidate in ring.candidates(cursor) {
            if candidate.position - from.position >= ring.capacity {
                continue;
            }
            read(ring.offset(candidate.position), &mut head)?;
            let Ok(record) = Record::decode(&head) else { continue };
            let blocks = record.payload();
            let fits = blocks < ring.until_end(candidate.position);
            if !record.follows(candidate) || !fits {
                continue;
            }
            payload.resize(usize::try_from(blocks).unwrap_or(0) * BLOCK_BYTES, 0);
            if !payload.is_empty() {
                read(ring.offset(candidate.position + 1), &mut payload)?;
            }
            if record.is_whole(&payload) {
                show(&record);
                cursor = record.end();
                continue 'records;
            }
        }
        return Ok(cursor);
    }
}

/// Makes an empty journal, with a ring of `capacity` blocks, for a volume whose root is in the store already: it is as the
/// root tells.
///
/// # Errors
/// [`MediumError`].
pub fn restore<M: Medium>(medium: &M, volume: VolumeId, capacity: u64) -> Result<(), MediumError> {
    let ring = Ring { volume, capacity };
    medium.write_journal(0, &[IoSlice::new(&ring.encode())])?;
    medium.sync_journal()
}

/// A root of `volume`, and its secret part.
pub(super) fn opened(
    signed: &[u8],
    volume: VolumeId,
    verifier: &VerifyingKey,
    key: &SealKey,
) -> Result<(Root, Secret), OpenError> {
    let root = Root::open(verifier, signed).map_err(OpenError::Root)?;
    if root.volume != volume {
        return Err(OpenError::Root(DecodeError::Inconsistent { field: "volume" }));
    }
    let secret = root.open_secret(key).map_err(OpenError::Root)?;
    Ok((root, secret))
}

/// What a root tells.
pub(super) struct Loaded {
    pub(super) maps: Maps,
    pub(super) pages: Pages,
}

fn page<S: SegmentReader>(
    segments: &S,
    frames: &Frames,
    (root, secret): (&Root, &Secret),
    place: PagePlace,
) -> Result<Bytes, OpenError> {
    let index = place.meta as usize;
    let (entry, key) =
        root.metas.get(index).zip(secret.meta_keys.get(index)).ok_or(OpenError::Map)?;
    let segment = Sealed { id: entry.id, bytes: entry.bytes, key };
    let bytes = frames.get(segments, segment, place.frame, Wait::AsLongAsItTakes)?;
    bytes.ok_or(OpenError::Frame(ReadError::Map))
}

/// The table, as a root tells it.
pub(super) fn load_table<S: SegmentReader>(
    segments: &S,
    root: &Root,
    secret: &Secret,
) -> Result<SegmentTable, OpenError> {
    let frames = Frames::for_once();
    let mut table = SegmentTable::default();
    for place in &secret.table {
        let bytes = page(segments, &frames, (root, secret), *place)?;
        table.decode_page(&bytes).map_err(OpenError::Page)?;
    }
    Ok(table)
}

/// Map and table, as a root tells them.
pub(super) fn load<S: SegmentReader>(
    segments: &S,
    root: &Root,
    secret: &Secret,
) -> Result<Loaded, OpenError> {
    let frames = Frames::for_once();
    let mut table = load_table(segments, root, secret)?;
    let mut sealed = ExtentMap::default();
    for (number, place) in &secret.map {
        let bytes = page(segments, &frames, (root, secret), *place)?;
        let runs = decode_page(&bytes, *number).map_err(OpenError::Page)?;
        for run in &runs {
            if table.get(run.place.segment).is_none() {
                return Err(OpenError::Map);
            }
            table.gain(run.place.segment, run.blocks.into());
        }
        sealed.put_page(*number, runs);
    }
    // Frames that are dead already are not counted: it is cleaned a little later for that.
    let mut frames = vec![0; root.metas.len()];
    for place in secret.table.iter().chain(secret.map.iter().map(|(_, place)| place)) {
        if let Some(count) = frames.get_mut(place.meta as usize) {
            *count += 1;
        }
    }
    let metas = root
        .metas
        .iter()
        .zip(&secret.meta_keys)
        .zip(frames)
        .map(|((entry, key), frames)| Meta { entry: *entry, key: key.clone(), frames, live: 0 });
    let pages = Pages::read(metas.collect(), secret);
    let maps = Maps {
        blocks: secret.blocks,
        fresh: ExtentMap::default(),
        sealing: ExtentMap::default(),
        sealed,
        table,
        pinned: HashSet::new(),
        retained: HashSet::new(),
    };
    Ok(Loaded { maps, pages })
}
