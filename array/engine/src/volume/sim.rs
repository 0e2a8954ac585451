//! A medium in memory that forgets what was not made durable, and fails when it is told to.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, IoSlice},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use cairn_core::{id::SegmentId, units::BLOCK_BYTES};

use super::{Medium, MediumError, RootName, SegmentReader, Wait, lock};
use crate::{dsf::CheckedSegment, store::StoreError};

/// The unit that a power cut leaves whole.
const SECTOR: usize = 512;

/// A small seeded generator (xorshift64*): the same seed, the same schedule.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// Below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }
}

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The process only: the kernel still writes what it has.
    Killed,
    /// What was not made durable is there or not, sector by sector.
    PowerCut,
}

#[derive(Clone, Debug, Default)]
struct Object {
    bytes: Bytes,
    durable: bool,
}

#[derive(Debug)]
struct State {
    journal: Vec<u8>,
    /// What the disk surely has.
    durable_journal: Vec<u8>,
    /// Ranges written since the last sync.
    unsynced: Vec<(usize, usize)>,
    segments: HashMap<SegmentId, Object>,
    /// Deleted since the last sync.
    deleted: HashMap<SegmentId, Object>,
    roots: HashMap<RootName, Bytes>,
    durable_roots: HashMap<RootName, Bytes>,
    /// Calls until everything fails.
    calls_left: Option<u64>,
    /// Segments that the store takes before it is full.
    room: Option<u64>,
    broken_store: bool,
    dice: Dice,
}

/// See the module. A handle: clones share the disk.
#[derive(Clone, Debug)]
pub(super) struct SimMedium(Arc<Mutex<State>>);

fn crashed(operation: &'static str) -> MediumError {
    MediumError::Journal { operation, source: io::Error::other("crashed") }
}

