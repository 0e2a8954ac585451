//! Which slot holds what: the decisions of the DSF, without the file.
//!
//! Invariants:
//! - A segment is in at most one slot; the index names exactly the used slots.
//! - A slot is free, busy (being written or being cleared) or used; only its owner may change a busy one.
//! - A transition that does not apply changes nothing and says so.

use std::collections::{BTreeSet, HashMap};

use cairn_core::{id::SegmentId, units::ByteCount};

use super::{
    layout::{SlotCount, SlotIndex},
    slot::{SegmentClass, SlotHeader},
};

/// One segment that the DSF holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub id: SegmentId,
    pub length: u32,
    pub class: SegmentClass,
}

/// What the DSF holds in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub capacity: SlotCount,
    pub used: SlotCount,
    /// Sealed bytes held; the slots' own sizes do not count.
    pub held: ByteCount,
    /// Segments of each class, in the order of [`SegmentClass::ALL`].
    pub by_class: [u32; 4],
}

/// A used slot. `stamp` differs for each time that a slot was filled, so that a reader can tell whether
/// what it read was replaced meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) header: SlotHeader,
    pub(super) stamp: u64,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Free,
    Busy,
    Used(Entry),
}

#[derive(Debug, Default)]
pub(super) struct SlotTable {
    slots: Vec<Slot>,
    free: BTreeSet<SlotIndex>,
    index: HashMap<SegmentId, SlotIndex>,
    next_stamp: u64,
}

impl SlotTable {
    /// A table with so many slots, all of them free.
    pub(super) fn new(capacity: SlotCount) -> Self {
        let mut table = Self::default();
        table.grow(capacity);
        table
    }

    /// Takes over what a scan found in a slot. Of two slots with the same segment (a move that a crash
    /// interrupted) the earlier one is kept, with the higher class; the header to clear is returned.
    pub(super) fn adopt(&mut self, header: SlotHeader) -> Option<SlotIndex> {
        let slot = header.slot;
        if !self.free.remove(&slot) {
            return None;
        }
        if let Some(first) = self.index.get(&header.id).copied() {
            if let Some(Slot::Used(entry)) = self.slots.get_mut(first.position()) {
                entry.header.class = entry.header.class.max(header.class);
            }
            self.set(slot, Slot::Busy);
            return Some(slot);
        }
        self.set(slot, Slot::Busy);
        self.occupy(header);
        None
    }

    /// Takes the first free slot for writing.
    pub(super) fn reserve(&mut self) -> Option<SlotIndex> {
        let slot = self.free.pop_first()?;
        self.set(slot, Slot::Busy);
        Some(slot)
    }

    /// Gives a busy slot back.
    pub(super) fn release(&mut self, slot: SlotIndex) {
        if matches!(self.slots.get(slot.position()), Some(Slot::Busy)) {
            self.set(slot, Slot::Free);
            self.free.insert(slot);
        }
    }

    /// The busy slot's header is durable: from now on the slot holds the segment.
    pub(super) fn occupy(&mut self, header: SlotHeader) {
        let busy = matches!(self.slots.get(header.slot.position()), Some(Slot::Busy));
        if busy && !self.index.contains_key(&header.id) {
            self.next_stamp += 1;
            self.set(header.slot, Slot::Used(Entry { header, stamp: self.next_stamp }));
            self.index.insert(header.id, header.slot);
        }
    }

    /// Forgets a segment; its slot stays busy until its header is cleared and [`Self::release`] is called.
    pub(super) fn vacate(&mut self, id: SegmentId) -> Option<SlotIndex> {
        let slot = self.index.remove(&id)?;
        self.set(slot, Slot::Busy);
        Some(slot)
    }

    /// The segment's durable header is now this one, in another slot; the slot it left is returned, busy.
    pub(super) fn relocate(&mut self, header: SlotHeader) -> Option<SlotIndex> {
        let left = self.vacate(header.id)?;
        self.occupy(header);
        Some(left)
    }

    /// Changes what a segment is worth.
    pub(super) fn reclassify(&mut self, id: SegmentId, class: SegmentClass) {
        let slot = self.index.get(&id).copied();
        if let Some(Slot::Used(entry)) = slot.and_then(|slot| self.slots.get_mut(slot.position())) {
            entry.header.class = class;
        }
    }

