//! The manifest: what makes segments an image. It never changes.
//!
//! The *public* part, readable by any holder:
//!
//! ```text
//! offset   size  field
//!      0      8  magic "CAIRNMAN"
//!      8      2  version = 1
//!     10      2  reserved, zero
//!     12     16  image id
//!     28     16  version id
//!     44      8  image size in bytes
//!     52      4  data segment count S (≤ 4194304), then S × { id (32), sealed bytes (u32) }
//!      …      4  map segment count P (≤ 65536), then P × { id (32), sealed bytes (u32) }
//!      …    4+n  the content key, wrapped to the server and to the recovery key (an age file, ≤ 4096)
//!      …    4+n  the secret part, sealed under the content key (≤ 160 MiB)
//!      …     64  Ed25519 signature of all the above, context "cairn manifest 1"
//! ```
//!
//! The *secret* part, plain:
//!
//! ```text
//!      0      2  version = 1
//!      2      2  reserved, zero
//!      4      4  number of the version of its image, from 1
//!      8      8  registered at, seconds since 1970
//!     16      8  data blocks of the image (neither zero nor free)
//!     24    4+n  name of the image, UTF-8 (≤ 128)
//!      …   32×S  key of each data segment
//!      …   40×P  for each map segment: key (32), number of the first map page in it (u64), ascending
//! ```
//!
//! Ids come before anything sealed, so that whoever only serves, scrubs or repairs reads a prefix. The secret part
//! is last but the signature, for it alone grows with keys. Extents and block hashes are not in it: they are pages
//! ([`crate::map`]) in *map segments*, read one after the other, so that no reader holds a whole map.

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::{ImageId, SegmentId, VersionId},
    seal::{SealKey, Sealer, TAG_BYTES},
    sign::{SigningKey, VerifyingKey},
    units::{ByteCount, SEGMENT_MAX_BYTES},
};

const MAGIC: [u8; 8] = *b"CAIRNMAN";
const VERSION: u16 = 1;
const SECRET_VERSION: u16 = 1;
const CONTEXT: &str = "cairn manifest 1";
const SECRET_CONTEXT: &[u8] = b"cairn manifest secret 1";

/// The most data segments of one version: 16 TiB sealed.
pub const MAX_DATA_SEGMENTS: usize = 4 << 20;
/// The most map segments of one version: maps of 16 TiB and more.
pub const MAX_MAP_SEGMENTS: usize = 64 << 10;
/// The longest image name in bytes.
pub const MAX_NAME_BYTES: usize = 128;
const MAX_WRAPPED_BYTES: usize = 4096;
const MAX_SECRET_BYTES: usize = 160 << 20;
const ENTRY_BYTES: usize = 36;

/// A segment as a manifest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentEntry {
    pub id: SegmentId,
    /// 1 ..= [`SEGMENT_MAX_BYTES`].
    pub bytes: u32,
}

/// The part that every holder may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    pub image: ImageId,
    pub version: VersionId,
    pub size: ByteCount,
    pub data: Vec<SegmentEntry>,
    pub map: Vec<SegmentEntry>,
    /// The content key as an age file.
    pub wrapped_key: Vec<u8>,
    sealed_secret: Vec<u8>,
}

/// The part that needs the content key.
#[derive(Clone, Debug)]
pub struct Secret {
    pub name: String,
    pub number: u32,
    pub registered_at: u64,
    /// Blocks that an install writes.
    pub data_blocks: u64,
    /// One for each entry of [`Public::data`].
    pub data_keys: Vec<SealKey>,
    /// One for each entry of [`Public::map`].
    pub map_keys: Vec<MapSegmentKey>,
}

/// How to read a map segment.
#[derive(Clone, Debug)]
pub struct MapSegmentKey {
    pub key: SealKey,
    /// The number of the first page in it (first block / 4096).
    pub first_page: u64,
}

