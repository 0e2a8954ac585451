//! Ed25519 signatures (RFC 8032) of the site's documents.
//!
//! A signed document is `body || signature` where the signature covers `context || body`. The context names the
//! kind of document, so that a signature of one kind never passes for another.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::bytes::DecodeError;

/// Bytes in a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// The site's private signing key. Only the server holds it.
pub struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// The site's public signing key, known to every member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyingKey(#[serde(with = "hex::serde")] pub [u8; 32]);

/// The seed is not 32 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a signing key is 32 bytes of seed")]
pub struct BadSeed;

impl SigningKey {
    /// The key made from 32 random bytes.
    ///
    /// # Errors
    /// [`BadSeed`] when the seed is not usable.
    pub fn from_seed(seed: &[u8]) -> Result<Self, BadSeed> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_| BadSeed)
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        VerifyingKey(bytes)
    }

    /// `body || signature`, signed in `context`.
    #[must_use]
    pub fn sign(&self, context: &str, mut body: Vec<u8>) -> Vec<u8> {
        let signature = self.0.sign(&message(context, &body));
        body.extend_from_slice(signature.as_ref());
        body
    }
}

impl VerifyingKey {
    /// The body of a document that [`SigningKey::sign`] made in the same context.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] or [`DecodeError::Signature`].
    pub fn open<'a>(&self, context: &str, signed: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        let Some((body, signature)) = signed.split_last_chunk::<SIGNATURE_BYTES>() else {
            return Err(DecodeError::Truncated { need: SIGNATURE_BYTES, have: signed.len() });
        };
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(&message(context, body), signature)
            .map_err(|_| DecodeError::Signature)?;
        Ok(body)
    }
}

fn message(context: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(context.len() + 1 + body.len());
    message.extend_from_slice(context.as_bytes());
    message.push(0);
    message.extend_from_slice(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_body_and_context_only() {
        let key = SigningKey::from_seed(&[7; 32]).unwrap();
        let signed = key.sign("cairn manifest", b"body".to_vec());
        assert_eq!(key.verifying_key().open("cairn manifest", &signed), Ok(&b"body"[..]));
        assert_eq!(
            key.verifying_key().open("cairn directory", &signed),
            Err(DecodeError::Signature)
        );
        let other = SigningKey::from_seed(&[8; 32]).unwrap().verifying_key();
        assert_eq!(other.open("cairn manifest", &signed), Err(DecodeError::Signature));
        for at in 0..signed.len() {
            let mut forged = signed.clone();
            forged[at] ^= 1;
            assert_eq!(
                key.verifying_key().open("cairn manifest", &forged),
                Err(DecodeError::Signature)
            );
        }
    }
}
