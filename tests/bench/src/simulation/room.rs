//! A thousand targets that install at once, each with the real scheduler and the neighbours that the real server names.
//!
//! Links of one rate carry transfers; what one end leaves unused the other transfers of that end take. Senders grant turns as
//! the real ones do: a few at a time, in the order in which they were asked.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_array::swarm::Swarms;
use cairn_core::{
    fetch::{Action, Failure, Fetcher, Limits, Next, Source, Ticket, Wanted as Segment},
    id::{AgentId, InstallId, SegmentId, StripeSetId, VersionId},
    layout::{DataSegment, Held, Member, converge},
    planner::Redundancy,
    stripe_map::StripeMap,
    turns::{AskId, Turns},
    units::Generation,
};

use super::{agent, ratio};
use crate::{Figure, Wanted};

const TARGETS: usize = 1000;
/// 256 MiB, as in the lab.
const SEGMENTS: u32 = 64;
const BYTES: u32 = 4 << 20;
/// Bytes a millisecond: 100 Mbit/s.
const RATE: f64 = 12_500.0;
/// As in the real senders: sendings at a time, how long one counts at most, how long an ask is held, and a turn unused.
const SLOTS: usize = 2;
const COUNTS_MS: f64 = 700.0;
const ASK_HELD_MS: f64 = 5_000.0;
const LATENCY_MS: f64 = 1.0;
const GROUP: u32 = 52;
const REDUNDANCY: Redundancy = Redundancy::Parity { k: 32, m: 20 };

pub(super) fn measure(figures: &mut Vec<Figure>) -> Result<()> {
    for (name, clients, server, dead) in [
        ("an empty fleet", 0, true, 0),
        ("52 clients and no server", GROUP, false, 0),
        ("52 clients, every fifth dead, and no server", GROUP, false, 5),
    ] {
        let started = Instant::now();
        let mut room = Room::new(clients, server, dead)?;
        room.run()?;
        let mut times: Vec<_> = room.targets.iter().filter_map(|target| target.done_ms).collect();
        times.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| times.get(times.len() * percent / 100).copied();
        let last = times.last().copied().context("find the last")?;
        let (median, p99) = (at(50).context("find the median")?, at(99).context("find p99")?);
        let pass = f64::from(SEGMENTS) * f64::from(BYTES) / RATE;
        let name = format!("{TARGETS} targets, {name}:");
        let mut add = |what: &str, value, wanted| {
            figures.push(Figure::new(&format!("{name} {what}"), value, "", wanted));
        };
        add("last over one pass", last / pass, Wanted::Nothing);
        add("p99 over median", p99 / median, Wanted::AtMost(1.1));
        let sent = ratio(room.server_sent, u64::from(SEGMENTS) * u64::from(BYTES));
        add("images that the server sent", sent, Wanted::AtMost(1.1));
        let took = started.elapsed().as_secs_f64();
        let name = format!("{name} simulated in");
        figures.push(Figure::new(&name, took, "s", Wanted::Nothing));
    }
    Ok(())
}

/// The server, then clients, then targets.
type Node = usize;
type TransferId = u64;

#[derive(Debug)]
struct Transfer {
    from: Node,
    to: Node,
    ticket: Ticket,
    segment: SegmentId,
    /// It takes one of its sender's slots.
    counts: bool,
    left: f64,
    rate: f64,
    since_ms: f64,
    /// Of the event that ends it at the present rate.
    version: u64,
}

#[derive(Debug)]
struct Target {
    fetcher: Fetcher,
    /// Who hears what it has.
    listeners: Vec<usize>,
    done_ms: Option<f64>,
}

#[derive(Debug)]
struct Sender {
    dead: bool,
    turns: Turns<Node>,
    asks: HashMap<AskId, Ticket>,
    transfers: BTreeSet<TransferId>,
    incoming: BTreeSet<TransferId>,
}

