use proptest::prelude::*;

use super::*;
use crate::id::sha256;
use crate::planner::{Candidate, plan};
use crate::units::{ByteCount, SEGMENT_MAX_BYTES};

fn segments(range: std::ops::Range<u32>) -> Vec<DataSegment> {
    range
        .map(|n| DataSegment {
            id: SegmentId::of(&n.to_le_bytes()),
            bytes: 4_000_000 + n % 1000,
            device: 0,
        })
        .collect()
}

fn fleet(agents: impl IntoIterator<Item = u8>, room: u64) -> Vec<Member> {
    agents.into_iter().map(|n| Member { agent: AgentId([n; 16]), room }).collect()
}

/// The redundancy the planner would choose for these members.
fn redundancy(members: &[Member], segments: usize) -> Redundancy {
    let candidates: Vec<_> = members
        .iter()
        .map(|member| Candidate {
            agent: member.agent,
            room: ByteCount(member.room * SEGMENT_MAX_BYTES as u64),
            availability: 0.8,
            holds: false,
        })
        .collect();
    let needed = ByteCount((segments * SEGMENT_MAX_BYTES) as u64);
    plan(&candidates, needed).unwrap().redundancy
}

/// The map of a layout; each computed row gets an id that names what it was computed from.
fn realise(layout: &Layout, number: u64) -> StripeMap {
    let computed = layout
        .to_compute()
        .map(|(index, row, _)| {
            let stripe = &layout.stripes[usize::try_from(index.0).unwrap()];
            ((index, row), parity_id(stripe.k, &stripe.data, row))
        })
        .collect();
    let map = layout.map(StripeSetId([1; 16]), Generation(number), &computed).unwrap();
    map.check().unwrap();
    map
}

fn parity_id(k: u8, data: &[Shard], row: u8) -> SegmentId {
    let ids: Vec<u8> = data.iter().flat_map(|shard| shard.id.0).collect();
    SegmentId(sha256(&[&[k, row][..], &ids].concat()))
}

fn assert_sound(map: &StripeMap, data: &[DataSegment], redundancy: Redundancy) {
    let mut there: Vec<_> = map.stripes.iter().flat_map(|s| &s.data).map(|s| s.id).collect();
    let mut wanted: Vec<_> = data.iter().map(|segment| segment.id).collect();
    there.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(there, wanted);
    for stripe in &map.stripes {
        assert_eq!(stripe.k, redundancy.k());
        assert_eq!(stripe.parity.len(), usize::from(redundancy.m()));
        for (row, shard) in (0..).zip(&stripe.parity) {
            assert_eq!(shard.id, parity_id(stripe.k, &stripe.data, row), "stale parity was kept");
        }
        let mut holders: Vec<_> = stripe.shards().flat_map(|(_, s)| s.holders.clone()).collect();
        let expected = match redundancy {
            Redundancy::Copies { count } => usize::from(count),
            Redundancy::Parity { m, .. } => stripe.data.len() + usize::from(m),
        };
        assert_eq!(holders.len(), expected);
        holders.sort_unstable();
        holders.dedup();
        assert_eq!(holders.len(), expected, "a device holds two shards of a stripe");
    }
    let short = map.stripes.iter().filter(|s| s.data.len() < usize::from(s.k)).count();
    assert!(short <= 1);
}

fn step(now: Option<&StripeMap>, data: &[DataSegment], members: &[Member]) -> StripeMap {
    let redundancy = redundancy(members, data.len());
    let layout = converge(now, data, redundancy, members, &Held::new()).unwrap();
    let map = realise(&layout, now.map_or(1, |map| map.number.0 + 1));
    assert_sound(&map, data, redundancy);
    map
}

fn moved_data(before: &StripeMap, after: &StripeMap) -> usize {
    let data: HashSet<_> = before.stripes.iter().flat_map(|s| &s.data).map(|s| s.id).collect();
    transfers(Some(before), after).iter().filter(|t| data.contains(&t.segment)).count()
}

