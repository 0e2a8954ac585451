//! The checkpoint: a volume as of one record of its journal.
//!
//! The *root*, a signed document:
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNVOL"
//!      8     2  version = 1
//!     10     2  reserved, zero
//!     12    16  volume id
//!     28     8  generation of the controller
//!     36     8  number of the checkpoint, from 1
//!     44    32  salt, random
//!     76     4  meta segment count M (≤ 1048576), then M × { id (32), sealed bytes (u32) }
//!      …   4+n  the content key, wrapped to the server and to the recovery key (an age file, ≤ 4096)
//!      …   4+n  the secret part, sealed (≤ 160 MiB)
//!      …    64  Ed25519 signature of all the above, context "cairn volume 1"
//! ```
//!
//! The secret part is sealed under SHA-256("cairn volume key 1" ‖ content key ‖ salt), nonce 0: the content key lives as long
//! as the volume and never seals itself, so no nonce can come twice. Plain:
//!
//! ```text
//!      0     2  version = 1
//!      2     2  flags: bit 0: clients mirror the journal ([`super::tail`])
//!      4     8  size in blocks
//!     12    24  the journal's record to go on with: position, sequence number, life of the record before
//!     36   4+n  name of the volume, UTF-8 (≤ 128)
//!      …  32×M  key of each meta segment
//!      …     4  table page count T, then T × { meta segment (u32), frame (u16) }
//!      …     4  map page count P, then P × { page number (u64), meta segment (u32), frame (u16) }, ascending
//! ```
//!
//! Table pages ([`super::table`]) and map pages are frames of *meta segments*; a checkpoint writes those that changed, and
//! the root names where each page is now. A map page:
//!
//! ```text
//! offset  size  field
//!      0     2  version = 1
//!      2     2  run count E (1 ..= 4096)
//!      4     4  reserved, zero
//!      8     8  number of the page
//!     16  12×E  runs, ascending, not overlapping: first block in the page (u16), blocks (u16, within one frame),
//!               segment (u32), frame (u16), block in the frame (u16)
//!      …        zeros to whole blocks
//! ```

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::{Hasher, VolumeId},
    manifest::{SegmentEntry, entries, put_entries},
    map::PAGE_BLOCKS,
    seal::{SealKey, Sealer, TAG_BYTES},
    sign::{SigningKey, VerifyingKey},
    units::{BLOCK_BYTES, FRAME_BLOCKS, FrameIndex, Generation, SEGMENT_MAX_FRAMES, SegmentIndex},
    volume::{
        Durability, MAX_BLOCKS, MAX_NAME_BYTES, Place,
        extent_map::Entry,
        journal::Cursor,
        table::{MAX_SEGMENTS, PAGE_SLOTS},
    },
};

const MAGIC: [u8; 8] = *b"CAIRNVOL";
const VERSION: u16 = 1;
const SECRET_VERSION: u16 = 1;
const FLAG_MIRRORED: u16 = 1;
const PAGE_VERSION: u16 = 1;
const CONTEXT: &str = "cairn volume 1";
const SECRET_CONTEXT: &[u8] = b"cairn volume secret 1";
const MAX_META_SEGMENTS: usize = 1 << 20;
const MAX_WRAPPED_BYTES: usize = 4096;
const MAX_SECRET_BYTES: usize = 160 << 20;
const RUN_BYTES: usize = 12;

/// Where a page of table or map is: a frame of a meta segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PagePlace {
    /// Index among the meta segments.
    pub meta: u32,
    pub frame: FrameIndex,
}

/// What every holder may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub volume: VolumeId,
    pub generation: Generation,
    pub number: u64,
    pub salt: [u8; 32],
    pub metas: Vec<SegmentEntry>,
    /// The content key as an age file.
    pub wrapped_key: Vec<u8>,
    sealed: Vec<u8>,
}

/// What needs the content key.
#[derive(Clone, Debug)]
pub struct Secret {
    pub name: String,
    pub durability: Durability,
    pub blocks: u64,
    pub cursor: Cursor,
    /// One for each of [`Root::metas`].
    pub meta_keys: Vec<SealKey>,
    /// Where each page of the table is.
    pub table: Vec<PagePlace>,
    /// Where each page of the map is, by its number.
    pub map: Vec<(u64, PagePlace)>,
}

