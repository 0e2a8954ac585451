//! Targets that install the same image together: each passes on what it has.
//!
//! A neighbour is a peer whose holdings grow while it is asked. What the server has just given to one target it does not give to
//! the others: they are told so, and wait a while for the announcement.

use super::{Action, Failure, Fault, Fetcher, Flight, Host, Source, Status};
use crate::id::SegmentId;

/// How long the announcement of a segment that another target gets is waited for.
const PROMISE_MS: u64 = 10_000;
/// How long neighbours are waited for that have not got, until now, what nobody else has.
const HOPE_MS: u64 = 60_000;
/// A fetch may always take as long as this before a second source is asked.
const PATIENCE_MS: u64 = 2_000;
/// The same for the last fetches, when there is nothing better to do.
const LAST_PATIENCE_MS: u64 = 500;
/// The same before anything has come, when nobody can tell what is usual: 4 MiB at 3.4 Mbit/s.
const FIRST_PATIENCE_MS: u64 = 10_000;
/// Announced segments that a neighbour may miss before it counts as having none.
const MISSES: u32 = 3;

impl Fetcher {
    /// A neighbour announces segments that it has. Those that are not of this image are ignored.
    pub fn on_have(&mut self, source: Source, segments: &[SegmentId]) {
        self.idle_since_ms = None;
        let host = self.host(source);
        let mut again = Vec::new();
        for id in segments {
            if let Some(shard) = self.shard_of.get(id).copied()
                && self.hold(host, shard)
            {
                again.push(shard);
            }
        }
        self.route_all(&again);
    }

    /// A neighbour has all that it wants.
    pub fn on_complete(&mut self, source: Source) {
        let host = self.host(source);
        self.hosts[host].complete = true;
    }

    /// A neighbour went away: what only it has is looked for elsewhere. It counts again when [`Fetcher::on_heard`] says so.
    pub fn on_gone(&mut self, source: Source) {
        if let Some(host) = self.host_of.get(&source).copied() {
            self.hosts[host].give_up();
            self.host_is_down(host);
        }
    }

    /// Fetches at once from one peer: few while there are many, all from the only one.
    pub(super) fn per_host(&self) -> usize {
        let up = |host: &&Host| host.is_up() && host.source != Source::Server;
        let up = self.hosts.iter().filter(up).count();
        (self.limits.in_flight / up.max(1)).max(self.limits.per_peer)
    }

    /// Another target gets the shard from the server: unless somebody else has it, it is waited for.
    pub(super) fn promise(&mut self, shard: usize, now_ms: u64) {
        if self.shards[shard].status == Status::AtServer {
            self.unqueue(shard);
            let until_ms = now_ms.saturating_add(PROMISE_MS);
            self.shards[shard].status = Status::Promised { until_ms };
            self.promised.insert((until_ms, shard));
        }
    }

    /// What was promised and did not come is asked for again.
    pub(super) fn break_promises(&mut self) {
        while let Some((until_ms, shard)) = self.promised.first().copied()
            && until_ms <= self.now_ms
        {
            self.route(shard);
        }
    }

    /// A source has not what it said, or what the map says of it. A neighbour whose every word is false is left alone.
    pub(super) fn note_missing(&mut self, host: usize, shard: usize) {
        let it = &mut self.hosts[host];
        match it.source {
            Source::Target(_) => {}
            // The server knows better than the map what it has dropped.
            Source::Peer(_) => return self.report(host, shard, Fault::Empty),
            Source::Server => return,
        }
        it.missing += 1;
        if it.served == 0 && it.missing == MISSES {
            it.give_up();
            self.report(host, shard, Fault::Empty);
            self.host_is_down(host);
        }
    }

    pub(super) fn took(&mut self, ms: u64) {
        self.typical_ms = Some(self.typical_ms.map_or(ms, |typical| (typical * 7 + ms) / 8));
    }

    /// How long a fetch may take before a second source is asked.
    fn patience_ms(&self) -> u64 {
        let left = self.progress.wanted_segments - self.progress.done_segments;
        let Some(typical) = self.typical_ms else { return FIRST_PATIENCE_MS };
        if left <= self.limits.in_flight {
            LAST_PATIENCE_MS.max(typical.saturating_mul(2))
        } else {
            PATIENCE_MS.max(typical.saturating_mul(4))
        }
    }

