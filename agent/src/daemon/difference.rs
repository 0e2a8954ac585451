//! What an assignment asks of an agent: the pure difference between what it has and what it is to have.
//!
//! Invariant: no segment is both fetched and dropped; what the assignment names is never dropped.

use std::collections::HashSet;

use cairn_array::wire::{AssignedSegment, Assignment};
use cairn_core::id::SegmentId;

/// The work that an assignment is.
#[derive(Clone, Debug, Default)]
pub(super) struct Difference {
    /// What is missing: data before parity, so that an interrupted scatter is worth the most.
    pub fetch: Vec<AssignedSegment>,
    /// What is held and not named.
    pub drop: Vec<SegmentId>,
}

/// Compares what is held with what an assignment names; a segment named twice counts once.
#[must_use]
pub(super) fn difference(held: &HashSet<SegmentId>, assignment: &Assignment) -> Difference {
    let mut named = HashSet::with_capacity(assignment.segments.len());
    let mut fetch: Vec<AssignedSegment> = assignment
        .segments
        .iter()
        .filter(|segment| named.insert(segment.id) && !held.contains(&segment.id))
        .cloned()
        .collect();
    fetch.sort_by_key(|segment| std::cmp::Reverse(segment.class));
    let mut drop: Vec<SegmentId> = held.difference(&named).copied().collect();
    drop.sort_unstable();
    Difference { fetch, drop }
}

#[cfg(test)]
mod tests {
    use cairn_array::wire::SegmentClass;
    use cairn_core::units::Generation;

    use super::*;

    fn id(byte: u8) -> SegmentId {
        SegmentId([byte; 32])
    }

    fn assignment(ids: &[(u8, SegmentClass)]) -> Assignment {
        let segment = |(byte, class): &(u8, SegmentClass)| AssignedSegment {
            id: id(*byte),
            bytes: 100,
            class: *class,
            sources: vec![],
        };
        Assignment {
            number: Generation(1),
            segments: ids.iter().map(segment).collect(),
            recheck: vec![],
        }
    }

    #[test]
    fn what_is_missing_is_fetched_and_what_is_not_named_dropped() {
        use SegmentClass::{Data, Parity};
        let held = HashSet::from([id(1), id(2), id(9)]);
        let assignment = assignment(&[(4, Parity), (2, Data), (3, Data), (3, Data)]);
        let work = difference(&held, &assignment);
        let fetched: Vec<_> = work.fetch.iter().map(|segment| segment.id).collect();
        assert_eq!(fetched, [id(3), id(4)], "data first, each once");
        assert_eq!(work.drop, [id(1), id(9)]);
    }

    #[test]
    fn doing_the_work_leaves_nothing_to_do() {
        use SegmentClass::Data;
        for seed in 0..64_u8 {
            let held: HashSet<_> =
                (0..8).filter(|bit| seed >> (bit % 6) & 1 == 1).map(id).collect();
            let wanted: Vec<_> =
                (0..8).filter(|n| (n * 7 + seed) % 3 > 0).map(|n| (n, Data)).collect();
            let assignment = assignment(&wanted);
            let work = difference(&held, &assignment);
            let mut after = held.clone();
            after.extend(work.fetch.iter().map(|segment| segment.id));
            after.retain(|id| !work.drop.contains(id));
            assert_eq!(after, wanted.iter().map(|(n, _)| id(*n)).collect());
            let again = difference(&after, &assignment);
            assert!(again.fetch.is_empty() && again.drop.is_empty());
        }
    }
}