/// What a root is made of, before it is sealed and signed.
#[derive(Debug)]
pub struct Draft {
    pub volume: VolumeId,
    pub generation: Generation,
    pub number: u64,
    /// Random.
    pub salt: [u8; 32],
    pub metas: Vec<SegmentEntry>,
    pub wrapped_key: Vec<u8>,
    pub secret: Secret,
}

fn sealer(content_key: &SealKey, salt: &[u8; 32]) -> Sealer {
    let mut hasher = Hasher::default();
    hasher.update(b"cairn volume key 1");
    hasher.update(&content_key.0);
    hasher.update(salt);
    Sealer::new(&SealKey(hasher.finish()))
}

impl Draft {
    /// The signed document.
    #[must_use]
    pub fn seal(self, content_key: &SealKey, signer: &SigningKey) -> Vec<u8> {
        let mut sealed = encode_secret(&self.secret);
        sealer(content_key, &self.salt).seal(0, SECRET_CONTEXT, &mut sealed);
        let mut writer = Writer::with_header(MAGIC, VERSION);
        writer.u16(0);
        writer.put(self.volume.as_bytes());
        writer.u64(self.generation.0);
        writer.u64(self.number);
        writer.put(&self.salt);
        put_entries(&mut writer, &self.metas);
        writer.bytes(&self.wrapped_key);
        writer.bytes(&sealed);
        signer.sign(CONTEXT, writer.finish())
    }
}

impl Root {
    /// Checks the signature and reads what every holder may read.
    ///
    /// # Errors
    /// When the site did not sign these bytes, or they are no root of this version.
    pub fn open(verifier: &VerifyingKey, signed: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(verifier.open(CONTEXT, signed)?)
    }

    /// Reads a body whose signature was checked.
    ///
    /// # Errors
    /// When the bytes are no root of this version.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.header(MAGIC, VERSION)?;
        reader.reserved(2)?;
        let volume = VolumeId(reader.array()?);
        let generation = Generation(reader.u64()?);
        let number = reader.u64()?;
        let salt = reader.array()?;
        let metas = entries(&mut reader, "meta segments", MAX_META_SEGMENTS)?;
        let wrapped_key = reader.bytes("wrapped key", MAX_WRAPPED_BYTES)?.to_vec();
        let sealed = reader.bytes("secret part", MAX_SECRET_BYTES)?.to_vec();
        reader.finish()?;
        Ok(Self { volume, generation, number, salt, metas, wrapped_key, sealed })
    }

    /// Opens the secret part.
    ///
    /// # Errors
    /// [`DecodeError::Unsealable`] with another key; the rest when what was sealed is not this version's format.
    pub fn open_secret(&self, content_key: &SealKey) -> Result<Secret, DecodeError> {
        let mut sealed = self.sealed.clone();
        if sealed.len() < TAG_BYTES {
            return Err(DecodeError::Truncated { need: TAG_BYTES, have: sealed.len() });
        }
        let plain = sealer(content_key, &self.salt).open(0, SECRET_CONTEXT, &mut sealed)?;
        decode_secret(plain, self.metas.len())
    }
}

fn encode_secret(secret: &Secret) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u16(SECRET_VERSION);
    writer.u16(match secret.durability {
        Durability::Local => 0,
        Durability::Mirrored => FLAG_MIRRORED,
    });
    writer.u64(secret.blocks);
    writer.u64(secret.cursor.position);
    writer.u64(secret.cursor.sequence);
    writer.u64(secret.cursor.life);
    writer.bytes(secret.name.as_bytes());
    for key in &secret.meta_keys {
        writer.put(&key.0);
    }
    writer.count(secret.table.len());
    for place in &secret.table {
        writer.u32(place.meta);
        writer.u16(place.frame.0);
    }
    writer.count(secret.map.len());
    for (page, place) in &secret.map {
        writer.u64(*page);
        writer.u32(place.meta);
        writer.u16(place.frame.0);
    }
    writer.finish()
}

