//! The journal: what was changed since the last checkpoint, in order.
//!
//! The file is one block of head, then a ring of blocks. A position is a block counted from the first record ever written;
//! position `p` is at block `1 + p mod capacity` of the file. Head:
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNJNL"
//!      8     2  version = 1
//!     10     2  reserved, zero
//!     12    16  volume id
//!     28     8  capacity of the ring in blocks
//!     36     4  CRC-32C of the 36 bytes before
//! ```
//!
//! A record, which never wraps around the ring's end:
//!
//! ```text
//! offset  size  field
//!      0     4  magic "CREC"
//!      4     4  CRC-32C of bytes 8 to 4096 of the block
//!      8     8  sequence number, one more than the record's before
//!     16     8  position of this record
//!     24     8  life: random, of the run of the controller that wrote this
//!     32     8  life of the record before
//!     40     8  generation of the controller
//!     48     4  entry count E (1 ..= 168)
//!     52     4  payload blocks
//!     56  24×E  entries: first block (u64), blocks (u32), CRC-32C of the data (u32; zero for zeros),
//!               kind (u8: 1 data, 2 zeros), reserved (7)
//!      …        zeros to 4096
//!   4096     …  payload: the data of the entries, one after the other
//! ```
//!
//! The head comes first so that one read tells what follows and what it must hash to. Records begin on blocks: no block
//! that was flushed is written again before its space is freed, so a torn write hurts nothing flushed. The lives form
//! a chain: what an earlier run wrote behind the place where a crash tore the log can never follow what a later run
//! writes there, although its sequence numbers are the same.

use crc_fast::{CrcAlgorithm, checksum};

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::VolumeId,
    units::{BLOCK_BYTES, BlockIndex, Generation},
    volume::MAX_BLOCKS,
};

const HEAD_MAGIC: [u8; 8] = *b"CAIRNJNL";
const HEAD_VERSION: u16 = 1;
const HEAD_BYTES: usize = 36;
const RECORD_MAGIC: [u8; 4] = *b"CREC";
const CHECKED_FROM: usize = 8;
const ENTRY_BYTES: usize = 24;
const KIND_DATA: u8 = 1;
const KIND_ZERO: u8 = 2;

/// The most entries of one record.
pub const MAX_ENTRIES: usize = (BLOCK_BYTES - 56) / ENTRY_BYTES;
/// The most payload blocks of one record: 4 MiB.
pub const MAX_PAYLOAD_BLOCKS: u32 = 1024;
/// The fewest blocks of a ring.
pub const MIN_CAPACITY: u64 = 8;

/// The checksum of the journal.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes) & 0xffff_ffff).unwrap_or(0)
}

/// What one entry does to its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They become the payload of this checksum.
    Data {
        crc: u32,
    },
    Zero,
}

/// A change to blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub first: BlockIndex,
    /// At most [`MAX_PAYLOAD_BLOCKS`] for data.
    pub blocks: u32,
    pub effect: Effect,
}

impl Entry {
    /// Blocks of payload.
    #[must_use]
    pub const fn payload(&self) -> u32 {
        match self.effect {
            Effect::Data { .. } => self.blocks,
            Effect::Zero => 0,
        }
    }
}

/// Where the next record goes, and what it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub position: u64,
    pub sequence: u64,
    /// Of the record before.
    pub life: u64,
}

impl Cursor {
    /// Of a journal without a record.
    pub const START: Self = Self { position: 0, sequence: 1, life: 0 };
}

/// The head of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub sequence: u64,
    pub position: u64,
    pub life: u64,
    pub previous: u64,
    pub generation: Generation,
    pub entries: Vec<Entry>,
}

