//! Which segment to fetch next, and from whom: the scheduler of an install.
//!
//! A state machine without clock, socket or thread. Its driver asks [`Fetcher::next`] what to do until it says to wait, does it,
//! and reports the outcome by ticket. The rules:
//!
//! * Rarest first; ties in an order that the seed decides, so that targets which install together start at different ends.
//! * A source is first asked for a *turn*; which segment it is to send is decided when it grants one. So no segment waits in the
//!   queue of one peer while another could send it, and no peer idles that has something anybody wants.
//! * [`Limits::in_flight`] fetches over all, spread over the peers, the least busy first.
//! * A data segment that no reachable peer holds is rebuilt, when enough other shards of its stripe are reachable. The whole
//!   stripe then becomes one *job*: the wanted segments in it are fetched and kept until the missing ones are computed.
//! * The server is asked only for what peers can deliver in neither way; for that a share of the fetches is kept free, so
//!   that what nobody has yet spreads among targets that install together ([`Fetcher::on_have`]).
//! * What takes far longer than others is asked for a second time elsewhere; the slower of the two is cancelled.
//!
//! ```text
//!            holder up            picked            delivered
//!   ┌──► ready ─────────────────► in flight ───────────────────► done
//!   │      │ last holder down        │ failed                     ▲
//!   │      ▼                         ▼                            │
//!   └── route again ◄────────────────┘                            │
//!          ├── stripe can be rebuilt ──► parked ── job ── rebuilt ┤
//!          ├── server may have it ─────► at the server ───────────┤
//!          ├── another target gets it ─► promised ── announced ───┘    (or its time is over)
//!          └── nobody ─────────────────► stranded                      (until somebody comes back)
//! ```
//!
//! Invariants: a source that proved bad for a segment is never asked for it again; a peer that does not answer costs one request per
//! back-off, not one per segment; memory kept for jobs is bounded; in flight, done and waiting segments are disjoint.

mod action;
mod hosts;
mod jobs;
mod load;
mod swarm;

use std::collections::{BTreeSet, HashMap, HashSet};

pub use action::{
    Action, BadSource, Failure, Fault, Limits, Next, Progress, RebuildPlan, Stuck, Ticket, Wanted,
};
use hosts::Host;
pub use hosts::Source;
pub use jobs::JobId;
use jobs::{Job, StripeState};

use crate::id::{AgentId, SegmentId, sha256};
use crate::stripe_map::{ShardPlace, StripeMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Not wanted for itself.
    Spare,
    /// In the queue of each peer that is up and holds it.
    Ready,
    /// Its stripe is, or will be, a job.
    Parked,
    AtServer,
    /// The server gave it to another target, which will announce it.
    Promised {
        until_ms: u64,
    },
    Stranded,
    InFlight,
    Done,
}

impl Status {
    /// Whether a shard waits on its own for somebody to deliver it.
    const fn waits(self) -> bool {
        matches!(self, Self::Ready | Self::AtServer | Self::Promised { .. } | Self::Stranded)
    }
}

/// Rarity, then chance, then index.
type Rank = (usize, u64, usize);

#[derive(Debug)]
struct ShardState {
    id: SegmentId,
    bytes: u32,
    holders: Vec<usize>,
    stripe: Option<(usize, ShardPlace)>,
    status: Status,
    rank: Rank,
}

#[derive(Clone, Copy, Debug)]
enum Flight {
    Fetch {
        shard: usize,
        host: usize,
        install: bool,
        job: Option<JobId>,
        started_ms: u64,
    },
    Rebuild {
        job: JobId,
    },
    /// A turn was asked for.
    Turn {
        host: usize,
    },
}

/// The scheduler of one install.
#[derive(Debug)]
pub struct Fetcher {
    limits: Limits,
    seed: u64,
    /// Peers, the server if there is one, and targets as they are met.
    hosts: Vec<Host>,
    host_of: HashMap<Source, usize>,
    server: Option<usize>,
    shards: Vec<ShardState>,
    shard_of: HashMap<SegmentId, usize>,
    /// Shards by the host that holds them; none for the server, which may hold all.
    held: Vec<Vec<usize>>,
    stripes: Vec<StripeState>,
    wanted: Vec<usize>,
    queues: Vec<BTreeSet<Rank>>,
    at_server: BTreeSet<Rank>,
    promised: BTreeSet<(u64, usize)>,
    stranded: BTreeSet<usize>,
    /// Stripes that shall become jobs, in an order by chance.
    waiting: BTreeSet<(u64, usize)>,
    jobs: HashMap<JobId, Job>,
    refused: HashSet<(usize, usize)>,
    flights: HashMap<Ticket, Flight>,
    fetching: usize,
    /// Fetches that another one made superfluous, to be said to the driver.
    cancelled: Vec<Ticket>,
    /// What a fetch takes, a moving average; none before the first.
    typical_ms: Option<u64>,
    /// Hosts of which jobs and second sources could use a turn now.
    wishes: BTreeSet<usize>,
    /// When nothing was left to do but to hope for neighbours.
    idle_since_ms: Option<u64>,
    now_ms: u64,
    next_number: u64,
    damaged: Vec<BadSource>,
    reported: usize,
    progress: Progress,
}

