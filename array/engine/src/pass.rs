//! Passes: a text that lets whoever has it do one thing until a moment, without being kept anywhere.
//!
//! | field | bytes | |
//! |---|---|---|
//! | expires | 8 | seconds since 1970, big-endian; first, because it must be read to check the rest |
//! | tag | 32 | HMAC-SHA-256 (RFC 2104) over `"cairn pass 1"`, the field before, and what it is for |
//!
//! As 80 digits of hexadecimal, which every boot loader takes in an address.

use std::fmt;

use aws_lc_rs::hmac;

const CONTEXT: &[u8] = b"cairn pass 1";

/// What passes are made with, and checked.
pub struct PassKey(hmac::Key);

impl fmt::Debug for PassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassKey(..)")
    }
}

impl PassKey {
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// A pass for `what` until `expires`, in seconds since 1970.
    #[must_use]
    pub fn issue(&self, what: &str, expires: u64) -> String {
        let tag = hmac::sign(&self.0, &signed(what, expires));
        hex::encode([expires.to_be_bytes().as_slice(), tag.as_ref()].concat())
    }

    /// Whether `pass` is one for `what`, and not over `now`.
    #[must_use]
    pub fn check(&self, pass: &str, what: &str, now: u64) -> bool {
        let Ok(bytes) = hex::decode(pass) else { return false };
        let Some((expires, tag)) = bytes.split_first_chunk() else { return false };
        let expires = u64::from_be_bytes(*expires);
        let is_ours = hmac::verify(&self.0, &signed(what, expires), tag).is_ok();
        is_ours && now < expires
    }
}

fn signed(what: &str, expires: u64) -> Vec<u8> {
    [CONTEXT, &expires.to_be_bytes(), what.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pass_is_for_one_thing_until_its_time(what in ".{0,40}", other in ".{0,40}", expires in 1..u64::MAX) {
            let key = PassKey::new(&[7; 32]);
            let pass = key.issue(&what, expires);
            prop_assert_eq!(pass.len(), 80);
            prop_assert!(key.check(&pass, &what, expires - 1));
            prop_assert!(!key.check(&pass, &what, expires));
            prop_assert_eq!(key.check(&pass, &other, 0), what == other);
            prop_assert!(!PassKey::new(&[8; 32]).check(&pass, &what, 0));
        }

        #[test]
        fn a_changed_pass_is_none(place in 0..80_usize, digit in 0..16_u8) {
            let key = PassKey::new(&[7; 32]);
            let pass = key.issue("volume/desk1", 1 << 40);
            let mut changed = pass.clone().into_bytes();
            changed[place] = b"0123456789abcdef"[usize::from(digit)];
            let changed = String::from_utf8(changed).unwrap();
            prop_assert_eq!(key.check(&changed, "volume/desk1", 0), changed == pass);
        }
    }

    #[test]
    fn what_is_no_pass_is_refused() {
        let key = PassKey::new(&[7; 32]);
        for pass in ["", "00", "xyz", &"0".repeat(80), &"f".repeat(400)] {
            assert!(!key.check(pass, "volume/desk1", 0), "{pass}");
        }
    }
}