/// What a manifest is made of, before it is sealed and signed.
#[derive(Debug)]
pub struct Draft {
    pub image: ImageId,
    pub version: VersionId,
    pub size: ByteCount,
    pub data: Vec<SegmentEntry>,
    pub map: Vec<SegmentEntry>,
    pub wrapped_key: Vec<u8>,
    pub secret: Secret,
}

impl Draft {
    /// The signed document. `content_key` must be new: it seals this one secret part.
    #[must_use]
    pub fn seal(self, content_key: &SealKey, signer: &SigningKey) -> Vec<u8> {
        let mut sealed = encode_secret(&self.secret);
        Sealer::new(content_key).seal(0, SECRET_CONTEXT, &mut sealed);
        let mut writer = Writer::with_header(MAGIC, VERSION);
        writer.u16(0);
        writer.put(self.image.as_bytes());
        writer.put(self.version.as_bytes());
        writer.u64(self.size.0);
        for entries in [&self.data, &self.map] {
            put_entries(&mut writer, entries);
        }
        writer.bytes(&self.wrapped_key);
        writer.bytes(&sealed);
        signer.sign(CONTEXT, writer.finish())
    }
}

impl Public {
    /// Checks the signature and reads the public part.
    ///
    /// # Errors
    /// When the site did not sign these bytes, or they are no manifest of this version.
    pub fn open(verifier: &VerifyingKey, signed: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(verifier.open(CONTEXT, signed)?)
    }

    /// Reads a body whose signature was checked.
    ///
    /// # Errors
    /// When the bytes are no manifest of this version.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.header(MAGIC, VERSION)?;
        reader.reserved(2)?;
        let image = ImageId(reader.array()?);
        let version = VersionId(reader.array()?);
        let size = ByteCount(reader.u64()?);
        let data = entries(&mut reader, "data segments", MAX_DATA_SEGMENTS)?;
        let map = entries(&mut reader, "map segments", MAX_MAP_SEGMENTS)?;
        let wrapped_key = reader.bytes("wrapped key", MAX_WRAPPED_BYTES)?.to_vec();
        let sealed_secret = reader.bytes("secret part", MAX_SECRET_BYTES)?.to_vec();
        reader.finish()?;
        Ok(Self { image, version, size, data, map, wrapped_key, sealed_secret })
    }

    /// Opens the secret part.
    ///
    /// # Errors
    /// [`DecodeError::Unsealable`] with another key; the rest when what was sealed is not this version's format.
    pub fn open_secret(&self, content_key: &SealKey) -> Result<Secret, DecodeError> {
        let mut sealed = self.sealed_secret.clone();
        if sealed.len() < TAG_BYTES {
            return Err(DecodeError::Truncated { need: TAG_BYTES, have: sealed.len() });
        }
        let plain = Sealer::new(content_key).open(0, SECRET_CONTEXT, &mut sealed)?;
        decode_secret(plain, self.data.len(), self.map.len())
    }

    /// Every segment that this version needs: data, then map.
    pub fn segments(&self) -> impl Iterator<Item = &SegmentEntry> {
        self.data.iter().chain(&self.map)
    }
}

/// A count, then ids with their bytes.
pub(crate) fn put_entries(writer: &mut Writer, entries: &[SegmentEntry]) {
    writer.count(entries.len());
    for entry in entries {
        writer.put(entry.id.as_bytes());
        writer.u32(entry.bytes);
    }
}

/// What [`put_entries`] wrote.
pub(crate) fn entries(
    reader: &mut Reader<'_>,
    field: &'static str,
    limit: usize,
) -> Result<Vec<SegmentEntry>, DecodeError> {
    let count = reader.count(field, limit, ENTRY_BYTES)?;
    (0..count)
        .map(|_| {
            let id = SegmentId(reader.array()?);
            let bytes = reader.u32()?;
            if bytes == 0 || bytes as usize > SEGMENT_MAX_BYTES {
                let limit = SEGMENT_MAX_BYTES as u64;
                return Err(DecodeError::Limit {
                    field: "sealed bytes",
                    value: bytes.into(),
                    limit,
                });
            }
            Ok(SegmentEntry { id, bytes })
        })
        .collect()
}

