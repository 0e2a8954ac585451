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
//! contents in front: so a change leaves the segments before it as they are, and clients fetch little anew.

use crate::{
    bytes::{DecodeError, Reader, Writer},
    id::SegmentId,
    manifest::SegmentEntry,
    units::SEGMENT_MAX_BYTES,
};

const MAGIC: [u8; 8] = *b"CAIRNBDL";
const VERSION: u16 = 1;
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
            Item::BootFile { name, content } => (1, *name, *content),
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
            (1, false) => Item::BootFile { name, content },
            (2, true) => Item::Manifest(content),
            (3, true) => Item::StripeMap(content),
            (4, true) => Item::VolumeRoot(content),
            _ => return Err(DecodeError::Inconsistent { field: "kind" }),
        });
    }
    Ok(items)
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
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            let mut body = b"CAIRNBDL\x01\0\0\0".to_vec();
            body.extend(bytes);
            if let Ok(items) = decode(&body) {
                prop_assert_eq!(encode(&items), body);
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
