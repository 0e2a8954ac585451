//! A map from blocks to places, by pages of 4096 blocks.
//!
//! A page is a sorted list of runs, so a run costs 12 bytes (a [`super::Place`]) and what the list keeps in reserve, at most
//! as much again; inserting moves at most a page's list. The pages are those that a checkpoint writes.

use std::collections::BTreeMap;

use crate::{map::PAGE_BLOCKS, units::BlockIndex};

/// Something that blocks in a row have in a row.
pub trait Run: Copy + Eq {
    /// What the block `blocks` further on has.
    #[must_use]
    fn after(self, blocks: u16) -> Self;
}

/// Blocks in a row of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<P> {
    /// Counted from the page's first block.
    pub first: u16,
    /// 1 ..= 4096.
    pub blocks: u16,
    pub place: P,
}

impl<P: Run> Entry<P> {
    const fn end(&self) -> u16 {
        self.first + self.blocks
    }

    /// The part from `first` to `end`, which lie within.
    fn part(&self, first: u16, end: u16) -> Self {
        Self { first, blocks: end - first, place: self.place.after(first - self.first) }
    }

    /// Whether `next` goes on where this ends.
    fn continues(&self, next: &Self) -> bool {
        self.end() == next.first && self.place.after(self.blocks) == next.place
    }
}

/// Blocks in a row, and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped<P> {
    pub first: BlockIndex,
    pub blocks: u64,
    pub place: P,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct ExtentMap<P> {
    pages: BTreeMap<u64, Vec<Entry<P>>>,
}

impl<P> Default for ExtentMap<P> {
    fn default() -> Self {
        Self { pages: BTreeMap::new() }
    }
}

const PAGE: u16 = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BLOCKS);

/// The parts of a range by page: page number, first and end in the page.
fn parts(first: BlockIndex, blocks: u64) -> impl Iterator<Item = (u64, u16, u16)> {
    let end = first.0 + blocks;
    let pages = if blocks == 0 { 0..0 } else { first.0 / PAGE_BLOCKS..end.div_ceil(PAGE_BLOCKS) };
    pages.map(move |page| {
        let start = page * PAGE_BLOCKS;
        let from = first.0.max(start);
        (page, within(from - start), within(end - start))
    })
}

/// A number of blocks in a page; more than a page is its end.
fn within(blocks: u64) -> u16 {
    u16::try_from(blocks).unwrap_or(PAGE).min(PAGE)
}

impl<P: Run> ExtentMap<P> {
    /// Numbers of the pages that have a run, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().copied()
    }

    /// The runs of a page, ascending; none when it has none.
    #[must_use]
    pub fn page(&self, page: u64) -> &[Entry<P>] {
        self.pages.get(&page).map_or(&[], |entries| entries)
    }

    /// Puts a page that has none before; its entries ascend without overlap.
    pub fn put_page(&mut self, page: u64, entries: Vec<Entry<P>>) {
        if !entries.is_empty() {
            self.pages.insert(page, entries);
        }
    }

    /// Gives a range the place `place`, and its blocks in a row those that follow. `replaced` is told what they had.
    pub fn insert(
        &mut self,
        first: BlockIndex,
        blocks: u64,
        place: P,
        mut replaced: impl FnMut(P, u16),
    ) {
        let mut place = place;
        for (page, from, end) in parts(first, blocks) {
            let entry = Entry { first: from, blocks: end - from, place };
            place = place.after(end - from);
            let entries = self.pages.entry(page).or_default();
            splice(entries, from, end, Some(entry), &mut replaced);
        }
    }

    /// Takes a range out. `replaced` is told what its blocks had.
    pub fn remove(&mut self, first: BlockIndex, blocks: u64, mut replaced: impl FnMut(P, u16)) {
        for (page, from, end) in parts(first, blocks) {
            let Some(entries) = self.pages.get_mut(&page) else { continue };
            splice(entries, from, end, None, &mut replaced);
            if entries.is_empty() {
                self.pages.remove(&page);
            }
        }
    }

    /// Shows the range in order: each run that has a place, cut to the range, and each gap between them.
    pub fn look(
        &self,
        first: BlockIndex,
        blocks: u64,
        mut show: impl FnMut(BlockIndex, u64, Option<P>),
    ) {
        for (page, from, end) in parts(first, blocks) {
            let start = page * PAGE_BLOCKS;
            let mut at = from;
            let entries = self.page(page);
            let skip = entries.partition_point(|entry| entry.end() <= from);
            for entry in entries.iter().skip(skip).take_while(|entry| entry.first < end) {
                if entry.first > at {
                    show(BlockIndex(start + u64::from(at)), (entry.first - at).into(), None);
                    at = entry.first;
                }
                let part = entry.part(at, entry.end().min(end));
                show(BlockIndex(start + u64::from(at)), part.blocks.into(), Some(part.place));
                at = part.end();
            }
            if at < end {
                show(BlockIndex(start + u64::from(at)), (end - at).into(), None);
            }
        }
    }

    /// The block after the last run.
    #[must_use]
    pub fn end(&self) -> BlockIndex {
        let last = self.pages.last_key_value();
        let end = last.and_then(|(page, entries)| {
            entries.last().map(|entry| page * PAGE_BLOCKS + u64::from(entry.end()))
        });
        BlockIndex(end.unwrap_or(0))
    }

    /// All runs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Mapped<P>> {
        self.pages.iter().flat_map(|(page, entries)| {
            entries.iter().map(move |entry| Mapped {
                first: BlockIndex(page * PAGE_BLOCKS + u64::from(entry.first)),
                blocks: entry.blocks.into(),
                place: entry.place,
            })
        })
    }
}

