//! A segment whose bytes are known to be the ones its id names.

use bytes::Bytes;
use cairn_core::{id::SegmentId, units::SEGMENT_MAX_BYTES};

/// Why bytes are not the segment they were offered as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error("segment {expected} was offered with the bytes of {found}")]
    WrongId { expected: SegmentId, found: SegmentId },
    #[error("a segment has 1 to {SEGMENT_MAX_BYTES} bytes, not {length}")]
    Length { length: usize },
}

/// Sealed bytes that hash to their id; there is no other way to make one than to hash them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedSegment {
    id: SegmentId,
    bytes: Bytes,
    length: u32,
}

impl CheckedSegment {
    /// Hashes the bytes (about 3 ms for 4 MiB: not for an async task).
    ///
    /// # Errors
    /// [`CheckError`] when the bytes are not those of `id`, or too many or none.
    pub fn check(id: SegmentId, bytes: Bytes) -> Result<Self, CheckError> {
        let segment = Self::of(bytes)?;
        if segment.id != id {
            return Err(CheckError::WrongId { expected: id, found: segment.id });
        }
        Ok(segment)
    }

    /// Names bytes that were just sealed, so that they are hashed once.
    ///
    /// # Errors
    /// [`CheckError::Length`] when they are too many or none.
    pub fn of(bytes: Bytes) -> Result<Self, CheckError> {
        let length = u32::try_from(bytes.len())
            .ok()
            .filter(|length| (1..=SEGMENT_MAX_BYTES).contains(&(*length as usize)))
            .ok_or(CheckError::Length { length: bytes.len() })?;
        Ok(Self { id: SegmentId::of(&bytes), bytes, length })
    }

    #[must_use]
    pub const fn id(&self) -> SegmentId {
        self.id
    }

    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// 1 to [`SEGMENT_MAX_BYTES`].
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bytes_pass() {
        let bytes = Bytes::from_static(b"stone");
        let id = SegmentId::of(&bytes);
        assert_eq!(CheckedSegment::check(id, bytes.clone()).unwrap().bytes(), &bytes);

        let other = Bytes::from_static(b"pebble");
        let wrong = CheckError::WrongId { expected: id, found: SegmentId::of(&other) };
        assert_eq!(CheckedSegment::check(id, other), Err(wrong));

        let none = Bytes::new();
        let empty = SegmentId::of(&none);
        assert_eq!(CheckedSegment::check(empty, none), Err(CheckError::Length { length: 0 }));
        let long = Bytes::from(vec![1; SEGMENT_MAX_BYTES + 1]);
        let length = CheckError::Length { length: SEGMENT_MAX_BYTES + 1 };
        assert_eq!(CheckedSegment::check(SegmentId::of(&long), long), Err(length));
    }
}
