use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::erasure::Recipe;
use crate::id::StripeSetId;
use crate::layout::{DataSegment, Held, Member, converge};
use crate::planner::Redundancy;
use crate::units::Generation;

/// Longer than anybody waits.
const NEVER: u64 = 1 << 40;

/// How a simulated source behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Good,
    /// Refuses connections.
    Dead,
    /// Accepts and never answers.
    Silent,
    /// Sends a byte now and then, and never ends.
    Trickle,
    /// Delivers damaged bytes for about this share of its segments, in percent.
    Lying(u8),
    /// Has lost about this share of its segments.
    Forgetful(u8),
}

/// Whether a source of this nature delivers the segment.
fn outcome(nature: Nature, source: Source, segment: SegmentId) -> Result<u64, Failure> {
    let salt = match source {
        Source::Peer(agent) => agent.0[0],
        Source::Target(install) => 100 + install.0[0],
        Source::Server => 255,
    };
    let dice = sha256(&[&segment.0[..], &[salt]].concat());
    let percent = dice[0] % 100;
    let latency = 20 + u64::from(dice[1] % 64);
    match nature {
        Nature::Good => Ok(latency),
        Nature::Trickle => Ok(NEVER),
        Nature::Dead => Err(Failure::Refused),
        Nature::Silent => Err(Failure::Timeout),
        Nature::Lying(share) if percent < share => Err(Failure::Bad),
        Nature::Forgetful(share) if percent < share => Err(Failure::Missing),
        Nature::Lying(_) | Nature::Forgetful(_) => Ok(latency),
    }
}

/// A fleet, an image on it, and a log of what the scheduler did.
struct Fleet {
    peers: BTreeMap<AgentId, Nature>,
    server: Option<Nature>,
    map: StripeMap,
    wanted: Vec<Wanted>,
    limits: Limits,
}

#[derive(Default)]
struct Log {
    asked: HashMap<(Source, SegmentId), usize>,
    from_server: HashSet<SegmentId>,
    rebuilds: usize,
    silent_requests: usize,
    reports: Vec<BadSource>,
    ended_ms: u64,
}

fn agent(n: u8) -> AgentId {
    AgentId([n; 16])
}

fn fleet(
    natures: &[Nature],
    server: Option<Nature>,
    redundancy: Redundancy,
    segments: u32,
) -> Fleet {
    let data: Vec<_> = (0..segments)
        .map(|n| DataSegment {
            id: SegmentId::of(&n.to_le_bytes()),
            bytes: 4_000_000 - n,
            device: 0,
        })
        .collect();
    let peers: BTreeMap<_, _> = (0..).map(agent).zip(natures.iter().copied()).collect();
    let members: Vec<_> =
        peers.keys().map(|agent| Member { agent: *agent, room: 10_000 }).collect();
    let layout = converge(None, &data, redundancy, &members, &Held::new()).unwrap();
    let computed = layout
        .to_compute()
        .map(|(index, row, _)| {
            ((index, row), SegmentId::of(&[&index.0.to_le_bytes()[..], &[row]].concat()))
        })
        .collect();
    let map = layout.map(StripeSetId([0; 16]), Generation(1), &computed).unwrap();
    let wanted = data.iter().map(|s| Wanted { id: s.id, bytes: s.bytes }).collect();
    Fleet { limits: Limits::default(), peers, server, map, wanted }
}

impl Fleet {
    fn fetcher(&self, seed: u64) -> Fetcher {
        let members: Vec<_> = self.peers.keys().copied().collect();
        let maps = std::slice::from_ref(&self.map);
        Fetcher::new(&self.wanted, maps, &members, self.server.is_some(), self.limits, seed)
    }

    fn nature(&self, source: Source) -> Nature {
        match source {
            Source::Peer(agent) => self.peers[&agent],
            Source::Target(_) => Nature::Good,
            Source::Server => self.server.unwrap(),
        }
    }

