//! The HTTPS client that all parts use.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs::default_provider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{Fingerprint, LivePapers, Member, NameTable, Papers, key::certificate, window};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client takes as proof that it talks to its site.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The CA itself (PEM).
    Ca(String),
    /// The CA's fingerprint, from a token or the kernel command line: the peer must show a CA that has it.
    Pinned(Fingerprint),
}

/// The URL of `path` on `member`; its address comes from the client's [`NameTable`].
#[must_use]
pub fn url(member: &Member, path: &str) -> String {
    format!("https://{}{path}", member.dns_name())
}

/// A client that trusts this site only and shows `papers` when it has them.
///
/// # Errors
/// When the CA or the papers cannot be read.
pub fn client(
    trust: &Trust,
    papers: Option<&Papers>,
    names: Arc<NameTable>,
) -> anyhow::Result<reqwest::Client> {
    http_client(client_tls(trust, papers.map(LivePapers::new).transpose()?)?, names)
}

/// A client that trusts the site of these papers only, and shows those that were put in last.
///
/// # Errors
/// When the CA cannot be read.
pub fn live_client(papers: LivePapers, names: Arc<NameTable>) -> anyhow::Result<reqwest::Client> {
    let trust = Trust::Ca(papers.ca_pem.to_string());
    http_client(client_tls(&trust, Some(papers))?, names)
}

fn http_client(mut tls: ClientConfig, names: Arc<NameTable>) -> anyhow::Result<reqwest::Client> {
    tls.alpn_protocols = http();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(names)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_initial_stream_window_size(window::STREAM_BYTES)
        .http2_initial_connection_window_size(window::CONNECTION_BYTES)
        .http2_max_frame_size(window::FRAME_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(20))
        .tcp_nodelay(true)
        .build()
        .context("build the HTTPS client")
}

fn client_tls(trust: &Trust, papers: Option<LivePapers>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choose TLS 1.3")?;
    let builder = match trust {
        Trust::Ca(pem) => builder.with_root_certificates(roots(certificate(pem)?)?),
        Trust::Pinned(fingerprint) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(PinnedVerifier {
                fingerprint: Some(*fingerprint),
                provider,
            }))
        }
    };
    Ok(match papers {
        Some(papers) => builder.with_client_cert_resolver(Arc::new(papers)),
        None => builder.with_no_client_auth(),
    })
}

/// TLS for whoever has papers of this site and speaks something else than HTTP.
///
/// # Errors
/// When the papers cannot be read.
pub fn client_config(papers: &Papers) -> anyhow::Result<ClientConfig> {
    client_tls(&Trust::Ca(papers.ca_pem.clone()), Some(LivePapers::new(papers)?))
}

/// A preconfigured TLS offers only what it says itself: without this every connection would speak HTTP/1.1, and an upload that
/// is refused early would break off before the answer is read.
fn http() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

/// A client that takes whoever answers, for what proves itself: nothing that it brings may be trusted as it is.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client_of_strangers() -> anyhow::Result<reqwest::Client> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choose TLS 1.3")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { fingerprint: None, provider }))
        .with_no_client_auth();
    config.alpn_protocols = http();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .build()
        .context("build the HTTPS client")
}

pub(super) fn roots(ca: CertificateDer<'static>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).context("trust the site's CA")?;
    Ok(roots)
}

/// Accepts the CA that has the right fingerprint, then verifies under it as usual: chain, dates and name. Without a
/// fingerprint any certificate whose key the other end holds.
#[derive(Debug)]
struct PinnedVerifier {
    fingerprint: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let Some(fingerprint) = self.fingerprint else {
            return Ok(ServerCertVerified::assertion());
        };
        let ca = intermediates
            .iter()
            .find(|ca| cairn_core::id::sha256(ca) == fingerprint.0)
            .ok_or_else(unknown)?
            .clone()
            .into_owned();
        let mut store = RootCertStore::empty();
        store.add(ca)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
