use proptest::prelude::*;

use super::*;
use crate::planner::stripes_that_fit;

fn empty(stripes: usize, width: usize) -> Vec<Row> {
    vec![vec![None; width]; stripes]
}

fn rows(table: &[Vec<HolderIndex>]) -> Vec<Row> {
    table.iter().map(|row| row.iter().copied().map(Some).collect()).collect()
}

fn loads(table: &[Vec<HolderIndex>], holders: usize) -> Vec<u64> {
    let mut loads = vec![0; holders];
    table.iter().flatten().for_each(|holder| loads[usize::from(holder.0)] += 1);
    loads
}

fn no_one_twice(table: &[Vec<HolderIndex>]) -> bool {
    table.iter().all(|row| (1..row.len()).all(|at| !row[..at].contains(&row[at])))
}

fn moved(before: &[Vec<HolderIndex>], after: &[Vec<HolderIndex>]) -> u64 {
    before.iter().flatten().zip(after.iter().flatten()).filter(|(a, b)| a != b).count() as u64
}

/// The share of the last holder, and what moves when it leaves.
fn leave(rooms: &[u64], width: usize) -> (u64, u64) {
    let before = place(&empty(400, width), &[], rooms).unwrap();
    let gone = rooms.len() - 1;
    let after = place(&rows(&before), &[], &rooms[..gone]).unwrap();
    assert!(no_one_twice(&after));
    (loads(&before, rooms.len())[gone], moved(&before, &after))
}

proptest! {
    #[test]
    fn whatever_fits_is_placed(rooms in prop::collection::vec(1..60_u64, 2..14), width in 2..8_usize, percent in 1..=100_u64) {
        let stripes = stripes_that_fit(&rooms, width) * percent / 100;
        let table = place(&empty(usize::try_from(stripes).unwrap(), width), &[], &rooms).unwrap();
        prop_assert!(no_one_twice(&table));
        let loads = loads(&table, rooms.len());
        prop_assert!(loads.iter().zip(&rooms).all(|(load, room)| load <= room));
        for (load, quota) in loads.iter().zip(quotas(&rooms, &loads, stripes, stripes * width as u64).unwrap()) {
            prop_assert!(load.abs_diff(quota) <= 1 + quota / 64, "{load} for a quota of {quota}");
        }
    }

    #[test]
    fn placing_again_moves_nothing(rooms in prop::collection::vec(20..60_u64, 4..14), width in 2..4_usize, stripes in 1..20_usize) {
        let table = place(&empty(stripes, width), &[], &rooms).unwrap();
        prop_assert_eq!(&place(&rows(&table), &[], &rooms).unwrap(), &table);
    }

    #[test]
    fn who_joins_receives_his_share_and_nobody_else_moves(
        rooms in prop::collection::vec(1000..3000_u64, 6..20), width in 2..6_usize, newcomer in 1000..3000_u64,
    ) {
        let before = place(&empty(400, width), &[], &rooms).unwrap();
        let all: Vec<_> = rooms.iter().copied().chain([newcomer]).collect();
        let after = place(&rows(&before), &[], &all).unwrap();
        prop_assert!(no_one_twice(&after));
        let share = loads(&after, all.len())[rooms.len()];
        prop_assert!(share > 0);
        prop_assert!(moved(&before, &after) * 10 <= share * 11, "{} moved for {share}", moved(&before, &after));
    }

    #[test]
    fn who_leaves_gives_his_share_away_and_nobody_else_moves(
        rooms in prop::collection::vec(1000..3000_u64, 9..20), width in 2..=4_usize,
    ) {
        let (share, moved) = leave(&rooms, width);
        prop_assert!(moved * 10 <= share * 11, "{moved} moved for {share}");
    }

    /// Where nearly everyone has a shard of every stripe, few can take over and chains are needed.
    #[test]
    fn who_leaves_a_tight_fleet_costs_little_more(rooms in prop::collection::vec(1000..3000_u64, 7..9), width in 4..=5_usize) {
        let (share, moved) = leave(&rooms, width);
        prop_assert!(moved * 10 <= share * 13, "{moved} moved for {share}");
    }

    #[test]
    fn a_table_in_disorder_is_put_right(
        rooms in prop::collection::vec(12..30_u64, 5..9),
        now in prop::collection::vec(prop::collection::vec(prop::option::of((0..11_u16).prop_map(HolderIndex)), 1..=4), 1..12),
    ) {
        let table = place(&now, &[], &rooms).unwrap();
        prop_assert!(no_one_twice(&table));
        prop_assert!(loads(&table, rooms.len()).iter().zip(&rooms).all(|(load, room)| load <= room));
        prop_assert_eq!(place(&now, &[], &rooms).unwrap(), table);
    }

    #[test]
    fn nearly_all_lent_space_is_usable(rooms in prop::collection::vec(2500..10_000_u64, 12..40)) {
        // 10 to 40 GB from each, stripes of 6 places: no client is so large that the others cannot match it.
        let stripes = stripes_that_fit(&rooms, 6);
        let lent: u64 = rooms.iter().sum();
        prop_assert!(stripes * 6 * 1000 >= lent * 980, "{} of {lent}", stripes * 6);
    }
}

#[test]
fn a_full_fleet_is_filled_to_the_last_stripe() {
    let rooms: Vec<u64> = (0..24).map(|n| 500 + 37 * (n * 7 % 24)).collect();
    let stripes = stripes_that_fit(&rooms, 6);
    let table = place(&empty(usize::try_from(stripes).unwrap(), 6), &[], &rooms).unwrap();
    let lent: u64 = rooms.iter().sum();
    assert!(no_one_twice(&table));
    assert!(stripes * 6 * 1000 >= lent * 985, "{} of {lent}", stripes * 6);
}

#[test]
fn quotas_follow_the_rooms_and_stop_at_one_per_stripe() {
    assert_eq!(quotas(&[10, 20, 30], &[0; 3], 100, 30), Ok(vec![5, 10, 15]));
    assert_eq!(quotas(&[1000, 20, 20], &[0; 3], 10, 20), Ok(vec![10, 5, 5]));
    // The odd shard stays with the one who has it.
    assert_eq!(quotas(&[10, 10, 10], &[3, 3, 4], 10, 10), Ok(vec![3, 3, 4]));
    assert_eq!(
        quotas(&[1000, 1], &[0; 2], 10, 20),
        Err(PlaceError::NoRoom { shards: 20, room: 11 })
    );
    assert_eq!(quotas(&[], &[], 0, 0), Ok(vec![]));
}

#[test]
fn a_stripe_wider_than_the_fleet_is_refused() {
    assert_eq!(place(&empty(1, 3), &[], &[10, 10]), Err(PlaceError::NoRoom { shards: 3, room: 2 }));
    let rows = vec![vec![None; 3], vec![None; 1]];
    assert_eq!(place(&rows, &[], &[10, 10]), Err(PlaceError::NoRoom { shards: 4, room: 20 }));
}

#[test]
fn a_wide_group_carries_parity_in_turn() {
    let table = place(&empty(40, 4), &[], &[100; 4]).unwrap();
    for place in 0..4 {
        let holders: std::collections::BTreeSet<_> = table.iter().map(|row| row[place]).collect();
        assert_eq!(holders.len(), 4, "place {place} is always with the same holders");
    }
}