    fn delivers(&self, segment: SegmentId, holders: impl IntoIterator<Item = AgentId>) -> bool {
        holders
            .into_iter()
            .any(|agent| outcome(self.peers[&agent], Source::Peer(agent), segment).is_ok())
    }

    /// Whether peers alone can bring a segment: directly, or through its stripe.
    fn peers_can(&self, segment: SegmentId) -> bool {
        let (stripe, place) = self.map.places().get(&segment).unwrap();
        let stripe = self.map.stripe(stripe).unwrap();
        let good =
            |shard: &crate::stripe_map::Shard| self.delivers(shard.id, self.map.agents(shard));
        good(stripe.shard(place).unwrap())
            || stripe.shards().filter(|(_, shard)| good(shard)).count() >= stripe.data.len()
    }

    fn server_can(&self, segment: SegmentId) -> bool {
        self.server.is_some_and(|nature| outcome(nature, Source::Server, segment).is_ok())
    }

    /// Drives the scheduler to its end in simulated time.
    fn run(&self, seed: u64) -> (Next, Log, Fetcher) {
        let mut run = Run {
            fleet: self,
            now: 0,
            turn: 0,
            pending: BTreeMap::new(),
            kept: HashMap::new(),
            log: Log::default(),
        };
        let mut fetcher = self.fetcher(seed);
        loop {
            match fetcher.next(run.now) {
                Next::Act(action) => run.start(action),
                Next::Wait { until_ms } => run.pass_time(until_ms, &mut fetcher),
                end @ (Next::Done | Next::Stuck(_)) => {
                    assert!(run.pending.is_empty());
                    run.log.ended_ms = run.now;
                    return (end, run.log, fetcher);
                }
            }
        }
    }
}

/// An action under way.
struct Pending {
    ticket: Ticket,
    result: Result<(), Failure>,
    from: Option<Source>,
    keeps: Option<(JobId, SegmentId)>,
}

struct Run<'a> {
    fleet: &'a Fleet,
    now: u64,
    turn: u64,
    pending: BTreeMap<(u64, u64), Pending>,
    kept: HashMap<JobId, HashSet<SegmentId>>,
    log: Log,
}

impl Run<'_> {
    fn start(&mut self, action: Action) {
        self.turn += 1;
        assert!(self.turn < 200_000, "no end in sight");
        match action {
            Action::Fetch { ticket, segment, from, keep, .. } => {
                *self.log.asked.entry((from, segment)).or_default() += 1;
                if from == Source::Server {
                    self.log.from_server.insert(segment);
                }
                let (latency, result) = match outcome(self.fleet.nature(from), from, segment) {
                    Ok(latency) => (latency, Ok(())),
                    Err(Failure::Timeout) => (5000, Err(Failure::Timeout)),
                    Err(failure) => (15, Err(failure)),
                };
                let silent = matches!(result, Err(Failure::Timeout | Failure::Refused));
                self.log.silent_requests += usize::from(silent);
                let keeps = keep.map(|job| (job, segment));
                let pending = Pending { ticket, result, from: Some(from), keeps };
                self.pending.insert((self.now + latency, self.turn), pending);
                self.check_limits();
            }
            Action::Rebuild { ticket, plan } => {
                let have = &self.kept[&plan.job];
                assert!(plan.sources.iter().all(|(_, segment)| have.contains(segment)));
                assert_eq!(plan.sources.len(), usize::from(plan.data));
                assert!(!plan.wanted.is_empty());
                self.log.rebuilds += 1;
                let pending = Pending { ticket, result: Ok(()), from: None, keeps: None };
                self.pending.insert((self.now + 30, self.turn), pending);
            }
            Action::Forget { job } => drop(self.kept.remove(&job)),
            Action::Ask { ticket, from } => {
                let nature = self.fleet.nature(from);
                let result = match nature {
                    Nature::Dead => Err(Failure::Refused),
                    Nature::Silent => Err(Failure::Timeout),
                    Nature::Good | Nature::Trickle | Nature::Lying(_) | Nature::Forgetful(_) => {
                        Ok(())
                    }
                };
                self.log.silent_requests += usize::from(result.is_err());
                let latency = if nature == Nature::Silent { 5000 } else { 1 };
                let pending = Pending { ticket, result, from: None, keeps: None };
                self.pending.insert((self.now + latency, self.turn), pending);
            }
            Action::Pass { .. } => {}
            Action::Cancel { ticket } => self.pending.retain(|_, pending| pending.ticket != ticket),
        }
    }

    fn check_limits(&self) {
        let limits = self.fleet.limits;
        let fetches = || self.pending.values().filter_map(|pending| pending.from);
        assert!(fetches().count() <= limits.in_flight + limits.server_share);
    }

    fn pass_time(&mut self, until_ms: Option<u64>, fetcher: &mut Fetcher) {
        let event = self.pending.keys().next().copied();
        self.now = event
            .map(|(at, _)| at)
            .into_iter()
            .chain(until_ms)
            .min()
            .expect("something to wait for");
        let Some(key) = event.filter(|(at, _)| *at <= self.now) else { return };
        let Pending { ticket, result, keeps, .. } = self.pending.remove(&key).unwrap();
        match result {
            Ok(()) => {
                if let Some((job, segment)) = keeps {
                    self.kept.entry(job).or_default().insert(segment);
                }
                assert!(fetcher.on_done(ticket, self.now));
            }
            Err(failure) => fetcher.on_failed(ticket, failure, self.now),
        }
        self.log.reports.extend(fetcher.take_reports());
    }
}

