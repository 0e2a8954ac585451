//! The segments of a volume: who they are, how to open them, how much of them is still needed.
//!
//! A page of the table, as a checkpoint keeps it:
//!
//! ```text
//! offset  size  field
//!      0     2  version = 2
//!      2     2  slot count S (1 ..= 512)
//!      4     4  reserved, zero
//!      8     8  number of the page
//!     16  76×S  slots: segment id (32), sealed bytes (u32; zero: the slot is empty, and so is the rest of it),
//!               key (32), blocks sealed into it (u32), reserved (4)
//!      …        zeros to whole blocks
//! ```
//!
//! Slots have a fixed size, so that a page's size does not tell what is in it and one page is at most one frame. Live blocks
//! are not written: they are counted from the map. Whose a segment is, is not written either: it is everybody's whose root
//! names it.

use std::collections::BTreeSet;

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::SegmentId,
    seal::SealKey,
    units::{BLOCK_BYTES, FRAME_BLOCKS, SEGMENT_MAX_BYTES, SEGMENT_MAX_FRAMES, SegmentIndex},
};

/// Slots of one page.
pub const PAGE_SLOTS: usize = 512;
/// The most segments of a volume: 64 TiB of segments that are half empty.
pub const MAX_SEGMENTS: usize = 32 << 20;

const VERSION: u16 = 2;
const SLOT_BYTES: usize = 76;
const MAX_SEGMENT_BLOCKS: u32 = 4096 * 64;
const _: () = assert!(MAX_SEGMENT_BLOCKS as usize == SEGMENT_MAX_FRAMES * FRAME_BLOCKS);

/// A segment of a volume.
#[derive(Clone, Debug)]
pub struct Slot {
    pub id: SegmentId,
    /// Sealed.
    pub bytes: u32,
    pub key: SealKey,
    /// That were sealed into it.
    pub blocks: u32,
    /// That the volume's map names.
    pub live: u32,
}

/// All segments of a volume, by index.
#[derive(Clone, Debug, Default)]
pub struct SegmentTable {
    slots: Vec<Option<Slot>>,
    free: BTreeSet<u32>,
    changed: BTreeSet<u64>,
}

fn page_of(index: u32) -> u64 {
    u64::from(index) / PAGE_SLOTS as u64
}

impl SegmentTable {
    /// Takes a segment in; none when there are [`MAX_SEGMENTS`].
    pub fn add(&mut self, slot: Slot) -> Option<SegmentIndex> {
        let index = match self.free.pop_first() {
            Some(index) => index,
            None if self.slots.len() >= MAX_SEGMENTS => return None,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).ok()?
            }
        };
        *self.slots.get_mut(index as usize)? = Some(slot);
        self.changed.insert(page_of(index));
        Some(SegmentIndex(index))
    }

    #[must_use]
    pub fn get(&self, index: SegmentIndex) -> Option<&Slot> {
        self.slots.get(index.0 as usize)?.as_ref()
    }

    /// Takes a segment out. Its index may be another's afterwards.
    pub fn remove(&mut self, index: SegmentIndex) -> Option<Slot> {
        let slot = self.slots.get_mut(index.0 as usize)?.take()?;
        self.free.insert(index.0);
        self.changed.insert(page_of(index.0));
        Some(slot)
    }

    /// Counts blocks that the map began to name.
    pub fn gain(&mut self, index: SegmentIndex, blocks: u32) {
        if let Some(Some(slot)) = self.slots.get_mut(index.0 as usize) {
            slot.live += blocks;
        }
    }

    /// Counts blocks that the map names no more.
    pub fn lose(&mut self, index: SegmentIndex, blocks: u32) {
        if let Some(Some(slot)) = self.slots.get_mut(index.0 as usize) {
            slot.live = slot.live.saturating_sub(blocks);
        }
    }

    /// All segments, by index.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentIndex, &Slot)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| Some((SegmentIndex(index), slot.as_ref()?)))
    }

    /// Pages that changed since this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.changed)
    }

    /// All pages.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.slots.len().div_ceil(PAGE_SLOTS) as u64
    }

    /// The bytes of a page, padded to whole blocks; none when there is no such page.
    #[must_use]
    pub fn encode_page(&self, page: u64) -> Option<Vec<u8>> {
        let first = usize::try_from(page).ok()?.checked_mul(PAGE_SLOTS)?;
        let slots = self.slots.get(first..)?;
        let slots = &slots[..slots.len().min(PAGE_SLOTS)];
        let mut writer = Writer::default();
        writer.u16(VERSION);
        writer.u16(u16::try_from(slots.len()).ok().filter(|count| *count > 0)?);
        writer.u32(0);
        writer.u64(page);
        for slot in slots {
            let Some(slot) = slot else {
                writer.put(&[0; SLOT_BYTES]);
                continue;
            };
            writer.put(slot.id.as_bytes());
            writer.u32(slot.bytes);
            writer.put(&slot.key.0);
            writer.u32(slot.blocks);
            writer.u32(0);
        }
        let mut bytes = writer.finish();
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        Some(bytes)
    }

    /// Takes in a page of a table that is read in order, from the first page on.
    ///
    /// # Errors
    /// When the bytes are no such page, or not the next one.
    pub fn decode_page(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16()?;
        if found != VERSION {
            return Err(DecodeError::Version { found, known: VERSION });
        }
        let count = reader.u16()?;
        if count == 0 || usize::from(count) > PAGE_SLOTS {
            let limit = PAGE_SLOTS as u64;
            return Err(DecodeError::Limit { field: "slot count", value: count.into(), limit });
        }
        reader.reserved(4)?;
        let expected = self.slots.len() / PAGE_SLOTS;
        if reader.u64()? != expected as u64
            || !self.slots.len().is_multiple_of(PAGE_SLOTS)
            || self.slots.len() >= MAX_SEGMENTS
        {
            return Err(DecodeError::Inconsistent { field: "page number" });
        }
        for _ in 0..count {
            let slot = slot(&mut reader)?;
            if slot.is_none() {
                self.free.insert(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
            }
            self.slots.push(slot);
        }
        reader.reserved(reader.remaining())
    }
}