impl Sender {
    fn new(dead: bool) -> Self {
        let (transfers, incoming) = (BTreeSet::new(), BTreeSet::new());
        Self { dead, turns: Turns::new(SLOTS), asks: HashMap::new(), transfers, incoming }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Asked {
        from: Node,
        to: Node,
        ticket: Ticket,
    },
    AskOver {
        node: Node,
        to: Node,
        ask: AskId,
    },
    TurnOver {
        node: Node,
        to: Node,
    },
    /// A sending has counted long enough, even if it goes on.
    Counted {
        transfer: TransferId,
    },
    Sent {
        transfer: TransferId,
        version: u64,
    },
    Heard {
        target: usize,
        source: Node,
        segment: SegmentId,
    },
    Refused {
        to: Node,
        ticket: Ticket,
    },
    Wake {
        target: usize,
    },
}

/// In micros, so that it has an order.
type At = u64;

struct Room {
    now: f64,
    nodes: Vec<Sender>,
    targets: Vec<Target>,
    first_target: Node,
    maps: Vec<StripeMap>,
    swarms: Swarms,
    begin: Instant,
    events: BinaryHeap<Reverse<(At, u64, Event)>>,
    transfers: HashMap<TransferId, Transfer>,
    /// Asks that wait, by who asked.
    asked: HashMap<(Node, Ticket), (Node, AskId)>,
    /// Slots that turns hold until they are used or passed.
    granted: HashMap<(Node, Ticket), Node>,
    number: u64,
    server_sent: u64,
    left: usize,
}

fn install(target: usize) -> InstallId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(target as u64).to_be_bytes());
    InstallId(id)
}

impl Room {
    fn new(clients: u32, server: bool, dead: usize) -> Result<Self> {
        let data: Vec<_> = (0..SEGMENTS)
            .map(|at| DataSegment { id: SegmentId::of(&at.to_le_bytes()), bytes: BYTES, device: 0 })
            .collect();
        let agents: Vec<_> = (0..clients).map(agent).collect();
        let maps = if clients > 0 { vec![map(&data, &agents)?] } else { Vec::new() };
        let wanted: Vec<_> =
            data.iter().map(|segment| Segment { id: segment.id, bytes: segment.bytes }).collect();
        let (swarms, begin) = (Swarms::default(), Instant::now());
        for target in 0..TARGETS {
            let addr = ([10, 0, u8::try_from(target >> 8)?, u8::try_from(target & 255)?], 1);
            swarms.join(install(target), VersionId([1; 16]), addr.into(), &[], begin);
        }
        let mut targets: Vec<_> = (0..TARGETS)
            .map(|target| {
                let seed = target as u64;
                let limits = Limits::default();
                let fetcher = Fetcher::new(&wanted, &maps, &agents, server, limits, seed);
                Target { fetcher, listeners: Vec::new(), done_ms: None }
            })
            .collect();
        for target in 0..TARGETS {
            for neighbour in swarms.now(install(target)).neighbours {
                targets[number(neighbour.install)?].listeners.push(target);
            }
        }
        let first_target = 1 + usize::try_from(clients)?;
        let is_dead =
            |at: usize| dead > 0 && (1..first_target).contains(&at) && at.is_multiple_of(dead);
        let nodes = (0..first_target + TARGETS).map(|at| Sender::new(is_dead(at))).collect();
        Ok(Self {
            now: 0.0,
            nodes,
            targets,
            first_target,
            maps,
            swarms,
            begin,
            events: BinaryHeap::new(),
            transfers: HashMap::new(),
            asked: HashMap::new(),
            granted: HashMap::new(),
            number: 0,
            server_sent: 0,
            left: TARGETS,
        })
    }

    fn source(&self, node: Node) -> Source {
        match node.checked_sub(self.first_target) {
            Some(target) => Source::Target(install(target)),
            None if node == 0 => Source::Server,
            None => Source::Peer(agent(u32::try_from(node - 1).unwrap_or(0))),
        }
    }