/// What the scheduler wants besides turns, which are granted at once.
fn next_granted(fetcher: &mut Fetcher, now: u64) -> Next {
    loop {
        match fetcher.next(now) {
            Next::Act(Action::Ask { ticket, .. }) => assert!(fetcher.on_done(ticket, now)),
            Next::Act(Action::Pass { .. }) => {}
            other => return other,
        }
    }
}

const PARITY: Redundancy = Redundancy::Parity { k: 3, m: 2 };

#[test]
fn a_healthy_fleet_serves_every_segment_once_and_the_server_nothing() {
    let fleet = fleet(&[Nature::Good; 7], Some(Nature::Good), PARITY, 300);
    let (end, log, fetcher) = fleet.run(1);
    assert_eq!(end, Next::Done);
    assert_eq!(log.asked.len(), 300);
    assert!(log.asked.values().all(|times| *times == 1));
    let progress = fetcher.progress();
    assert_eq!((progress.from_server, progress.rebuilt, log.rebuilds), (0, 0, 0));
    assert_eq!(progress.done_bytes, progress.wanted_bytes);
    let mut by_peer: BTreeMap<Source, usize> = BTreeMap::new();
    log.asked.keys().for_each(|(source, _)| *by_peer.entry(*source).or_default() += 1);
    assert_eq!(by_peer.len(), 7, "everybody takes part: {by_peer:?}");
}

#[test]
fn a_silent_peer_costs_a_few_requests_and_its_segments_are_rebuilt_from_parity() {
    let mut natures = [Nature::Good; 7];
    natures[3] = Nature::Silent;
    let fleet = fleet(&natures, Some(Nature::Good), PARITY, 300);
    let (end, log, fetcher) = fleet.run(2);
    assert_eq!(end, Next::Done);
    assert!(log.rebuilds > 0 && fetcher.progress().rebuilt > 0);
    assert_eq!(log.from_server, HashSet::new());
    assert!(log.silent_requests <= 9, "{} requests to a silent peer", log.silent_requests);
}