fn decode_secret(plain: &[u8], metas: usize) -> Result<Secret, DecodeError> {
    let mut reader = Reader::new(plain);
    let found = reader.u16()?;
    if found != SECRET_VERSION {
        return Err(DecodeError::Version { found, known: SECRET_VERSION });
    }
    let durability = match reader.u16()? {
        0 => Durability::Local,
        FLAG_MIRRORED => Durability::Mirrored,
        _ => return Err(DecodeError::Inconsistent { field: "flags" }),
    };
    let blocks = reader.u64()?;
    if blocks == 0 || blocks > MAX_BLOCKS {
        return Err(DecodeError::Limit { field: "size", value: blocks, limit: MAX_BLOCKS });
    }
    let cursor = Cursor { position: reader.u64()?, sequence: reader.u64()?, life: reader.u64()? };
    let name = reader.text("name", MAX_NAME_BYTES)?.to_owned();
    let meta_keys = (0..metas).map(|_| reader.array().map(SealKey)).collect::<Result<_, _>>()?;
    let count = reader.count("table pages", MAX_SEGMENTS / PAGE_SLOTS, 6)?;
    let table = (0..count).map(|_| place(&mut reader, metas)).collect::<Result<_, _>>()?;
    let pages = MAX_BLOCKS / PAGE_BLOCKS;
    let count = reader.count("map pages", usize::try_from(pages).unwrap_or(usize::MAX), 14)?;
    let mut map: Vec<(u64, PagePlace)> = Vec::with_capacity(count);
    for _ in 0..count {
        let page = reader.u64()?;
        if page >= pages || map.last().is_some_and(|(last, _)| *last >= page) {
            return Err(DecodeError::Inconsistent { field: "map page order" });
        }
        map.push((page, place(&mut reader, metas)?));
    }
    reader.finish()?;
    Ok(Secret { name, durability, blocks, cursor, meta_keys, table, map })
}

fn place(reader: &mut Reader<'_>, metas: usize) -> Result<PagePlace, DecodeError> {
    let place = PagePlace { meta: reader.u32()?, frame: FrameIndex(reader.u16()?) };
    if place.meta as usize >= metas || usize::from(place.frame.0) >= SEGMENT_MAX_FRAMES {
        return Err(DecodeError::Inconsistent { field: "place of a page" });
    }
    Ok(place)
}

/// The bytes of a map page, padded to whole blocks.
#[must_use]
pub fn encode_page(page: u64, runs: &[Entry<Place>]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u16(PAGE_VERSION);
    writer.u16(u16::try_from(runs.len()).unwrap_or(u16::MAX));
    writer.u32(0);
    writer.u64(page);
    for run in runs {
        writer.u16(run.first);
        writer.u16(run.blocks);
        writer.u32(run.place.segment.0);
        writer.u16(run.place.frame.0);
        writer.u16(run.place.block);
    }
    let mut bytes = writer.finish();
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

/// Reads a map page.
///
/// # Errors
/// When the bytes are no map page of this number, or a run is out of order or beyond a limit.
pub fn decode_page(bytes: &[u8], page: u64) -> Result<Vec<Entry<Place>>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let found = reader.u16()?;
    if found != PAGE_VERSION {
        return Err(DecodeError::Version { found, known: PAGE_VERSION });
    }
    let count = reader.u16()?;
    if count == 0 || u64::from(count) > PAGE_BLOCKS {
        let limit = PAGE_BLOCKS;
        return Err(DecodeError::Limit { field: "run count", value: count.into(), limit });
    }
    reader.reserved(4)?;
    if reader.u64()? != page {
        return Err(DecodeError::Inconsistent { field: "page number" });
    }
    let need = usize::from(count) * RUN_BYTES;
    if need > reader.remaining() {
        return Err(DecodeError::Truncated { need, have: reader.remaining() });
    }
    let mut runs = Vec::with_capacity(count.into());
    let mut end = 0;
    for _ in 0..count {
        let run = run(&mut reader)?;
        if u64::from(run.first) < end {
            return Err(DecodeError::Inconsistent { field: "run order" });
        }
        end = u64::from(run.first) + u64::from(run.blocks);
        if end > PAGE_BLOCKS {
            return Err(DecodeError::Inconsistent { field: "run end" });
        }
        runs.push(run);
    }
    reader.reserved(reader.remaining())?;
    Ok(runs)
}

