//! The listener: a thread for each connection, and an end to all of them.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Exports,
    connection::{EndError, Terms, Transmission, negotiate},
    late::Late,
    notice_silence,
    pool::Pool,
    wire::Wire,
};

/// The most connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 256;

/// Everybody who is being served: the socket, to end it, and the thread, to wait for it.
#[derive(Default)]
struct Connections {
    open: Mutex<Open>,
    next: AtomicU64,
}

type Open = BTreeMap<u64, (TcpStream, Option<JoinHandle<()>>)>;

impl Connections {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves `exports` until `stop`. Clients on this machine may go without TLS, others must use it.
///
/// # Errors
/// When the system has no threads to give.
pub async fn serve(
    listener: TcpListener,
    exports: Arc<dyn Exports>,
    tls: Option<Arc<ServerConfig>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let pool = Arc::new(Pool::start().context("start threads for NBD")?);
    let connections = Arc::new(Connections::default());
    loop {
        let (socket, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept an NBD connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let terms = Terms {
            exports: Arc::clone(&exports),
            tls: tls.clone(),
            local: peer.ip().to_canonical().is_loopback(),
        };
        let begun =
            socket.into_std().and_then(|socket| begin(socket, peer, terms, &connections, &pool));
        if let Err(error) = begun {
            tracing::warn!(%peer, %error, "begin an NBD connection");
        }
    }
    let ended = tokio::task::spawn_blocking(move || {
        end_all(&connections);
        drop(pool);
    });
    ended.await.context("end NBD connections")
}

fn begin(
    socket: TcpStream,
    peer: SocketAddr,
    terms: Terms,
    connections: &Arc<Connections>,
    pool: &Arc<Pool>,
) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    notice_silence(&socket)?;
    let mut open = connections.open();
    if open.len() >= MAX_CONNECTIONS {
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections"));
    }
    let number = connections.next.fetch_add(1, Ordering::Relaxed);
    let kept = socket.try_clone()?;
    let (mine, pool) = (Arc::clone(connections), Arc::clone(pool));
    let thread = thread::Builder::new().name("nbd".into()).spawn(move || {
        match converse(socket, &terms, &pool) {
            Ok(()) => {}
            Err(EndError::Protocol(error)) => {
                tracing::warn!(%peer, %error, "an NBD client was sent away");
            }
            Err(EndError::Io(error)) => tracing::debug!(%peer, %error, "an NBD connection broke"),
        }
        mine.open().remove(&number);
    })?;
    // The thread cannot have taken it out yet: it needs the lock for that.
    open.insert(number, (kept, Some(thread)));
    Ok(())
}

fn converse(socket: TcpStream, terms: &Terms, pool: &Pool) -> Result<(), EndError> {
    let Some((wire, chosen, export)) = negotiate(Wire::plain(socket), terms)? else {
        return Ok(());
    };
    let wire = Arc::new(wire);
    let late = Late::start(Arc::clone(&wire))?;
    let served = Transmission::new(&wire, &chosen, export, &late, pool).run();
    if served.is_err() {
        wire.shut();
    }
    late.end();
    wire.shut();
    served
}

fn end_all(connections: &Connections) {
    let threads: Vec<JoinHandle<()>> = {
        let mut open = connections.open();
        for (socket, _) in open.values() {
            // It may be shut already.
            socket.shutdown(std::net::Shutdown::Both).ok();
        }
        open.values_mut().filter_map(|(_, thread)| thread.take()).collect()
    };
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread that serves an NBD client panicked");
        }
    }
}