    /// Adds free slots at the end.
    pub(super) fn grow(&mut self, capacity: SlotCount) {
        let from = self.capacity().0;
        self.slots.resize(self.slots.len().max(capacity.0 as usize), Slot::Free);
        self.free.extend((from..capacity.0).map(SlotIndex));
    }

    /// Cuts slots off at the end, if nothing is in them.
    pub(super) fn truncate(&mut self, capacity: SlotCount) -> bool {
        let tail = self.slots.get(capacity.0 as usize..).unwrap_or_default();
        if tail.iter().any(|slot| matches!(slot, Slot::Used(_))) {
            return false;
        }
        self.slots.truncate(capacity.0 as usize);
        self.free.split_off(&SlotIndex(capacity.0));
        true
    }

    /// What must go so that `capacity` slots are enough: the least valuable, wherever they lie; among
    /// equals those in the tail, which would have to be moved otherwise.
    pub(super) fn excess(&self, capacity: SlotCount) -> Vec<SegmentId> {
        self.least_valuable(self.used().0.saturating_sub(capacity.0), None)
    }

    /// The first few segments that lie where a file of `capacity` slots has ended.
    pub(super) fn tail(&self, capacity: SlotCount, most: usize) -> Vec<Entry> {
        self.entries().filter(|entry| entry.header.slot.0 >= capacity.0).take(most).collect()
    }

    /// Up to `count` segments, least valuable first, last slot first; with a limit only such as are
    /// worth less than it.
    pub(super) fn least_valuable(&self, count: u32, below: Option<SegmentClass>) -> Vec<SegmentId> {
        let mut candidates: Vec<_> = self
            .entries()
            .filter(|entry| below.is_none_or(|limit| entry.header.class < limit))
            .map(|entry| {
                (entry.header.class, std::cmp::Reverse(entry.header.slot), entry.header.id)
            })
            .collect();
        candidates.sort_unstable();
        candidates.into_iter().take(count as usize).map(|(_, _, id)| id).collect()
    }

    pub(super) fn get(&self, id: SegmentId) -> Option<Entry> {
        match self.slots.get(self.index.get(&id)?.position())? {
            Slot::Used(entry) => Some(*entry),
            Slot::Free | Slot::Busy => None,
        }
    }

    /// All used slots in file order.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Used(entry) => Some(*entry),
            Slot::Free | Slot::Busy => None,
        })
    }

    /// The next `count` used slots at or after `from`, and where to go on: 0 when the end was reached.
    pub(super) fn used_from(&self, from: SlotIndex, count: u32) -> (Vec<Entry>, SlotIndex) {
        let mut found = Vec::new();
        let rest = self.slots.get(from.position()..).unwrap_or_default();
        for slot in rest {
            if let Slot::Used(entry) = slot {
                if found.len() >= count as usize {
                    return (found, entry.header.slot);
                }
                found.push(*entry);
            }
        }
        (found, SlotIndex(0))
    }

    pub(super) const fn free(&self) -> &BTreeSet<SlotIndex> {
        &self.free
    }

    #[expect(clippy::cast_possible_truncation, reason = "made from a SlotCount")]
    pub(super) const fn capacity(&self) -> SlotCount {
        SlotCount(self.slots.len() as u32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "not more than there are slots")]
    pub(super) fn used(&self) -> SlotCount {
        SlotCount(self.index.len() as u32)
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats { capacity: self.capacity(), used: self.used(), ..Stats::default() };
        for entry in self.entries() {
            stats.held.0 += u64::from(entry.header.length);
            for (class, count) in SegmentClass::ALL.iter().zip(&mut stats.by_class) {
                *count += u32::from(*class == entry.header.class);
            }
        }
        stats
    }

    fn set(&mut self, slot: SlotIndex, state: Slot) {
        if let Some(place) = self.slots.get_mut(slot.position()) {
            *place = state;
        }
    }
}