    /// How long the part of a rebuild may take: it is not asked of two, but the rebuild can do with others.
    fn part_patience_ms(&self) -> u64 {
        PATIENCE_MS.max(self.patience_ms()).saturating_mul(2)
    }

    /// Fetches for rebuilds: when they began.
    fn parts(&self) -> impl Iterator<Item = (u64, super::Ticket, usize, usize)> {
        self.flights.iter().filter_map(|(ticket, flight)| match *flight {
            Flight::Fetch { shard, host, job: Some(_), started_ms, .. } => {
                Some((started_ms, *ticket, shard, host))
            }
            Flight::Fetch { .. } | Flight::Rebuild { .. } | Flight::Turn { .. } => None,
        })
    }

    /// Ends the part of a rebuild that takes too long, as if it had not been answered.
    fn give_up_part(&mut self) -> Option<Action> {
        let patience = self.part_patience_ms();
        let late = |started: u64| started.saturating_add(patience) <= self.now_ms;
        let (_, ticket, shard, host) = self.parts().filter(|(started, ..)| late(*started)).min()?;
        self.report(host, shard, Fault::Slow);
        self.on_failed(ticket, Failure::Timeout, self.now_ms);
        Some(Action::Cancel { ticket })
    }

    /// Fetches that the image waits for and that run alone: shard, host, and when they began.
    fn alone(&self) -> impl Iterator<Item = (u64, usize, usize)> {
        self.flights.values().filter_map(|flight| match *flight {
            Flight::Fetch { shard, host, install: true, job: None, started_ms }
                if self.fetches_of(shard).count() == 1 =>
            {
                Some((started_ms, shard, host))
            }
            Flight::Fetch { .. } | Flight::Rebuild { .. } | Flight::Turn { .. } => None,
        })
    }

    fn fetches_of(&self, shard: usize) -> impl Iterator<Item = (super::Ticket, usize, u64)> {
        self.flights.iter().filter_map(move |(ticket, flight)| match *flight {
            Flight::Fetch { shard: other, host, install: true, started_ms, .. }
                if other == shard =>
            {
                Some((*ticket, host, started_ms))
            }
            Flight::Fetch { .. } | Flight::Rebuild { .. } | Flight::Turn { .. } => None,
        })
    }

    /// Whether other hosts that are up have enough shards of the stripe.
    fn can_rebuild_without(&self, stripe: usize, host: usize) -> bool {
        self.can_rebuild_if(stripe, |other| other != host)
    }

    pub(super) fn is_in_flight(&self, shard: usize) -> bool {
        self.fetches_of(shard).next().is_some()
    }

    /// When the next fetch becomes overdue that is not yet, or is given up.
    pub(super) fn overdue_at(&self) -> Option<u64> {
        let (patience, of_part) = (self.patience_ms(), self.part_patience_ms());
        let alone = self.alone().flat_map(|(started, ..)| {
            [patience, PATIENCE_MS.max(patience)].map(|patience| started.saturating_add(patience))
        });
        let parts = self.parts().map(|(started, ..)| started.saturating_add(of_part));
        alone.chain(parts).filter(|at| *at > self.now_ms).min()
    }

    /// Asks a second source for what is overdue, the longest first. What only the slow source has is rebuilt from its stripe if
    /// it can be, and asked of the server otherwise.
    pub(super) fn next_second(&mut self) -> Option<Action> {
        if let Some(given_up) = self.give_up_part() {
            return Some(given_up);
        }
        let patience = self.patience_ms();
        if self.fetching >= self.limits.in_flight {
            return None;
        }
        let mut overdue: Vec<_> = self
            .alone()
            .filter(|(started, ..)| started.saturating_add(patience) <= self.now_ms)
            .collect();
        overdue.sort_unstable();
        for (started_ms, shard, first) in overdue {
            let stripe = self.shards[shard].stripe.map(|(stripe, _)| stripe);
            let mut others: Vec<_> = self.sources(shard).filter(|host| *host != first).collect();
            if others.is_empty() {
                if stripe.is_some_and(|stripe| self.can_rebuild_without(stripe, first)) {
                    if self.now_ms.saturating_sub(started_ms) >= patience.max(PATIENCE_MS) {
                        return self.give_up_fetch(shard);
                    }
                    continue;
                }
                let server = self.server.filter(|server| self.may_ask(*server, shard));
                others.extend(server.filter(|server| *server != first));
            }
            let ready = others.iter().copied().filter(|host| self.hosts[*host].is_ready());
            if let Some(host) = ready.min_by_key(|host| self.hosts[*host].preference()) {
                return Some(self.fly(shard, host, true, None));
            }
            self.wishes.extend(others);
        }
        None
    }