/// Replaces what `from .. end` of a page has by `entry`, joining it to its neighbours where they go on.
fn splice<P: Run>(
    entries: &mut Vec<Entry<P>>,
    from: u16,
    end: u16,
    entry: Option<Entry<P>>,
    replaced: &mut impl FnMut(P, u16),
) {
    let mut low = entries.partition_point(|entry| entry.end() <= from);
    let mut high = low + entries[low..].partition_point(|entry| entry.first < end);
    let mut parts: [Option<Entry<P>>; 3] = [None, entry, None];
    for (index, old) in entries[low..high].iter().enumerate() {
        if index == 0 && old.first < from {
            parts[0] = Some(old.part(old.first, from));
        }
        if old.end() > end {
            parts[2] = Some(old.part(end, old.end()));
        }
        let gone = old.part(old.first.max(from), old.end().min(end));
        replaced(gone.place, gone.blocks);
    }
    if let Some(entry) = entry {
        // A neighbour that the range touches is one of the parts, or the entry beside them.
        if parts[0].is_none() && low > 0 && entries[low - 1].continues(&entry) {
            low -= 1;
            parts[0] = Some(entries[low]);
        }
        if parts[2].is_none() && entries.get(high).is_some_and(|next| entry.continues(next)) {
            parts[2] = Some(entries[high]);
            high += 1;
        }
    }
    let mut joined: [Option<Entry<P>>; 3] = [None; 3];
    let mut count = 0_usize;
    for part in parts.into_iter().flatten() {
        match count.checked_sub(1).and_then(|last| joined[last].as_mut()) {
            Some(last) if last.continues(&part) => last.blocks += part.blocks,
            _ => {
                joined[count] = Some(part);
                count += 1;
            }
        }
    }
    entries.splice(low..high, joined.into_iter().flatten());
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        units::{FrameIndex, SegmentIndex},
        volume::{Fresh, Place},
    };

    const BLOCKS: u64 = 3 * PAGE_BLOCKS;

    /// What a map says block by block.
    fn plain<P: Run>(map: &ExtentMap<P>) -> Vec<Option<P>> {
        let mut blocks = Vec::new();
        map.look(BlockIndex(0), BLOCKS, |first, count, place| {
            assert_eq!(first.0, blocks.len() as u64);
            for block in 0..u16::try_from(count).unwrap() {
                blocks.push(place.map(|place| place.after(block)));
            }
        });
        blocks
    }

    proptest! {
        #[test]
        fn a_map_is_what_a_list_of_blocks_is(
            changes in vec((0..BLOCKS, 1_u64..9000, any::<Option<u8>>()), 1..40),
        ) {
            let mut map = ExtentMap::default();
            let mut model: Vec<Option<Fresh>> = vec![None; usize::try_from(BLOCKS).unwrap()];
            for (number, (first, blocks, kind)) in (0_u64..).zip(changes) {
                let blocks = blocks.min(BLOCKS - first);
                let before = model.iter().flatten().count();
                let place = match kind { None => None, Some(0..40) => Some(Fresh::Zero), Some(_) => Some(Fresh::Journal(number * 10_000)) };
                let mut dropped = 0;
                match place {
                    Some(place) => map.insert(BlockIndex(first), blocks, place, |_, count| dropped += u64::from(count)),
                    None => map.remove(BlockIndex(first), blocks, |_, count| dropped += u64::from(count)),
                }
                let mut had = 0;
                for block in 0..blocks {
                    let slot = &mut model[usize::try_from(first + block).unwrap()];
                    had += u64::from(slot.is_some());
                    *slot = place.map(|place| match place { Fresh::Zero => Fresh::Zero, Fresh::Journal(at) => Fresh::Journal(at + block) });
                }
                prop_assert_eq!(dropped, had, "of {}", before);
            }
            prop_assert_eq!(plain(&map), model);
            let runs: Vec<_> = map.iter().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].first.0 + pair[0].blocks <= pair[1].first.0);
            }
        }
    }

    #[test]
    fn what_goes_on_is_one_run_but_never_over_frames() {
        let mut map = ExtentMap::default();
        for block in [1, 0, 2] {
            map.insert(BlockIndex(block), 1, Fresh::Journal(50 + block), |_, _| {});
        }
        assert_eq!(map.iter().count(), 1);
        let mut sealed = ExtentMap::default();
        for frame in 0..2 {
            let place = Place { segment: SegmentIndex(0), frame: FrameIndex(frame), block: 0 };
            sealed.insert(BlockIndex(u64::from(frame) * 4), 4, place, |_, _| {});
        }
        assert_eq!(sealed.iter().count(), 2);
        assert!(size_of::<Entry<Place>>() <= 12);
    }
}
