//! What it takes to act for a site: its CA and its signing key, as one age file for the recovery key alone.
//!
//! The plain text is JSON, so that an administrator can read it with the age program and his recovery key, without
//! Cairn. It travels in the signed directory ([`cairn_core::directory`]), so that every client keeps it.

use anyhow::Context as _;
use cairn_core::sign::SigningKey;
use serde::{Deserialize, Serialize};

use crate::{
    tls::{Authority, Fingerprint},
    wrap::{Identity, Recipient, open, seal},
};

/// The keys of a site.
#[derive(Clone, Serialize, Deserialize)]
pub struct SiteKeys {
    pub ca_pem: String,
    pub ca_key_pem: String,
    /// Ed25519 seed, in hex.
    #[serde(with = "hex::serde")]
    pub signing_seed: [u8; 32],
}

impl std::fmt::Debug for SiteKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SiteKeys(..)")
    }
}

impl SiteKeys {
    /// The age file that only the recovery key opens.
    ///
    /// # Errors
    /// When the age format cannot be written.
    pub fn seal(&self, recovery: &Recipient) -> anyhow::Result<Vec<u8>> {
        let text = serde_json::to_vec(self).context("write down the site's keys")?;
        seal(&text, std::slice::from_ref(recovery)).context("wrap the site's keys")
    }

    /// Opens what [`SiteKeys::seal`] wrote.
    ///
    /// # Errors
    /// When it was made for another key, or holds no keys.
    pub fn open(recovery: &Identity, sealed: &[u8]) -> anyhow::Result<Self> {
        let text = open(recovery, sealed).context(
            "open the site's keys: this is not the recovery key of this site, or the directory is damaged",
        )?;
        serde_json::from_slice(&text).context("read the site's keys")
    }

    /// The CA.
    ///
    /// # Errors
    /// When its certificate or key cannot be read.
    pub fn authority(&self) -> anyhow::Result<Authority> {
        Authority::new(self.ca_pem.clone(), &self.ca_key_pem)
    }

    /// The CA's fingerprint.
    ///
    /// # Errors
    /// When its certificate cannot be read.
    pub fn fingerprint(&self) -> anyhow::Result<Fingerprint> {
        Fingerprint::of_pem(&self.ca_pem)
    }

    /// The key that signs directories, manifests and stripe maps.
    ///
    /// # Errors
    /// When the seed is none.
    pub fn signer(&self) -> anyhow::Result<SigningKey> {
        SigningKey::from_seed(&self.signing_seed).context("read the signing key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::new_authority;

    #[test]
    fn only_the_recovery_key_opens_the_keys_of_a_site() {
        let (ca_pem, ca_key_pem) = new_authority().unwrap();
        let keys = SiteKeys { ca_pem, ca_key_pem, signing_seed: [7; 32] };
        let recovery = Identity::generate();
        let sealed = keys.seal(&recovery.recipient()).unwrap();
        assert!(sealed.len() < 4096, "{}", sealed.len());
        let again = SiteKeys::open(&recovery, &sealed).unwrap();
        assert_eq!(again.fingerprint().unwrap(), keys.fingerprint().unwrap());
        assert_eq!(again.signer().unwrap().verifying_key(), keys.signer().unwrap().verifying_key());
        again.authority().unwrap();
        let error = format!("{:#}", SiteKeys::open(&Identity::generate(), &sealed).unwrap_err());
        assert!(error.contains("not the recovery key of this site"), "{error}");
    }
}
