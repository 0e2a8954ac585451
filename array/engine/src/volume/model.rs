//! The model check: a volume on a disk that forgets, against a plain list of blocks.
//!
//! Random schedules of writes, zeros, flushes, seals, snapshots taken, deleted and gone back to, full stores and ends of the
//! machine at any call to the disk. What is read must be the model's blocks; after an end it must be what they were after
//! some change, none before the last flush (power cut) or before the last that was taken (kill). A snapshot is what it was
//! for as long as it is there.

use std::{
    collections::{BTreeMap, HashSet},
    rc::Rc,
    sync::Arc,
};

use cairn_core::{
    id::{SegmentId, SnapshotId, VolumeId},
    map::PAGE_BLOCKS,
    seal::SealKey,
    sign::SigningKey,
    units::{BLOCK_BYTES, Generation},
    volume::Durability,
};

use super::{
    Change, ChangeError, Medium as _, OpenError, RootName, Snapshot, Volume, VolumeKeys,
    VolumeName, Wait,
    sim::{Dice, End, SimMedium},
};

const CAPACITY: u64 = 24;
/// The blocks that schedules use: a page's end and the next one's beginning.
const FIRST: u64 = PAGE_BLOCKS - 10;
const BLOCKS: u64 = 20;
const STEPS: u64 = 30;

type Block = Rc<[u8]>;
type Blocks = Vec<Block>;

pub(super) fn keys() -> VolumeKeys {
    VolumeKeys {
        content_key: SealKey([7; 32]),
        wrapped_key: b"wrapped".to_vec(),
        signer: Arc::new(SigningKey::from_seed(&[3; 32]).unwrap()),
    }
}

pub(super) fn named(generation: u64) -> VolumeName {
    VolumeName {
        id: VolumeId([9; 16]),
        name: "scratch".into(),
        generation: Generation(generation),
        known: None,
    }
}

