//! A slot's header: that its payload is whole, and what it is.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 8 | magic `CAIRNSLT` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | class: 1 cached, 2 over-redundant, 3 parity, 4 data |
//! | 11 | 1 | zero |
//! | 12 | 4 | index of this slot |
//! | 16 | 4 | length of the segment, 1 to 4 MiB |
//! | 20 | 4 | CRC-32C of the segment |
//! | 24 | 32 | id of the segment |
//! | 56 | 452 | zero |
//! | 508 | 4 | CRC-32C of bytes 0..508 |
//! | 512 | 3584 | zero, not read |
//!
//! Why in this order: everything, checksum included, is within the first 512 bytes, which every disk
//! writes whole. So a header that is rewritten in place (a segment changes its class) is after a power
//! cut the old one or the new one. The checksum is where the superblock has its own. The slot's own
//! index is in it, so that a header which the disk put in the wrong place is not believed.
//! A cleared header is zeros: no magic, and no class of that value.

use cairn_core::{
    bytes::{DecodeError, Reader, Writer},
    id::SegmentId,
    units::SEGMENT_MAX_BYTES,
};

use super::{
    layout::{SLOT_HEADER_BYTES, SlotIndex},
    superblock::{SECTOR_BYTES, open_sector, seal_sector},
};

const MAGIC: [u8; 8] = *b"CAIRNSLT";
const VERSION: u16 = 1;

/// What a segment is worth to the fleet, least first: the order in which shrinking gives them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentClass {
    /// A copy kept because it was at hand; nobody counts on it.
    Cached,
    /// Placed here once, but its stripe has enough without it.
    OverRedundant,
    /// A parity segment of a stripe.
    Parity,
    /// A data segment of a stripe: a healthy read needs only it.
    Data,
}

impl SegmentClass {
    /// All classes, least valuable first.
    pub const ALL: [Self; 4] = [Self::Cached, Self::OverRedundant, Self::Parity, Self::Data];

    const fn to_byte(self) -> u8 {
        match self {
            Self::Cached => 1,
            Self::OverRedundant => 2,
            Self::Parity => 3,
            Self::Data => 4,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Cached),
            2 => Some(Self::OverRedundant),
            3 => Some(Self::Parity),
            4 => Some(Self::Data),
            _ => None,
        }
    }
}

/// The decoded header of a used slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    pub slot: SlotIndex,
    pub id: SegmentId,
    /// 1 to [`SEGMENT_MAX_BYTES`].
    pub length: u32,
    pub class: SegmentClass,
    /// CRC-32C of the payload.
    pub checksum: u32,
}

impl SlotHeader {
    /// The page on disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_header(MAGIC, VERSION);
        out.u8(self.class.to_byte());
        out.u8(0);
        out.u32(self.slot.0);
        out.u32(self.length);
        out.u32(self.checksum);
        out.put(self.id.as_bytes());
        let mut page = seal_sector(out);
        page.resize(SLOT_HEADER_BYTES, 0);
        page
    }

    /// Reads the header at the start of `page`.
    ///
    /// # Errors
    /// [`DecodeError`]: cleared, torn or damaged (the slot is free), or [`DecodeError::Version`] with
    /// a good checksum (a newer program uses the slot).
    pub fn decode(page: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = open_sector(page)?;
        fields.header(MAGIC, VERSION)?;
        let class = fields.u8()?;
        fields.reserved(1)?;
        let header = Self {
            class: SegmentClass::from_byte(class)
                .ok_or(DecodeError::Inconsistent { field: "class" })?,
            slot: SlotIndex(fields.u32()?),
            length: length(&mut fields)?,
            checksum: fields.u32()?,
            id: SegmentId(fields.array()?),
        };
        fields.reserved(fields.remaining())?;
        Ok(header)
    }
}

/// Whether a page holds no header at all, as opposed to one that was torn or has rotted.
pub(super) fn is_cleared(page: &[u8]) -> bool {
    page.iter().take(SECTOR_BYTES).all(|byte| *byte == 0)
}

fn length(fields: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let length = fields.u32()?;
    if length == 0 {
        return Err(DecodeError::Inconsistent { field: "length" });
    }
    if length as usize > SEGMENT_MAX_BYTES {
        let limit = SEGMENT_MAX_BYTES as u64;
        return Err(DecodeError::Limit { field: "length", value: length.into(), limit });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = SlotHeader> {
        let length = 1..=u32::try_from(SEGMENT_MAX_BYTES).unwrap();
        (any::<u32>(), any::<[u8; 32]>(), length, 0..4_usize, any::<u32>()).prop_map(
            |(slot, id, length, class, checksum)| SlotHeader {
                slot: SlotIndex(slot),
                id: SegmentId(id),
                length,
                class: SegmentClass::ALL[class],
                checksum,
            },
        )
    }

    proptest! {
        #[test]
        fn round_trips(header in header()) {
            let page = header.encode();
            prop_assert_eq!(page.len(), SLOT_HEADER_BYTES);
            prop_assert_eq!(SlotHeader::decode(&page), Ok(header));
        }

        #[test]
        fn a_changed_bit_is_noticed(header in header(), bit in 0..SECTOR_BYTES * 8) {
            let mut page = header.encode();
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SlotHeader::decode(&page).is_err());
        }

        #[test]
        fn a_header_cut_short_is_refused(header in header(), kept in 0..SECTOR_BYTES) {
            prop_assert!(SlotHeader::decode(&header.encode()[..kept]).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            prop_assert!(SlotHeader::decode(&bytes).is_err());
        }

        #[test]
        fn sealed_nonsense_is_refused(bytes in proptest::collection::vec(any::<u8>(), 46..=46)) {
            // A right checksum over wrong fields: class, length and zeros are still checked.
            let mut fields = Writer::with_header(MAGIC, VERSION);
            fields.put(&bytes);
            if let Ok(header) = SlotHeader::decode(&seal_sector(fields)) {
                prop_assert!((1..=SEGMENT_MAX_BYTES).contains(&(header.length as usize)));
            }
        }
    }

    #[test]
    fn a_cleared_page_is_no_header() {
        let page = [0; SLOT_HEADER_BYTES];
        assert!(is_cleared(&page));
        assert!(SlotHeader::decode(&page).is_err());
    }

    #[test]
    fn classes_are_ordered_by_worth() {
        assert!(SegmentClass::ALL.is_sorted());
        for class in SegmentClass::ALL {
            assert_eq!(SegmentClass::from_byte(class.to_byte()), Some(class));
        }
    }
}