impl Fetcher {
    /// A scheduler for `wanted`, in the order of the image, from the members that the maps name as holders and, when `server`, from
    /// the server. `seed` decides the order of equals.
    #[must_use]
    pub fn new(
        wanted: &[Wanted],
        maps: &[StripeMap],
        members: &[AgentId],
        server: bool,
        limits: Limits,
        seed: u64,
    ) -> Self {
        let mut fetcher = Self {
            limits,
            seed,
            hosts: Vec::new(),
            host_of: HashMap::new(),
            server: None,
            shards: Vec::new(),
            shard_of: HashMap::new(),
            held: Vec::new(),
            stripes: Vec::new(),
            wanted: Vec::new(),
            queues: Vec::new(),
            at_server: BTreeSet::new(),
            promised: BTreeSet::new(),
            stranded: BTreeSet::new(),
            waiting: BTreeSet::new(),
            jobs: HashMap::new(),
            refused: HashSet::new(),
            flights: HashMap::new(),
            fetching: 0,
            cancelled: Vec::new(),
            typical_ms: None,
            wishes: BTreeSet::new(),
            idle_since_ms: None,
            now_ms: 0,
            next_number: 0,
            damaged: Vec::new(),
            reported: 0,
            progress: Progress::default(),
        };
        fetcher.load(wanted, maps, members);
        if server {
            fetcher.server = Some(fetcher.host(Source::Server));
        }
        for shard in fetcher.wanted.clone() {
            fetcher.route(shard);
        }
        fetcher
    }

    /// What to do now. To be asked again until it says to wait.
    pub fn next(&mut self, now_ms: u64) -> Next {
        self.now_ms = now_ms;
        for host in 0..self.hosts.len() {
            if self.hosts[host].wake(now_ms) {
                self.host_is_up(host);
            }
        }
        self.break_promises();
        if let Some(ticket) = self.cancelled.pop() {
            return Next::Act(Action::Cancel { ticket });
        }
        self.wishes.clear();
        let action = self
            .next_of_jobs()
            .or_else(|| self.next_from_server())
            .or_else(|| self.next_from_peers())
            .or_else(|| self.next_second())
            .or_else(|| self.next_turn());
        if let Some(action) = action {
            return Next::Act(action);
        }
        if self.progress.done_segments == self.progress.wanted_segments && self.flights.is_empty() {
            return Next::Done;
        }
        let back = self.hosts.iter().filter_map(Host::back_at).min();
        let promise = self.promised.first().map(|(until, _)| *until);
        let until_ms = [back, promise, self.overdue_at(), self.hopeful_until()];
        let until_ms = until_ms.into_iter().flatten().min();
        if self.flights.is_empty() && until_ms.is_none() {
            return Next::Stuck(self.stuck());
        }
        Next::Wait { until_ms }
    }

    /// The action succeeded: the segments were checked, or the turn granted. False when it was cancelled meanwhile: its outcome
    /// is not to be used.
    pub fn on_done(&mut self, ticket: Ticket, now_ms: u64) -> bool {
        self.idle_since_ms = None;
        let flight = self.flights.remove(&ticket);
        let counts = flight.is_some();
        match flight {
            Some(Flight::Fetch { shard, host, install, job, started_ms }) => {
                self.fetching -= 1;
                self.hosts[host].in_flight -= 1;
                let bytes = self.shards[shard].bytes;
                self.hosts[host].succeeded(bytes);
                self.took(now_ms.saturating_sub(started_ms));
                let counter = match self.hosts[host].source {
                    Source::Peer(_) | Source::Target(_) => &mut self.progress.from_peers,
                    Source::Server => &mut self.progress.from_server,
                };
                *counter += u64::from(bytes);
                if install {
                    self.installed(shard);
                    self.cancel_others(shard, now_ms);
                }
                if let Some(job) = job {
                    self.shard_kept(job, shard);
                }
            }
            Some(Flight::Rebuild { job }) => self.rebuilt(job),
            Some(Flight::Turn { host }) => {
                self.hosts[host].asked -= 1;
                self.hosts[host].turns.push(ticket);
            }
            None => {}
        }
        counts
    }

