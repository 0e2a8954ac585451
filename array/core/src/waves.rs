//! Waves: in what order clients may lose what they hold, when many of them are installed anew.
//!
//! An install overwrites the disk of its machine, and with it the storage file of the client that the machine was. Each goes
//! only when every stripe in which it holds a shard can be read without it. Those that may go at once are a wave; the next one
//! begins when the clients that are left hold in full what the first ones took with them.
//!
//! A client that sleeps still has its shards, so it counts; a shard without holders is with the server, which stays. A stripe without parity and with one holder promises nothing: there
//! waiting would not help, so it holds nobody up.

use crate::{
    id::{AgentId, SegmentId},
    stripe_map::{Shard, Stripe, StripeIndex, StripeMap},
};

/// The first stripe of a map that could not be read any more without `leaving`, which holds a shard of it.
/// `holds` says whether a client has a segment, and its disk was not overwritten since.
#[must_use]
pub fn unreadable_without(
    map: &StripeMap,
    holds: impl Fn(AgentId, SegmentId) -> bool,
    leaving: AgentId,
) -> Option<StripeIndex> {
    let has = |shard: &Shard, agent: AgentId| {
        map.agents(shard).any(|holder| holder == agent) && holds(agent, shard.id)
    };
    let left = |shard: &Shard| {
        let mut holders = map.agents(shard);
        shard.holders.is_empty() || holders.any(|agent| agent != leaving && holds(agent, shard.id))
    };
    let is_protected = |stripe: &Stripe| {
        !stripe.parity.is_empty() || stripe.data.iter().all(|shard| shard.holders.len() > 1)
    };
    let breaks = |stripe: &Stripe| {
        let mut shards = stripe.shards();
        is_protected(stripe)
            && shards.any(|(_, shard)| has(shard, leaving))
            && stripe.shards().filter(|(_, shard)| left(shard)).count() < stripe.data.len()
    };
    let broken = (0..).zip(&map.stripes).find(|(_, stripe)| breaks(stripe));
    broken.map(|(index, _)| StripeIndex(index))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        id::StripeSetId,
        layout::{DataSegment, Held, Member, Share, Spread, converge},
        planner::Redundancy,
        units::Generation,
    };

    fn agent(n: u8) -> AgentId {
        AgentId([n; 16])
    }

    /// A map for so many clients, as the real layout makes it.
    fn map(clients: u8, redundancy: impl Into<Spread>, segments: u8) -> StripeMap {
        let data: Vec<_> = (0..segments)
            .map(|n| DataSegment { id: SegmentId([n; 32]), bytes: 4096, device: 0 })
            .collect();
        let members: Vec<_> =
            (0..clients).map(|n| Member { agent: agent(n), room: 1000 }).collect();
        let layout = converge(None, &data, redundancy, &members, &Held::new()).unwrap();
        let computed = layout.to_compute().map(|(stripe, row, _)| {
            let mut id = [0xff; 32];
            id[..4].copy_from_slice(&stripe.0.to_le_bytes());
            id[4] = row;
            ((stripe, row), SegmentId(id))
        });
        let computed = computed.collect();
        layout.map(StripeSetId([1; 16]), Generation(1), &computed).unwrap()
    }

    fn is_readable(map: &StripeMap, gone: &BTreeSet<AgentId>) -> bool {
        map.stripes.iter().all(|stripe| {
            let there = |shard: &Shard| map.agents(shard).any(|agent| !gone.contains(&agent));
            stripe.shards().filter(|(_, shard)| there(shard)).count() >= stripe.data.len()
        })
    }

    #[test]
    fn as_many_go_at_once_as_there_is_parity() {
        let map = map(6, Redundancy::Parity { k: 4, m: 2 }, 24);
        let mut gone = BTreeSet::new();
        for n in 0..6 {
            let holds = |agent: AgentId, _: SegmentId| !gone.contains(&agent);
            if unreadable_without(&map, holds, agent(n)).is_none() {
                gone.insert(agent(n));
            }
        }
        assert_eq!(gone, BTreeSet::from([agent(0), agent(1)]));
        // Who holds nothing is in nobody's way, whatever is broken.
        assert_eq!(unreadable_without(&map, |_, _| false, agent(9)), None);
    }

    #[test]
    fn parity_on_the_server_counts_and_parity_of_its_own_data_holds_nobody_up() {
        let redundancy = Redundancy::Parity { k: 4, m: 2 };
        let data_on_clients = map(4, Spread { redundancy, share: Share::Data }, 24);
        let mut gone = BTreeSet::new();
        for n in 0..4 {
            let holds = |agent: AgentId, _: SegmentId| !gone.contains(&agent);
            if unreadable_without(&data_on_clients, holds, agent(n)).is_none() {
                gone.insert(agent(n));
            }
        }
        assert_eq!(gone, BTreeSet::from([agent(0), agent(1)]));
        let parity_on_clients = map(4, Spread { redundancy, share: Share::Parity }, 24);
        assert_eq!(unreadable_without(&parity_on_clients, |_, _| false, agent(0)), None);
    }

    #[test]
    fn a_copy_stays() {
        let map = map(3, Redundancy::Copies { count: 2 }, 9);
        let holds = |_: AgentId, _: SegmentId| true;
        assert_eq!(unreadable_without(&map, holds, agent(0)), None);
        let without_0 = |who: AgentId, _: SegmentId| who != agent(0);
        assert!(unreadable_without(&map, without_0, agent(1)).is_some());
    }

    #[test]
    fn what_somebody_was_to_hold_and_does_not_yet_does_not_count() {
        let map = map(4, Redundancy::Parity { k: 3, m: 1 }, 9);
        let late = map.stripes[1].data[0].id;
        let holder = map.agents(&map.stripes[1].data[0]).next().unwrap();
        let holds = |_: AgentId, id: SegmentId| id != late;
        let other = (0..4).map(agent).find(|agent| *agent != holder).unwrap();
        assert_eq!(unreadable_without(&map, holds, other), Some(StripeIndex(1)));
    }

    proptest! {
        #[test]
        fn whoever_asks_in_whatever_order_all_stays_readable(
            clients in 2..9_u8,
            parity in any::<bool>(),
            m in 1..3_u8,
            segments in 1..20_u8,
            asks in vec(0..9_u8, 0..20),
        ) {
            let m = m.min(clients - 1);
            let redundancy = if parity && clients - m > 1 {
                Redundancy::Parity { k: clients - m, m }
            } else {
                Redundancy::Copies { count: m + 1 }
            };
            let map = map(clients, redundancy, segments);
            let mut gone = BTreeSet::new();
            for ask in asks {
                let holds = |who: AgentId, _: SegmentId| !gone.contains(&who);
                let refused = unreadable_without(&map, holds, agent(ask)).is_some();
                let mut then = gone.clone();
                then.insert(agent(ask));
                // Refused exactly when it would break something.
                prop_assert_eq!(refused, !is_readable(&map, &then));
                if !refused {
                    gone = then;
                }
            }
        }
    }
}