#[test]
fn what_a_rebuild_needs_is_installed_on_the_way() {
    let mut natures = [Nature::Good; 7];
    natures[3] = Nature::Dead;
    let fleet = fleet(&natures, Some(Nature::Good), PARITY, 300);
    let (end, log, fetcher) = fleet.run(2);
    assert_eq!(end, Next::Done);
    assert!(log.rebuilds > 10, "{} rebuilds", log.rebuilds);
    // Stripes become jobs before their other segments were fetched, so hardly anything is fetched twice.
    let progress = fetcher.progress();
    assert!(progress.from_peers * 100 <= progress.wanted_bytes * 103, "{progress:?}");
}

#[test]
fn without_enough_peers_the_server_brings_what_is_missing_and_no_more() {
    let natures =
        [Nature::Good, Nature::Dead, Nature::Dead, Nature::Dead, Nature::Good, Nature::Good];
    let fleet = fleet(&natures, Some(Nature::Good), PARITY, 100);
    let (end, log, _) = fleet.run(3);
    assert_eq!(end, Next::Done);
    let expected: HashSet<_> =
        fleet.wanted.iter().map(|w| w.id).filter(|id| !fleet.peers_can(*id)).collect();
    assert!(!expected.is_empty());
    assert_eq!(log.from_server, expected);
}

#[test]
fn with_no_peers_at_all_the_server_is_asked_for_many_at_once() {
    let mut fleet = fleet(&[Nature::Good], Some(Nature::Good), Redundancy::Copies { count: 1 }, 20);
    fleet.peers.clear();
    let mut fetcher = fleet.fetcher(4);
    for _ in 0..Limits::default().in_flight {
        assert!(matches!(
            next_granted(&mut fetcher, 0),
            Next::Act(Action::Fetch { from: Source::Server, .. })
        ));
    }
    assert!(matches!(next_granted(&mut fetcher, 0), Next::Wait { .. }));
    assert_eq!(fleet.run(4).0, Next::Done);
}

#[test]
fn a_peer_that_trickles_is_left_also_by_the_first_fetch_and_by_rebuilds() {
    let twice = Redundancy::Parity { k: 2, m: 2 };
    let (mut slow, mut late) = (0, 0);
    for (trickles, dead, seed) in
        (0..5).flat_map(|a| (0..5).flat_map(move |b| (0..10).map(move |seed| (a, b, seed))))
    {
        let mut natures = [Nature::Good; 5];
        natures[trickles] = Nature::Trickle;
        if dead != trickles {
            natures[dead] = Nature::Dead;
        }
        for segments in [1, 2, 40] {
            let (end, log, _) = fleet(&natures, None, twice, segments).run(seed);
            assert_eq!(end, Next::Done);
            assert!(log.ended_ms < 120_000, "{} ms, {:?}", log.ended_ms, log.reports);
            slow += log.reports.iter().filter(|report| report.fault == Fault::Slow).count();
            late += usize::from(log.ended_ms > 10_000);
        }
    }
    // Else this has tested nothing.
    assert!(slow > 100 && late > 10, "{slow} {late}");
}

#[test]
fn nobody_left_is_said_with_the_segments_and_the_reasons() {
    let fleet =
        fleet(&[Nature::Dead, Nature::Lying(100)], None, Redundancy::Copies { count: 1 }, 6);
    let (end, log, _) = fleet.run(5);
    let Next::Stuck(stuck) = end else { panic!("{end:?}") };
    assert_eq!(stuck.segments, fleet.wanted.iter().map(|w| w.id).collect::<Vec<_>>());
    assert_eq!(stuck.silent, [Source::Peer(agent(0))]);
    assert_eq!(stuck.damaged, [Source::Peer(agent(1))]);
    assert_eq!(log.reports.len(), 3);
    assert!(stuck.to_string().starts_with("6 segments have no source left, the first is "));
}

