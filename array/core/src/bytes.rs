//! Reading and writing the binary formats: little-endian, bounded, never panicking on foreign bytes.

/// Why bytes from outside were refused. One type for all decoders: the caller names the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("ends early: {need} bytes needed, {have} left")]
    Truncated { need: usize, have: usize },
    #[error("does not start with the expected magic")]
    Magic,
    #[error("has version {found}, this program reads version {known}")]
    Version { found: u16, known: u16 },
    #[error("field {field} holds {value}, above its limit of {limit}")]
    Limit { field: &'static str, value: u64, limit: u64 },
    #[error("field {field} is inconsistent")]
    Inconsistent { field: &'static str },
    #[error("is followed by {count} bytes that do not belong to it")]
    Trailing { count: usize },
    #[error("signature does not match")]
    Signature,
    #[error("cannot be opened with this key")]
    Unsealable,
}

/// A cursor over foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when fewer are left.
    pub const fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(count) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(DecodeError::Truncated { need: count, have: self.rest.len() }),
        }
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when fewer are left.
    pub const fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(*head)
            }
            None => Err(DecodeError::Truncated { need: N, have: self.rest.len() }),
        }
    }

    /// # Errors
    /// [`DecodeError::Truncated`] when no byte is left.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// # Errors
    /// [`DecodeError::Truncated`] when fewer than 2 bytes are left.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    /// # Errors
    /// [`DecodeError::Truncated`] when fewer than 4 bytes are left.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// # Errors
    /// [`DecodeError::Truncated`] when fewer than 8 bytes are left.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A `u32` count of items of at least `item_bytes` each: refused when above `limit` or when
    /// the remaining bytes cannot hold that many, so that no decoder allocates for a lie.
    ///
    /// # Errors
    /// [`DecodeError::Limit`] or [`DecodeError::Truncated`].
    pub fn count(
        &mut self,
        field: &'static str,
        limit: usize,
        item_bytes: usize,
    ) -> Result<usize, DecodeError> {
        let value = self.u32()?;
        let count = usize::try_from(value).unwrap_or(usize::MAX);
        if count > limit {
            return Err(DecodeError::Limit { field, value: value.into(), limit: limit as u64 });
        }
        let need = count.saturating_mul(item_bytes);
        if need > self.remaining() {
            return Err(DecodeError::Truncated { need, have: self.remaining() });
        }
        Ok(count)
    }

    /// A length-prefixed (`u32`) byte string of at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Limit`] or [`DecodeError::Truncated`].
    pub fn bytes(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let count = self.count(field, limit, 1)?;
        self.take(count)
    }

    /// A length-prefixed UTF-8 string of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Reader::bytes`], and [`DecodeError::Inconsistent`] when it is not UTF-8.
    pub fn text(&mut self, field: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field, limit)?)
            .map_err(|_| DecodeError::Inconsistent { field })
    }

    /// Checks an 8-byte magic and a `u16` version.
    ///
    /// # Errors
    /// [`DecodeError::Magic`], [`DecodeError::Version`] or [`DecodeError::Truncated`].
    pub fn header(&mut self, magic: [u8; 8], known: u16) -> Result<(), DecodeError> {
        if self.array::<8>()? != magic {
            return Err(DecodeError::Magic);
        }
        let found = self.u16()?;
        if found != known {
            return Err(DecodeError::Version { found, known });
        }
        Ok(())
    }

    /// Checks that a field of `count` reserved bytes is zero, so that a later version may use it.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] when it is not.
    pub fn reserved(&mut self, count: usize) -> Result<(), DecodeError> {
        if self.take(count)?.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::Inconsistent { field: "reserved" });
        }
        Ok(())
    }

    /// Ends the document.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] when bytes are left.
    pub const fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing { count: self.rest.len() })
        }
    }
}

/// Builds a binary document. The counterpart of [`Reader`].
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts a document with its 8-byte magic and version.
    #[must_use]
    pub fn with_header(magic: [u8; 8], version: u16) -> Self {
        let mut writer = Self::default();
        writer.put(&magic);
        writer.u16(version);
        writer
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// A count as [`Reader::count`] reads it.
    ///
    /// # Panics
    /// When `count` does not fit `u32`: the limits of all formats are far below.
    #[expect(clippy::expect_used, reason = "a count above u32 is a bug here, not input")]
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("format limits keep counts below 2^32"));
    }

    /// A byte string as [`Reader::bytes`] reads it.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.put(bytes);
    }

    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
