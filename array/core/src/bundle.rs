//! The bundle: what a site needs to go on without its server, beside the segments of its images.
//!
//! One string of bytes, cut into plain segments of 4 MiB, which the signed directory names: so it needs no signature of
//! its own, and whoever holds a part of it can check it. Little-endian:
//!
//! ```text
//! offset  size  field
//!      0     8  magic "CAIRNBDL"
//!      8     2  version = 1
//!     10     2  reserved, zero
//!                 then until the end, for each item:
//!                 kind (u8: 1 boot file, 2 manifest, 3 stripe map, 4 root of a volume)
//!                 name (u32 length ≤ 64, UTF-8; of a boot file, else empty)
//!                 content (u32 length ≤ 256 MiB)
//! ```
//!
//! What changes least comes first (boot files, then manifests by age, then stripe
//! maps, then roots), and there is no table of
//! contents in front: so a change leaves the segments before it as they are, and clients fetch little anew. Who wants no boot
//! files, which are most of it, goes from item to item and fetches only the segments that others begin in ([`catalog`]).

use std::{collections::BTreeMap, ops::Range};

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::SegmentId,
    manifest::SegmentEntry,
    units::SEGMENT_MAX_BYTES,
};

const MAGIC: [u8; 8] = *b"CAIRNBDL";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 12;
const KIND_BOOT_FILE: u8 = 1;
const MAX_NAME_BYTES: usize = 64;
const MAX_CONTENT_BYTES: usize = 256 << 20;
/// The most segments of a bundle (1 GiB): it is read into memory as a whole.
pub const MAX_SEGMENTS: usize = 256;

/// A part of the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A file that blank machines boot by, under the name they ask for.
    BootFile { name: &'a str, content: &'a [u8] },
    /// A signed manifest.
    Manifest(&'a [u8]),
    /// A signed stripe map.
    StripeMap(&'a [u8]),
    /// A signed root of a volume.
    VolumeRoot(&'a [u8]),
}

/// The bytes of a bundle of these items, in this order.
#[must_use]
pub fn encode(items: &[Item<'_>]) -> Vec<u8> {
    let mut writer = Writer::with_header(MAGIC, VERSION);
    writer.u16(0);
    for item in items {
        let (kind, name, content) = match item {
            Item::BootFile { name, content } => (KIND_BOOT_FILE, *name, *content),
            Item::Manifest(signed) => (2, "", *signed),
            Item::StripeMap(signed) => (3, "", *signed),
            Item::VolumeRoot(signed) => (4, "", *signed),
        };
        writer.u8(kind);
        writer.bytes(name.as_bytes());
        writer.bytes(content);
    }
    writer.finish()
}

/// The items of a bundle.
///
/// # Errors
/// When the bytes are no bundle of this version.
pub fn decode(bytes: &[u8]) -> Result<Vec<Item<'_>>, DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.header(MAGIC, VERSION)?;
    reader.reserved(2)?;
    let mut items = Vec::new();
    while reader.remaining() > 0 {
        let kind = reader.u8()?;
        let name = reader.text("name", MAX_NAME_BYTES)?;
        let content = reader.bytes("content", MAX_CONTENT_BYTES)?;
        items.push(match (kind, name.is_empty()) {
            (KIND_BOOT_FILE, false) => Item::BootFile { name, content },
            (2, true) => Item::Manifest(content),
            (3, true) => Item::StripeMap(content),
            (4, true) => Item::VolumeRoot(content),
            _ => return Err(DecodeError::Inconsistent { field: "kind" }),
        });
    }
    Ok(items)
}

/// What is known of a bundle without its boot files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// A bundle of all other items.
    Whole(Vec<u8>),
    /// These segments, by their place, are needed to go on; some may be there.
    Lacks(Range<usize>),
}

/// The bytes of a bundle of which only some segments are there.
struct Parts<'a> {
    segments: &'a [SegmentEntry],
    there: &'a BTreeMap<usize, &'a [u8]>,
}

/// Why a part of a bundle cannot be read.
enum Lack {
    Segments(Range<usize>),
    Decode(DecodeError),
}

impl From<DecodeError> for Lack {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl Parts<'_> {
    /// All but the last segment are full.
    fn length(&self) -> usize {
        let last = self.segments.last().map_or(0, |segment| segment.bytes as usize);
        self.segments.len().saturating_sub(1) * SEGMENT_MAX_BYTES + last
    }