impl Record {
    /// Blocks of payload.
    #[must_use]
    pub fn payload(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.payload())).sum()
    }

    /// What comes after it.
    #[must_use]
    pub fn end(&self) -> Cursor {
        Cursor {
            position: self.position + 1 + self.payload(),
            sequence: self.sequence + 1,
            life: self.life,
        }
    }

    /// The block that goes before the payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.put(&RECORD_MAGIC);
        writer.u32(0);
        for number in [self.sequence, self.position, self.life, self.previous, self.generation.0] {
            writer.u64(number);
        }
        writer.count(self.entries.len());
        writer.u32(u32::try_from(self.payload()).unwrap_or(u32::MAX));
        for entry in &self.entries {
            let (kind, crc) = match entry.effect {
                Effect::Data { crc } => (KIND_DATA, crc),
                Effect::Zero => (KIND_ZERO, 0),
            };
            writer.u64(entry.first.0);
            writer.u32(entry.blocks);
            writer.u32(crc);
            writer.u8(kind);
            writer.put(&[0; 7]);
        }
        let mut block = writer.finish();
        block.resize(BLOCK_BYTES, 0);
        let crc = crc32c(&block[CHECKED_FROM..]);
        block[4..CHECKED_FROM].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads the block before a payload.
    ///
    /// # Errors
    /// When it is none, was torn, or a field is beyond its limit.
    pub fn decode(block: &[u8]) -> Result<Self, DecodeError> {
        let block = block.first_chunk::<BLOCK_BYTES>();
        let block = block.ok_or(DecodeError::Truncated { need: BLOCK_BYTES, have: 0 })?;
        let mut reader = Reader::new(block);
        if reader.array()? != RECORD_MAGIC {
            return Err(DecodeError::Magic);
        }
        if reader.u32()? != crc32c(&block[CHECKED_FROM..]) {
            return Err(DecodeError::Inconsistent { field: "checksum" });
        }
        let sequence = reader.u64()?;
        let position = reader.u64()?;
        let life = reader.u64()?;
        let previous = reader.u64()?;
        let generation = Generation(reader.u64()?);
        let count = reader.u32()?;
        let payload = reader.u32()?;
        if count == 0 || count as usize > MAX_ENTRIES {
            let limit = MAX_ENTRIES as u64;
            return Err(DecodeError::Limit { field: "entry count", value: count.into(), limit });
        }
        let entries = (0..count).map(|_| entry(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        reader.reserved(reader.remaining())?;
        let record = Self { sequence, position, life, previous, generation, entries };
        if record.payload() != payload.into() || payload > MAX_PAYLOAD_BLOCKS {
            return Err(DecodeError::Inconsistent { field: "payload blocks" });
        }
        Ok(record)
    }

    /// Whether this is the record that goes to `cursor`.
    #[must_use]
    pub const fn follows(&self, cursor: Cursor) -> bool {
        self.sequence == cursor.sequence
            && self.position == cursor.position
            && self.previous == cursor.life
    }

    /// Whether the payload, which is as long as the head says, is what was written.
    #[must_use]
    pub fn is_whole(&self, payload: &[u8]) -> bool {
        let mut rest = payload;
        self.entries.iter().all(|entry| match entry.effect {
            Effect::Zero => true,
            Effect::Data { crc } => {
                let Some((data, after)) =
                    rest.split_at_checked(entry.blocks as usize * BLOCK_BYTES)
                else {
                    return false;
                };
                rest = after;
                crc32c(data) == crc
            }
        })
    }
}

fn entry(reader: &mut Reader<'_>) -> Result<Entry, DecodeError> {
    let first = BlockIndex(reader.u64()?);
    let blocks = reader.u32()?;
    let crc = reader.u32()?;
    let kind = reader.u8()?;
    reader.reserved(7)?;
    let end = first.0.saturating_add(blocks.into());
    if blocks == 0 || end > MAX_BLOCKS {
        return Err(DecodeError::Limit { field: "blocks", value: end, limit: MAX_BLOCKS });
    }
    let effect = match (kind, crc) {
        (KIND_DATA, crc) => Effect::Data { crc },
        (KIND_ZERO, 0) => Effect::Zero,
        _ => return Err(DecodeError::Inconsistent { field: "kind" }),
    };
    Ok(Entry { first, blocks, effect })
}

/// The ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    pub volume: VolumeId,
    /// In blocks.
    pub capacity: u64,
}

