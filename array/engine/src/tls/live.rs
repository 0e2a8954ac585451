//! Papers that are replaced while they are shown: a member that runs for years has its certificate renewed without a stop.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::aws_lc_rs::default_provider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::Papers;

/// Who holds this shows the papers that were put in last, to each who connects from then on.
#[derive(Clone, Debug)]
pub struct LivePapers {
    pub(super) ca_pem: Arc<str>,
    shown: Arc<RwLock<Arc<CertifiedKey>>>,
}

impl LivePapers {
    /// # Errors
    /// When the papers cannot be read, or the key is another than the certificate's.
    pub fn new(papers: &Papers) -> anyhow::Result<Self> {
        let shown = Arc::new(RwLock::new(Arc::new(certified(papers)?)));
        Ok(Self { ca_pem: papers.ca_pem.as_str().into(), shown })
    }

    /// Shows others from now on; connections that are there stay.
    ///
    /// # Errors
    /// As [`Self::new`]; then those before are shown still.
    pub fn replace(&self, papers: &Papers) -> anyhow::Result<()> {
        let certified = Arc::new(certified(papers)?);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn certified(papers: &Papers) -> anyhow::Result<CertifiedKey> {
    CertifiedKey::from_der(papers.chain()?, papers.key()?, &default_provider())
        .context("use the certificate")
}

impl ResolvesServerCert for LivePapers {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }
}

impl ResolvesClientCert for LivePapers {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
