//! Keys, requests and papers.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, bail};
use cairn_core::id::sha256;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

/// No certificate or request that we accept is larger.
const MAX_PEM_BYTES: usize = 64 << 10;

/// SHA-256 of a CA certificate (DER).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of the CA in `ca_pem`.
    ///
    /// # Errors
    /// When the text holds no certificate.
    pub fn of_pem(ca_pem: &str) -> anyhow::Result<Self> {
        Ok(Self(sha256(&certificate(ca_pem)?)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// What a member authenticates with.
#[derive(Clone)]
pub struct Papers {
    pub certificate_pem: String,
    pub key_pem: String,
    pub ca_pem: String,
}

impl fmt::Debug for Papers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Papers(..)")
    }
}

impl Papers {
    /// The chain to show: own certificate, then the CA, so that a peer that pins only the CA's fingerprint finds it.
    pub(super) fn chain(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        Ok(vec![certificate(&self.certificate_pem)?, certificate(&self.ca_pem)?])
    }

    pub(super) fn key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).context("read the private key")
    }
}

/// The first certificate in a PEM text.
pub(super) fn certificate(pem: &str) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).context("read the certificate")
}

/// A new private key and the request to certify it.
#[derive(Clone)]
pub struct KeyAndCsr {
    pub key_pem: String,
    pub csr_pem: String,
    /// SubjectPublicKeyInfo.
    pub public_key_der: Vec<u8>,
}

impl fmt::Debug for KeyAndCsr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyAndCsr(..)")
    }
}

fn request(key: &rcgen::KeyPair) -> anyhow::Result<String> {
    let request = rcgen::CertificateParams::default().serialize_request(key);
    request.context("make a certificate request")?.pem().context("write the certificate request")
}

/// The request to certify a private key (PEM) that is there already.
///
/// # Errors
/// When it is none.
pub fn csr_of(key_pem: &str) -> anyhow::Result<String> {
    request(&rcgen::KeyPair::from_pem(key_pem).context("read the private key")?)
}

/// Makes an ECDSA P-256 key. The request names nobody: names are the server's to choose.
///
/// # Errors
/// When the system has no randomness to give.
pub fn new_key_and_csr() -> anyhow::Result<KeyAndCsr> {
    let key = rcgen::KeyPair::generate().context("make a private key")?;
    let csr_pem = request(&key)?;
    let public_key_der = public_key_of_csr(&csr_pem)?;
    Ok(KeyAndCsr { key_pem: key.serialize_pem(), csr_pem, public_key_der })
}

/// The public key (SubjectPublicKeyInfo, DER) of a request whose own signature is right.
///
/// # Errors
/// When the text is too long, no request, or signed by another key than it shows.
pub fn public_key_of_csr(csr_pem: &str) -> anyhow::Result<Vec<u8>> {
    if csr_pem.len() > MAX_PEM_BYTES {
        bail!("the certificate request is longer than {MAX_PEM_BYTES} bytes");
    }
    let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .context("read the certificate request")?;
    let (_, request) =
        X509CertificationRequest::from_der(&der).context("parse the certificate request")?;
    request.verify_signature().context("check the certificate request's signature")?;
    Ok(request.certification_request_info.subject_pki.raw.to_vec())
}
