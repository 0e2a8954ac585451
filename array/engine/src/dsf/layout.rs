//! Where things are in the file. See the picture in the module above.

use cairn_core::units::{ByteCount, SEGMENT_MAX_BYTES};

/// Bytes from one slot header to the next: a page, so that rewriting one never touches its neighbour.
pub const SLOT_HEADER_BYTES: usize = 4096;
/// Slots whose headers lie together.
pub const SLOTS_PER_GROUP: u32 = 256;
/// The most slots a DSF has (16 TiB); bounds the table that opening builds.
pub const MAX_SLOTS: u32 = 1 << 22;

/// Where the second copy of the superblock lies: apart from the first, in the same reserved MiB.
pub(super) const SUPERBLOCK_COPY_AT: u64 = 64 << 10;
/// Where group 0 starts; 1 MiB keeps every header table and payload aligned to 1 MiB.
pub(super) const FIRST_GROUP_AT: u64 = 1 << 20;

const HEADER: u64 = SLOT_HEADER_BYTES as u64;
/// Bytes of the file that a slot's payload may take.
pub(super) const PAYLOAD_BYTES: u64 = SEGMENT_MAX_BYTES as u64;

const PAYLOAD: u64 = PAYLOAD_BYTES;
const GROUP_HEADERS: u64 = SLOTS_PER_GROUP as u64 * HEADER;
const GROUP: u64 = GROUP_HEADERS + SLOTS_PER_GROUP as u64 * PAYLOAD;

/// A slot's position in the DSF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(pub u32);

/// A number of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotCount(pub u32);

impl std::fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for SlotCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl SlotIndex {
    /// The offset of this slot's header in the file.
    #[must_use]
    pub const fn header_at(self) -> u64 {
        self.group_at() + (self.0 % SLOTS_PER_GROUP) as u64 * HEADER
    }

    pub(super) const fn payload_at(self) -> u64 {
        self.group_at() + GROUP_HEADERS + (self.0 % SLOTS_PER_GROUP) as u64 * PAYLOAD
    }

    const fn group_at(self) -> u64 {
        FIRST_GROUP_AT + (self.0 / SLOTS_PER_GROUP) as u64 * GROUP
    }

    /// This slot's place in a vector with one item per slot.
    pub(super) const fn position(self) -> usize {
        self.0 as usize
    }
}

impl SlotCount {
    /// The slots that fit into a file of this length, headers and superblock included: the capacity
    /// that lending so much gives, and how the capacity of an existing file is found.
    #[must_use]
    pub fn fitting(lend: ByteCount) -> Self {
        let Some(groups) = lend.0.checked_sub(FIRST_GROUP_AT) else { return Self(0) };
        let in_last = (groups % GROUP).saturating_sub(GROUP_HEADERS) / PAYLOAD;
        let slots = (groups / GROUP) * u64::from(SLOTS_PER_GROUP) + in_last;
        Self(u32::try_from(slots).map_or(MAX_SLOTS, |slots| slots.min(MAX_SLOTS)))
    }

    /// The length of a file with so many slots.
    #[must_use]
    pub const fn file_bytes(self) -> ByteCount {
        match self.0.checked_sub(1) {
            None => ByteCount(FIRST_GROUP_AT),
            Some(last) => ByteCount(SlotIndex(last).payload_at() + PAYLOAD),
        }
    }
}

/// Splits a run of slots where a group ends, so that each piece has its headers side by side.
pub(super) fn runs(from: u32, to: u32) -> impl Iterator<Item = std::ops::Range<u32>> {
    let mut next = from;
    std::iter::from_fn(move || {
        let group_end = (next / SLOTS_PER_GROUP + 1) * SLOTS_PER_GROUP;
        let run = next..group_end.min(to);
        next = run.end;
        (!run.is_empty()).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn capacity_and_length_are_inverse(slots in 0..=MAX_SLOTS, extra in 0..PAYLOAD) {
            let bytes = SlotCount(slots).file_bytes();
            prop_assert_eq!(SlotCount::fitting(bytes), SlotCount(slots));
            // Less than a slot more never makes a slot more.
            prop_assert_eq!(SlotCount::fitting(ByteCount(bytes.0 + extra)), SlotCount(slots));
        }

        #[test]
        fn nothing_overlaps(a in 0..MAX_SLOTS, b in 0..MAX_SLOTS) {
            let spans = [
                (0, FIRST_GROUP_AT),
                (SlotIndex(a).header_at(), HEADER),
                (SlotIndex(a).payload_at(), PAYLOAD),
                (SlotIndex(b).header_at(), HEADER),
                (SlotIndex(b).payload_at(), PAYLOAD),
            ];
            for (index, left) in spans.iter().enumerate() {
                for right in &spans[index + 1..] {
                    let apart = left.0 + left.1 <= right.0 || right.0 + right.1 <= left.0;
                    prop_assert!(apart || (a == b && left == right));
                }
            }
        }

        #[test]
        fn runs_cover_each_slot_once(from in 0..2000_u32, count in 0..2000_u32) {
            let slots: Vec<u32> = runs(from, from + count).flatten().collect();
            prop_assert_eq!(slots, (from..from + count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn lending_20_gib_gives_5114_slots() {
        // 20 GiB less 1 MiB in front and 1 MiB of headers for each begun GiB.
        assert_eq!(SlotCount::fitting(ByteCount(20 << 30)), SlotCount(5114));
        assert_eq!(SlotCount::fitting(ByteCount(100)), SlotCount(0));
        assert_eq!(SlotCount::fitting(ByteCount(u64::MAX)), SlotCount(MAX_SLOTS));
    }
}
