//! Rebuilding: stripes of which a wanted data segment can be had from nobody, fetched whole and computed.

use super::{Action, Fetcher, Flight, RebuildPlan, Status};
use crate::stripe_map::{ShardPlace, Stripe};

/// Names a rebuild from its first fetch to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// A stripe that has wanted segments.
#[derive(Debug)]
pub(super) struct StripeState {
    k: u8,
    data: u8,
    /// The shards by place.
    places: Vec<(ShardPlace, usize)>,
    /// Bytes that a rebuild keeps at most.
    bytes: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its shards are fetched one by one.
    Free,
    /// It shall become a job.
    Waiting,
    Job,
    /// Good shards gave a wrong result: whoever computed the parity erred.
    Broken,
}

/// A rebuild under way.
#[derive(Debug)]
pub(super) struct Job {
    stripe: usize,
    kept: Vec<usize>,
    in_flight: Vec<usize>,
}

impl StripeState {
    pub(super) fn new(stripe: &Stripe, places: Vec<(ShardPlace, usize)>) -> Self {
        let data = u8::try_from(stripe.data.len()).unwrap_or(u8::MAX);
        let bytes = u64::from(data) * u64::from(stripe.parity_bytes());
        Self { k: stripe.k, data, places, bytes, state: State::Free }
    }

    /// Whether its wanted shards are dealt with together.
    pub(super) const fn is_taken(&self) -> bool {
        matches!(self.state, State::Waiting | State::Job)
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = usize> {
        self.places.iter().map(|(_, shard)| *shard)
    }

    fn place(&self, shard: usize) -> Option<ShardPlace> {
        self.places.iter().find(|(_, other)| *other == shard).map(|(place, _)| *place)
    }
}

impl Fetcher {
    /// Whether enough shards of the stripe are with peers that are up.
    pub(super) fn can_rebuild(&self, stripe: usize) -> bool {
        self.can_rebuild_if(stripe, |_| true)
    }

    /// The same, counting only some hosts.
    pub(super) fn can_rebuild_if(&self, stripe: usize, counts: impl Fn(usize) -> bool) -> bool {
        let state = &self.stripes[stripe];
        let reachable = state.shards().filter(|shard| self.sources(*shard).any(&counts));
        state.state != State::Broken && reachable.count() >= usize::from(state.data)
    }

    /// Makes a stripe wait for becoming a job, with all its shards that are not under way.
    pub(super) fn park(&mut self, stripe: usize) {
        self.stripes[stripe].state = State::Waiting;
        self.waiting.insert((self.chance(&stripe.to_le_bytes()), stripe));
        for shard in self.stripes[stripe].shards().collect::<Vec<_>>() {
            if self.shards[shard].status.waits() {
                self.unqueue(shard);
                self.shards[shard].status = Status::Parked;
            }
        }
    }

    pub(super) fn next_of_jobs(&mut self) -> Option<Action> {
        let mut jobs: Vec<_> = self.jobs.keys().copied().collect();
        jobs.sort_unstable();
        if let Some(action) = jobs.into_iter().find_map(|job| self.next_of_job(job)) {
            return Some(action);
        }
        while let Some(next) = self.next_waiting() {
            self.waiting.remove(&next);
            let (_, stripe) = next;
            if !self.is_worth_a_job(stripe) {
                self.release(stripe, State::Free);
                continue;
            }
            self.stripes[stripe].state = State::Job;
            let job = JobId(self.number());
            self.jobs.insert(job, Job { stripe, kept: Vec::new(), in_flight: Vec::new() });
            if let Some(action) = self.next_of_job(job) {
                return Some(action);
            }
        }
        None
    }

    /// The next stripe that may become a job within the memory bound.
    fn next_waiting(&self) -> Option<(u64, usize)> {
        let next @ (_, stripe) = *self.waiting.first()?;
        let busy: u64 = self.jobs.values().map(|job| self.stripes[job.stripe].bytes).sum();
        let fits = busy + self.stripes[stripe].bytes <= self.limits.rebuild_bytes;
        (self.jobs.is_empty() || fits).then_some(next)
    }

    /// Whether something of the stripe still has to be computed, and can be.
    fn is_worth_a_job(&self, stripe: usize) -> bool {
        let lost = |shard: usize| {
            self.shards[shard].status == Status::Parked && self.sources(shard).next().is_none()
        };
        self.can_rebuild(stripe) && self.stripes[stripe].shards().any(lost)
    }