fn encode_secret(secret: &Secret) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u16(SECRET_VERSION);
    writer.u16(0);
    writer.u32(secret.number);
    writer.u64(secret.registered_at);
    writer.u64(secret.data_blocks);
    writer.bytes(secret.name.as_bytes());
    for key in &secret.data_keys {
        writer.put(&key.0);
    }
    for segment in &secret.map_keys {
        writer.put(&segment.key.0);
        writer.u64(segment.first_page);
    }
    writer.finish()
}

fn decode_secret(plain: &[u8], data: usize, map: usize) -> Result<Secret, DecodeError> {
    let mut reader = Reader::new(plain);
    let found = reader.u16()?;
    if found != SECRET_VERSION {
        return Err(DecodeError::Version { found, known: SECRET_VERSION });
    }
    reader.reserved(2)?;
    let number = reader.u32()?;
    let registered_at = reader.u64()?;
    let data_blocks = reader.u64()?;
    let name = reader.text("name", MAX_NAME_BYTES)?.to_owned();
    let data_keys = (0..data).map(|_| reader.array().map(SealKey)).collect::<Result<_, _>>()?;
    let map_keys = (0..map)
        .map(|_| Ok(MapSegmentKey { key: SealKey(reader.array()?), first_page: reader.u64()? }))
        .collect::<Result<Vec<_>, DecodeError>>()?;
    if !map_keys.is_sorted_by(|a, b| a.first_page < b.first_page) {
        return Err(DecodeError::Inconsistent { field: "first page" });
    }
    reader.finish()?;
    Ok(Secret { name, number, registered_at, data_blocks, data_keys, map_keys })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn draft(data: &[u32], map: &[u32]) -> Draft {
        let entry =
            |bytes: &u32| SegmentEntry { id: SegmentId::of(&bytes.to_le_bytes()), bytes: *bytes };
        Draft {
            image: ImageId([1; 16]),
            version: VersionId([2; 16]),
            size: ByteCount(1 << 30),
            data: data.iter().map(entry).collect(),
            map: map.iter().map(entry).collect(),
            wrapped_key: b"age".to_vec(),
            secret: Secret {
                name: "debian".to_owned(),
                number: 3,
                registered_at: 1_700_000_000,
                data_blocks: 77,
                data_keys: data.iter().map(|_| SealKey([9; 32])).collect(),
                map_keys: (0..map.len() as u64)
                    .map(|page| MapSegmentKey { key: SealKey([8; 32]), first_page: page * 17 })
                    .collect(),
            },
        }
    }

    proptest! {
        #[test]
        fn manifests_round_trip_and_any_flipped_bit_is_noticed(
            data in vec(1_u32..=4 << 20, 0..20), map in vec(1_u32..=4 << 20, 0..5), at in any::<usize>(), bit in 0_u8..8,
        ) {
            let signer = SigningKey::from_seed(&[1; 32]).unwrap();
            let key = SealKey([4; 32]);
            let mut signed = draft(&data, &map).seal(&key, &signer);
            let public = Public::open(&signer.verifying_key(), &signed).unwrap();
            prop_assert_eq!(public.data.len(), data.len());
            let secret = public.open_secret(&key).unwrap();
            prop_assert_eq!((secret.name.as_str(), secret.number, secret.data_blocks), ("debian", 3, 77));
            prop_assert_eq!(secret.map_keys.len(), map.len());
            prop_assert!(matches!(public.open_secret(&SealKey([5; 32])), Err(DecodeError::Unsealable)));
            let at = at % signed.len();
            signed[at] ^= 1_u8 << bit;
            prop_assert_eq!(Public::open(&signer.verifying_key(), &signed).unwrap_err(), DecodeError::Signature);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            let mut body = b"CAIRNMAN\x01\0\0\0".to_vec();
            body.extend(bytes);
            if let Ok(public) = Public::decode(&body) {
                prop_assert!(public.open_secret(&SealKey([0; 32])).is_err());
            }
        }
    }
}
