//! The site's secrets and what is done with them.
//!
//! | file in `DATA/secrets/` (0700; files 0600) | what it is |
//! |---|---|
//! | `ca.key`, `ca.pem` | the site's CA: every certificate hangs on it |
//! | `signing.key` | 32 bytes of Ed25519 seed, in hex: signs directory, manifests and stripe maps |
//! | `server.agekey` | age identity: opens content keys |
//! | `recovery.pub` | age recipient of the recovery key, whose private half is not here |
//! | `cli-token` | API token for the command line on this machine; made anew when absent |
//!
//! The folder appears whole, by one rename, at the first start. From then on a file that is missing, empty or readable by
//! others keeps the server from starting: to go on with a new key would cut the fleet off or expose it.
//!
//! Invariants: the private half of the recovery key is written once and never read; no secret leaves this module in a log
//! or a `Debug` text; the names in a certificate are chosen here, what a request says is not looked at.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use cairn_array::{
    tls::{Authority, Fingerprint, Papers, local_addresses},
    wrap::{Identity, Recipient, wrap_key},
};
use cairn_core::{
    id::SiteId,
    seal::SealKey,
    sign::{SigningKey, VerifyingKey},
};

pub(crate) mod secrets;

pub use secrets::{MakeError, RefusedSecret, Secrets};

/// A running site's identity: everything that its secrets are good for.
#[derive(Debug)]
pub struct Site {
    id: SiteId,
    fingerprint: Fingerprint,
    authority: Authority,
    signer: Arc<SigningKey>,
    server_key: Identity,
    recovery: Recipient,
    /// For the directory.
    sealed_keys: Vec<u8>,
}

/// A site and whether it was made just now.
#[derive(Debug)]
pub struct Opened {
    pub site: Site,
    pub first_start: bool,
}

impl Site {
    /// Opens the site in `data_dir`; makes it when the folder has no site yet.
    ///
    /// # Errors
    /// When a secret is missing, empty, readable by others or unusable; each error says what to do.
    pub fn open(data_dir: &Path) -> anyhow::Result<Opened> {
        let first_start = Secrets::are_absent(data_dir)?;
        if first_start {
            Secrets::make(data_dir).context("make the site's secrets")?;
        }
        let secrets = Secrets::read(data_dir)?;
        let keys = secrets.keys()?;
        let authority = keys.authority().context("open secrets/ca.pem and secrets/ca.key")?;
        let fingerprint = keys.fingerprint()?;
        let mut id = [0; SiteId::BYTES];
        id.copy_from_slice(&fingerprint.0[..SiteId::BYTES]);
        let signer = keys.signer().context("open secrets/signing.key")?;
        let recovery: Recipient = secrets.recovery.parse().context("read secrets/recovery.pub")?;
        let site = Self {
            sealed_keys: keys.seal(&recovery)?,
            id: SiteId(id),
            fingerprint,
            authority,
            signer: Arc::new(signer),
            server_key: secrets.server_agekey.parse().context("read secrets/server.agekey")?,
            recovery,
        };
        Ok(Opened { site, first_start })
    }

    /// The start of the CA's fingerprint: a site is its CA.
    #[must_use]
    pub const fn id(&self) -> SiteId {
        self.id
    }

    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whom backups are sealed to.
    #[must_use]
    pub(crate) const fn recovery(&self) -> &Recipient {
        &self.recovery
    }

    /// The CA and the signing key as only the recovery key opens them.
    #[must_use]
    pub fn sealed_keys(&self) -> &[u8] {
        &self.sealed_keys
    }

    #[must_use]
    pub fn signer(&self) -> &SigningKey {
        &self.signer
    }

    /// For threads that outlive a request.
    #[must_use]
    pub fn shared_signer(&self) -> Arc<SigningKey> {
        Arc::clone(&self.signer)
    }

    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.signer.verifying_key()
    }

    /// Wraps a content key for the server and the recovery key, and for nobody else.
    ///
    /// # Errors
    /// When the age format cannot be written.
    pub fn wrap_content_key(&self, key: &SealKey) -> anyhow::Result<Vec<u8>> {
        wrap_key(key, &[self.server_key.recipient(), self.recovery.clone()])
    }

    /// Opens a content key that [`Site::wrap_content_key`] wrapped.
    ///
    /// # Errors
    /// When it was wrapped for others, or changed.
    pub fn open_content_key(&self, wrapped: &[u8]) -> anyhow::Result<SealKey> {
        self.server_key.unwrap_key(wrapped)
    }

    /// Papers for the server itself, made for this start: nobody pins them, so their key need not be kept.
    ///
    /// # Errors
    /// When the system has no randomness, or the CA's key does not sign.
    pub fn server_papers(&self, hostname: Option<&str>) -> anyhow::Result<Papers> {
        self.authority.certify_server(hostname, &local_addresses()?)
    }
}

#[cfg(test)]
mod tests;