#[test]
fn a_peer_that_is_heard_of_is_asked_at_once() {
    let fleet = fleet(&[Nature::Good], None, Redundancy::Copies { count: 1 }, 1);
    let mut fetcher = fleet.fetcher(6);
    let Next::Act(Action::Fetch { ticket, .. }) = next_granted(&mut fetcher, 0) else { panic!() };
    fetcher.on_failed(ticket, Failure::Timeout, 5000);
    assert_eq!(next_granted(&mut fetcher, 5000), Next::Wait { until_ms: Some(7000) });
    fetcher.on_heard(Source::Peer(agent(0)));
    assert!(matches!(next_granted(&mut fetcher, 5000), Next::Act(Action::Fetch { .. })));
}

#[test]
fn who_grants_no_turn_is_left_alone_for_a_while_whatever_he_says() {
    let answers = [Failure::Missing, Failure::Bad, Failure::Refused, Failure::Elsewhere];
    for answer in answers {
        let fleet = fleet(&[Nature::Good], None, Redundancy::Copies { count: 1 }, 1);
        let mut fetcher = fleet.fetcher(8);
        while let Next::Act(Action::Ask { ticket, .. }) = fetcher.next(0) {
            fetcher.on_failed(ticket, answer, 0);
        }
        assert_eq!(fetcher.next(0), Next::Wait { until_ms: Some(2000) }, "{answer:?}");
    }
}

#[test]
fn a_peer_that_sends_elsewhere_is_not_asked_for_that_segment_again() {
    let fleet = fleet(&[Nature::Good], Some(Nature::Good), Redundancy::Copies { count: 1 }, 1);
    let mut fetcher = fleet.fetcher(9);
    let from = |next| match next {
        Next::Act(Action::Fetch { ticket, from, .. }) => (ticket, from),
        other => panic!("{other:?}"),
    };
    let (ticket, peer) = from(next_granted(&mut fetcher, 0));
    assert_eq!(peer, Source::Peer(agent(0)));
    fetcher.on_failed(ticket, Failure::Elsewhere, 0);
    let (ticket, server) = from(next_granted(&mut fetcher, 0));
    assert_eq!(server, Source::Server);
    // The server may say so: it has just given the segment to another target, and is asked again later.
    fetcher.on_failed(ticket, Failure::Elsewhere, 0);
    assert_eq!(next_granted(&mut fetcher, 0), Next::Wait { until_ms: Some(10_000) });
    assert_eq!(from(next_granted(&mut fetcher, 10_000)).1, Source::Server);
}

#[test]
fn a_rebuild_that_gives_wrong_bytes_is_not_tried_again() {
    let natures = [Nature::Dead, Nature::Good, Nature::Good];
    let fleet = fleet(&natures, Some(Nature::Good), Redundancy::Parity { k: 2, m: 1 }, 2);
    let mut fetcher = fleet.fetcher(7);
    let mut asked_server = 0;
    let mut now = 0;
    loop {
        match next_granted(&mut fetcher, now) {
            Next::Act(Action::Fetch { ticket, from, segment, .. }) => {
                asked_server += usize::from(from == Source::Server);
                match outcome(fleet.nature(from), from, segment) {
                    Ok(_) => assert!(fetcher.on_done(ticket, now)),
                    Err(failure) => fetcher.on_failed(ticket, failure, now),
                }
            }
            Next::Act(Action::Rebuild { ticket, .. }) => {
                fetcher.on_failed(ticket, Failure::Bad, now)
            }
            Next::Act(Action::Forget { .. }) => {}
            Next::Wait { until_ms } => now = until_ms.unwrap(),
            end => {
                assert_eq!(end, Next::Done);
                break;
            }
        }
    }
    let lost = fleet.wanted.iter().filter(|w| {
        let (stripe, place) = fleet.map.places().get(&w.id).unwrap();
        let shard = fleet.map.stripe(stripe).unwrap().shard(place).unwrap();
        fleet.map.agents(shard).eq([agent(0)])
    });
    assert_eq!(asked_server, lost.count());
}

