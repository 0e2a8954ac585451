//! Numbers for hosts and shards: those that the stripe maps name at the start, and neighbours as they are met.

use std::collections::{BTreeSet, HashSet};

use super::{Fetcher, Host, ShardState, Source, Status, StripeState, Wanted};
use crate::id::{AgentId, SegmentId};
use crate::stripe_map::{ShardPlace, StripeMap};

impl Fetcher {
    pub(super) fn load(&mut self, wanted: &[Wanted], maps: &[StripeMap], members: &[AgentId]) {
        let members: HashSet<_> = members.iter().copied().collect();
        let needed: HashSet<_> = wanted.iter().map(|segment| segment.id).collect();
        for (map, stripe) in maps.iter().flat_map(|map| map.stripes.iter().map(move |s| (map, s))) {
            if !stripe.data.iter().any(|shard| needed.contains(&shard.id)) {
                continue;
            }
            let index = self.stripes.len();
            let mut places = Vec::new();
            for (place, shard) in stripe.shards() {
                let holders: Vec<_> = map
                    .agents(shard)
                    .filter(|agent| members.contains(agent))
                    .map(|agent| self.host(Source::Peer(agent)))
                    .collect();
                // A segment that two maps name belongs to the first; both say who holds it.
                let at = self.shard(shard.id, shard.bytes, Some((index, place)));
                for holder in holders {
                    self.hold(holder, at);
                }
                places.push((place, at));
            }
            self.stripes.push(StripeState::new(stripe, places));
        }
        for segment in wanted {
            let at = self.shard(segment.id, segment.bytes, None);
            if self.shards[at].status == Status::Spare {
                self.shards[at].status = Status::Stranded;
                self.shards[at].bytes = segment.bytes;
                self.wanted.push(at);
                self.progress.wanted_segments += 1;
                self.progress.wanted_bytes += u64::from(segment.bytes);
            }
        }
    }

    /// The host's number; new ones get one.
    pub(super) fn host(&mut self, source: Source) -> usize {
        if let Some(known) = self.host_of.get(&source) {
            return *known;
        }
        let host = self.hosts.len();
        self.hosts.push(Host::new(source));
        self.held.push(Vec::new());
        self.queues.push(BTreeSet::new());
        self.host_of.insert(source, host);
        host
    }

    /// The shard's number; new ones get one.
    fn shard(&mut self, id: SegmentId, bytes: u32, stripe: Option<(usize, ShardPlace)>) -> usize {
        if let Some(known) = self.shard_of.get(&id) {
            return *known;
        }
        let at = self.shards.len();
        let rank = (0, self.chance(&id.0), at);
        let status = Status::Spare;
        self.shards.push(ShardState { id, bytes, holders: Vec::new(), stripe, status, rank });
        self.shard_of.insert(id, at);
        at
    }

    /// Notes that a host holds a shard. False when that was known.
    pub(super) fn hold(&mut self, host: usize, shard: usize) -> bool {
        let new = !self.shards[shard].holders.contains(&host);
        if new {
            self.shards[shard].holders.push(host);
            self.held[host].push(shard);
        }
        new
    }
}
