//! The tail of a journal, as clients keep it: pieces of the ring, sealed.
//!
//! A volume whose durability is `mirrored` answers a flush once a client has what the journal has. With the last root that
//! clients know, and all that the journal had behind it, whoever has the content key has the volume as of that flush.
//!
//! A piece:
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNTAL"
//!      8     2  version = 1
//!     10     2  flags: bit 0: with this piece the attempt has all that was flushed
//!     12    16  volume id
//!     28     8  generation of the controller
//!     36     4  number of the attempt
//!     40     8  first position
//!     48     4  blocks B (1 ..= 1024)
//!     52     8  capacity of the ring in blocks
//!     60     8  first position that is needed: clients know a root that covers what is before it
//!     68    32  salt, random
//!    100     4  CRC-32C of the 100 bytes before
//!    104  4096×B+16  blocks of the ring from the first position on, sealed
//! ```
//!
//! The head comes first and says how long the piece is, so that a file of pieces can be read in one pass and its torn end be
//! told. Pieces are sealed under SHA-256("cairn tail key 1" ‖ content key ‖ salt), nonce 0, with the first 100 bytes as
//! associated data: who keeps a piece reads its head, and can neither read nor change the rest.
//!
//! An *attempt* is a row of pieces without a gap, sent by one controller to one client, from the first position that was needed
//! when it began. Once it has all that was flushed, older attempts are worth nothing. A controller begins a new one when it
//! starts, and when the client does not have what it was sent.

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::{Hasher, VolumeId},
    seal::{SealKey, Sealer, TAG_BYTES},
    units::{BLOCK_BYTES, Generation},
    volume::{
        MAX_BLOCKS,
        journal::{MIN_CAPACITY, crc32c},
    },
};

const MAGIC: [u8; 8] = *b"CAIRNTAL";
const VERSION: u16 = 1;
const FLAG_WHOLE: u16 = 1;
const CHECKED_BYTES: usize = 100;

/// Bytes of a head.
pub const HEAD_BYTES: usize = CHECKED_BYTES + 4;
/// The most blocks of a piece: 4 MiB.
pub const MAX_PIECE_BLOCKS: u32 = 1024;
/// The most bytes of a piece.
pub const MAX_PIECE_BYTES: usize = HEAD_BYTES + MAX_PIECE_BLOCKS as usize * BLOCK_BYTES + TAG_BYTES;

/// Who sends pieces, and for the how manyth time. The later is the larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    pub generation: Generation,
    pub number: u32,
}

/// The head of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub volume: VolumeId,
    pub attempt: Attempt,
    /// Position of the first block.
    pub first: u64,
    /// At most [`MAX_PIECE_BLOCKS`].
    pub blocks: u32,
    /// Of the ring, in blocks.
    pub capacity: u64,
    /// The first position that is needed.
    pub needed: u64,
    /// With this piece the attempt has all that was flushed.
    pub whole: bool,
    /// Random.
    pub salt: [u8; 32],
}

fn sealer(content_key: &SealKey, salt: &[u8; 32]) -> Sealer {
    let mut hasher = Hasher::default();
    hasher.update(b"cairn tail key 1");
    hasher.update(&content_key.0);
    hasher.update(salt);
    Sealer::new(&SealKey(hasher.finish()))
}

