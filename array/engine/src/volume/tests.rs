use std::time::{Duration, Instant};

use cairn_core::{
    id::SegmentId,
    units::{BLOCK_BYTES, BlockIndex},
    volume::Durability,
};

use super::{
    Change, ChangeError, Checkpoint, OpenError, RunningVolume, SegmentReader as _, Volume,
    VolumeState, Wait,
    model::{keys, named},
    sim::{Dice, End, SimMedium},
};

const BLOCK: u64 = BLOCK_BYTES as u64;

fn volume(blocks: u64, capacity: u64) -> (SimMedium, Volume<SimMedium>) {
    let medium = SimMedium::new(capacity, 1);
    let volume =
        Volume::create(medium.clone(), named(1), keys(), Durability::Local, (blocks, capacity))
            .unwrap();
    (medium, volume)
}

fn noise(blocks: u64, dice: &mut Dice) -> Vec<u8> {
    (0..blocks * BLOCK / 8).flat_map(|_| dice.next().to_le_bytes()).collect()
}

fn read(volume: &Volume<SimMedium>, first: u64, blocks: u64) -> Vec<u8> {
    let mut bytes = vec![1; usize::try_from(blocks * BLOCK).unwrap()];
    assert!(volume.read(first * BLOCK, &mut bytes, Wait::AsLongAsItTakes).unwrap());
    bytes
}

#[test]
fn overwriting_at_random_keeps_what_is_stored_within_twice_what_lives() {
    let (medium, volume) = volume(4096, 2000);
    let mut dice = Dice::new(5);
    let mut model = vec![vec![0; BLOCK_BYTES]; 4096];
    for _ in 0..60 {
        for _ in 0..200 {
            let at = dice.below(4096);
            let bytes = noise(1, &mut dice);
            volume.change(&[Change::Write { offset: at * BLOCK, bytes: &bytes }]).unwrap();
            model[usize::try_from(at).unwrap()] = bytes;
        }
        volume.seal().unwrap();
    }
    let live =
        model.iter().filter(|block| block.iter().any(|byte| *byte != 0)).count() * BLOCK_BYTES;
    let stored = medium.stored_bytes();
    assert!(stored > live && stored < live * 22 / 10, "{stored} stored for {live}");
    assert_eq!(read(&volume, 0, 4096), model.concat());
    drop(volume);
    let again = Volume::open(medium, named(2), keys()).unwrap();
    assert_eq!(read(&again, 0, 4096), model.concat());
}

#[test]
fn what_is_trimmed_costs_nothing() {
    let (medium, volume) = volume(4096, 2000);
    let bytes = noise(1000, &mut Dice::new(6));
    volume.change(&[Change::Write { offset: 0, bytes: &bytes }]).unwrap();
    volume.seal().unwrap();
    assert!(medium.stored_bytes() > bytes.len() / 2);
    volume.change(&[Change::Zero { offset: 0, length: 4096 * BLOCK }]).unwrap();
    assert!(read(&volume, 0, 1000).iter().all(|byte| *byte == 0));
    volume.seal().unwrap();
    // What is left is a page of an empty table.
    assert!(medium.segments() <= 1 && medium.stored_bytes() < 4096);
    // What is zero already needs no record.
    let before = volume.pending();
    volume.change(&[Change::Zero { offset: 0, length: 4096 * BLOCK }]).unwrap();
    assert_eq!(volume.pending(), before);
}

#[test]
fn stretches_tell_what_is_stored() {
    let (_, volume) = volume(10_000, 100);
    let bytes = noise(3, &mut Dice::new(7));
    volume.change(&[Change::Write { offset: 4095 * BLOCK, bytes: &bytes }]).unwrap();
    let told = |limit| {
        let stretches = volume.stretches(BlockIndex(0), 10_000, limit);
        stretches.iter().map(|stretch| (stretch.blocks, stretch.stored)).collect::<Vec<_>>()
    };
    let expected = [(4095, false), (3, true), (5902, false)];
    assert_eq!(told(9), expected);
    assert_eq!(told(2), expected[..2]);
    volume.seal().unwrap();
    assert_eq!(told(9), expected);
}

#[test]
fn nothing_outside_is_read_or_changed() {
    let (_, volume) = volume(10, 100);
    let change = |offset, length| volume.change(&[Change::Zero { offset, length }]);
    assert!(matches!(change(9 * BLOCK, BLOCK + 1), Err(ChangeError::Range)));
    assert!(matches!(change(u64::MAX, 2), Err(ChangeError::Range)));
    assert!(volume.read(10 * BLOCK, &mut [0], Wait::AsLongAsItTakes).is_err());
    change(9 * BLOCK, BLOCK).unwrap();
}

#[test]
fn a_failed_sync_ends_all_changes_until_the_volume_is_opened_again() {
    let (medium, volume) = volume(10, 100);
    let bytes = vec![1; BLOCK_BYTES];
    let write =
        |volume: &Volume<SimMedium>| volume.change(&[Change::Write { offset: 0, bytes: &bytes }]);
    write(&volume).unwrap();
    medium.end_after(0);
    assert!(matches!(volume.sync(), Err(ChangeError::Medium(_))));
    medium.restart(End::Killed);
    assert!(matches!(volume.sync(), Err(ChangeError::Faulty)));
    assert!(matches!(write(&volume), Err(ChangeError::Faulty)));
    assert_eq!(read(&volume, 0, 1), bytes);
    drop(volume);
    let again = Volume::open(medium, named(2), keys()).unwrap();
    write(&again).unwrap();
    again.sync().unwrap();
}