    fn next_of_job(&mut self, id: JobId) -> Option<Action> {
        let Job { stripe, ref kept, ref in_flight } = *self.jobs.get(&id)?;
        let need = usize::from(self.stripes[stripe].data);
        if kept.len() >= need {
            return self.rebuild(id);
        }
        let missing = need - kept.len();
        let (busy, rest): (Vec<usize>, Vec<usize>) = self.stripes[stripe]
            .shards()
            .filter(|shard| !kept.contains(shard) && !in_flight.contains(shard))
            .filter(|shard| self.sources(*shard).next().is_some())
            .partition(|shard| self.shards[*shard].status == Status::InFlight);
        let parked = |shard: usize| self.shards[shard].status == Status::Parked;
        let nothing_left = !self.stripes[stripe].shards().any(parked);
        // A shard that is under way on its own, from before the stripe became a job, may be needed once that has ended.
        let too_few = rest.len() + busy.len() < missing;
        if in_flight.is_empty() && (too_few || nothing_left) {
            return Some(self.give_up(id, State::Free));
        }
        if nothing_left || in_flight.len() >= missing || self.fetching >= self.limits.in_flight {
            return None;
        }
        let pairs: Vec<_> = rest
            .into_iter()
            .flat_map(|shard| self.sources(shard).map(move |host| (shard, host)))
            .collect();
        self.wishes.extend(pairs.iter().map(|(_, host)| *host));
        // First what the image needs anyway, then from whoever is least busy.
        let spare = |shard: usize| self.shards[shard].status != Status::Parked;
        let (.., shard, host) = pairs
            .into_iter()
            .filter(|(_, host)| self.hosts[*host].is_ready())
            .map(|(shard, host)| (spare(shard), self.hosts[host].preference(), shard, host))
            .min()?;
        if let Some(job) = self.jobs.get_mut(&id) {
            job.in_flight.push(shard);
        }
        Some(self.fetch(shard, host, Some(id)))
    }

    /// All that is needed was kept: computes what is still missing.
    fn rebuild(&mut self, id: JobId) -> Option<Action> {
        let job = self.jobs.get(&id)?;
        let stripe = &self.stripes[job.stripe];
        let under_way = |flight: &Flight| matches!(flight, Flight::Rebuild { job } if *job == id);
        if self.flights.values().any(under_way) {
            return None;
        }
        let parked = |shard: &usize| self.shards[*shard].status == Status::Parked;
        let wanted: Vec<_> = stripe.shards().filter(parked).collect();
        if wanted.is_empty() {
            return Some(self.give_up(id, State::Free));
        }
        let named = |shard: &usize| Some((stripe.place(*shard)?, self.shards[*shard].id));
        let mut sources: Vec<_> = job.kept.iter().filter_map(named).collect();
        sources.sort_unstable();
        let plan = RebuildPlan {
            job: id,
            k: stripe.k,
            data: stripe.data,
            sources,
            wanted: wanted
                .iter()
                .filter_map(|shard| {
                    named(shard).map(|(place, id)| (place, id, self.shards[*shard].bytes))
                })
                .collect(),
        };
        for shard in wanted {
            self.shards[shard].status = Status::InFlight;
        }
        let ticket = self.ticket(Flight::Rebuild { job: id });
        Some(Action::Rebuild { ticket, plan })
    }

    pub(super) fn shard_kept(&mut self, id: JobId, shard: usize) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.in_flight.retain(|other| *other != shard);
            job.kept.push(shard);
        }
    }

    pub(super) fn shard_lost(&mut self, id: JobId, shard: usize) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.in_flight.retain(|other| *other != shard);
        }
    }

    pub(super) fn rebuilt(&mut self, id: JobId) {
        let Some(job) = self.jobs.remove(&id) else { return };
        for shard in self.being_rebuilt(&job) {
            self.installed(shard);
            self.progress.rebuilt += u64::from(self.shards[shard].bytes);
        }
        self.release(job.stripe, State::Free);
    }

    pub(super) fn rebuild_failed(&mut self, id: JobId) {
        let Some(job) = self.jobs.remove(&id) else { return };
        for shard in self.being_rebuilt(&job) {
            self.shards[shard].status = Status::Parked;
        }
        self.release(job.stripe, State::Broken);
    }

    /// The shards of a job that are being computed: in flight, but not from a host.
    fn being_rebuilt(&self, job: &Job) -> Vec<usize> {
        let fetched = |shard: &usize| {
            let of = |flight: &Flight| matches!(flight, Flight::Fetch { shard: other, install: true, .. } if other == shard);
            self.flights.values().any(of)
        };
        let in_flight = |shard: &usize| self.shards[*shard].status == Status::InFlight;
        self.stripes[job.stripe].shards().filter(in_flight).filter(|s| !fetched(s)).collect()
    }

    fn give_up(&mut self, id: JobId, state: State) -> Action {
        if let Some(job) = self.jobs.remove(&id) {
            self.release(job.stripe, state);
        }
        Action::Forget { job: id }
    }

    /// Lets the shards of a stripe go their own ways again.
    fn release(&mut self, stripe: usize, state: State) {
        self.stripes[stripe].state = state;
        for shard in self.stripes[stripe].shards().collect::<Vec<_>>() {
            if self.shards[shard].status == Status::Parked {
                self.route(shard);
            }
        }
    }
}