impl Ring {
    /// The first block of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_header(HEAD_MAGIC, HEAD_VERSION);
        writer.u16(0);
        writer.put(self.volume.as_bytes());
        writer.u64(self.capacity);
        let mut block = writer.finish();
        let crc = crc32c(&block);
        block.extend_from_slice(&crc.to_le_bytes());
        block.resize(BLOCK_BYTES, 0);
        block
    }

    /// Reads the first block of the file.
    ///
    /// # Errors
    /// When it is no journal, or of another version.
    pub fn decode(block: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(block);
        reader.header(HEAD_MAGIC, HEAD_VERSION)?;
        reader.reserved(2)?;
        let volume = VolumeId(reader.array()?);
        let capacity = reader.u64()?;
        let crc = reader.u32()?;
        if block.get(..HEAD_BYTES).map(crc32c) != Some(crc) {
            return Err(DecodeError::Inconsistent { field: "checksum" });
        }
        if !(MIN_CAPACITY..=MAX_BLOCKS).contains(&capacity) {
            return Err(DecodeError::Limit {
                field: "capacity",
                value: capacity,
                limit: MAX_BLOCKS,
            });
        }
        Ok(Self { volume, capacity })
    }

    /// The byte of the file at which a position is.
    #[must_use]
    pub const fn offset(&self, position: u64) -> u64 {
        (1 + position % self.capacity) * BLOCK_BYTES as u64
    }

    /// The most payload blocks of a record in this ring: two records fit.
    #[must_use]
    pub fn max_payload(&self) -> u32 {
        u32::try_from(self.capacity / 2 - 1)
            .map_or(MAX_PAYLOAD_BLOCKS, |half| half.min(MAX_PAYLOAD_BLOCKS))
    }

    /// Blocks from a position to the ring's end.
    #[must_use]
    pub const fn until_end(&self, position: u64) -> u64 {
        self.capacity - position % self.capacity
    }

    /// Where a record of `blocks` blocks, its head among them, goes: at `position` or, when it would wrap, at the ring's
    /// start. None when that would reach what `tail` still needs.
    #[must_use]
    pub const fn place(&self, position: u64, tail: u64, blocks: u64) -> Option<u64> {
        let left = self.until_end(position);
        let at = if blocks <= left { position } else { position + left };
        if at + blocks - tail <= self.capacity { Some(at) } else { None }
    }

    /// Where the record at a cursor can be: there, or at the ring's start when it did not fit.
    pub fn candidates(&self, cursor: Cursor) -> impl Iterator<Item = Cursor> + use<> {
        let wrapped = cursor.position + self.until_end(cursor.position);
        [cursor.position, wrapped].into_iter().map(move |position| Cursor { position, ..cursor })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    prop_compose! {
        fn record()(
            numbers in any::<(u64, u64, u64, u64)>(),
            entries in vec((0..MAX_BLOCKS - 2000, 1_u32..6, any::<Option<u32>>()), 1..=MAX_ENTRIES),
        ) -> Record {
            let (sequence, life, previous, generation) = numbers;
            let effect = |crc: Option<u32>| crc.map_or(Effect::Zero, |crc| Effect::Data { crc });
            let entries = entries.into_iter()
                .map(|(first, blocks, crc)| Entry { first: BlockIndex(first), blocks, effect: effect(crc) })
                .collect();
            Record { sequence, position: sequence / 2, life, previous, generation: Generation(generation), entries }
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(record in record()) {
            let block = record.encode();
            prop_assert_eq!(block.len(), BLOCK_BYTES);
            prop_assert_eq!(Record::decode(&block), Ok(record));
        }

        #[test]
        fn a_flipped_bit_is_noticed(record in record(), at in 0..BLOCK_BYTES, bit in 0_u8..8) {
            let mut block = record.encode();
            block[at] ^= 1_u8 << bit;
            prop_assert!(Record::decode(&block).is_err());
        }

        #[test]
        fn a_record_never_reaches_what_is_needed(
            capacity in MIN_CAPACITY..5000, tail in 0_u64..20_000, used in 0_u64..5000, blocks in 1_u64..=1025,
        ) {
            let ring = Ring { volume: VolumeId([1; 16]), capacity };
            let position = tail + used.min(capacity);
            if let Some(at) = ring.place(position, tail, blocks) {
                prop_assert!(at >= position && at + blocks <= tail + capacity);
                prop_assert!(blocks <= ring.until_end(at));
                let cursor = Cursor { position, sequence: 7, life: 3 };
                prop_assert!(ring.candidates(cursor).any(|candidate| candidate.position == at));
            }
        }
    }

    #[test]
    fn heads_round_trip_and_notice_damage() {
        let ring = Ring { volume: VolumeId([7; 16]), capacity: 65536 };
        let mut block = ring.encode();
        assert_eq!(Ring::decode(&block), Ok(ring));
        assert_eq!(ring.offset(65537), 2 * 4096);
        block[30] ^= 1;
        assert!(matches!(Ring::decode(&block), Err(DecodeError::Inconsistent { .. })));
    }

    #[test]
    fn what_another_life_left_behind_does_not_follow() {
        let entry = Entry { first: BlockIndex(0), blocks: 1, effect: Effect::Zero };
        let record = |sequence, life, previous| Record {
            sequence,
            position: sequence,
            life,
            previous,
            generation: Generation(1),
            entries: vec![entry],
        };
        let first = record(1, 10, 0);
        let stale = record(2, 10, 10);
        assert!(stale.follows(first.end()));
        let again = record(1, 11, 0);
        assert!(!stale.follows(again.end()));
        assert!(record(2, 11, 11).follows(again.end()));
    }
}
