//! The superblock: which file this is, and the geometry it was made with.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 8 | magic `CAIRNDSF` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | zero |
//! | 12 | 4 | bytes of a slot's payload, 4 MiB |
//! | 16 | 4 | bytes of a slot's header, 4 KiB |
//! | 20 | 4 | slots per group, 256 |
//! | 24 | 8 | offset of group 0, 1 MiB |
//! | 32 | 16 | id of this DSF, random |
//! | 48 | 460 | zero |
//! | 508 | 4 | CRC-32C of bytes 0..508 |
//!
//! Why in this order: magic and version first, as in every format, so that any tool can tell what it
//! sees. The checksum is at the end of the first 512 bytes, which every disk writes whole, and stays
//! there in later versions, so that "damaged" and "newer than this program" can be told apart.
//! Geometry is written down rather than implied, so that a build with other constants refuses the
//! file instead of reading headers out of payloads.
//!
//! It is written twice when the DSF is created, and never again: capacity is the file's length.

use cairn_core::{
    bytes::{DecodeError, Reader, Writer},
    units::SEGMENT_MAX_BYTES,
};

use super::layout::{FIRST_GROUP_AT, SLOT_HEADER_BYTES, SLOTS_PER_GROUP};

const MAGIC: [u8; 8] = *b"CAIRNDSF";
const VERSION: u16 = 1;

/// Bytes of a sealed sector: what the superblock and a slot header really use of their page.
pub(super) const SECTOR_BYTES: usize = 512;
const CHECKSUM_AT: usize = SECTOR_BYTES - 4;

/// What one DSF is called: it changes when the disk under an agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DsfId(pub [u8; 16]);

/// The decoded superblock. The geometry is not kept: a superblock with another one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub id: DsfId,
}

impl Superblock {
    /// The 512 bytes on disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_header(MAGIC, VERSION);
        out.u16(0);
        for geometry in geometry() {
            out.u32(geometry);
        }
        out.u64(FIRST_GROUP_AT);
        out.put(&self.id.0);
        seal_sector(out)
    }

    /// Reads the superblock at the start of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`]: damaged, of another version or of another geometry.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = open_sector(bytes)?;
        fields.header(MAGIC, VERSION)?;
        fields.reserved(2)?;
        for expected in geometry() {
            if fields.u32()? != expected {
                return Err(DecodeError::Inconsistent { field: "geometry" });
            }
        }
        if fields.u64()? != FIRST_GROUP_AT {
            return Err(DecodeError::Inconsistent { field: "geometry" });
        }
        let id = DsfId(fields.array()?);
        fields.reserved(fields.remaining())?;
        Ok(Self { id })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "constants of 4 MiB and 4 KiB")]
const fn geometry() -> [u32; 3] {
    [SEGMENT_MAX_BYTES as u32, SLOT_HEADER_BYTES as u32, SLOTS_PER_GROUP]
}

/// Fills a document up to its sector and puts the checksum at the end of it.
pub(super) fn seal_sector(fields: Writer) -> Vec<u8> {
    let mut bytes = fields.finish();
    bytes.resize(CHECKSUM_AT, 0);
    let checksum = crc_fast::crc32_iscsi(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The fields of a sealed sector, once its checksum is right. Bytes after the sector are not read.
pub(super) fn open_sector(bytes: &[u8]) -> Result<Reader<'_>, DecodeError> {
    let mut sector = Reader::new(bytes);
    let fields = sector.take(CHECKSUM_AT)?;
    if sector.u32()? != crc_fast::crc32_iscsi(fields) {
        return Err(DecodeError::Inconsistent { field: "checksum" });
    }
    Ok(Reader::new(fields))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(id in any::<[u8; 16]>()) {
            let superblock = Superblock { id: DsfId(id) };
            let bytes = superblock.encode();
            prop_assert_eq!(bytes.len(), SECTOR_BYTES);
            prop_assert_eq!(Superblock::decode(&bytes), Ok(superblock));
        }

        #[test]
        fn a_changed_bit_is_noticed(id in any::<[u8; 16]>(), bit in 0..SECTOR_BYTES * 8) {
            let mut bytes = Superblock { id: DsfId(id) }.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Superblock::decode(&bytes).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            prop_assert!(Superblock::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut fields = Writer::with_header(MAGIC, 2);
        fields.put(b"whatever comes");
        assert_eq!(
            Superblock::decode(&seal_sector(fields)),
            Err(DecodeError::Version { found: 2, known: 1 })
        );
    }

    #[test]
    fn another_geometry_is_refused() {
        let mut fields = Writer::with_header(MAGIC, VERSION);
        fields.u16(0);
        for geometry in [8 << 20, 4096, 256] {
            fields.u32(geometry);
        }
        fields.u64(FIRST_GROUP_AT);
        fields.put(&[7; 16]);
        assert_eq!(
            Superblock::decode(&seal_sector(fields)),
            Err(DecodeError::Inconsistent { field: "geometry" })
        );
    }
}