impl From<&Entry> for Held {
    fn from(entry: &Entry) -> Self {
        let SlotHeader { id, length, class, .. } = entry.header;
        Self { id, length, class }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(slot: u32, name: u8, class: SegmentClass) -> SlotHeader {
        SlotHeader {
            slot: SlotIndex(slot),
            id: SegmentId([name; 32]),
            length: 100,
            class,
            checksum: 0,
        }
    }

    fn table(capacity: u32, used: &[(u32, u8, SegmentClass)]) -> SlotTable {
        let mut table = SlotTable::new(SlotCount(capacity));
        for (slot, name, class) in used {
            assert_eq!(table.adopt(header(*slot, *name, *class)), None);
        }
        table
    }

    #[test]
    fn a_slot_goes_from_free_to_busy_to_used_and_back() {
        let mut table = SlotTable::new(SlotCount(1));
        assert_eq!(table.reserve(), Some(SlotIndex(0)));
        assert_eq!(table.reserve(), None);
        table.occupy(header(0, 1, SegmentClass::Data));
        assert_eq!(table.stats().by_class, [0, 0, 0, 1]);
        // Not busy any more: releasing it would lose a segment.
        table.release(SlotIndex(0));
        assert_eq!(table.reserve(), None);
        assert_eq!(table.vacate(SegmentId([1; 32])), Some(SlotIndex(0)));
        assert_eq!(table.get(SegmentId([1; 32])), None);
        assert_eq!(table.reserve(), None);
        table.release(SlotIndex(0));
        assert_eq!(table.reserve(), Some(SlotIndex(0)));
    }

    #[test]
    fn of_duplicates_the_earlier_slot_stays_with_the_higher_class() {
        let mut table = table(4, &[(1, 7, SegmentClass::Cached)]);
        assert_eq!(table.adopt(header(3, 7, SegmentClass::Data)), Some(SlotIndex(3)));
        let kept = table.get(SegmentId([7; 32])).unwrap().header;
        assert_eq!((kept.slot, kept.class), (SlotIndex(1), SegmentClass::Data));
        assert_eq!(table.used(), SlotCount(1));
    }

    #[test]
    fn a_refilled_slot_has_another_stamp() {
        let mut table = table(1, &[(0, 7, SegmentClass::Data)]);
        let before = table.get(SegmentId([7; 32])).unwrap();
        table.vacate(SegmentId([7; 32]));
        table.occupy(before.header);
        assert_ne!(table.get(SegmentId([7; 32])).unwrap(), before);
    }

    #[test]
    fn shrinking_gives_nothing_up_when_there_is_room() {
        let table = table(5, &[(0, 1, SegmentClass::Cached), (4, 2, SegmentClass::Data)]);
        assert_eq!(table.excess(SlotCount(2)), []);
        let tail = table.tail(SlotCount(2), 9);
        assert_eq!(tail.iter().map(|entry| entry.header.slot).collect::<Vec<_>>(), [SlotIndex(4)]);
    }

    #[test]
    fn shrinking_gives_up_the_least_valuable_and_keeps_the_data() {
        use SegmentClass::{Cached, Data, OverRedundant, Parity};
        let used =
            [(0, 1, Data), (1, 2, Cached), (2, 3, Parity), (3, 4, OverRedundant), (4, 5, Data)];
        let excess = table(5, &used).excess(SlotCount(2));
        assert_eq!(excess, [2, 4, 3].map(|name| SegmentId([name; 32])));
    }

    #[test]
    fn among_equals_the_tail_goes_first() {
        let used = [0, 1, 2].map(|slot| (u32::from(slot), slot, SegmentClass::Data));
        assert_eq!(table(3, &used).excess(SlotCount(2)), [SegmentId([2; 32])]);
    }

    #[test]
    fn a_used_tail_is_not_cut_off() {
        let mut table = table(3, &[(2, 1, SegmentClass::Data)]);
        assert!(!table.truncate(SlotCount(2)));
        assert_eq!(table.capacity(), SlotCount(3));
        table.vacate(SegmentId([1; 32]));
        assert!(table.truncate(SlotCount(1)));
        assert_eq!((table.capacity(), table.free().len()), (SlotCount(1), 1));
    }

    #[test]
    fn a_scrub_goes_round() {
        let class = SegmentClass::Data;
        let table = table(9, &[(1, 1, class), (4, 4, class), (8, 8, class)]);
        let (first, next) = table.used_from(SlotIndex(0), 2);
        assert_eq!((first.len(), next), (2, SlotIndex(8)));
        let (last, next) = table.used_from(next, 2);
        assert_eq!((last.len(), next), (1, SlotIndex(0)));
    }
}