    /// Ends the only fetch of a shard as if it had not been answered.
    fn give_up_fetch(&mut self, shard: usize) -> Option<Action> {
        let (ticket, host, _) = self.fetches_of(shard).next()?;
        self.report(host, shard, Fault::Slow);
        self.on_failed(ticket, Failure::Timeout, self.now_ms);
        Some(Action::Cancel { ticket })
    }

    /// Asks for a turn where one could be used, and gives back what cannot be used now.
    pub(super) fn next_turn(&mut self) -> Option<Action> {
        let ready = |host: &Host| !host.turns.is_empty();
        if let Some(host) = self.hosts.iter_mut().find(|host| ready(host)) {
            return host.turns.pop().map(|turn| Action::Pass { turn });
        }
        if self.progress.done_segments == self.progress.wanted_segments {
            return self.drop_asked();
        }
        let (per_host, room, server_room) =
            (self.per_host(), self.has_room(), self.has_room_for_server());
        let host = (0..self.hosts.len()).find(|host| {
            let server = Some(*host) == self.server;
            let waiting = if server {
                server_room && !self.at_server.is_empty()
            } else {
                room && !self.queues[*host].is_empty()
            };
            let most = if server { self.limits.in_flight } else { per_host };
            (waiting || room && self.wishes.contains(host)) && self.hosts[*host].is_free(most)
        })?;
        self.hosts[host].asked += 1;
        let ticket = self.ticket(Flight::Turn { host });
        Some(Action::Ask { ticket, from: self.hosts[host].source })
    }

    /// Nothing is wanted any more.
    fn drop_asked(&mut self) -> Option<Action> {
        let turn = |flight: &Flight| match *flight {
            Flight::Turn { host } => Some(host),
            Flight::Fetch { .. } | Flight::Rebuild { .. } => None,
        };
        let (ticket, host) =
            self.flights.iter().find_map(|(ticket, flight)| Some((*ticket, turn(flight)?)))?;
        self.flights.remove(&ticket);
        self.hosts[host].asked -= 1;
        Some(Action::Cancel { ticket })
    }

    /// The shard came: whoever else is asked for it need not go on, and was slow when he was asked long before.
    pub(super) fn cancel_others(&mut self, shard: usize, now_ms: u64) {
        let others: Vec<_> = self.fetches_of(shard).collect();
        let patience = self.patience_ms();
        for (ticket, host, started_ms) in others {
            self.flights.remove(&ticket);
            self.fetching -= 1;
            self.hosts[host].in_flight -= 1;
            self.cancelled.push(ticket);
            if now_ms.saturating_sub(started_ms) >= PATIENCE_MS.max(patience) {
                self.report(host, shard, Fault::Slow);
                if self.hosts[host].failed(now_ms, self.limits.gone_after) {
                    self.host_is_down(host);
                }
            }
        }
    }

    /// Until when it is worth waiting for neighbours, when nothing else is left to do.
    pub(super) fn hopeful_until(&mut self) -> Option<u64> {
        let growing = |host: &Host| {
            matches!(host.source, Source::Target(_)) && host.is_up() && !host.complete
        };
        if !self.flights.is_empty() || !self.hosts.iter().any(growing) {
            return None;
        }
        let since = *self.idle_since_ms.get_or_insert(self.now_ms);
        Some(since.saturating_add(HOPE_MS)).filter(|until| *until > self.now_ms)
    }
}

impl Failure {
    /// Whether it says that the source does not answer.
    pub(super) const fn is_silence(self) -> bool {
        matches!(self, Self::Timeout | Self::Refused)
    }
}
