//! What can still be read when the server and some clients are gone.

use crate::{
    id::{AgentId, SegmentId},
    stripe_map::{Shard, StripeMap},
};

/// What is left of a set of stripes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub stripes: usize,
    /// Of these: cannot be read any more.
    pub unreadable: usize,
}

/// What clients can still read of a map without the server and without those that are `gone`. A stripe is readable while as
/// many of its shards are there as it has shards of data (MDS codes: any k of k + m). `holds` says whether a client has a
/// segment.
#[must_use]
pub fn left(
    map: &StripeMap,
    holds: impl Fn(AgentId, SegmentId) -> bool,
    gone: impl Fn(AgentId) -> bool,
) -> Left {
    let is_there =
        |shard: &Shard| map.agents(shard).any(|holder| !gone(holder) && holds(holder, shard.id));
    let unreadable = map.stripes.iter().filter(|stripe| {
        stripe.shards().filter(|(_, shard)| is_there(shard)).count() < stripe.data.len()
    });
    Left { stripes: map.stripes.len(), unreadable: unreadable.count() }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;
    use crate::{
        id::StripeSetId,
        layout::{DataSegment, Held, Member, converge},
        planner::Redundancy,
        units::Generation,
    };

    /// Twenty-four segments, one for each stripe member, on so many clients.
    fn map(clients: u8, k: u8, m: u8) -> StripeMap {
        let data: Vec<_> = (0..24)
            .map(|n| DataSegment { id: SegmentId([n; 32]), bytes: 4096, device: 0 })
            .collect();
        let members: Vec<_> =
            (0..clients).map(|n| Member { agent: AgentId([n; 16]), room: 1000 }).collect();
        let redundancy = Redundancy::Parity { k, m };
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

    proptest! {
        #[test]
        fn as_many_may_be_gone_as_there_is_parity_and_with_one_more_stripes_are_lost(
            m in 1_u8..4,
            gone in btree_set(0_u8..8, 0..8),
        ) {
            let map = map(8, 8 - m, m);
            let left = left(&map, |_, _| true, |agent| gone.contains(&agent.0[0]));
            prop_assert_eq!(left.unreadable > 0, gone.len() > usize::from(m));
        }
    }

    #[test]
    fn what_nobody_has_is_not_there() {
        let map = map(6, 4, 2);
        assert_eq!(left(&map, |_, _| true, |_| false), Left { stripes: 6, unreadable: 0 });
        assert_eq!(left(&map, |_, _| false, |_| false), Left { stripes: 6, unreadable: 6 });
        let lacking = left(&map, |_, id| id.0[0] >= 3, |_| false);
        assert!(lacking.unreadable > 0, "{lacking:?}");
    }
}
