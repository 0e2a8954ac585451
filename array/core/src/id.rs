//! Names of things: content hashes and random identifiers, shown and parsed as lower-case hex.

use aws_lc_rs::digest::{Context, Digest, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The text is not the hex form of the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hex digits")]
pub struct ParseIdError {
    expected: usize,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Bytes in the binary form.
            pub const BYTES: usize = $bytes;

            /// The binary form.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(&self.0[..6]))
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError { expected: 2 * $bytes })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

identifier! {
    /// SHA-256 of a segment's sealed bytes: whoever holds it can check it without a key.
    SegmentId, 32
}
identifier! {
    /// SHA-256 of a block's plain bytes; known only to those who can open the manifest.
    BlockHash, 32
}
identifier! {
    /// A client's agent, named by the server when it joins.
    AgentId, 16
}
identifier! {
    /// One version of an image, named at random when its registration starts.
    VersionId, 16
}
identifier! {
    /// An image, over all its versions.
    ImageId, 16
}
identifier! {
    /// A stripe set, whose segments form stripes with each other: those of an image over all its versions, or those of a
    /// volume. It has the id of the one or the other.
    StripeSetId, 16
}

impl From<ImageId> for StripeSetId {
    fn from(image: ImageId) -> Self {
        Self(image.0)
    }
}

impl From<VolumeId> for StripeSetId {
    fn from(volume: VolumeId) -> Self {
        Self(volume.0)
    }
}

identifier! {
    /// A site: one server, its CA and its fleet.
    SiteId, 16
}
identifier! {
    /// A machine that was seen at boot or asked to be installed.
    MachineId, 16
}
identifier! {
    /// A volume.
    VolumeId, 16
}
identifier! {
    /// A snapshot of a volume, named at random when it is taken.
    SnapshotId, 16
}
identifier! {
    /// One machine's share of a deployment.
    InstallId, 16
}

/// SHA-256, the one hash function of the system. By AWS-LC, which has vector code for processors without SHA instructions:
/// fleets have older ones.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    array(&digest(&SHA256, bytes))
}

fn array(digest: &Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// SHA-256 over what comes in parts.
#[derive(Clone)]
pub struct Hasher(Context);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher(..)")
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all parts as one.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        array(&self.0.finish())
    }
}

impl SegmentId {
    /// The id of a segment with these sealed bytes.
    #[must_use]
    pub fn of(sealed: &[u8]) -> Self {
        Self(sha256(sealed))
    }
}

impl BlockHash {
    /// The hash of one block's plain bytes.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        Self(sha256(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_rejects_the_wrong_length() {
        let id = SegmentId::of(b"stone");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("abcd".parse::<SegmentId>(), Err(ParseIdError { expected: 64 }));
        assert_eq!("zz".repeat(32).parse::<SegmentId>(), Err(ParseIdError { expected: 64 }));
    }

    #[test]
    fn the_hash_is_sha256() {
        // FIPS 180-4, example "abc".
        assert_eq!(
            SegmentId::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
