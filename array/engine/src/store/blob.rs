//! What a blob may be called.

use object_store::path::Path as ObjectPath;

/// The most bytes of one blob: far above the manifest of the largest image, far below the memory.
pub const BLOB_MAX_BYTES: u64 = 256 << 20;

const NAME_MAX_BYTES: usize = 200;

/// The text is no name for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a blob's name is parts of a-z, 0-9, '-', '_' and '.', not starting with '.', joined by '/'"
)]
pub struct ParseBlobNameError;

/// A name such as `manifest/0a1b…`: safe as a path on any device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobName(String);

impl BlobName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn path(&self) -> ObjectPath {
        ObjectPath::from(format!("blobs/{}", self.0))
    }

    /// `None` for a file that is not a blob.
    pub(super) fn of(path: &ObjectPath) -> Option<Self> {
        path.as_ref().strip_prefix("blobs/")?.parse().ok()
    }
}

impl std::fmt::Display for BlobName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for BlobName {
    type Err = ParseBlobNameError;

    fn from_str(text: &str) -> Result<Self, ParseBlobNameError> {
        let fits = text.len() <= NAME_MAX_BYTES && text.split('/').all(is_part);
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseBlobNameError) }
    }
}

fn is_part(part: &str) -> bool {
    let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_names_pass() {
        for good in ["manifest/0a1b", "stripe-map/12.v3", "a"] {
            let name: BlobName = good.parse().unwrap();
            assert_eq!(name.as_str(), good);
            assert_eq!(BlobName::of(&name.path()), Some(name));
        }
        let long = "a".repeat(201);
        for bad in
            ["", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "A", "a b", "a#1", "a\0", &long]
        {
            assert_eq!(bad.parse::<BlobName>(), Err(ParseBlobNameError), "{bad:?}");
        }
    }
}
