//! Crashes at every write: the recorded calls are replayed up to some point, and of those that no sync
//! covered any may be lost, and any write may be torn between sectors.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt};

use rustix::fs::FallocateFlags;

use super::{
    record::{Op, Recorder},
    *,
};

const CAPACITY: u32 = 6;
const NAMES: u32 = 12;

/// What may be found of a segment after a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Absent,
    Open,
    Present,
}

/// A run of random operations, recorded.
struct Script {
    recorder: Recorder,
    dice: Dice,
    held: Vec<u32>,
}

impl Script {
    fn run(seed: u64, steps: u32) -> Vec<Op> {
        let place = Place::new();
        let mut dsf = place.create(CAPACITY);
        let recorder = Recorder::default();
        std::sync::Arc::get_mut(&mut dsf.shared).unwrap().disk.recorder = Some(recorder.clone());
        let mut script = Self { recorder, dice: Dice(seed), held: Vec::new() };
        for _ in 0..steps {
            match script.dice.below(8) {
                0..4 => script.put(&mut dsf),
                4..6 => script.remove(&mut dsf),
                6 => script.set_class(&mut dsf),
                _ => script.resize(&mut dsf),
            }
        }
        script.recorder.ops()
    }

    fn note(&self, op: Op) {
        self.recorder.record(op).unwrap();
    }

    /// Notes where every named segment stands, now that the DSF has answered.
    fn settle(&mut self, dsf: &Dsf) {
        let reader = dsf.reader();
        self.held = (0..NAMES).filter(|name| reader.contains(id(*name))).collect();
        for name in 0..NAMES {
            let held = self.held.contains(&name);
            self.note(if held { Op::Stored(id(name)) } else { Op::Removed(id(name)) });
        }
    }

    fn put(&mut self, dsf: &mut Dsf) {
        let count = 1 + self.dice.below(3);
        let batch: Vec<_> =
            (0..count).map(|_| put(small(&mut self.dice), self.dice.class())).collect();
        for put in &batch {
            if !dsf.reader().contains(put.segment.id()) {
                self.note(Op::MayCome(put.segment.id()));
            }
        }
        assert_eq!(dsf.put(&batch).len(), batch.len());
        self.settle(dsf);
    }

    fn remove(&mut self, dsf: &mut Dsf) {
        let count = self.dice.below(3) as usize;
        let ids: Vec<_> = self.held.iter().take(count).map(|name| id(*name)).collect();
        for id in &ids {
            self.note(Op::MayGo(*id));
        }
        dsf.remove(&ids).unwrap();
        self.settle(dsf);
    }

    fn set_class(&mut self, dsf: &mut Dsf) {
        let ids: Vec<_> = self.held.first().map(|name| id(*name)).into_iter().collect();
        let class = self.dice.class();
        dsf.set_class(&ids, class).unwrap();
        self.settle(dsf);
    }

    fn resize(&mut self, dsf: &mut Dsf) {
        let capacity = SlotCount(self.dice.below(CAPACITY + 2));
        if (capacity.0 as usize) < self.held.len() {
            for name in &self.held {
                self.note(Op::MayGo(id(*name)));
            }
        }
        dsf.resize(capacity).unwrap();
        self.settle(dsf);
    }
}

/// Not the 4 MiB ones: thousands of states are written out.
fn small(dice: &mut Dice) -> u32 {
    loop {
        let name = dice.below(NAMES);
        if name != 3 {
            return name;
        }
    }
}

fn apply(file: &File, op: &Op, torn: Option<&mut Dice>) {
    match op {
        Op::Write { offset, bytes } => match torn {
            None => file.write_all_at(bytes, *offset).unwrap(),
            Some(dice) => {
                for (index, sector) in bytes.chunks(512).enumerate() {
                    if dice.below(2) == 0 {
                        file.write_all_at(sector, *offset + index as u64 * 512).unwrap();
                    }
                }
            }
        },
        Op::Punch { offset, length } => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, *offset, *length).unwrap();
        }
        Op::SetLength { length } => file.set_len(*length).unwrap(),
        Op::Sync | Op::MayGo(_) | Op::MayCome(_) | Op::Stored(_) | Op::Removed(_) => {}
    }
}

fn fates(ops: &[Op]) -> HashMap<SegmentId, Fate> {
    let mut fates = HashMap::new();
    for op in ops {
        match op {
            Op::MayGo(id) | Op::MayCome(id) => fates.insert(*id, Fate::Open),
            Op::Stored(id) => fates.insert(*id, Fate::Present),
            Op::Removed(id) => fates.insert(*id, Fate::Absent),
            _ => None,
        };
    }
    fates
}

