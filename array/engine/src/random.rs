//! The one source of randomness: the operating system's, through aws-lc.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

/// Fills `bytes` with random bytes.
///
/// # Errors
/// When the system has no randomness to give.
pub fn fill(bytes: &mut [u8]) -> anyhow::Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))
}

/// `N` random bytes.
///
/// # Errors
/// As [`fill`].
pub fn array<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}
