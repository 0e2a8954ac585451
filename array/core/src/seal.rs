//! Sealing: AES-256-GCM with keys and nonces that the caller guarantees never to pair twice.
//!
//! | what | key | nonce (96 bit, big-endian) | associated data |
//! |---|---|---|---|
//! | frame | the segment's, random per segment | frame index | `cairn frame 1`, plain length (u32 LE) |
//! | manifest secret | the version's content key, random per version | 0 | `cairn manifest secret 1` |
//!
//! A key seals each nonce once: frames of a segment have distinct indices, a content key seals one document.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::bytes::DecodeError;

/// Bytes that sealing adds: the GCM tag.
pub const TAG_BYTES: usize = 16;
/// Bytes in a key.
pub const KEY_BYTES: usize = 32;

/// A secret AES-256 key. Not printable, not comparable.
#[derive(Clone)]
pub struct SealKey(pub [u8; KEY_BYTES]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// A key made ready for use: expanding it costs more than sealing a block.
pub struct Sealer(LessSafeKey);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    #[must_use]
    #[expect(clippy::expect_used, reason = "the key has the algorithm's length by its type")]
    pub fn new(key: &SealKey) -> Self {
        Self(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, &key.0).expect("32 bytes make an AES-256 key"),
        ))
    }

    /// Seals `bytes` in place: they become ciphertext, followed by the tag.
    ///
    /// # Panics
    /// When `bytes` is longer than GCM allows (64 GiB).
    #[expect(clippy::expect_used, reason = "no format here comes near GCM's length limit")]
    pub fn seal(&self, nonce: u64, associated: &[u8], bytes: &mut Vec<u8>) {
        self.0
            .seal_in_place_append_tag(nonce_of(nonce), Aad::from(associated), bytes)
            .expect("below GCM's limit");
    }

    /// As [`Self::seal`], where the tag goes elsewhere.
    ///
    /// # Panics
    /// As [`Self::seal`].
    #[expect(clippy::expect_used, reason = "no format here comes near GCM's length limit")]
    pub fn seal_in_place(
        &self,
        nonce: u64,
        associated: &[u8],
        bytes: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce_of(nonce), Aad::from(associated), bytes)
            .expect("below GCM's limit");
        let mut copy = [0; TAG_BYTES];
        copy.copy_from_slice(tag.as_ref());
        copy
    }

    /// Opens `sealed` in place; the plain bytes are its head.
    ///
    /// # Errors
    /// [`DecodeError::Unsealable`] when a bit of anything differs from what was sealed.
    pub fn open<'a>(
        &self,
        nonce: u64,
        associated: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], DecodeError> {
        self.0
            .open_in_place(nonce_of(nonce), Aad::from(associated), sealed)
            .map_err(|_| DecodeError::Unsealable)
    }
}

fn nonce_of(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_with_the_same_key_nonce_and_context_only() {
        let sealer = Sealer::new(&SealKey([1; 32]));
        let mut sealed = b"plain".to_vec();
        sealer.seal(3, b"frame", &mut sealed);
        assert_eq!(sealed.len(), 5 + TAG_BYTES);
        assert_eq!(sealer.open(3, b"frame", &mut sealed.clone()).unwrap(), b"plain");
        assert_eq!(sealer.open(4, b"frame", &mut sealed.clone()), Err(DecodeError::Unsealable));
        assert_eq!(sealer.open(3, b"other", &mut sealed.clone()), Err(DecodeError::Unsealable));
        let stranger = Sealer::new(&SealKey([2; 32]));
        assert_eq!(stranger.open(3, b"frame", &mut sealed), Err(DecodeError::Unsealable));
    }
}