/// Writes until that fails; the blocks that were taken, and why no more.
fn fill(volume: &RunningVolume<SimMedium>) -> (u64, ChangeError) {
    let mut taken = 0;
    loop {
        let bytes = vec![7; BLOCK_BYTES];
        match volume.change(&[Change::Write { offset: taken * BLOCK, bytes: &bytes }]) {
            Ok(()) => taken += 1,
            Err(error) => return (taken, error),
        }
    }
}

#[test]
fn a_full_store_fails_writers_keeps_what_is_there_and_goes_on_once_there_is_room() {
    let (medium, volume) = volume(1000, 40);
    let volume = RunningVolume::start(volume).unwrap();
    medium.limit_store(Some(0));
    let (taken, why) = fill(&volume);
    assert!(matches!(why, ChangeError::StoreFull) && taken > 10, "{taken}: {why}");
    assert_eq!(volume.state(), VolumeState::StoreFull);
    assert_eq!(read(&volume, 0, taken), vec![7; usize::try_from(taken * BLOCK).unwrap()]);
    volume.sync().unwrap();
    medium.limit_store(None);
    while volume.state() != VolumeState::Well {
        std::thread::yield_now();
    }
    volume.change(&[Change::Write { offset: 0, bytes: &vec![8; BLOCK_BYTES] }]).unwrap();
    volume.close();
    drop(volume);
    let again = Volume::open(medium, named(2), keys()).unwrap();
    assert_eq!(read(&again, 0, 2), [vec![8; BLOCK_BYTES], vec![7; BLOCK_BYTES]].concat());
}

#[test]
fn a_store_that_fails_holds_nobody_up_for_ever() {
    let (medium, volume) = volume(1000, 40);
    let volume = RunningVolume::start(volume).unwrap();
    medium.break_store(true);
    let (taken, why) = fill(&volume);
    assert!(matches!(why, ChangeError::StoreFails) && taken > 10, "{taken}: {why}");
    assert_eq!(volume.state(), VolumeState::StoreFails);
    medium.break_store(false);
    while volume.state() != VolumeState::Well {
        std::thread::yield_now();
    }
    assert_eq!(read(&volume, 0, taken), vec![7; usize::try_from(taken * BLOCK).unwrap()]);
}

#[test]
fn a_change_larger_than_the_journal_does_not_wait_for_the_clock() {
    let (_, volume) = volume(1000, 40);
    let volume = RunningVolume::start(volume).unwrap();
    let bytes = noise(900, &mut Dice::new(8));
    let begun = Instant::now();
    volume.change(&[Change::Write { offset: 0, bytes: &bytes }]).unwrap();
    // Sealing by the clock comes every five seconds, and more than twenty journals are sealed here.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(read(&volume, 0, 900), bytes);
}

#[test]
fn an_older_controller_is_fenced_off() {
    let (medium, volume) = volume(10, 100);
    drop(volume);
    let newer = Volume::open(medium.clone(), named(5), keys()).unwrap();
    newer.seal().unwrap();
    let older = Volume::open(medium, named(4), keys());
    assert!(matches!(older, Err(OpenError::Fenced(generation)) if generation.0 == 5));
}

#[test]
fn what_is_retained_stays_until_it_is_released_and_what_is_named_stays_for_good() {
    let (medium, volume) = volume(4096, 4000);
    let mut dice = Dice::new(9);
    let mut fill = |blocks: u64| {
        let bytes = noise(blocks, &mut dice);
        volume.change(&[Change::Write { offset: 0, bytes: &bytes }]).unwrap();
        volume.seal().unwrap();
        bytes
    };
    fill(1000);
    let first = volume.checkpoint().unwrap();
    let ids = |checkpoint: &Checkpoint| -> Vec<SegmentId> {
        checkpoint.segments.iter().map(|entry| entry.id).collect()
    };
    let has = |id: &SegmentId| {
        let mut head = [0];
        medium.read_segment(*id, 0, &mut head, Wait::AsLongAsItTakes).is_ok()
    };
    let bytes = fill(1000);
    // Nothing of the first is the volume's any more.
    assert!(ids(&first).iter().all(has));
    let second = volume.checkpoint().unwrap();
    assert!(volume.checkpoints() > 0 && ids(&second).iter().all(has));
    volume.release(&ids(&first)).unwrap();
    assert!(!ids(&first).iter().any(has));
    // What is named is not deleted, released or not.
    volume.release(&ids(&second)).unwrap();
    assert!(ids(&second).iter().all(has));
    assert_eq!(read(&volume, 0, 1000), bytes);
    // Pages are what it takes to open it.
    volume.offload(&ids(&second).into_iter().collect()).unwrap();
    let left: Vec<_> = ids(&second).into_iter().filter(has).collect();
    assert!(!left.is_empty() && left.len() < second.segments.len());
    drop(volume);
    Volume::open(medium, named(2), keys()).unwrap();
}