    fn node(&self, source: Source) -> Result<Node> {
        Ok(match source {
            Source::Server => 0,
            Source::Peer(AgentId([.., a, b, c, d])) => {
                u32::from_be_bytes([a, b, c, d]).try_into()?
            }
            Source::Target(install) => self.first_target + number(install)?,
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times of a simulation are small and not negative"
    )]
    fn at(&mut self, ms: f64, event: Event) {
        self.number += 1;
        self.events.push(Reverse(((ms * 1000.0) as At, self.number, event)));
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as above")]
    const fn millis(&self) -> u64 {
        self.now as u64
    }

    fn run(&mut self) -> Result<()> {
        for target in 0..TARGETS {
            self.pump(target)?;
        }
        while self.left > 0 {
            let Some(Reverse((at, _, event))) = self.events.pop() else {
                bail!("{} targets wait for nothing", self.left);
            };
            #[expect(clippy::cast_precision_loss, reason = "times of a simulation are small")]
            let now = at as f64 / 1000.0;
            self.now = self.now.max(now);
            ensure!(self.now < 3_600_000.0, "{} targets are not done in an hour", self.left);
            self.handle(event)?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Asked { from, to, ticket } => {
                if self.nodes[from].dead {
                    self.fail(to, ticket, Failure::Refused)?;
                } else {
                    let ask = self.nodes[from].turns.ask(to);
                    self.nodes[from].asks.insert(ask, ticket);
                    self.asked.insert((to, ticket), (from, ask));
                    self.at(self.now + ASK_HELD_MS, Event::AskOver { node: from, to, ask });
                    self.grant(from)?;
                }
            }
            Event::AskOver { node, to, ask } => {
                if self.nodes[node].turns.forget(ask)
                    && let Some(ticket) = self.nodes[node].asks.remove(&ask)
                {
                    self.asked.remove(&(to, ticket));
                    self.fail(to, ticket, Failure::Busy)?;
                }
            }
            Event::TurnOver { node, to } => {
                self.nodes[node].turns.end(to);
                self.grant(node)?;
            }
            Event::Counted { transfer } => {
                if let Some(it) = self.transfers.get_mut(&transfer)
                    && std::mem::take(&mut it.counts)
                {
                    let (node, to) = (it.from, it.to);
                    self.nodes[node].turns.end(to);
                    self.grant(node)?;
                }
            }
            Event::Sent { transfer, version } => {
                if self.transfers.get(&transfer).is_some_and(|it| it.version == version) {
                    self.sent(transfer)?;
                }
            }
            Event::Heard { target, source, segment } => {
                let source = self.source(source);
                self.targets[target].fetcher.on_have(source, &[segment]);
                self.pump(target)?;
            }
            Event::Refused { to, ticket } => self.fail(to, ticket, Failure::Elsewhere)?,
            Event::Wake { target } => self.pump(target)?,
        }
        Ok(())
    }

    fn fail(&mut self, to: Node, ticket: Ticket, failure: Failure) -> Result<()> {
        let (target, now) = (to - self.first_target, self.millis());
        self.targets[target].fetcher.on_failed(ticket, failure, now);
        self.pump(target)
    }

    /// Grants turns to those that wait.
    fn grant(&mut self, node: Node) -> Result<()> {
        while let Some((ask, to)) = self.nodes[node].turns.grant() {
            let ticket = self.nodes[node].asks.remove(&ask).context("grant an ask")?;
            self.asked.remove(&(to, ticket));
            let (target, now) = (to - self.first_target, self.millis());
            if self.targets[target].fetcher.on_done(ticket, now) {
                self.granted.insert((to, ticket), node);
            } else {
                self.nodes[node].turns.end(to);
            }
            self.pump(target)?;
        }
        Ok(())
    }

    /// Does what a target's scheduler says until it says to wait.
    fn pump(&mut self, target: usize) -> Result<()> {
        let me = self.first_target + target;
        loop {
            let now = self.millis();
            match self.targets[target].fetcher.next(now) {
                Next::Act(Action::Ask { ticket, from }) => {
                    let from = self.node(from)?;
                    self.at(self.now + LATENCY_MS, Event::Asked { from, to: me, ticket });
                }
                Next::Act(Action::Pass { turn }) => self.free(me, turn),
                Next::Act(Action::Fetch { ticket, turn, segment, from, .. }) => {
                    let from = self.node(from)?;
                    self.fetch(me, ticket, turn, segment, from)?;
                }
                Next::Act(Action::Rebuild { ticket, plan }) => {
                    let rebuilt = plan.wanted.iter().map(|(_, id, _)| *id);
                    let rebuilt: Vec<_> = rebuilt.collect();
                    self.targets[target].fetcher.on_done(ticket, now);
                    rebuilt.into_iter().for_each(|id| self.announce(target, id));
                }
                Next::Act(Action::Cancel { ticket }) => self.cancel(me, ticket)?,
                Next::Act(Action::Forget { .. }) => {}
                Next::Done => {
                    if self.targets[target].done_ms.replace(self.now).is_none() {
                        self.left -= 1;
                        let source = self.source(me);
                        for listener in self.targets[target].listeners.clone() {
                            self.targets[listener].fetcher.on_complete(source);
                        }
                    }
                    return Ok(());
                }
                Next::Wait { until_ms } => {
                    if let Some(until) = until_ms {
                        #[expect(clippy::cast_precision_loss, reason = "a time of a simulation")]
                        self.at((until as f64).max(self.now + 1.0), Event::Wake { target });
                    }
                    return Ok(());
                }
                Next::Stuck(stuck) => bail!("target {target} at {:.0} ms: {stuck}", self.now),
            }
        }
    }

    fn fetch(
        &mut self,
        me: Node,
        ticket: Ticket,
        turn: Option<Ticket>,
        segment: SegmentId,
        from: Node,
    ) -> Result<()> {
        let turn = turn.context("a fetch without a turn")?;
        let target = me - self.first_target;
        let now = self.begin + Duration::from_millis(self.millis());
        if from == 0 && !self.swarms.give(segment, install(target), now) {
            self.free(me, turn);
            self.at(self.now + LATENCY_MS, Event::Refused { to: me, ticket });
            return Ok(());
        }
        self.granted.remove(&(me, turn)).context("use a turn that was not granted")?;
        self.number += 1;
        let id = self.number;
        self.at(self.now + COUNTS_MS, Event::Counted { transfer: id });
        let transfer = Transfer {
            from,
            to: me,
            ticket,
            segment,
            counts: true,
            left: f64::from(BYTES),
            rate: 0.0,
            since_ms: self.now,
            version: 0,
        };
        self.transfers.insert(id, transfer);
        self.nodes[from].transfers.insert(id);
        self.nodes[me].incoming.insert(id);
        self.share(from, me);
        Ok(())
    }

    /// A turn is given back.
    fn free(&mut self, me: Node, turn: Ticket) {
        if let Some(node) = self.granted.remove(&(me, turn)) {
            self.at(self.now + LATENCY_MS, Event::TurnOver { node, to: me });
        }
    }

    fn cancel(&mut self, me: Node, ticket: Ticket) -> Result<()> {
        let of = |it: &&TransferId| self.transfers.get(it).is_some_and(|it| it.ticket == ticket);
        if let Some(id) = self.nodes[me].incoming.iter().find(of).copied() {
            self.end(id)?;
        }
        if let Some((node, ask)) = self.asked.remove(&(me, ticket)) {
            self.nodes[node].turns.forget(ask);
            self.nodes[node].asks.remove(&ask);
        }
        Ok(())
    }

    /// Takes a transfer off its links.
    fn end(&mut self, id: TransferId) -> Result<Transfer> {
        let transfer = self.transfers.remove(&id).context("end a transfer")?;
        self.nodes[transfer.from].transfers.remove(&id);
        self.nodes[transfer.to].incoming.remove(&id);
        self.share(transfer.from, transfer.to);
        if transfer.counts {
            self.at(self.now, Event::TurnOver { node: transfer.from, to: transfer.to });
        }
        Ok(transfer)
    }

    fn sent(&mut self, id: TransferId) -> Result<()> {
        let Transfer { from, to, ticket, segment, .. } = self.end(id)?;
        if from == 0 {
            self.server_sent += u64::from(BYTES);
        }
        let (target, now) = (to - self.first_target, self.millis());
        if self.targets[target].fetcher.on_done(ticket, now) {
            self.announce(target, segment);
        }
        self.pump(target)
    }

    fn announce(&mut self, target: usize, segment: SegmentId) {
        let is_data = self.maps.is_empty()
            || self
                .maps
                .iter()
                .flat_map(|map| &map.stripes)
                .any(|stripe| stripe.data.iter().any(|shard| shard.id == segment));
        if !is_data {
            return;
        }
        let source = self.first_target + target;
        for listener in self.targets[target].listeners.clone() {
            let heard = Event::Heard { target: listener, source, segment };
            self.at(self.now + 2.0 * LATENCY_MS, heard);
        }
    }

    /// Shares two links anew among what they carry.
    fn share(&mut self, from: Node, to: Node) {
        let touched: BTreeSet<_> = [from, to]
            .into_iter()
            .flat_map(|node| self.nodes[node].transfers.iter().chain(&self.nodes[node].incoming))
            .copied()
            .collect();
        for id in touched {
            let Some(it) = self.transfers.get(&id) else { continue };
            let out = level(&self.nodes[it.from].transfers, id, |other| {
                self.transfers.get(&other).map_or(1, |it| self.nodes[it.to].incoming.len())
            });
            let into = level(&self.nodes[it.to].incoming, id, |other| {
                self.transfers.get(&other).map_or(1, |it| self.nodes[it.from].transfers.len())
            });
            let (rate, now) = (out.min(into), self.now);
            let Some(it) = self.transfers.get_mut(&id) else { continue };
            it.left -= it.rate * (now - it.since_ms);
            (it.rate, it.since_ms) = (rate, now);
            it.version += 1;
            let event = Event::Sent { transfer: id, version: it.version };
            let ends = now + (it.left / rate).max(0.0);
            self.at(ends, event);
        }
    }
}

/// What a link gives one of its transfers when each of the others gets no more than its other end has for it.
#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn level(
    transfers: &BTreeSet<TransferId>,
    of: TransferId,
    others: impl Fn(TransferId) -> usize,
) -> f64 {
    let mut caps: Vec<_> =
        transfers.iter().map(|id| (RATE / others(*id).max(1) as f64, *id)).collect();
    caps.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut left, mut count) = (RATE, caps.len());
    for (cap, id) in caps {
        let given = cap.min(left / count as f64);
        if id == of {
            return given;
        }
        left -= given;
        count -= 1;
    }
    RATE
}

fn number(install: InstallId) -> Result<usize> {
    let [a, b, c, d, e, f, g, h, ..] = install.0;
    Ok(usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h]))?)
}

fn map(data: &[DataSegment], agents: &[AgentId]) -> Result<StripeMap> {
    let members: Vec<_> = agents.iter().map(|agent| Member { agent: *agent, room: 5000 }).collect();
    let layout = converge(None, data, REDUNDANCY, &members, &Held::new())?;
    let parity = layout.to_compute().map(|(index, row, _)| {
        ((index, row), SegmentId::of(&[&index.0.to_le_bytes()[..], &[row]].concat()))
    });
    layout
        .map(StripeSetId([1; 16]), Generation(1), &parity.collect())
        .context("complete the stripe map")
}