struct Schedule {
    dice: Dice,
    medium: SimMedium,
    volume: Volume<SimMedium>,
    generation: u64,
    /// States since the last that must be there; the last is the present one.
    states: Vec<Blocks>,
    snapshots: BTreeMap<SnapshotId, Blocks>,
    /// Of a snapshot whose fate is not known: whoever keeps the volume deletes it at the next start.
    doubtful: Vec<SnapshotId>,
    /// Of the last change.
    tag: u64,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let medium = SimMedium::new(CAPACITY, seed ^ 0xd15c);
        let volume = Volume::create(
            medium.clone(),
            named(1),
            keys(),
            Durability::Local,
            (2 * PAGE_BLOCKS, CAPACITY),
        )
        .unwrap();
        let zero: Block = vec![0; BLOCK_BYTES].into();
        let states = vec![vec![zero; usize::try_from(BLOCKS).unwrap()]];
        let (snapshots, doubtful) = (BTreeMap::new(), Vec::new());
        let dice = Dice::new(seed);
        Self { dice, medium, volume, generation: 1, states, snapshots, doubtful, tag: 0 }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.dice.below(24) {
                0..=9 => self.change(),
                10..=12 => self.flush(),
                13..=14 => self.seal(),
                15..=16 => self.look(),
                17 => self.medium.limit_store(Some(0)),
                18 => self.medium.limit_store(None),
                19 => self.take_snapshot(),
                20 => self.delete_snapshot(),
                21 => self.go_back(),
                22 => self.look_at_snapshots(),
                _ => self.end_at_some_call(),
            }
            if self.medium.has_ended() {
                self.restart();
            }
        }
        self.restart();
        self.look_at_snapshots();
    }

    fn snapshot(&self, id: SnapshotId) -> Result<Snapshot<SimMedium>, OpenError> {
        self.volume.open_snapshot(self.medium.clone(), id)
    }

    fn look_at_snapshots(&self) {
        for (id, blocks) in &self.snapshots {
            let mut bytes = vec![0; usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES];
            let read = self.snapshot(*id).map(|found| {
                found.read(FIRST * BLOCK_BYTES as u64, &mut bytes, Wait::AsLongAsItTakes)
            });
            match read {
                Ok(Ok(done)) => assert!(done),
                failed if self.medium.has_ended() => drop(failed),
                failed => panic!("a snapshot cannot be read: {failed:?}"),
            }
            if !self.medium.has_ended() {
                assert!(bytes == blocks.concat(), "a snapshot is not what it was");
            }
        }
    }

    fn any_snapshot(&mut self) -> Option<SnapshotId> {
        let count = self.snapshots.len();
        (count > 0).then(|| *self.snapshots.keys().nth(self.dice.index(count)).unwrap())
    }

    fn take_snapshot(&mut self) {
        let id = SnapshotId(u128::from(self.dice.next()).to_le_bytes());
        match self.volume.take_snapshot(id) {
            Ok(()) => {
                let last = self.states.pop().unwrap();
                self.snapshots.insert(id, last.clone());
                self.states = vec![last];
            }
            Err(error) => {
                assert!(error.is_full() || self.medium.has_ended(), "{error:?}");
                self.doubtful.push(id);
            }
        }
    }

    fn delete_snapshot(&mut self) {
        let Some(id) = self.any_snapshot() else { return };
        self.snapshots.remove(&id);
        let Ok(pinned) = self.pinned() else { return self.doubtful.push(id) };
        if let Err(error) = self.volume.delete_snapshot(id, pinned) {
            assert!(self.medium.has_ended(), "{error:?}");
            self.doubtful.push(id);
        }
    }

    /// As whoever keeps the volume does it: opened anew, by nobody else.
    fn go_back(&mut self) {
        let Some(id) = self.any_snapshot() else { return };
        self.restart();
        let base = self.snapshot(id).unwrap().into_base();
        let before = self.states.pop().unwrap();
        self.states = vec![before, self.snapshots[&id].clone()];
        if self.dice.below(3) == 0 {
            self.end_at_some_call();
        }
        match self.volume.become_base(base) {
            Ok(()) => drop(self.states.remove(0)),
            Err(error) => {
                assert!(error.is_full() || self.medium.has_ended(), "{error:?}");
                self.restart();
            }
        }
    }

    fn pinned(&self) -> Result<HashSet<SegmentId>, OpenError> {
        let mut pinned = HashSet::new();
        for id in self.snapshots.keys() {
            let named = self.volume.segments_of_snapshot(*id)?;
            pinned.extend(named.iter().map(|entry| entry.id));
        }
        Ok(pinned)
    }

    /// A batch of one to three changes.
    fn change(&mut self) {
        let mut batch = Vec::new();
        for _ in 0..=self.dice.below(3) {
            let offset = self.dice.below(BLOCKS);
            let blocks = 1 + self.dice.below((BLOCKS - offset).min(5));
            let (mut from, mut to) =
                (offset * BLOCK_BYTES as u64, (offset + blocks) * BLOCK_BYTES as u64);
            if self.dice.below(4) == 0 {
                from += self.dice.below(4096);
                to -= self.dice.below(to - from);
            }
            self.tag += 1;
            let value = if self.dice.below(3) == 0 { None } else { Some(self.tag) };
            batch.push((from, to, value));
        }
        let bytes: Vec<Vec<u8>> =
            batch.iter().map(|(from, to, value)| filled(*value, to - from)).collect();
        let changes: Vec<Change<'_>> = batch
            .iter()
            .zip(&bytes)
            .map(|((from, to, value), bytes)| {
                let offset = FIRST * BLOCK_BYTES as u64 + from;
                match value {
                    Some(_) => Change::Write { offset, bytes },
                    None => Change::Zero { offset, length: to - from },
                }
            })
            .collect();
        for ((from, _, _), bytes) in batch.iter().zip(&bytes) {
            self.expect(*from, bytes);
        }
        match self.volume.change(&changes) {
            Ok(()) => {}
            Err(ChangeError::NoRoom) if !self.medium.has_ended() => {
                // What came before the one without room is there.
                self.settle();
                self.seal();
            }
            Err(error) => assert!(self.medium.has_ended(), "{error:?}"),
        }
    }

    /// Adds the states that a write goes through, block by block.
    fn expect(&mut self, from: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (usize::try_from(from).unwrap(), bytes);
        while !rest.is_empty() {
            let mut state = self.states.last().unwrap().clone();
            let (index, inside) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
            let (part, after) = rest.split_at(rest.len().min(BLOCK_BYTES - inside));
            let mut block = state[index].to_vec();
            block[inside..inside + part.len()].copy_from_slice(part);
            state[index] = block.into();
            self.states.push(state);
            (at, rest) = (at + part.len(), after);
        }
    }

    fn read(&self) -> Option<Blocks> {
        let mut bytes = vec![0; usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES];
        match self.volume.read(FIRST * BLOCK_BYTES as u64, &mut bytes, Wait::AsLongAsItTakes) {
            Ok(done) => assert!(done),
            Err(error) => {
                assert!(self.medium.has_ended(), "{error:?}");
                return None;
            }
        }
        Some(bytes.chunks_exact(BLOCK_BYTES).map(Block::from).collect())
    }

    fn look(&self) {
        if let Some(found) = self.read() {
            assert!(found == *self.states.last().unwrap(), "a read is not what was written last");
        }
    }

    /// Takes what is there as the present state; it must be one that may be there.
    fn settle(&mut self) {
        let Some(found) = self.read() else { return };
        let position = self.states.iter().rposition(|state| *state == found);
        let position = position.expect("what is there is none of the states that may be");
        self.states.truncate(position + 1);
    }

    fn flush(&mut self) {
        match self.volume.sync() {
            Ok(()) => {
                let last = self.states.pop().unwrap();
                self.states = vec![last];
            }
            Err(error) => assert!(self.medium.has_ended(), "{error:?}"),
        }
    }

    fn seal(&mut self) {
        match self.volume.seal() {
            Ok(()) => {
                let last = self.states.pop().unwrap();
                self.states = vec![last];
            }
            Err(error) => assert!(error.is_full() || self.medium.has_ended(), "{error:?}"),
        }
    }

    fn end_at_some_call(&mut self) {
        let calls = self.dice.below(25);
        self.medium.end_after(calls);
    }

    fn restart(&mut self) {
        let in_order = self.medium.has_ended();
        let end = if self.dice.below(2) == 0 { End::Killed } else { End::PowerCut };
        self.medium.limit_store(None);
        self.medium.restart(end);
        self.generation += 1;
        self.volume = Volume::open(self.medium.clone(), named(self.generation), keys()).unwrap();
        for id in std::mem::take(&mut self.doubtful) {
            self.medium.delete_root(RootName::Snapshot(id)).unwrap();
        }
        self.volume.pin(self.pinned().unwrap());
        if end == End::Killed && !in_order {
            self.look();
        }
        self.settle();
    }
}

fn filled(value: Option<u64>, length: u64) -> Vec<u8> {
    let pattern = value.unwrap_or(0).to_le_bytes();
    pattern.into_iter().cycle().take(usize::try_from(length).unwrap()).collect()
}

/// Runs schedules with seeds from `first` on.
fn check(first: u64, count: u64) {
    for seed in first..first + count {
        let ran = std::panic::catch_unwind(|| Schedule::new(seed).run());
        assert!(ran.is_ok(), "schedule of seed {seed} failed");
    }
}

#[test]
fn no_schedule_of_changes_and_crashes_loses_what_was_flushed() {
    let count = std::env::var("CAIRN_SCHEDULES").map_or(3000, |count| count.parse().unwrap());
    let first = std::env::var("CAIRN_SEED").map_or(1, |seed| seed.parse().unwrap());
    check(first, count);
}