fn slot(reader: &mut Reader<'_>) -> Result<Option<Slot>, DecodeError> {
    let id = SegmentId(reader.array()?);
    let bytes = reader.u32()?;
    if bytes == 0 {
        if id != SegmentId([0; 32]) {
            return Err(DecodeError::Inconsistent { field: "empty slot" });
        }
        reader.reserved(SLOT_BYTES - 36)?;
        return Ok(None);
    }
    if bytes as usize > SEGMENT_MAX_BYTES {
        let limit = SEGMENT_MAX_BYTES as u64;
        return Err(DecodeError::Limit { field: "sealed bytes", value: bytes.into(), limit });
    }
    let key = SealKey(reader.array()?);
    let blocks = reader.u32()?;
    if blocks > MAX_SEGMENT_BLOCKS {
        let limit = MAX_SEGMENT_BLOCKS.into();
        return Err(DecodeError::Limit { field: "blocks", value: blocks.into(), limit });
    }
    reader.reserved(4)?;
    Ok(Some(Slot { id, bytes, key, blocks, live: 0 }))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::units::FRAME_MAX_BYTES;

    fn slot(number: u32) -> Slot {
        let id = SegmentId::of(&number.to_le_bytes());
        Slot { id, bytes: number + 1, key: SealKey([3; 32]), blocks: 5, live: 0 }
    }

    proptest! {
        #[test]
        fn tables_round_trip_by_pages(gone in vec(any::<bool>(), 1..1300)) {
            let mut table = SegmentTable::default();
            for number in 0..gone.len() {
                table.add(slot(u32::try_from(number).unwrap())).unwrap();
            }
            for (index, _) in (0..).zip(&gone).filter(|(_, gone)| **gone) {
                table.remove(SegmentIndex(index)).unwrap();
            }
            let mut read = SegmentTable::default();
            for page in 0..table.pages() {
                let bytes = table.encode_page(page).unwrap();
                prop_assert!(bytes.len() <= FRAME_MAX_BYTES);
                read.decode_page(&bytes).unwrap();
            }
            prop_assert!(table.encode_page(table.pages()).is_none());
            let plain = |table: &SegmentTable| {
                table.iter().map(|(index, slot)| (index, slot.id, slot.bytes, slot.blocks)).collect::<Vec<_>>()
            };
            prop_assert_eq!(plain(&read), plain(&table));
            prop_assert_eq!(read.add(slot(7)), table.add(slot(7)));
        }

        #[test]
        fn a_flipped_bit_never_panics(at in 0_usize..400, bit in 0_u8..8) {
            let mut table = SegmentTable::default();
            for number in 0..4 { table.add(slot(number)).unwrap(); }
            let mut bytes = table.encode_page(0).unwrap();
            bytes[at] ^= 1_u8 << bit;
            let mut read = SegmentTable::default();
            if read.decode_page(&bytes).is_ok() {
                prop_assert!(read.iter().count() <= 4);
            }
        }
    }
}