#[test]
fn targets_with_different_seeds_start_at_different_segments() {
    let fleet = fleet(&[Nature::Good; 7], None, PARITY, 300);
    let first = |seed| match next_granted(&mut fleet.fetcher(seed), 0) {
        Next::Act(Action::Fetch { segment, .. }) => segment,
        other => panic!("{other:?}"),
    };
    let firsts: HashSet<_> = (0..10).map(first).collect();
    assert!(firsts.len() >= 7);
    assert_eq!(first(3), first(3));
}

#[test]
fn kept_shards_stay_within_their_bound() {
    let mut natures = [Nature::Good; 8];
    natures[0] = Nature::Dead;
    natures[1] = Nature::Dead;
    let mut fleet = fleet(&natures, None, Redundancy::Parity { k: 4, m: 4 }, 200);
    fleet.limits.rebuild_bytes = 32 << 20;
    let mut fetcher = fleet.fetcher(8);
    let mut kept: BTreeMap<JobId, u64> = BTreeMap::new();
    let mut now = 0;
    loop {
        match next_granted(&mut fetcher, now) {
            Next::Act(Action::Fetch { ticket, from, segment, keep, bytes, .. }) => {
                if let Some(job) = keep {
                    *kept.entry(job).or_default() += u64::from(bytes);
                }
                assert!(kept.values().sum::<u64>() <= 32 << 20);
                match outcome(fleet.nature(from), from, segment) {
                    Ok(_) => assert!(fetcher.on_done(ticket, now)),
                    Err(failure) => fetcher.on_failed(ticket, failure, now),
                }
            }
            Next::Act(Action::Rebuild { ticket, plan }) => {
                kept.remove(&plan.job);
                assert!(fetcher.on_done(ticket, now));
            }
            Next::Act(Action::Forget { job }) => drop(kept.remove(&job)),
            Next::Wait { until_ms } => now = until_ms.unwrap(),
            end => return assert_eq!(end, Next::Done),
        }
    }
}

/// Scheduler, stripe map and erasure code mean the same by a place: real bytes come back.
#[test]
fn a_rebuild_plan_is_what_the_recipe_takes() {
    let plain: Vec<Vec<u8>> =
        (1..=5_u8).map(|n| vec![n.wrapping_mul(37); 100 * usize::from(n)]).collect();
    let data: Vec<_> = plain
        .iter()
        .map(|bytes| DataSegment {
            id: SegmentId::of(bytes),
            bytes: u32::try_from(bytes.len()).unwrap(),
            device: 0,
        })
        .collect();
    let members: Vec<_> = (0..5).map(|n| Member { agent: agent(n), room: 10 }).collect();
    let layout = converge(None, &data, PARITY, &members, &Held::new()).unwrap();
    let bytes_of = |id: SegmentId| plain.iter().find(|bytes| SegmentId::of(bytes) == id).unwrap();
    let mut stored: HashMap<SegmentId, Vec<u8>> =
        plain.iter().map(|bytes| (SegmentId::of(bytes), bytes.clone())).collect();
    let mut computed = HashMap::new();
    for (index, row, bytes) in layout.to_compute() {
        let stripe = &layout.stripes[usize::try_from(index.0).unwrap()];
        let count = u8::try_from(stripe.data.len()).unwrap();
        let recipe = Recipe::encode(stripe.k, count, &[ShardPlace(stripe.k + row)]).unwrap();
        let sources: Vec<_> = stripe.data.iter().map(|s| bytes_of(s.id).as_slice()).collect();
        let parity = recipe.whole(&sources, &[usize::try_from(bytes).unwrap()]).unwrap().remove(0);
        computed.insert((index, row), SegmentId::of(&parity));
        stored.insert(SegmentId::of(&parity), parity);
    }
    let map = layout.map(StripeSetId([0; 16]), Generation(1), &computed).unwrap();
    map.check().unwrap();
    let wanted: Vec<_> = data.iter().map(|s| Wanted { id: s.id, bytes: s.bytes }).collect();
    for gone in 0..5 {
        let members: Vec<_> = (0..5).filter(|n| *n != gone).map(agent).collect();
        let maps = std::slice::from_ref(&map);
        let mut fetcher = Fetcher::new(&wanted, maps, &members, false, Limits::default(), 1);
        loop {
            match next_granted(&mut fetcher, 0) {
                Next::Act(Action::Fetch { ticket, .. }) => assert!(fetcher.on_done(ticket, 0)),
                Next::Act(Action::Rebuild { ticket, plan }) => {
                    let (present, ids): (Vec<_>, Vec<_>) = plan.sources.iter().copied().unzip();
                    let lost: Vec<_> = plan.wanted.iter().map(|(place, ..)| *place).collect();
                    let recipe = Recipe::new(plan.k, plan.data, &present, &lost).unwrap();
                    assert_eq!(recipe.sources(), present);
                    let sources: Vec<_> = ids.iter().map(|id| stored[id].as_slice()).collect();
                    let lengths: Vec<_> = plan
                        .wanted
                        .iter()
                        .map(|(.., bytes)| usize::try_from(*bytes).unwrap())
                        .collect();
                    let rebuilt = recipe.whole(&sources, &lengths).unwrap();
                    for ((_, id, _), bytes) in plan.wanted.iter().zip(rebuilt) {
                        assert_eq!(SegmentId::of(&bytes), *id);
                    }
                    assert!(fetcher.on_done(ticket, 0));
                }
                Next::Act(Action::Forget { .. }) => {}
                end => {
                    assert_eq!(end, Next::Done);
                    break;
                }
            }
        }
    }
}