    fn read(&self, at: usize, length: usize) -> Result<Vec<u8>, Lack> {
        let whole = self.length();
        if at.checked_add(length).is_none_or(|end| end > whole) {
            return Err(
                DecodeError::Truncated { need: length, have: whole.saturating_sub(at) }.into()
            );
        }
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = at + bytes.len();
            let (segment, from) = (at / SEGMENT_MAX_BYTES, at % SEGMENT_MAX_BYTES);
            let part = self.there.get(&segment).ok_or(Lack::Segments(segment..segment + 1))?;
            let part = part.get(from..).unwrap_or_default();
            let part = part.get(..part.len().min(length - bytes.len())).unwrap_or_default();
            if part.is_empty() {
                return Err(DecodeError::Truncated { need: length, have: bytes.len() }.into());
            }
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Lack> {
        Ok(Reader::new(&self.read(at, 4)?).u32()?)
    }

    /// The items behind the boot files, which come first, as a bundle.
    fn rest(&self) -> Result<Vec<u8>, Lack> {
        let mut bytes = self.read(0, HEAD_BYTES)?;
        let mut at = HEAD_BYTES;
        while at < self.length() {
            if self.read(at, 1)? != [KIND_BOOT_FILE] {
                // Nothing but others from here on.
                let (from, end) = (at / SEGMENT_MAX_BYTES, self.segments.len());
                if (from..end).any(|segment| !self.there.contains_key(&segment)) {
                    return Err(Lack::Segments(from..end));
                }
                bytes.extend(self.read(at, self.length() - at)?);
                break;
            }
            let name = self.u32(at + 1)? as usize;
            if name > MAX_NAME_BYTES {
                let (value, limit) = (name as u64, MAX_NAME_BYTES as u64);
                return Err(DecodeError::Limit { field: "name", value, limit }.into());
            }
            let content = at + 5 + name;
            at = content + 4 + self.u32(content)? as usize;
        }
        Ok(bytes)
    }
}

/// A bundle of these segments without its boot files, as far as those tell that are there.
///
/// # Errors
/// When it is no bundle of this version.
pub fn catalog(
    segments: &[SegmentEntry],
    there: &BTreeMap<usize, &[u8]>,
) -> Result<Catalog, DecodeError> {
    match (Parts { segments, there }).rest() {
        Ok(bytes) => {
            decode(&bytes)?;
            Ok(Catalog::Whole(bytes))
        }
        Err(Lack::Decode(error)) => Err(error),
        Err(Lack::Segments(places)) => Ok(Catalog::Lacks(places)),
    }
}

/// The segments that a bundle is cut into, with their bytes.
pub fn cut(bundle: &[u8]) -> impl Iterator<Item = (SegmentEntry, &[u8])> {
    bundle.chunks(SEGMENT_MAX_BYTES).map(|bytes| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        (SegmentEntry { id: SegmentId::of(bytes), bytes: length }, bytes)
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn bundles_round_trip_and_segments_make_them_whole(
            files in vec(("[a-z.]{1,20}", vec(any::<u8>(), 0..200)), 0..4),
            manifests in vec(vec(any::<u8>(), 0..200), 0..4),
            maps in vec(vec(any::<u8>(), 0..200), 0..4),
            roots in vec(vec(any::<u8>(), 0..200), 0..4),
        ) {
            let mut items = Vec::new();
            items.extend(files.iter().map(|(name, content)| Item::BootFile { name, content }));
            items.extend(manifests.iter().map(|signed| Item::Manifest(signed)));
            items.extend(maps.iter().map(|signed| Item::StripeMap(signed)));
            items.extend(roots.iter().map(|signed| Item::VolumeRoot(signed)));
            let bytes = encode(&items);
            prop_assert_eq!(decode(&bytes).unwrap(), items);
            let mut again = Vec::new();
            for (entry, part) in cut(&bytes) {
                prop_assert_eq!(entry.id, SegmentId::of(part));
                prop_assert_eq!(entry.bytes as usize, part.len());
                again.extend_from_slice(part);
            }
            prop_assert_eq!(again, bytes);
        }

        #[test]
        fn a_catalog_is_the_bundle_without_boot_files_and_needs_no_more_segments_than_it_must(
            files in vec(("[a-z.]{1,20}", 0_usize..13 << 20), 0..3),
            others in vec(vec(any::<u8>(), 0..200), 0..4),
        ) {
            let contents: Vec<_> = files.iter().map(|(_, length)| vec![7; *length]).collect();
            let boot = files.iter().zip(&contents);
            let mut items: Vec<_> =
                boot.map(|((name, _), content)| Item::BootFile { name, content }).collect();
            items.extend(others.iter().map(|signed| Item::Manifest(signed)));
            let bytes = encode(&items);
            let (segments, parts): (Vec<_>, Vec<_>) = cut(&bytes).unzip();
            let mut there = BTreeMap::new();
            let mut rounds = 0;
            let found = loop {
                match catalog(&segments, &there).unwrap() {
                    Catalog::Whole(found) => break found,
                    Catalog::Lacks(places) => {
                        let before = there.len();
                        there.extend(places.map(|place| (place, parts[place])));
                        prop_assert!(there.len() > before);
                    }
                }
                rounds += 1;
            };
            let wanted = items.split_off(files.len());
            prop_assert_eq!(decode(&found).unwrap(), wanted);
            // The first, and for each file where it ends, which may be on a boundary.
            prop_assert!(there.len() <= 1 + 2 * (files.len() + 1), "{} of {}", there.len(), segments.len());
            prop_assert!(rounds <= 2 + 2 * files.len());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            let mut body = b"CAIRNBDL\x01\0\0\0".to_vec();
            body.extend(bytes);
            let (segments, parts): (Vec<_>, Vec<_>) = cut(&body).unzip();
            let found = catalog(&segments, &BTreeMap::from([(0, parts[0])]));
            let Ok(items) = decode(&body) else { return Ok(()) };
            prop_assert_eq!(encode(&items), &body[..]);
            let is_file = |item: &Item<'_>| matches!(item, Item::BootFile { .. });
            let first = items.iter().take_while(|item| is_file(item)).count();
            if !items[first..].iter().any(is_file) {
                prop_assert_eq!(found, Ok(Catalog::Whole(encode(&items[first..]))));
            }
        }
    }

    #[test]
    fn a_change_behind_leaves_the_segments_before_it() {
        let file = vec![7; 5 << 20];
        let boot = Item::BootFile { name: "vmlinuz", content: &file };
        let ids = |items: &[Item<'_>]| -> Vec<SegmentId> {
            cut(&encode(items)).map(|(entry, _)| entry.id).collect()
        };
        let before = ids(&[boot, Item::Manifest(b"one"), Item::StripeMap(b"map")]);
        let after = ids(&[boot, Item::Manifest(b"one"), Item::Manifest(b"two")]);
        assert_eq!(before.len(), 2);
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }
}