impl State {
    /// Counts a call; the one at which the machine ends fails.
    fn call(&mut self, operation: &'static str) -> Result<(), MediumError> {
        match &mut self.calls_left {
            None => Ok(()),
            Some(0) => Err(crashed(operation)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl SimMedium {
    pub(super) fn new(capacity: u64, seed: u64) -> Self {
        let bytes = usize::try_from(capacity + 1).unwrap() * BLOCK_BYTES;
        Self(Arc::new(Mutex::new(State {
            journal: vec![0; bytes],
            durable_journal: vec![0; bytes],
            unsynced: Vec::new(),
            segments: HashMap::new(),
            deleted: HashMap::new(),
            roots: HashMap::new(),
            durable_roots: HashMap::new(),
            calls_left: None,
            room: None,
            broken_store: false,
            dice: Dice::new(seed),
        })))
    }

    /// Lets the machine end after so many more calls.
    pub(super) fn end_after(&self, calls: u64) {
        lock(&self.0).calls_left = Some(calls);
    }

    /// Whether the call at which the machine ends was reached.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.0).calls_left == Some(0)
    }

    /// Lets the store take so many more segments; none: as many as come.
    pub(super) fn limit_store(&self, segments: Option<u64>) {
        lock(&self.0).room = segments;
    }

    /// Lets the store take nothing, and not for lack of room.
    pub(super) fn break_store(&self, broken: bool) {
        lock(&self.0).broken_store = broken;
    }

    /// Segments in the store.
    pub(super) fn segments(&self) -> usize {
        lock(&self.0).segments.len()
    }

    /// Plain count of sealed bytes in the store.
    pub(super) fn stored_bytes(&self) -> usize {
        lock(&self.0).segments.values().map(|object| object.bytes.len()).sum()
    }

    /// Ends the machine and starts it anew.
    pub(super) fn restart(&self, end: End) {
        let mut state = lock(&self.0);
        let state = &mut *state;
        state.calls_left = None;
        if end == End::Killed {
            return;
        }
        let mut journal = state.durable_journal.clone();
        for (from, to) in state.unsynced.clone() {
            for sector in (from..to).step_by(SECTOR) {
                if state.dice.below(2) == 0 {
                    let end = to.min(sector + SECTOR);
                    journal[sector..end].copy_from_slice(&state.journal[sector..end]);
                }
            }
        }
        state.journal = journal;
        let dice = &mut state.dice;
        state.segments.retain(|_, object| object.durable || dice.below(2) == 0);
        let back = state.deleted.drain().filter(|_| dice.below(2) == 0);
        state.segments.extend(back);
        // Each root is what it was or what it was made, also when it was deleted.
        for name in [&state.roots, &state.durable_roots]
            .iter()
            .flat_map(|roots| roots.keys().copied())
            .collect::<BTreeSet<_>>()
        {
            if dice.below(2) == 0 {
                match state.durable_roots.get(&name) {
                    Some(root) => state.roots.insert(name, root.clone()),
                    None => state.roots.remove(&name),
                };
            }
        }
        state.durable_journal = state.journal.clone();
        state.unsynced.clear();
        state.deleted.clear();
        state.durable_roots = state.roots.clone();
        for object in state.segments.values_mut() {
            object.durable = true;
        }
    }
}

impl SegmentReader for SimMedium {
    fn read_segment(
        &self,
        id: SegmentId,
        offset: u64,
        into: &mut [u8],
        _: Wait,
    ) -> Result<bool, MediumError> {
        let mut state = lock(&self.0);
        state.call("read")?;
        let Some(object) = state.segments.get(&id) else {
            return Err(StoreError::NotFound { object: id.to_string() }.into());
        };
        let offset = usize::try_from(offset).unwrap();
        into.copy_from_slice(&object.bytes[offset..offset + into.len()]);
        Ok(true)
    }
}

impl Medium for SimMedium {
    fn read_journal(&self, offset: u64, into: &mut [u8], _: Wait) -> Result<bool, MediumError> {
        let mut state = lock(&self.0);
        state.call("read")?;
        let offset = usize::try_from(offset).unwrap();
        into.copy_from_slice(&state.journal[offset..offset + into.len()]);
        Ok(true)
    }

    fn write_journal(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let ended = state.call("write");
        // The last write of a process is there in part.
        let torn = if ended.is_err() {
            state.dice.index(bytes.len() / SECTOR + 1) * SECTOR
        } else {
            bytes.len()
        };
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + bytes.len() <= state.journal.len(), "a record leaves the ring");
        state.journal[offset..offset + torn].copy_from_slice(&bytes[..torn]);
        state.unsynced.push((offset, offset + torn));
        if ended.is_err() {
            // Nothing follows.
            state.calls_left = Some(0);
        }
        ended
    }

    fn sync_journal(&self) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        state.call("sync")?;
        let state = &mut *state;
        for (from, to) in state.unsynced.drain(..) {
            state.durable_journal[from..to].copy_from_slice(&state.journal[from..to]);
        }
        Ok(())
    }

    fn put_segment(&self, segment: &CheckedSegment) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        state.call("put")?;
        if state.broken_store {
            return Err(StoreError::NoDevice.into());
        }
        match &mut state.room {
            Some(0) => return Err(StoreError::Full { device: "sim".into() }.into()),
            Some(room) => *room -= 1,
            None => {}
        }
        let object = Object { bytes: segment.bytes().clone(), durable: false };
        state.segments.insert(segment.id(), object);
        Ok(())
    }

    fn delete_segment(&self, id: SegmentId) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        state.call("delete")?;
        if let Some(object) = state.segments.remove(&id) {
            state.deleted.insert(id, object);
        }
        Ok(())
    }

    fn put_root(&self, name: RootName, root: Bytes) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        state.call("put a root")?;
        state.roots.insert(name, root);
        Ok(())
    }

    fn root(&self, name: RootName) -> Result<Option<Bytes>, MediumError> {
        let mut state = lock(&self.0);
        state.call("read a root")?;
        Ok(state.roots.get(&name).cloned())
    }

    fn delete_root(&self, name: RootName) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        state.call("delete a root")?;
        state.roots.remove(&name);
        Ok(())
    }

    fn sync_store(&self) -> Result<(), MediumError> {
        let mut state = lock(&self.0);
        state.call("sync the store")?;
        let state = &mut *state;
        for object in state.segments.values_mut() {
            object.durable = true;
        }
        state.deleted.clear();
        state.durable_roots = state.roots.clone();
        Ok(())
    }
}
