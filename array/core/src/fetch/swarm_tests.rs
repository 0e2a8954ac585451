//! Targets that install together, simulated: links of one rate, senders that serve a few at a time, a server that gives
//! each segment out once. The scheduler is the real one.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;
use crate::id::InstallId;

const SEGMENT: u32 = 4 << 20;
/// Bytes a millisecond: 100 Mbit/s.
const RATE: f64 = 12_500.0;
/// Turns that a sender grants at once; one that takes longer than `HOLD_MS` is granted another.
const SLOTS: usize = 2;
const HOLD_MS: u64 = 700;
/// An ask that has to wait longer is told that the sender is busy.
const QUEUE_MS: u64 = 5_000;
/// How long the server gives a segment to nobody else.
const LEASE_MS: u64 = 10_000;
const LATENCY_MS: u64 = 1;
/// The simulation's clock: coarse, since these tests run unoptimized.
const STEP_MS: u64 = 5;

/// How a machine misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    /// Announces all and has nothing.
    Boaster,
    /// Sends this share of the rate.
    Slow(f64),
    /// Is switched off at this time.
    Off(u64),
    /// Joins at this time.
    Late(u64),
}

/// 0: the server; n: target n.
type Node = usize;

#[derive(Debug)]
struct Transfer {
    from: Node,
    to: Node,
    ticket: Ticket,
    /// None while it waits for its turn.
    segment: Option<usize>,
    left: f64,
    asked_ms: u64,
    sending: bool,
}

struct Target {
    kind: Kind,
    fetcher: Fetcher,
    has: BTreeSet<usize>,
    done_ms: Option<u64>,
}

struct Swarm {
    now: u64,
    segments: Vec<Wanted>,
    targets: Vec<Target>,
    queues: HashMap<Node, VecDeque<usize>>,
    handed: BTreeMap<usize, (Node, u64)>,
    server_dies_at: Option<u64>,
    server_sent: u64,
    number: usize,
    live: BTreeMap<usize, Transfer>,
    faults: Vec<(Node, BadSource)>,
}

fn source(node: Node) -> Source {
    match node {
        0 => Source::Server,
        n => Source::Target(InstallId([u8::try_from(n).unwrap(); 16])),
    }
}

fn node(source: Source) -> Node {
    match source {
        Source::Server => 0,
        Source::Target(install) => usize::from(install.0[0]),
        Source::Peer(_) => unreachable!("an empty fleet"),
    }
}