fn run(reader: &mut Reader<'_>) -> Result<Entry<Place>, DecodeError> {
    let first = reader.u16()?;
    let blocks = reader.u16()?;
    let segment = SegmentIndex(reader.u32()?);
    let frame = FrameIndex(reader.u16()?);
    let block = reader.u16()?;
    let inside = usize::from(block) + usize::from(blocks) <= FRAME_BLOCKS;
    if blocks == 0 || !inside || usize::from(frame.0) >= SEGMENT_MAX_FRAMES {
        return Err(DecodeError::Inconsistent { field: "place of a run" });
    }
    Ok(Entry { first, blocks, place: Place { segment, frame, block } })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{id::SegmentId, units::FRAME_MAX_BYTES};

    fn draft(metas: u32, table: usize, map: Vec<u64>) -> Draft {
        let at = |number: usize| PagePlace {
            meta: u32::try_from(number).unwrap() % metas,
            frame: FrameIndex(u16::try_from(number % 4000).unwrap()),
        };
        let entry =
            |number: u32| SegmentEntry { id: SegmentId::of(&number.to_le_bytes()), bytes: 9 };
        Draft {
            volume: VolumeId([3; 16]),
            generation: Generation(4),
            number: 5,
            salt: [9; 32],
            metas: (0..metas).map(entry).collect(),
            wrapped_key: b"age".to_vec(),
            secret: Secret {
                name: "scratch".into(),
                durability: if metas.is_multiple_of(2) {
                    Durability::Local
                } else {
                    Durability::Mirrored
                },
                blocks: 77,
                cursor: Cursor { position: 1, sequence: 2, life: 3 },
                meta_keys: (0..metas).map(|_| SealKey([7; 32])).collect(),
                table: (0..table).map(at).collect(),
                map: map.into_iter().enumerate().map(|(index, page)| (page, at(index))).collect(),
            },
        }
    }

    fn signer() -> SigningKey {
        SigningKey::from_seed(&[5; 32]).unwrap()
    }

    proptest! {
        #[test]
        fn roots_round_trip(metas in 1_u32..50, table in 0_usize..50, pages in proptest::collection::btree_set(0..MAX_BLOCKS / PAGE_BLOCKS, 0..60)) {
            let key = SealKey([1; 32]);
            let pages: Vec<u64> = pages.into_iter().collect();
            let signed = draft(metas, table, pages.clone()).seal(&key, &signer());
            let root = Root::open(&signer().verifying_key(), &signed).unwrap();
            prop_assert_eq!((root.volume, root.generation, root.number), (VolumeId([3; 16]), Generation(4), 5));
            let secret = root.open_secret(&key).unwrap();
            prop_assert_eq!((&*secret.name, secret.blocks, secret.cursor.life), ("scratch", 77, 3));
            prop_assert_eq!(secret.durability == Durability::Mirrored, !metas.is_multiple_of(2));
            prop_assert_eq!(secret.map.iter().map(|(page, _)| *page).collect::<Vec<_>>(), pages);
            prop_assert_eq!(secret.table.len(), table);
            prop_assert!(matches!(root.open_secret(&SealKey([2; 32])), Err(DecodeError::Unsealable)));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), at in 0_usize..80, value in any::<u8>()) {
            let mut body = draft(3, 2, vec![1, 5]).seal(&SealKey([1; 32]), &signer());
            body.truncate(body.len() - 64);
            body[at] = value;
            Root::decode(&body).ok();
            Root::decode(&bytes).ok();
            prop_assert!(decode_page(&bytes, 0).is_err() || bytes.len() >= 16);
            prop_assert!(decode_secret(&bytes, 1).is_err());
        }

        #[test]
        fn map_pages_round_trip(runs in vec((0_u16..40, 1_u16..=64, any::<u32>(), 0_u16..4096), 1..100)) {
            let mut at = 0;
            let mut entries = Vec::new();
            for (gap, blocks, segment, frame) in runs {
                let first = at + gap;
                if u64::from(first + blocks) > PAGE_BLOCKS { break }
                at = first + blocks;
                let place = Place { segment: SegmentIndex(segment), frame: FrameIndex(frame), block: 64 - blocks };
                entries.push(Entry { first, blocks, place });
            }
            let bytes = encode_page(12, &entries);
            prop_assert_eq!(decode_page(&bytes, 12), Ok(entries));
            prop_assert!(decode_page(&bytes, 13).is_err());
        }
    }

    #[test]
    fn the_fullest_page_fits_a_frame() {
        let place = Place { segment: SegmentIndex(1), frame: FrameIndex(2), block: 0 };
        let runs: Vec<_> = (0..4096).map(|first| Entry { first, blocks: 1, place }).collect();
        assert!(encode_page(0, &runs).len() <= FRAME_MAX_BYTES);
    }
}
