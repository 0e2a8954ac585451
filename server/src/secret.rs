//! Random secrets, and the only form in which they are kept: their hash.

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// 32 random bytes as text: a bearer, a cookie.
pub(crate) fn random_text() -> anyhow::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    cairn_array::random::array().context("draw random bytes")
}

/// A password for people: 20 letters and digits that are not mistaken for one another, in groups of five (100 bits).
pub(crate) fn random_password() -> anyhow::Result<String> {
    const DIGITS: &[u8; 32] = b"abcdefghjkmnpqrstvwxyz0123456789";
    let mut password = String::with_capacity(23);
    for (place, byte) in random::<20>()?.into_iter().enumerate() {
        if place > 0 && place % 5 == 0 {
            password.push('-');
        }
        password.push(char::from(DIGITS[usize::from(byte & 31)]));
    }
    Ok(password)
}

/// What is kept of a secret. It is random, so no slow hash is needed.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    cairn_core::id::sha256(secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_four_groups_and_is_never_the_same() {
        let password = random_password().unwrap();
        assert_eq!(password.len(), 23);
        assert!(password.split('-').all(|group| group.len() == 5));
        assert_ne!(password, random_password().unwrap());
    }
}