impl Swarm {
    fn new(kinds: &[Kind], segments: u32, seed: u64) -> Self {
        let segments: Vec<_> = (0..segments)
            .map(|n| Wanted { id: SegmentId::of(&n.to_le_bytes()), bytes: SEGMENT })
            .collect();
        let targets = kinds
            .iter()
            .zip(seed..)
            .map(|(kind, seed)| Target {
                kind: *kind,
                fetcher: Fetcher::new(&segments, &[], &[], true, Limits::default(), seed),
                has: BTreeSet::new(),
                done_ms: None,
            })
            .collect();
        Self {
            now: 0,
            segments,
            targets,
            queues: HashMap::new(),
            handed: BTreeMap::new(),
            server_dies_at: None,
            server_sent: 0,
            number: 0,
            live: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    fn is_on(&self, node: Node) -> bool {
        if node == 0 {
            return self.server_dies_at.is_none_or(|at| self.now < at);
        }
        match self.targets[node - 1].kind {
            Kind::Off(at) => self.now < at,
            Kind::Late(at) => self.now >= at,
            Kind::Good | Kind::Boaster | Kind::Slow(_) => true,
        }
    }

    /// Runs until every good target is done; the times, sorted.
    fn run(&mut self) -> Vec<u64> {
        let all: Vec<_> = self.segments.iter().map(|segment| segment.id).collect();
        let mut gone = BTreeSet::new();
        while self.now < 3_600_000 {
            for me in 1..=self.targets.len() {
                let me_kind = self.targets[me - 1].kind;
                if !self.is_on(me)
                    || self.targets[me - 1].done_ms.is_some()
                    || me_kind == Kind::Boaster
                {
                    continue;
                }
                if self.now.is_multiple_of(1000) {
                    for other in 1..=self.targets.len() {
                        if self.targets[other - 1].kind == Kind::Boaster && other != me {
                            self.targets[me - 1].fetcher.on_have(source(other), &all);
                        }
                    }
                }
                self.ask(me);
            }
            for node in 0..=self.targets.len() {
                let late = node > 0 && matches!(self.targets[node - 1].kind, Kind::Late(_));
                if !self.is_on(node) && !late && gone.insert(node) {
                    self.switch_off(node);
                }
            }
            self.advance();
            let good = |target: &&Target| !matches!(target.kind, Kind::Off(_) | Kind::Boaster);
            if self.targets.iter().filter(good).all(|target| target.done_ms.is_some()) {
                let mut times: Vec<_> =
                    self.targets.iter().filter(good).filter_map(|target| target.done_ms).collect();
                times.sort_unstable();
                return times;
            }
        }
        panic!(
            "no end in sight: {:?}",
            self.targets.iter().map(|t| t.has.len()).collect::<Vec<_>>()
        );
    }

    fn ask(&mut self, me: Node) {
        loop {
            match self.targets[me - 1].fetcher.next(self.now) {
                Next::Act(Action::Fetch { ticket, turn, segment, .. }) => {
                    let segment = self.segments.iter().position(|s| s.id == segment).unwrap();
                    let turn = turn.expect("a turn");
                    let number = *self
                        .live
                        .iter()
                        .find(|(_, t)| t.to == me && t.ticket == turn)
                        .expect("the turn lasts")
                        .0;
                    let transfer = self.live.get_mut(&number).unwrap();
                    (transfer.ticket, transfer.segment, transfer.asked_ms) =
                        (ticket, Some(segment), self.now);
                    let from = transfer.from;
                    if from == 0 {
                        let (given, at) = *self.handed.entry(segment).or_insert((me, self.now));
                        if given != me && self.is_on(given) && self.now < at + LEASE_MS {
                            self.fail(number, Failure::Elsewhere);
                            continue;
                        }
                        self.handed.insert(segment, (me, self.now));
                    } else if !self.targets[from - 1].has.contains(&segment) {
                        self.fail(number, Failure::Missing);
                    }
                }
                Next::Act(Action::Pass { turn }) => {
                    self.live.retain(|_, transfer| transfer.to != me || transfer.ticket != turn);
                }
                Next::Act(Action::Ask { ticket, from }) => {
                    self.number += 1;
                    let from = node(from);
                    let segment = None;
                    let transfer = Transfer {
                        from,
                        to: me,
                        ticket,
                        segment,
                        left: f64::from(SEGMENT),
                        asked_ms: self.now,
                        sending: false,
                    };
                    self.live.insert(self.number, transfer);
                    self.queues.entry(from).or_default().push_back(self.number);
                }
                Next::Act(Action::Cancel { ticket }) => {
                    self.live.retain(|_, transfer| transfer.to != me || transfer.ticket != ticket);
                }
                Next::Act(_) => unreachable!("nothing to rebuild"),
                Next::Done => {
                    self.targets[me - 1].done_ms.get_or_insert(self.now);
                    for other in 1..=self.targets.len() {
                        if other != me {
                            self.targets[other - 1].fetcher.on_complete(source(me));
                        }
                    }
                    return;
                }
                Next::Wait { .. } => return,
                Next::Stuck(stuck) => panic!("target {me} at {} ms: {stuck}", self.now),
            }
        }
    }

    fn fail(&mut self, number: usize, failure: Failure) {
        let Some(transfer) = self.live.remove(&number) else { return };
        self.targets[transfer.to - 1].fetcher.on_failed(transfer.ticket, failure, self.now);
        let reports = self.targets[transfer.to - 1].fetcher.take_reports();
        self.faults.extend(reports.into_iter().map(|report| (transfer.to, report)));
    }

    fn switch_off(&mut self, node: Node) {
        let touched: Vec<_> = self
            .live
            .iter()
            .filter(|(_, transfer)| transfer.from == node || transfer.to == node)
            .map(|(number, _)| *number)
            .collect();
        for number in touched {
            if self.live[&number].to == node {
                self.live.remove(&number);
            } else {
                self.fail(number, Failure::Refused);
            }
        }
        if node > 0 {
            for other in 1..=self.targets.len() {
                self.targets[other - 1].fetcher.on_gone(source(node));
            }
        }
    }

    /// One step of the clock.
    fn advance(&mut self) {
        self.now += STEP_MS;
        // Senders turn to those that wait, in order.
        for node in 0..=self.targets.len() {
            if !self.is_on(node) {
                let waiting = std::mem::take(self.queues.entry(node).or_default());
                for number in waiting {
                    if self.live.get(&number).is_some_and(|t| self.now >= t.asked_ms + LATENCY_MS) {
                        self.fail(number, Failure::Refused);
                    } else {
                        self.queues.entry(node).or_default().push_back(number);
                    }
                }
                continue;
            }
            let waiting: Vec<_> = self.queues.get(&node).into_iter().flatten().copied().collect();
            for number in waiting {
                let Some(transfer) = self.live.get(&number) else {
                    self.queues.entry(node).or_default().retain(|other| *other != number);
                    continue;
                };
                let (to, asked) = (transfer.to, transfer.asked_ms);
                if self.now < asked + LATENCY_MS {
                    continue;
                }
                let sending = self
                    .live
                    .values()
                    .filter(|t| t.from == node && t.sending && self.now < t.asked_ms + HOLD_MS)
                    .count();
                if sending >= SLOTS {
                    if self.now >= asked + QUEUE_MS {
                        self.queues.entry(node).or_default().retain(|other| *other != number);
                        self.fail(number, Failure::Busy);
                    }
                    continue;
                }
                self.queues.entry(node).or_default().retain(|other| *other != number);
                let transfer = self.live.get_mut(&number).unwrap();
                transfer.sending = true;
                transfer.asked_ms = self.now;
                let ticket = transfer.ticket;
                assert!(self.targets[to - 1].fetcher.on_done(ticket, self.now));
            }
        }
        self.send();
    }

    /// Each link's rate is shared by what it carries.
    fn send(&mut self) {
        let mut out: HashMap<Node, f64> = HashMap::new();
        let mut into: HashMap<Node, f64> = HashMap::new();
        for transfer in
            self.live.values().filter(|transfer| transfer.sending && transfer.segment.is_some())
        {
            *out.entry(transfer.from).or_default() += 1.0;
            *into.entry(transfer.to).or_default() += 1.0;
        }
        // What one end leaves unused the others take: two rounds of filling come close to what TCP does.
        let mut rates: BTreeMap<usize, f64> = BTreeMap::new();
        let mut left_out: HashMap<Node, f64> = HashMap::new();
        let mut left_in: HashMap<Node, f64> = HashMap::new();
        for _ in 0..3 {
            for (number, transfer) in
                self.live.iter().filter(|(_, t)| t.sending && t.segment.is_some())
            {
                let share = match transfer.from.checked_sub(1).map(|n| self.targets[n].kind) {
                    Some(Kind::Slow(share)) => share,
                    _ => 1.0,
                };
                let used_out = left_out.get(&transfer.from).copied().unwrap_or(0.0);
                let used_in = left_in.get(&transfer.to).copied().unwrap_or(0.0);
                let more = ((RATE * share - used_out) / out[&transfer.from])
                    .min((RATE - used_in) / into[&transfer.to])
                    .max(0.0);
                *rates.entry(*number).or_default() += more;
            }
            left_out.clear();
            left_in.clear();
            for (number, rate) in &rates {
                let transfer = &self.live[number];
                *left_out.entry(transfer.from).or_default() += rate;
                *left_in.entry(transfer.to).or_default() += rate;
            }
        }
        let mut done = Vec::new();
        for (number, rate) in rates {
            let transfer = self.live.get_mut(&number).unwrap();
            transfer.left -= rate * f64::from(u32::try_from(STEP_MS).unwrap());
            if transfer.left <= 0.0 {
                done.push(number);
            }
        }
        for number in done {
            let Some(Transfer { from, to, ticket, segment: Some(segment), .. }) =
                self.live.remove(&number)
            else {
                continue;
            };
            if from == 0 {
                self.server_sent += u64::from(SEGMENT);
            }
            let id = self.segments[segment].id;
            assert!(self.targets[to - 1].fetcher.on_done(ticket, self.now));
            let reports = self.targets[to - 1].fetcher.take_reports();
            self.faults.extend(reports.into_iter().map(|report| (to, report)));
            self.targets[to - 1].has.insert(segment);
            for other in 1..=self.targets.len() {
                if other != to {
                    self.targets[other - 1].fetcher.on_have(source(to), &[id]);
                }
            }
        }
    }

    /// The time over one pass of the data over one link.
    fn ratio(&self, ms: u64) -> f64 {
        let bytes = f64::from(SEGMENT) * f64::from(u32::try_from(self.segments.len()).unwrap());
        f64::from(u32::try_from(ms).unwrap()) * RATE / bytes
    }
}

const M: u32 = 48;

/// The slowest, the median, and how many images the server sent.
fn figures(swarm: &mut Swarm) -> (f64, f64, f64) {
    let times = swarm.run();
    let sent = swarm.server_sent / u64::from(SEGMENT);
    let sent = f64::from(u32::try_from(sent).unwrap()) / f64::from(M);
    (swarm.ratio(*times.last().unwrap()), swarm.ratio(times[times.len() / 2]), sent)
}

#[test]
fn one_target_takes_a_pass_over_its_link() {
    let (last, _, sent) = figures(&mut Swarm::new(&[Kind::Good], M, 1));
    assert!(last < 1.02, "{last}");
    assert!(sent < 1.01, "{sent}");
}

#[test]
fn eight_targets_take_little_longer_than_one_and_the_server_sends_one_image() {
    let mut swarm = Swarm::new(&[Kind::Good; 8], M, 2);
    let (last, median, sent) = figures(&mut swarm);
    assert!(last < 1.4 && last / median < 1.1, "last {last}, median {median}");
    assert!(sent < 1.01, "{sent}");
    assert_eq!(swarm.faults, []);
}

#[test]
fn a_late_joiner_and_a_drop_out_hurt_nobody() {
    let mut kinds = [Kind::Good; 6];
    kinds[2] = Kind::Late(5_000);
    kinds[4] = Kind::Off(6_000);
    let (last, _, sent) = figures(&mut Swarm::new(&kinds, M, 3));
    // The late one has its own pass to make, and what the drop-out alone had is sent again.
    assert!(last < 1.4 + 5_000.0 * RATE / (f64::from(SEGMENT) * f64::from(M)), "{last}");
    assert!(sent < 1.2, "{sent}");
}

#[test]
fn who_has_nothing_is_noticed_and_reported() {
    let mut kinds = [Kind::Good; 5];
    kinds[0] = Kind::Boaster;
    let mut swarm = Swarm::new(&kinds, M, 4);
    let (last, ..) = figures(&mut swarm);
    assert!(last < 1.5, "{last}");
    let empty = |(_, report): &&(Node, BadSource)| report.fault == Fault::Empty;
    let empty: BTreeSet<_> =
        swarm.faults.iter().filter(empty).map(|(by, r)| (*by, r.source)).collect();
    assert_eq!(empty, (2..6).map(|by| (by, source(1))).collect());
}

#[test]
fn who_sends_a_byte_now_and_then_is_left_and_reported() {
    let mut kinds = [Kind::Good; 5];
    kinds[1] = Kind::Slow(0.001);
    let mut swarm = Swarm::new(&kinds, M, 5);
    let (last, ..) = figures(&mut swarm);
    // What it got from the server is given to nobody else for a while.
    let lease = 10_000.0 * RATE / (f64::from(SEGMENT) * f64::from(M));
    assert!(last < 1.5 + lease, "{last}");
    assert!(swarm.faults.iter().any(|(_, r)| r.source == source(2) && r.fault == Fault::Slow));
    assert!(swarm.faults.iter().all(|(_, r)| r.source == source(2)), "{:?}", swarm.faults);
}

#[test]
fn when_the_server_dies_late_the_targets_finish_from_each_other() {
    let mut swarm = Swarm::new(&[Kind::Good; 8], M, 6);
    // One pass takes 16 s; by then everything was sent once.
    swarm.server_dies_at = Some(19_000);
    let (last, ..) = figures(&mut swarm);
    assert!(last < 1.5, "{last}");
}