impl Head {
    /// The position behind the piece.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.blocks)
    }

    /// Bytes of the whole piece.
    #[must_use]
    pub const fn piece_bytes(&self) -> usize {
        HEAD_BYTES + self.blocks as usize * BLOCK_BYTES + TAG_BYTES
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_header(MAGIC, VERSION);
        writer.u16(if self.whole { FLAG_WHOLE } else { 0 });
        writer.put(self.volume.as_bytes());
        writer.u64(self.attempt.generation.0);
        writer.u32(self.attempt.number);
        writer.u64(self.first);
        writer.u32(self.blocks);
        writer.u64(self.capacity);
        writer.u64(self.needed);
        writer.put(&self.salt);
        let mut bytes = writer.finish();
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The piece with these blocks.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] when they are not as many as the head says.
    pub fn seal(&self, content_key: &SealKey, blocks: &[u8]) -> Result<Vec<u8>, DecodeError> {
        if blocks.len() != self.blocks as usize * BLOCK_BYTES {
            return Err(DecodeError::Inconsistent { field: "blocks" });
        }
        let head = self.encode();
        let mut piece = Vec::with_capacity(self.piece_bytes());
        piece.extend_from_slice(&head);
        piece.extend_from_slice(blocks);
        let sealer = sealer(content_key, &self.salt);
        let tag = sealer.seal_in_place(0, &head[..CHECKED_BYTES], &mut piece[HEAD_BYTES..]);
        piece.extend_from_slice(&tag);
        Ok(piece)
    }

    /// Reads the head at the beginning of `bytes`.
    ///
    /// # Errors
    /// When it is none, of another version, or a field is beyond its limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.header(MAGIC, VERSION)?;
        let flags = reader.u16()?;
        let volume = VolumeId(reader.array()?);
        let attempt = Attempt { generation: Generation(reader.u64()?), number: reader.u32()? };
        let (first, blocks) = (reader.u64()?, reader.u32()?);
        let (capacity, needed) = (reader.u64()?, reader.u64()?);
        let salt = reader.array()?;
        if bytes.get(..CHECKED_BYTES).map(crc32c) != Some(reader.u32()?) {
            return Err(DecodeError::Inconsistent { field: "checksum" });
        }
        let limit = |field, value: u64, limit| Err(DecodeError::Limit { field, value, limit });
        if flags & !FLAG_WHOLE != 0 {
            return limit("flags", flags.into(), FLAG_WHOLE.into());
        }
        if blocks == 0 || blocks > MAX_PIECE_BLOCKS {
            return limit("blocks", blocks.into(), MAX_PIECE_BLOCKS.into());
        }
        if !(MIN_CAPACITY..=MAX_BLOCKS).contains(&capacity) {
            return limit("capacity", capacity, MAX_BLOCKS);
        }
        let end = first.checked_add(blocks.into());
        if needed > first || end.is_none_or(|end| end - needed > capacity) {
            return Err(DecodeError::Inconsistent { field: "position" });
        }
        let whole = flags & FLAG_WHOLE != 0;
        Ok(Self { volume, attempt, first, blocks, capacity, needed, whole, salt })
    }

    /// Opens the piece in place that this is the head of; the blocks.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`]; [`DecodeError::Unsealable`] with another key, or when a bit of it changed.
    pub fn open<'a>(
        &self,
        content_key: &SealKey,
        piece: &'a mut [u8],
    ) -> Result<&'a [u8], DecodeError> {
        let have = piece.len();
        let whole = piece.get_mut(..self.piece_bytes());
        let whole = whole.ok_or(DecodeError::Truncated { need: self.piece_bytes(), have })?;
        let (head, sealed) = whole.split_at_mut(HEAD_BYTES);
        let sealer = sealer(content_key, &self.salt);
        sealer.open(0, &head[..CHECKED_BYTES], sealed).map(|plain| &*plain)
    }
}

/// Why a client does not take a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("a later attempt has begun: this controller is not the volume's any more")]
    Overtaken,
    #[error("what is before it is not here")]
    Gap,
}

/// How far the latest attempt came that a client has of a volume's tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub attempt: Attempt,
    /// The position behind its last piece.
    pub end: u64,
}