/// Writes out the file as a crash left it, opens it, and compares it with what was promised.
fn crash(ops: &[Op], kept: impl Fn(usize) -> bool, torn: &mut Dice, tear: bool) {
    let place = Place::new();
    drop(place.create(CAPACITY));
    let file = File::options().write(true).open(&place.path).unwrap();
    let synced = ops.iter().rposition(|op| *op == Op::Sync).unwrap_or(0);
    let (safe, unsynced) = ops.split_at(synced);
    for op in safe {
        apply(&file, op, None);
    }
    for (index, op) in unsynced.iter().enumerate() {
        if kept(index) {
            apply(&file, op, tear.then_some(&mut *torn));
        }
    }
    drop(file);

    let mut dsf = place.open();
    let reader = dsf.reader();
    let fates = fates(ops);
    for held in reader.list() {
        let fate = fates.get(&held.id).copied().unwrap_or_default();
        assert_ne!(fate, Fate::Absent, "{:?} is a phantom", held.id);
        assert!(reader.get(held.id).is_ok(), "{:?} is listed but rotten", held.id);
    }
    for (id, fate) in fates {
        assert!(
            fate != Fate::Present || reader.contains(id),
            "{id:?} was acknowledged and is lost"
        );
    }
    // It is not only readable: a new segment goes in, if there is any room, and stays.
    let after = put(100, SegmentClass::Data);
    if dsf.put(std::slice::from_ref(&after)).iter().all(Result::is_ok) {
        drop((dsf, reader));
        assert_eq!(place.open().reader().get(after.segment.id()).unwrap(), bytes_of(100));
    }
}

fn crash_everywhere(seed: u64) {
    let ops = Script::run(seed, 24);
    let mut dice = Dice(seed);
    for cut in 0..=ops.len() {
        let ops = &ops[..cut];
        // Nothing changes the file between two notes.
        if matches!(ops.last(), Some(Op::Stored(_) | Op::Removed(_) | Op::MayGo(_))) {
            continue;
        }
        crash(ops, |_| true, &mut dice, false);
        crash(ops, |_| false, &mut dice, false);
        let subset = dice.next();
        crash(ops, |index| subset >> (index % 64) & 1 == 1, &mut dice, false);
        crash(ops, |_| true, &mut dice, true);
    }
}

#[test]
fn no_crash_loses_or_invents_a_segment_1() {
    crash_everywhere(1);
}

#[test]
fn no_crash_loses_or_invents_a_segment_2() {
    crash_everywhere(2);
}

#[test]
fn no_crash_loses_or_invents_a_segment_3() {
    crash_everywhere(3);
}

#[test]
fn a_move_that_was_cut_short_leaves_one_copy() {
    let place = Place::new();
    let mut dsf = place.create(4);
    put_data(&mut dsf, [1]);
    let first = dsf.shared.table().get(id(1)).unwrap().header;
    drop(dsf);
    // The same segment in a second slot, as between the two halves of a move.
    let file = File::options().write(true).open(&place.path).unwrap();
    let second = SlotHeader { slot: SlotIndex(2), ..first };
    file.write_all_at(&bytes_of(1), second.slot.payload_at()).unwrap();
    file.write_all_at(&second.encode(), second.slot.header_at()).unwrap();
    drop(file);

    let dsf = place.open();
    assert_eq!(dsf.reader().stats().used, SlotCount(1));
    assert_eq!(dsf.reader().get(id(1)).unwrap(), bytes_of(1));
    drop(dsf);
    let dsf = place.open();
    assert_eq!(dsf.shared.table().get(id(1)).unwrap().header.slot, SlotIndex(0));
    assert_eq!(dsf.shared.table().free().len(), 3);
}

#[test]
fn growing_never_brings_back_what_an_earlier_life_left() {
    let place = Place::new();
    let mut dsf = place.create(3);
    put_data(&mut dsf, [1, 2, 4]);
    drop(dsf);
    // Cut from outside, with the header of the third slot still in its table.
    let file = File::options().write(true).open(&place.path).unwrap();
    file.set_len(SlotCount(2).file_bytes().0).unwrap();
    drop(file);

    let mut dsf = place.open();
    assert_eq!(dsf.reader().stats().used, SlotCount(2));
    dsf.resize(SlotCount(3)).unwrap();
    drop(dsf);
    assert!(!place.open().reader().contains(id(4)));
}
