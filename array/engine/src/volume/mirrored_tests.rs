//! Volumes whose journal clients keep: what is left of one when its server is gone.

use std::{
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use cairn_core::{
    units::{BLOCK_BYTES, Generation},
    volume::{
        Durability,
        tail::{Attempt, Head},
    },
};
use tempfile::TempDir;

use super::{
    Change, Cut, RunningVolume, Snapshot, TailFeed, TailRing, Volume, VolumeName, Wait, lock,
    model::{keys, named},
    sim::{Dice, End, SimMedium},
};
use crate::tails::Tails;

const CAPACITY: u64 = 64;
const BLOCKS: u64 = 20;
const BYTES: usize = 20 * BLOCK_BYTES;

fn mirrored(generation: u64, known: Option<Bytes>) -> VolumeName {
    VolumeName { known, ..named(generation) }
}

/// A client that keeps tails.
struct Client {
    folder: TempDir,
    tails: Tails,
}

impl Client {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let tails = Tails::open(folder.path().join("tails")).unwrap();
        Self { folder, tails }
    }

    fn pieces(&self) -> Vec<(Head, Vec<u8>)> {
        // As whoever comes after a restart finds them.
        let tails = Tails::open(self.folder.path().join("tails")).unwrap();
        let mut pieces = Vec::new();
        for (file, bytes) in tails.files(named(1).id).unwrap() {
            let mut content = vec![0; usize::try_from(bytes).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            while !content.is_empty() {
                let head = Head::decode(&content).unwrap();
                let rest = content.split_off(head.piece_bytes());
                pieces.push((head, content));
                content = rest;
            }
        }
        pieces
    }
}

/// Sends what there is; where that ends.
fn send(feed: &TailFeed<SimMedium>, client: &Client, attempt: &mut Attempt, at: &mut Option<u64>) {
    loop {
        match feed.cut(*attempt, *at).unwrap() {
            Cut::Nothing { upto } => return feed.keeps(upto),
            Cut::Freed => {
                attempt.number += 1;
                *at = None;
            }
            Cut::Piece { bytes, end } => {
                client.tails.keep(named(1).id, &bytes).unwrap();
                *at = Some(end);
                feed.keeps(end);
            }
        }
    }
}

fn ring(clients: &[Client]) -> TailRing {
    let mut ring = TailRing::new(named(1).id, tempfile::tempfile().unwrap());
    for (head, mut piece) in clients.iter().flat_map(Client::pieces) {
        ring.add(&keys().content_key, &head, &mut piece).unwrap();
    }
    ring
}

/// The volume as clients know it.
fn without_server(medium: &SimMedium, known: &[u8], clients: &[Client]) -> Vec<u8> {
    let keys = keys();
    let verifier = keys.signer.verifying_key();
    let opened =
        Snapshot::open(medium.clone(), known, named(1).id, &verifier, &keys.content_key).unwrap();
    let opened = opened.with_tail(ring(clients)).unwrap();
    let mut bytes = vec![1; BYTES];
    assert!(opened.read(0, &mut bytes, Wait::AsLongAsItTakes).unwrap());
    bytes
}

fn content(volume: &Volume<SimMedium>) -> Vec<u8> {
    let mut bytes = vec![1; BYTES];
    assert!(volume.read(0, &mut bytes, Wait::AsLongAsItTakes).unwrap());
    bytes
}

fn flush(volume: &RunningVolume<SimMedium>) -> mpsc::Receiver<bool> {
    let (tell, told) = mpsc::channel();
    volume.sync_then(Box::new(move |done| tell.send(done).unwrap()));
    told
}

#[test]
fn a_flush_is_answered_once_a_client_has_what_was_flushed() {
    let medium = SimMedium::new(CAPACITY, 1);
    let volume =
        Volume::create(medium, mirrored(1, None), keys(), Durability::Mirrored, (BLOCKS, CAPACITY))
            .unwrap();
    let volume = RunningVolume::start(volume).unwrap();
    let feed = volume.tail_feed().unwrap();
    let client = Client::new();
    let (mut attempt, mut at) = (Attempt { generation: Generation(1), number: 0 }, None);
    volume.change(&[Change::Write { offset: 0, bytes: &[7; BLOCK_BYTES] }]).unwrap();
    let told = flush(&volume);
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
    send(&feed, &client, &mut attempt, &mut at);
    assert!(told.recv_timeout(Duration::from_secs(10)).unwrap());
    // Who does not get an answer is told so when the volume is closed.
    volume.change(&[Change::Write { offset: 0, bytes: &[8; BLOCK_BYTES] }]).unwrap();
    let told = flush(&volume);
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
    volume.close();
    assert!(!told.recv_timeout(Duration::from_secs(10)).unwrap());
    assert!(feed.ended().is_cancelled());
}

#[test]
fn journal_space_waits_until_clients_know_a_root() {
    let medium = SimMedium::new(CAPACITY, 2);
    let volume = Volume::create(
        medium.clone(),
        mirrored(1, None),
        keys(),
        Durability::Mirrored,
        (BLOCKS, CAPACITY),
    )
    .unwrap();
    let write = |volume: &Volume<SimMedium>, value| {
        volume.change(&[Change::Write { offset: 0, bytes: &[value; BLOCK_BYTES] }])
    };
    // A record takes two blocks.
    for value in 0..32 {
        write(&volume, value).unwrap();
        volume.seal().unwrap();
    }
    assert_eq!(volume.pending(), 0);
    assert!(write(&volume, 32).is_err());
    let root = volume.checkpoint().unwrap().root;
    drop(volume);
    let volume = Volume::open(medium.clone(), mirrored(2, None), keys()).unwrap();
    assert!(write(&volume, 32).is_err());
    drop(volume);
    let volume = Volume::open(medium, mirrored(3, Some(root)), keys()).unwrap();
    write(&volume, 32).unwrap();
    volume.seal().unwrap();
    volume.clients_know(&volume.checkpoint().unwrap().root).unwrap();
    for value in 0..32 {
        write(&volume, value).unwrap();
    }
    assert!(volume.clients_know(b"no root").is_err());
}

#[test]
fn what_was_gone_back_from_does_not_come_back() {
    let medium = SimMedium::new(CAPACITY, 3);
    let volume = Volume::create(
        medium.clone(),
        mirrored(1, None),
        keys(),
        Durability::Mirrored,
        (BLOCKS, CAPACITY),
    )
    .unwrap();
    let write = |volume: &Volume<SimMedium>, at: u64, value| {
        let offset = at * BLOCK_BYTES as u64;
        volume.change(&[Change::Write { offset, bytes: &[value; BLOCK_BYTES] }]).unwrap();
    };
    write(&volume, 0, 1);
    volume.seal().unwrap();
    let known = volume.checkpoint().unwrap().root;
    let id = cairn_core::id::SnapshotId([1; 16]);
    volume.take_snapshot(id).unwrap();
    write(&volume, 1, 2);
    let before = content(&volume);
    let base = volume.open_snapshot(medium.clone(), id).unwrap().into_base();
    volume.become_base(base).unwrap();
    write(&volume, 2, 3);
    let volume = RunningVolume::start(volume).unwrap();
    let clients = [Client::new()];
    let (mut attempt, mut at) = (Attempt { generation: Generation(1), number: 0 }, None);
    let told = flush(&volume);
    let feed = volume.tail_feed().unwrap();
    while told.try_recv().is_err() {
        send(&feed, &clients[0], &mut attempt, &mut at);
    }
    // By the old root the volume is as it was before, and never a mixture.
    assert_eq!(without_server(&medium, &known, &clients), before);
}

/// A client that takes what comes until it is told to stop.
fn keep_up(feed: TailFeed<SimMedium>, client: &Client, generation: u64, stop: &AtomicBool) {
    let (mut attempt, mut at) = (Attempt { generation: Generation(generation), number: 0 }, None);
    let _ends = Ends(stop);
    while !stop.load(Ordering::Acquire) {
        send(&feed, client, &mut attempt, &mut at);
        thread::sleep(Duration::from_micros(200));
    }
    drop(feed);
}

/// Makes checkpoints known to clients until it is told to stop.
fn publish(volume: &RunningVolume<SimMedium>, known: &Mutex<Option<Bytes>>, stop: &AtomicBool) {
    let _ends = Ends(stop);
    while !stop.load(Ordering::Acquire) {
        let root = volume.checkpoint().unwrap().root;
        *lock(known) = Some(root.clone());
        volume.clients_know(&root).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
}

/// Ends the others when one is done, or panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One run of the server: changes, and what the volume was from the last flush on.
fn run(volume: &RunningVolume<SimMedium>, states: &mut Vec<Vec<u8>>, dice: &mut Dice) {
    for _ in 0..60 {
        let mut now = states.last().unwrap().clone();
        let first = dice.below(BLOCKS);
        let blocks = 1 + dice.below((BLOCKS - first).min(4));
        let range = usize::try_from(first).unwrap() * BLOCK_BYTES
            ..usize::try_from(first + blocks).unwrap() * BLOCK_BYTES;
        let value = dice.next().to_le_bytes()[0];
        now[range.clone()].fill(value);
        let offset = range.start as u64;
        volume.change(&[Change::Write { offset, bytes: &now[range] }]).unwrap();
        states.push(now);
        if dice.below(4) == 0 {
            assert!(flush(volume).recv_timeout(Duration::from_secs(20)).unwrap());
            states.drain(..states.len() - 1);
        }
        if dice.below(10) == 0 {
            volume.seal().unwrap();
        }
    }
}

#[test]
fn clients_have_what_was_flushed_whenever_the_server_is_gone() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let medium = SimMedium::new(CAPACITY, seed);
        let clients = [Client::new(), Client::new()];
        let known: Mutex<Option<Bytes>> = Mutex::default();
        let first = mirrored(1, None);
        drop(
            Volume::create(medium.clone(), first, keys(), Durability::Mirrored, (BLOCKS, CAPACITY))
                .unwrap(),
        );
        let mut states = vec![vec![0; BYTES]];
        for generation in 2..6 {
            let name = mirrored(generation, lock(&known).clone());
            let volume = Volume::open(medium.clone(), name, keys()).unwrap();
            let now = content(&volume);
            assert!(states.contains(&now), "seed {seed}: the server lost something");
            states = vec![now];
            let volume = RunningVolume::start(volume).unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            // One of the two sleeps now and then.
            let awake: Vec<&Client> = match dice.below(3) {
                0 => vec![&clients[0]],
                1 => vec![&clients[1]],
                _ => clients.iter().collect(),
            };
            thread::scope(|scope| {
                for client in awake {
                    let (feed, stop) = (volume.tail_feed().unwrap(), Arc::clone(&stop));
                    scope.spawn(move || keep_up(feed, client, generation, &stop));
                }
                let (volume, known) = (&volume, &known);
                let stopped = Arc::clone(&stop);
                scope.spawn(move || publish(volume, known, &stopped));
                let _ends = Ends(&stop);
                run(volume, &mut states, &mut dice);
            });
            volume.abandon();
            drop(volume);
            medium.restart(if dice.below(2) == 0 { End::Killed } else { End::PowerCut });
            let root = lock(&known).clone().unwrap();
            let left = without_server(&medium, &root, &clients);
            assert!(states.contains(&left), "seed {seed}, generation {generation}: lost");
        }
    }
}