    /// The action failed. [`Failure::Bad`] of a rebuild says that good shards gave wrong bytes: that stripe's parity is not
    /// used again.
    pub fn on_failed(&mut self, ticket: Ticket, failure: Failure, now_ms: u64) {
        match self.flights.remove(&ticket) {
            Some(Flight::Fetch { shard, host, install, job, .. }) => {
                self.fetching -= 1;
                self.hosts[host].in_flight -= 1;
                self.blame(host, shard, failure, now_ms);
                if let Some(job) = job {
                    self.shard_lost(job, shard);
                }
                if install && !self.is_in_flight(shard) {
                    self.route(shard);
                    if failure == Failure::Elsewhere && Some(host) == self.server {
                        self.promise(shard, now_ms);
                    }
                }
                self.note_silence(host, failure, now_ms);
            }
            Some(Flight::Turn { host }) => {
                self.hosts[host].asked -= 1;
                match failure {
                    Failure::Busy => self.hosts[host].is_busy(now_ms),
                    // Whatever else it says, it gives no turn: asked again at once it would say so again.
                    _ => self.note_silence(host, Failure::Refused, now_ms),
                }
            }
            Some(Flight::Rebuild { job }) => self.rebuild_failed(job),
            None => {}
        }
    }

    fn note_silence(&mut self, host: usize, failure: Failure, now_ms: u64) {
        if failure.is_silence() && self.hosts[host].failed(now_ms, self.limits.gone_after) {
            self.host_is_down(host);
        }
    }

    /// A peer, or the server, showed that it is there: it is tried again at once.
    pub fn on_heard(&mut self, source: Source) {
        if let Some(host) = self.host_of.get(&source).copied()
            && self.hosts[host].revive()
        {
            self.host_is_up(host);
        }
    }

    /// Sources that did wrong since the last call.
    pub fn take_reports(&mut self) -> Vec<BadSource> {
        let new = self.damaged[self.reported..].to_vec();
        self.reported = self.damaged.len();
        new
    }

    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// A number that looks random and depends on the seed.
    fn chance(&self, name: &[u8]) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = sha256(&[&self.seed.to_le_bytes(), name].concat());
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// The peers that are up and may have the shard.
    fn sources(&self, shard: usize) -> impl Iterator<Item = usize> {
        let holders = self.shards[shard].holders.iter().copied();
        holders.filter(move |host| {
            self.hosts[*host].is_up() && !self.refused.contains(&(*host, shard))
        })
    }

    /// Takes a shard out of wherever it waits.
    fn unqueue(&mut self, shard: usize) {
        let rank = self.shards[shard].rank;
        for holder in &self.shards[shard].holders {
            self.queues[*holder].remove(&rank);
        }
        self.at_server.remove(&rank);
        self.stranded.remove(&shard);
        if let Status::Promised { until_ms } = self.shards[shard].status {
            self.promised.remove(&(until_ms, shard));
        }
    }

    /// Decides where a wanted shard that is neither done nor in flight waits.
    fn route(&mut self, shard: usize) {
        self.unqueue(shard);
        self.shards[shard].status = Status::Stranded;
        let stripe = self.shards[shard].stripe.map(|(stripe, _)| stripe);
        if stripe.is_some_and(|stripe| self.stripes[stripe].is_taken()) {
            self.shards[shard].status = Status::Parked;
            return;
        }
        let sources: Vec<_> = self.sources(shard).collect();
        self.shards[shard].rank.0 = sources.len();
        let rank = self.shards[shard].rank;
        if !sources.is_empty() {
            self.shards[shard].status = Status::Ready;
            for host in sources {
                self.queues[host].insert(rank);
            }
        } else if let Some(stripe) = stripe.filter(|stripe| self.can_rebuild(*stripe)) {
            self.park(stripe);
        } else if self.server.is_some_and(|server| self.may_ask(server, shard)) {
            self.shards[shard].status = Status::AtServer;
            self.at_server.insert(rank);
        } else {
            self.stranded.insert(shard);
        }
    }

    fn may_ask(&self, host: usize, shard: usize) -> bool {
        !self.hosts[host].is_gone() && !self.refused.contains(&(host, shard))
    }

    fn host_is_down(&mut self, host: usize) {
        if Some(host) == self.server {
            if self.hosts[host].is_gone() {
                self.route_all(&self.at_server.iter().map(|rank| rank.2).collect::<Vec<_>>());
            }
            return;
        }
        self.route_all(&self.queues[host].iter().map(|rank| rank.2).collect::<Vec<_>>());
    }

    /// Gives a source that came back what it may deliver, and routes again what its return makes possible.
    fn host_is_up(&mut self, host: usize) {
        let mut again: BTreeSet<usize> = BTreeSet::new();
        if Some(host) == self.server {
            again.extend(&self.stranded);
        } else {
            for shard in &self.held[host] {
                again.insert(*shard);
                let stripe = self.shards[*shard].stripe.map(|(stripe, _)| &self.stripes[stripe]);
                again.extend(stripe.into_iter().flat_map(StripeState::shards));
            }
        }
        self.route_all(&again.into_iter().collect::<Vec<_>>());
    }

