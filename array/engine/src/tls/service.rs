//! The HTTPS service that server and agents use.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use super::{LivePapers, Member, Papers, client::roots, key::certificate, window};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// After the stop, connections have this long to end their answers.
const DRAIN: Duration = Duration::from_secs(5);
/// The most connections at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 4096;

/// Who is at the other end of a connection: an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// None without a certificate. A certificate of another CA does not get this far.
    pub member: Option<Member>,
    pub addr: SocketAddr,
}

/// TLS for a service whose clients may show a certificate of the site's CA; one of another CA is refused.
///
/// # Errors
/// When the papers cannot be read.
pub fn server_tls(papers: &Papers) -> anyhow::Result<Arc<ServerConfig>> {
    live_server_tls(LivePapers::new(papers)?)
}

/// As [`server_tls`], with papers that may be replaced.
///
/// # Errors
/// As [`server_tls`].
pub fn live_server_tls(papers: LivePapers) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(default_provider());
    let ca = certificate(&papers.ca_pem)?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .context("trust the site's CA for clients")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choose TLS 1.3")?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(papers));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would outlive a revocation that a full handshake notices.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Serves `app` until `stop`; every request carries a [`Peer`].
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    app: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.context("wait for a place")?;
        let (stream, addr) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the client went: neither is the listener's end.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let connection = connection(acceptor.clone(), stream, addr, app.clone(), stop.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            if let Some(Err(error)) = cut.run_until_cancelled(connection).await {
                tracing::debug!(%addr, error = format!("{error:#}"), "connection ended early");
            }
            drop(place);
        });
    }
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::debug!("connections still open after the drain time are cut");
        cut.cancel();
    }
    Ok(())
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    addr: SocketAddr,
    app: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    socket2::SockRef::from(&stream)
        .set_tcp_notsent_lowat(window::NOT_SENT_BYTES)
        .context("set TCP_NOTSENT_LOWAT")?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .context("wait for the TLS handshake")?
        .context("shake hands")?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer { member: shown.and_then(member_of), addr };
    let app = app.layer(axum::Extension(peer));
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(window::STREAM_BYTES)
        .initial_connection_window_size(window::CONNECTION_BYTES)
        .max_frame_size(window::FRAME_BYTES)
        .max_send_buf_size(window::SEND_BYTES);
    let connection =
        http.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(|error| anyhow::anyhow!(error)).context("serve the connection")
}

/// The member that a verified certificate speaks for: its only DNS name, in this site's form.
pub(crate) fn member_of(certificate: &CertificateDer<'_>) -> Option<Member> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Member::parse(name),
        _ => None,
    })
}