fn any_nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        4 => Just(Nature::Good),
        1 => Just(Nature::Dead),
        1 => Just(Nature::Silent),
        1 => (1..=100_u8).prop_map(Nature::Lying),
        1 => (1..=100_u8).prop_map(Nature::Forgetful),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn it_ends_well_exactly_when_it_can(
        natures in prop::collection::vec(any_nature(), 1..12),
        server in prop::option::of(any_nature()),
        k in 2..6_u8,
        segments in 1..60_u32,
        seed: u64,
    ) {
        let width = natures.len();
        let redundancy = match width {
            1 | 2 => Redundancy::Copies { count: u8::try_from(width).unwrap() },
            _ => {
                let k = k.min(u8::try_from(width - 1).unwrap());
                let m = (u8::try_from(width).unwrap() - k).min(3);
                Redundancy::Parity { k, m }
            }
        };
        let fleet = fleet(&natures, server, redundancy, segments);
        let (end, log, fetcher) = fleet.run(seed);
        let hopeless: Vec<_> = fleet
            .wanted
            .iter()
            .map(|w| w.id)
            .filter(|id| !fleet.peers_can(*id) && !fleet.server_can(*id))
            .collect();
        match end {
            Next::Done => prop_assert!(hopeless.is_empty()),
            Next::Stuck(stuck) => prop_assert_eq!(&stuck.segments, &hopeless),
            other => prop_assert!(false, "{:?}", other),
        }
        let progress = fetcher.progress();
        prop_assert_eq!(progress.done_segments + hopeless.len(), progress.wanted_segments);
        // The server is asked only when peers cannot, and nobody twice for what proved bad or missing.
        for segment in &log.from_server {
            prop_assert!(!fleet.peers_can(*segment));
        }
        for ((source, segment), times) in &log.asked {
            if let Err(Failure::Bad | Failure::Missing) = outcome(fleet.nature(*source), *source, *segment) {
                prop_assert_eq!(*times, 1);
            }
        }
        let lies = log.asked.keys().filter(|(source, segment)| {
            outcome(fleet.nature(*source), *source, *segment) == Err(Failure::Bad)
        });
        let damaged = log.reports.iter().filter(|report| report.fault == Fault::Damaged);
        prop_assert_eq!(damaged.count(), lies.count());
    }
}
