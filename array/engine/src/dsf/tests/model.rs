//! The DSF against a plain map, under any order of operations.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Put(Vec<(u32, usize)>),
    Remove(Vec<u32>),
    SetClass(u32, usize),
    Evict(u32, usize),
    Resize(u32),
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    let name = 0..24_u32;
    prop_oneof![
        5 => proptest::collection::vec((name.clone(), 0..4_usize), 1..5).prop_map(Action::Put),
        3 => proptest::collection::vec(name.clone(), 1..4).prop_map(Action::Remove),
        1 => (name, 0..4_usize).prop_map(|(name, class)| Action::SetClass(name, class)),
        1 => (0..4_u32, 0..4_usize).prop_map(|(count, below)| Action::Evict(count, below)),
        2 => (0..12_u32).prop_map(Action::Resize),
        1 => Just(Action::Reopen),
    ]
}

struct Model {
    capacity: u32,
    held: HashMap<u32, SegmentClass>,
}

impl Model {
    fn apply(&mut self, dsf: &mut Dsf, action: &Action) {
        match action {
            Action::Put(batch) => self.put(dsf, batch),
            Action::Remove(names) => {
                let ids: Vec<_> = names.iter().map(|name| id(*name)).collect();
                let gone = names.iter().filter(|name| self.held.remove(name).is_some()).count();
                assert_eq!(dsf.remove(&ids).unwrap().0 as usize, gone);
            }
            Action::SetClass(name, class) => {
                let class = SegmentClass::ALL[*class];
                dsf.set_class(&[id(*name)], class).unwrap();
                self.held.entry(*name).and_modify(|held| *held = class);
            }
            Action::Evict(count, below) => {
                let below = SegmentClass::ALL[*below];
                let able = self.held.values().filter(|class| **class < below).count();
                let evicted = dsf.evict(SlotCount(*count), below).unwrap();
                assert_eq!(evicted.len(), able.min(*count as usize));
                assert!(evicted.iter().all(|held| held.class < below));
                self.evicted(&evicted);
            }
            Action::Resize(capacity) => {
                let resized = dsf.resize(SlotCount(*capacity)).unwrap();
                let excess = self.held.len().saturating_sub(*capacity as usize);
                assert_eq!((resized.evicted.len(), resized.rotten.len()), (excess, 0));
                self.evicted(&resized.evicted);
                self.capacity = *capacity;
            }
            Action::Reopen => {}
        }
    }

    fn put(&mut self, dsf: &mut Dsf, batch: &[(u32, usize)]) {
        let puts: Vec<_> =
            batch.iter().map(|(name, class)| put(*name, SegmentClass::ALL[*class])).collect();
        for ((name, class), answer) in batch.iter().zip(dsf.put(&puts)) {
            let class = SegmentClass::ALL[*class];
            let free = self.held.len() < self.capacity as usize;
            match answer {
                Ok(Stored::New) => assert!(free && self.held.insert(*name, class).is_none()),
                Ok(Stored::Already) => {
                    let held = self.held.get_mut(name).unwrap();
                    *held = (*held).max(class);
                }
                Err(PutError::NoFreeSlot { .. }) => {
                    assert!(!free && !self.held.contains_key(name));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn evicted(&mut self, evicted: &[Held]) {
        let names: HashMap<_, _> = self.held.keys().map(|name| (id(*name), *name)).collect();
        for held in evicted {
            assert_eq!(self.held.remove(&names[&held.id]), Some(held.class));
        }
        let most = evicted.iter().map(|held| held.class).max();
        assert!(self.held.values().all(|kept| most.is_none_or(|most| *kept >= most)));
    }

    fn check(&self, dsf: &Dsf, path: &Path) {
        let reader = dsf.reader();
        let mut expected: Vec<_> =
            self.held.iter().map(|(name, class)| (id(*name), *class)).collect();
        let mut listed: Vec<_> = reader.list().iter().map(|held| (held.id, held.class)).collect();
        expected.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, expected);
        assert_eq!(reader.stats().capacity, SlotCount(self.capacity));

        let payloads: u64 = reader.list().iter().map(|held| pages(held.length)).sum();
        // Superblocks, headers ever used, and the file system's own maps.
        let overhead = 64 * 4096 + (128 << 10);
        assert!(disk_bytes(path) <= payloads + overhead, "free slots keep space of the disk");
    }
}

fn pages(length: u32) -> u64 {
    u64::from(length).next_multiple_of(4096)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn does_what_a_map_does(capacity in 0..10_u32, actions in proptest::collection::vec(action(), 1..30)) {
        let place = Place::new();
        let mut dsf = place.create(capacity);
        let mut model = Model { capacity, held: HashMap::new() };
        for action in &actions {
            model.apply(&mut dsf, action);
            if matches!(action, Action::Reopen) {
                drop(dsf);
                dsf = place.open();
            }
            model.check(&dsf, &place.path);
        }
        let reader = dsf.reader();
        for name in 0..24 {
            match reader.get(id(name)) {
                Ok(bytes) => prop_assert_eq!(bytes, bytes_of(name)),
                Err(error) => {
                    prop_assert!(matches!(error, GetError::NotHeld(_)), "{}", error);
                    prop_assert!(!model.held.contains_key(&name));
                }
            }
        }
    }
}