/// How many data segments each client holds; of two copies the one that a next layout keeps.
fn data_held(map: &StripeMap) -> BTreeMap<AgentId, usize> {
    let mut held = BTreeMap::new();
    for shard in map.stripes.iter().flat_map(|stripe| &stripe.data) {
        let agent = map.agents(shard).min_by_key(|agent| held.get(agent).copied().unwrap_or(0));
        *held.entry(agent.unwrap()).or_default() += 1;
    }
    held
}

#[test]
fn from_one_client_to_many_data_stays_where_it_is() {
    let data = segments(0..600);
    let mut map = step(None, &data, &fleet([1], 5000));
    for clients in 2..=12 {
        let next = step(Some(&map), &data, &fleet(1..=clients, 5000));
        // The second client gets a copy of all. Later, a client that has more data than there are stripes gives some away:
        // it may hold one shard of each.
        let above = |held: &usize| held.saturating_sub(next.stripes.len());
        let most = if clients == 2 { 600 } else { data_held(&map).values().map(above).sum() };
        assert_eq!(moved_data(&map, &next), most, "when client {clients} joined");
        map = next;
    }
}

#[test]
fn more_parity_keeps_the_rows_that_are_there_and_less_cuts_the_last() {
    let data = segments(0..100);
    let members = fleet(0..12, 500);
    let plan = |m| Redundancy::Parity { k: 4, m };
    let two = realise(&converge(None, &data, plan(2), &members, &Held::new()).unwrap(), 1);
    let layout = converge(Some(&two), &data, plan(3), &members, &Held::new()).unwrap();
    assert_eq!(layout.to_compute().count(), 25);
    assert!(layout.to_compute().all(|(_, row, _)| row == 2));
    let three = realise(&layout, 2);
    assert_eq!(moved_data(&two, &three), 0);
    let back = converge(Some(&three), &data, plan(2), &members, &Held::new()).unwrap();
    assert_eq!(back.to_compute().count(), 0);
    assert_eq!(transfers(Some(&three), &realise(&back, 3)), []);
}

#[test]
fn a_new_version_computes_parity_for_its_own_segments_only() {
    let members = fleet(0..4, 500);
    let first = step(None, &segments(0..101), &members);
    let all = segments(0..111);
    let layout =
        converge(Some(&first), &all, redundancy(&members, 111), &members, &Held::new()).unwrap();
    // 10 new segments and the one of the short stripe: 6 stripes, the last one short, 2 rows each.
    assert_eq!(layout.to_compute().count(), 12);
    assert_eq!(layout.stripes.len(), 56);
    assert_sound(&realise(&layout, 2), &all, redundancy(&members, 111));
}

#[test]
fn dead_segments_dissolve_their_stripes_alone() {
    let members = fleet(0..4, 500);
    let first = step(None, &segments(0..100), &members);
    let dead = first.stripes[7].data[1].id;
    let data: Vec<_> = segments(0..100).into_iter().filter(|s| s.id != dead).collect();
    let layout =
        converge(Some(&first), &data, redundancy(&members, 99), &members, &Held::new()).unwrap();
    assert_eq!(layout.to_compute().count(), 2);
    let next = realise(&layout, 2);
    assert_sound(&next, &data, redundancy(&members, 99));
    assert!(next.places().get(&dead).is_none());
    let empty =
        converge(Some(&next), &[], redundancy(&members, 0), &members, &Held::new()).unwrap();
    assert_eq!(empty.stripes, []);
}

#[test]
fn what_fits_is_not_changed() {
    let members = fleet(0..7, 500);
    let data = segments(0..100);
    let first = step(None, &data, &members);
    let again =
        converge(Some(&first), &data, redundancy(&members, 100), &members, &Held::new()).unwrap();
    assert_eq!(again.to_compute().count(), 0);
    assert_eq!(again.map(first.set, first.number, &HashMap::new()), Some(first));
}