impl Reached {
    /// How far it comes with a further piece, which begins an attempt when it is of a later one.
    ///
    /// # Errors
    /// [`Misfit`]: the piece is not to be taken.
    pub fn with(before: Option<Self>, piece: &Head) -> Result<Self, Misfit> {
        match before {
            Some(before) if piece.attempt < before.attempt => Err(Misfit::Overtaken),
            Some(before) if piece.attempt == before.attempt && piece.first != before.end => {
                Err(Misfit::Gap)
            }
            // An attempt begins where the controller says that it does.
            None if piece.first != piece.needed => Err(Misfit::Gap),
            Some(before) if piece.attempt > before.attempt && piece.first != piece.needed => {
                Err(Misfit::Gap)
            }
            _ => Ok(Self { attempt: piece.attempt, end: piece.end() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SealKey = SealKey([5; 32]);

    prop_compose! {
        fn head()(
            id in any::<[u8; 16]>(), generation in any::<u64>(), number in any::<u32>(), salt in any::<[u8; 32]>(),
            needed in 0_u64..1 << 40, before in 0_u64..100, blocks in 1_u32..5, whole in any::<bool>(),
        ) -> Head {
            Head {
                volume: VolumeId(id),
                attempt: Attempt { generation: Generation(generation), number },
                first: needed + before,
                blocks,
                capacity: 200,
                needed,
                whole,
                salt,
            }
        }
    }

    fn piece(head: &Head) -> (Vec<u8>, Vec<u8>) {
        let blocks: Vec<u8> =
            (0..head.blocks as usize * BLOCK_BYTES).map(|at| at.to_le_bytes()[0]).collect();
        let piece = head.seal(&KEY, &blocks).unwrap();
        (blocks, piece)
    }

    proptest! {
        #[test]
        fn pieces_round_trip(head in head()) {
            let (blocks, mut piece) = piece(&head);
            prop_assert_eq!(piece.len(), head.piece_bytes());
            prop_assert_eq!(Head::decode(&piece), Ok(head));
            prop_assert_eq!(head.open(&KEY, &mut piece).unwrap(), &blocks);
        }

        #[test]
        fn a_flipped_bit_or_another_key_is_noticed(head in head(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let (_, mut piece) = piece(&head);
            prop_assert!(head.open(&SealKey([6; 32]), &mut piece.clone()).is_err());
            piece[at.index(head.piece_bytes())] ^= 1_u8 << bit;
            let opened = Head::decode(&piece).and_then(|head| head.open(&KEY, &mut piece).map(<[u8]>::len));
            prop_assert!(opened.is_err());
        }
    }

    #[test]
    fn a_piece_has_as_many_blocks_as_its_head_says_and_fits_the_ring() {
        let head = Head {
            volume: VolumeId([1; 16]),
            attempt: Attempt { generation: Generation(1), number: 0 },
            first: 10,
            blocks: 2,
            capacity: 8,
            needed: 4,
            whole: false,
            salt: [0; 32],
        };
        assert!(head.seal(&KEY, &[0; 4096]).is_err());
        let decoded = |head: Head| Head::decode(&head.encode());
        assert_eq!(decoded(head), Ok(head));
        assert!(decoded(Head { needed: 3, ..head }).is_err());
        assert!(decoded(Head { needed: 11, ..head }).is_err());
        assert!(decoded(Head { blocks: 0, ..head }).is_err());
        assert!(decoded(Head { first: u64::MAX, ..head }).is_err());
    }

    #[test]
    fn pieces_follow_each_other_and_only_a_later_attempt_begins_anew() {
        let piece = |generation, number, needed, first, blocks| Head {
            volume: VolumeId([1; 16]),
            attempt: Attempt { generation: Generation(generation), number },
            first,
            blocks,
            capacity: 100,
            needed,
            whole: false,
            salt: [0; 32],
        };
        let first = Reached::with(None, &piece(2, 0, 5, 5, 3)).unwrap();
        assert_eq!(first.end, 8);
        // What comes before the first is not here.
        assert_eq!(Reached::with(None, &piece(2, 0, 4, 5, 3)), Err(Misfit::Gap));
        let second = Reached::with(Some(first), &piece(2, 0, 6, 8, 1)).unwrap();
        assert_eq!(second.end, 9);
        assert_eq!(Reached::with(Some(second), &piece(2, 0, 6, 8, 1)), Err(Misfit::Gap));
        assert_eq!(Reached::with(Some(second), &piece(2, 0, 6, 10, 1)), Err(Misfit::Gap));
        assert_eq!(Reached::with(Some(second), &piece(1, 9, 9, 9, 1)), Err(Misfit::Overtaken));
        assert_eq!(Reached::with(Some(second), &piece(2, 1, 6, 9, 1)), Err(Misfit::Gap));
        assert_eq!(Reached::with(Some(second), &piece(2, 1, 6, 6, 1)).unwrap().end, 7);
        assert_eq!(Reached::with(Some(second), &piece(3, 0, 6, 6, 1)).unwrap().end, 7);
    }
}
