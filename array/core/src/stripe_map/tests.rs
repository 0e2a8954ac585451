use proptest::prelude::*;

use super::*;

fn shard(seed: u32, bytes: u32, holders: Vec<u16>) -> Shard {
    Shard {
        id: SegmentId::of(&seed.to_le_bytes()),
        bytes,
        holders: holders.into_iter().map(HolderIndex).collect(),
    }
}

fn map_of(stripes: Vec<Stripe>) -> StripeMap {
    StripeMap {
        set: StripeSetId([3; 16]),
        number: Generation(7),
        holders: (0..8).map(|n| AgentId([n; 16])).collect(),
        stripes,
    }
}

fn sample() -> StripeMap {
    map_of(vec![
        Stripe {
            k: 2,
            data: vec![shard(1, 100, vec![0]), shard(2, 90, vec![1, 5])],
            parity: vec![shard(3, 100, vec![2]), shard(4, 100, vec![])],
        },
        Stripe { k: 2, data: vec![shard(5, 40, vec![3])], parity: vec![shard(6, 40, vec![4])] },
        Stripe { k: 1, data: vec![shard(7, 4, vec![6, 7])], parity: vec![] },
    ])
}

prop_compose! {
    fn any_shard()(bytes in 1..=4_194_304_u32, holders in prop::collection::btree_set(0..8_u16, 0..4)) -> Shard {
        shard(0, bytes, holders.into_iter().collect())
    }
}

prop_compose! {
    fn any_stripe()(k in 1..=32_u8)(
        k in Just(k),
        data in prop::collection::vec(any_shard(), 1..=usize::from(k)),
        parity in prop::collection::vec(any_shard(), if k == 1 { 0..1 } else { 0..6 }),
    ) -> Stripe {
        let mut stripe = Stripe { k, data, parity };
        let longest = stripe.parity_bytes();
        stripe.parity.iter_mut().for_each(|shard| shard.bytes = longest);
        stripe
    }
}

prop_compose! {
    fn any_map()(stripes in prop::collection::vec(any_stripe(), 0..6)) -> StripeMap {
        let mut map = map_of(stripes);
        let shards = map.stripes.iter_mut().flat_map(|stripe| stripe.data.iter_mut().chain(&mut stripe.parity));
        (0_u32..).zip(shards).for_each(|(n, shard)| shard.id = SegmentId::of(&n.to_le_bytes()));
        map
    }
}

proptest! {
    #[test]
    fn a_map_survives_its_encoding(map in any_map()) {
        prop_assert_eq!(StripeMap::decode(&map.encode()), Ok(map));
    }

    #[test]
    fn every_segment_is_found_at_its_place(map in any_map()) {
        let places = map.places();
        for (index, stripe) in map.numbered() {
            for (place, shard) in stripe.shards() {
                prop_assert_eq!(places.get(&shard.id), Some((index, place)));
                prop_assert_eq!(map.stripe(index).unwrap().shard(place), Some(shard));
            }
        }
    }

    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes(map in any_map(), at: prop::sample::Index, flip: u8) {
        let mut bytes = map.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(map) = StripeMap::decode(&bytes) {
            prop_assert_eq!(map.encode(), bytes);
        }
    }

    #[test]
    fn foreign_bytes_never_panic(bytes: Vec<u8>) {
        let mut body = Writer::with_header(MAGIC, VERSION);
        body.put(&bytes);
        prop_assert!(StripeMap::decode(&body.finish()).is_err() || bytes.len() >= 32);
    }
}

#[test]
fn the_layout_is_the_one_in_the_table() {
    let bytes = sample().encode();
    assert_eq!(&bytes[..8], b"CAIRNSTR");
    assert_eq!(bytes[8..10], [1, 0]);
    assert_eq!(bytes[10..26], [3; 16]);
    assert_eq!(bytes[26..34], [7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[34..38], [8, 0, 0, 0]);
    let stripes = 38 + 8 * 16;
    assert_eq!(bytes[stripes..stripes + 7], [3, 0, 0, 0, 2, 2, 2]);
    assert_eq!(bytes[stripes + 7 + 32..stripes + 7 + 39], [100, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_truncated_map_is_refused_at_every_length() {
    let bytes = sample().encode();
    for length in 0..bytes.len() {
        assert!(matches!(StripeMap::decode(&bytes[..length]), Err(DecodeError::Truncated { .. })));
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(StripeMap::decode(&longer), Err(DecodeError::Trailing { count: 1 }));
}

#[test]
fn what_breaks_an_invariant_is_refused_by_name() {
    let refused = |change: fn(&mut StripeMap)| {
        let mut map = sample();
        change(&mut map);
        StripeMap::decode(&map.encode()).unwrap_err()
    };
    let inconsistent = |field| DecodeError::Inconsistent { field };
    assert_eq!(refused(|map| map.holders[1] = map.holders[0]), inconsistent("holders"));
    assert_eq!(
        refused(|map| map.stripes[1].data[0].id = map.stripes[0].parity[0].id),
        inconsistent("segment id")
    );
    assert_eq!(refused(|map| map.stripes[0].k = 1), inconsistent("data shard count"));
    assert_eq!(refused(|map| map.stripes[0].data.clear()), inconsistent("data shard count"));
    assert_eq!(refused(|map| map.stripes[1].k = 1), inconsistent("parity shard count"));
    assert_eq!(
        refused(|map| map.stripes[0].parity[1].bytes = 90),
        inconsistent("parity shard bytes")
    );
    assert_eq!(refused(|map| map.stripes[2].data[0].bytes = 0), inconsistent("shard bytes"));
    assert_eq!(
        refused(|map| map.stripes[2].data[0].bytes = 4_194_305),
        DecodeError::Limit { field: "shard bytes", value: 4_194_305, limit: 4_194_304 }
    );
    assert_eq!(
        refused(|map| map.stripes[2].data[0].holders[1].0 = 8),
        inconsistent("shard holders")
    );
    assert_eq!(
        refused(|map| map.stripes[2].data[0].holders[1].0 = 6),
        inconsistent("shard holders")
    );
    assert_eq!(
        refused(|map| map.stripes[0].k = 33),
        DecodeError::Limit { field: "stripe k", value: 33, limit: 32 }
    );
}

#[test]
fn a_count_that_the_bytes_cannot_hold_allocates_nothing() {
    let mut body = map_of(vec![]).encode();
    let at = body.len() - 4;
    body[at..].copy_from_slice(&4_194_304_u32.to_le_bytes());
    assert_eq!(
        StripeMap::decode(&body),
        Err(DecodeError::Truncated { need: 4_194_304 * 40, have: 0 })
    );
    body[at..].copy_from_slice(&4_194_305_u32.to_le_bytes());
    assert_eq!(
        StripeMap::decode(&body),
        Err(DecodeError::Limit { field: "stripe count", value: 4_194_305, limit: 4_194_304 })
    );
}

#[test]
fn only_the_sites_signature_opens_a_map() {
    let key = SigningKey::from_seed(&[1; 32]).unwrap();
    let stranger = SigningKey::from_seed(&[2; 32]).unwrap();
    let map = sample();
    assert_eq!(StripeMap::open(&key.verifying_key(), &map.sign(&key)), Ok(map.clone()));
    assert_eq!(
        StripeMap::open(&key.verifying_key(), &map.sign(&stranger)),
        Err(DecodeError::Signature)
    );
}