#[test]
fn a_group_that_cannot_hold_the_plan_is_refused() {
    let plan = Redundancy::Parity { k: 2, m: 1 };
    let refused = converge(None, &segments(0..4), plan, &fleet(0..3, 1), &Held::new());
    assert_eq!(refused, Err(PlaceError::NoRoom { shards: 6, room: 3 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Clients come and go, versions come and go: every map on the way is sound.
    #[test]
    fn any_history_stays_sound(
        history in prop::collection::vec((prop::collection::btree_set(0..24_u8, 1..12), 0..150_u32, 1..150_u32), 1..8),
    ) {
        let mut map: Option<StripeMap> = None;
        for (agents, first, count) in history {
            let next = step(map.as_ref(), &segments(first..first + count), &fleet(agents, 400));
            map = Some(next);
        }
    }

    /// With k and m as they are, a client that joins receives about its share, and nothing is computed again.
    #[test]
    fn a_newcomer_receives_its_share(clients in 8..20_u8, count in 200..400_u32) {
        let plan = Redundancy::Parity { k: 4, m: 2 };
        let data = segments(0..count);
        let before = realise(&converge(None, &data, plan, &fleet(0..clients, 5000), &Held::new()).unwrap(), 1);
        let layout = converge(Some(&before), &data, plan, &fleet(0..=clients, 5000), &Held::new()).unwrap();
        prop_assert_eq!(layout.to_compute().count(), 0);
        let after = realise(&layout, 2);
        let moves = transfers(Some(&before), &after);
        let bytes = |moves: &[Transfer]| moves.iter().map(|t| u64::from(t.bytes)).sum::<u64>();
        let share: Vec<_> = moves.iter().filter(|t| t.to == AgentId([clients; 16])).copied().collect();
        prop_assert!(!share.is_empty());
        prop_assert!(bytes(&moves) * 10 <= bytes(&share) * 11);
    }
}

#[test]
fn who_comes_back_gets_what_it_still_has() {
    let (data, plan) = (segments(0..240), Redundancy::Parity { k: 4, m: 2 });
    let all: Vec<_> = fleet(0..8, 5000);
    let before = realise(&converge(None, &data, plan, &all, &Held::new()).unwrap(), 1);
    let gone = all[3].agent;
    let rest: Vec<_> = all.iter().copied().filter(|member| member.agent != gone).collect();
    let without = realise(&converge(Some(&before), &data, plan, &rest, &Held::new()).unwrap(), 2);
    let mut held = Held::new();
    for (_, shard) in before.stripes.iter().flat_map(Stripe::shards) {
        if before.agents(shard).any(|agent| agent == gone) {
            held.entry(shard.id).or_default().push(gone);
        }
    }
    let had = held.len();
    let back = realise(&converge(Some(&without), &data, plan, &all, &held).unwrap(), 3);
    assert_sound(&back, &data, plan);
    let to_it = |transfer: &&Transfer| transfer.to == gone;
    let share = transfers(Some(&without), &back);
    assert!(share.iter().filter(to_it).count() * 10 >= had * 9, "it has its share again");
    let fetched = share.iter().filter(to_it).filter(|t| !held.contains_key(&t.segment)).count();
    assert!(fetched * 20 <= had, "{fetched} fetched of {had}");
    // Who has it all already gets nothing new when nothing is to move.
    let again = converge(Some(&back), &data, plan, &all, &held).unwrap();
    assert_eq!(realise(&again, 4).stripes, back.stripes);
}

/// What each client holds of these shards, in bytes.
fn held_by(map: &StripeMap, shards: impl Fn(&Stripe) -> Vec<&Shard>) -> Vec<u64> {
    let mut held = vec![0; map.holders.len()];
    for shard in map.stripes.iter().flat_map(shards) {
        for holder in &shard.holders {
            held[usize::from(holder.0)] += u64::from(shard.bytes);
        }
    }
    held
}

/// Segments on so many devices, the last of which has fewer.
fn on_devices(count: u32, devices: usize) -> Vec<DataSegment> {
    let mut data = segments(0..count);
    for (number, segment) in data.iter_mut().enumerate() {
        segment.device = (number % (devices * 10 - 3)) % devices;
    }
    data
}

#[test]
fn each_client_holds_its_part_of_the_parity_of_the_servers_devices_and_less_the_more_clients_there_are()
 {
    let redundancy = Redundancy::Parity { k: 4, m: 2 };
    let spread = Spread { redundancy, share: Share::Parity };
    let data = on_devices(2000, 4);
    let device_of: HashMap<_, _> =
        data.iter().map(|segment| (segment.id, segment.device)).collect();
    let mut largest = u64::MAX;
    for clients in 4..=20 {
        let members = fleet(0..clients, 5000);
        let layout = converge(None, &data, spread, &members, &Held::new()).unwrap();
        let map = realise(&layout, 1);
        for stripe in &map.stripes {
            assert!(stripe.data.iter().all(|shard| shard.holders.is_empty()));
            let devices: HashSet<_> =
                stripe.data.iter().map(|shard| device_of[&shard.id]).collect();
            assert_eq!(devices.len(), stripe.data.len(), "a device has two segments of a stripe");
            let parity: HashSet<_> =
                stripe.parity.iter().map(|shard| shard.holders.clone()).collect();
            assert_eq!((parity.len(), stripe.parity.len()), (2, 2));
        }
        let there: HashSet<_> = map.stripes.iter().flat_map(|s| &s.data).map(|s| s.id).collect();
        assert_eq!(there.len(), data.len());
        let held = held_by(&map, |stripe| stripe.parity.iter().collect());
        let even = held.iter().sum::<u64>() / u64::from(clients);
        assert!(held.iter().all(|bytes| bytes.abs_diff(even) * 20 <= even), "{held:?}");
        let most = *held.iter().max().unwrap();
        assert!(most < largest, "{clients} clients: {most} of {largest}");
        largest = most;
    }
}

#[test]
fn a_segment_that_moved_to_another_device_is_protected_by_others() {
    let redundancy = Redundancy::Parity { k: 2, m: 1 };
    let spread = Spread { redundancy, share: Share::Parity };
    let members = fleet(0..3, 100);
    let mut data = on_devices(40, 2);
    let before = converge(None, &data, spread, &members, &Held::new()).unwrap();
    let before = realise(&before, 1);
    let same = converge(Some(&before), &data, spread, &members, &Held::new()).unwrap();
    assert_eq!(same.to_compute().count(), 0);
    // The first device is lost, and what it had is on the second now.
    for segment in &mut data {
        segment.device = 1;
    }
    let after =
        realise(&converge(Some(&before), &data, spread, &members, &Held::new()).unwrap(), 2);
    assert!(after.stripes.iter().all(|stripe| stripe.data.len() == 1));
}

#[test]
fn clients_hold_the_data_and_the_server_keeps_the_parity() {
    let redundancy = Redundancy::Parity { k: 3, m: 2 };
    let spread = Spread { redundancy, share: Share::Data };
    let data = segments(0..300);
    let members = fleet(0..5, 100);
    let first = realise(&converge(None, &data, spread, &members, &Held::new()).unwrap(), 1);
    for stripe in &first.stripes {
        assert!(stripe.parity.iter().all(|shard| shard.holders.is_empty()));
        let holders: HashSet<_> = stripe.data.iter().map(|shard| shard.holders.clone()).collect();
        assert_eq!(holders.len(), stripe.data.len());
    }
    let held = held_by(&first, |stripe| stripe.data.iter().collect());
    assert_eq!(held.iter().sum::<u64>(), data.iter().map(|it| u64::from(it.bytes)).sum::<u64>());
    // Without one of them, the others take over its part and nothing else moves.
    let rest = fleet([0, 1, 3, 4], 100);
    let next = realise(&converge(Some(&first), &data, spread, &rest, &Held::new()).unwrap(), 2);
    let moved: u64 = transfers(Some(&first), &next).iter().map(|it| u64::from(it.bytes)).sum();
    assert_eq!(moved, held[2]);
}