    /// Routes those of the shards again that wait.
    fn route_all(&mut self, shards: &[usize]) {
        for shard in shards {
            if self.shards[*shard].status.waits() {
                self.route(*shard);
            }
        }
    }

    fn blame(&mut self, host: usize, shard: usize, failure: Failure, now_ms: u64) {
        match failure {
            Failure::Timeout | Failure::Refused => {}
            // Only the server hands out; from others it is an excuse.
            Failure::Elsewhere if Some(host) == self.server => {}
            Failure::Busy => self.hosts[host].is_busy(now_ms),
            Failure::Missing | Failure::Elsewhere => {
                self.refused.insert((host, shard));
                self.note_missing(host, shard);
            }
            Failure::Bad => {
                self.refused.insert((host, shard));
                self.hosts[host].bad += 1;
                self.report(host, shard, Fault::Damaged);
            }
        }
    }

    fn report(&mut self, host: usize, shard: usize, fault: Fault) {
        let source = self.hosts[host].source;
        self.damaged.push(BadSource { source, segment: self.shards[shard].id, fault });
    }

    fn next_from_peers(&mut self) -> Option<Action> {
        if !self.has_room() {
            return None;
        }
        let host = (0..self.queues.len())
            .filter(|host| !self.queues[*host].is_empty() && self.hosts[*host].is_ready())
            .min_by_key(|host| {
                let rarest = self.queues[*host].first().copied();
                (self.hosts[*host].preference(), rarest)
            })?;
        let (.., shard) = self.queues[host].first().copied()?;
        Some(self.fetch(shard, host, None))
    }

    fn next_from_server(&mut self) -> Option<Action> {
        let server = self.server?;
        if !self.has_room_for_server() || !self.hosts[server].is_ready() {
            return None;
        }
        let (.., shard) = self.at_server.first().copied()?;
        Some(self.fetch(shard, server, None))
    }

    /// Whether one more fetch from a peer may start.
    const fn has_room(&self) -> bool {
        self.fetching < self.limits.in_flight
    }

    /// The same for the server. What only it has is the rarest, so some of it is fetched beyond what peers fill.
    fn has_room_for_server(&self) -> bool {
        let served = self.server.map_or(0, |server| self.hosts[server].in_flight);
        self.has_room()
            || served < self.limits.server_share
                && self.fetching < self.limits.in_flight + self.limits.server_share
    }

    /// Starts a fetch. A shard that is wanted and waits is installed on the way.
    fn fetch(&mut self, shard: usize, host: usize, job: Option<JobId>) -> Action {
        let status = self.shards[shard].status;
        let install = status.waits() || status == Status::Parked;
        if install {
            self.unqueue(shard);
            self.shards[shard].status = Status::InFlight;
        }
        self.fly(shard, host, install, job)
    }

    fn fly(&mut self, shard: usize, host: usize, install: bool, keep: Option<JobId>) -> Action {
        self.fetching += 1;
        self.hosts[host].in_flight += 1;
        let turn = self.hosts[host].turns.pop();
        let started_ms = self.now_ms;
        let ticket = self.ticket(Flight::Fetch { shard, host, install, job: keep, started_ms });
        let ShardState { id: segment, bytes, .. } = self.shards[shard];
        let from = self.hosts[host].source;
        Action::Fetch { ticket, turn, segment, bytes, from, install, keep }
    }

    fn ticket(&mut self, flight: Flight) -> Ticket {
        let ticket = Ticket(self.number());
        self.flights.insert(ticket, flight);
        ticket
    }

    const fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn installed(&mut self, shard: usize) {
        self.shards[shard].status = Status::Done;
        self.progress.done_segments += 1;
        self.progress.done_bytes += u64::from(self.shards[shard].bytes);
    }

    fn stuck(&self) -> Stuck {
        let left = self.wanted.iter().filter(|shard| self.shards[**shard].status != Status::Done);
        let silent = self.hosts.iter().filter(|host| host.is_gone());
        let damaged = self.damaged.iter().filter(|bad| bad.fault == Fault::Damaged);
        let mut damaged: Vec<_> = damaged.map(|bad| bad.source).collect();
        damaged.sort_unstable();
        damaged.dedup();
        Stuck {
            segments: left.map(|shard| self.shards[*shard].id).collect(),
            silent: silent.map(|host| host.source).collect(),
            damaged,
        }
    }
}

#[cfg(test)]
mod swarm_tests;
#[cfg(test)]
mod tests;
