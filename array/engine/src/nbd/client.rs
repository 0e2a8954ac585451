//! A client whose disk must not go away: a volume over TLS, by a connection that is made anew as often as it breaks.
//!
//! ```text
//!   kernel ◄─ socket ─► read_requests ─► forward ─► TLS ─► server
//!                       write_replies ◄─ bring ◄───────────┘
//!                                          │ it broke: connect again, do again what is kept, send again what is open
//! ```
//!
//! Invariants: the kernel sees one connection that is slow at times, and each request answered once; what its flushes made it
//! believe durable is, also when the server's machine lost power (`cairn_core::nbd::redo`).

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_core::nbd::{
    MAX_PAYLOAD,
    client::{
        Export, GREETING_BYTES, OptionReply, REPLY_HEAD_BYTES, ReplyHead, SIMPLE_REPLY_BYTES,
        SimpleReply, check_greeting, go, start_tls,
    },
    redo::Redo,
    request::{REQUEST_BYTES, Request},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter,
        ReadHalf, WriteHalf,
    },
    net::{TcpStream, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::notice_silence;
use crate::tls::{Member, Papers, client_config};

/// For connection, TLS and handshake.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// Requests and replies between the kernel and the server.
const QUEUE: usize = 64;
const BUFFER: usize = 256 << 10;
/// What a server answers that is about to end: to be asked again later.
const ENDING: u32 = 108;

/// A connection to the server.
pub type Connection = TlsStream<TcpStream>;

/// Where a volume is.
pub struct Place {
    address: SocketAddr,
    name: String,
    tls: TlsConnector,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

impl Place {
    /// # Errors
    /// When the papers cannot be read.
    pub fn new(address: SocketAddr, name: &str, papers: &Papers) -> Result<Self> {
        let tls = TlsConnector::from(Arc::new(client_config(papers)?));
        Ok(Self { address, name: name.to_owned(), tls })
    }

    /// Connects.
    ///
    /// # Errors
    /// When the server is away, is not of this site, or does not give the volume.
    pub async fn connect(&self) -> Result<(Connection, Export)> {
        let connected = timeout(PATIENCE, self.connect_patiently()).await;
        connected.with_context(|| format!("{} does not answer", self.address))?
    }

    async fn connect_patiently(&self) -> Result<(Connection, Export)> {
        let mut plain = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("connect to {}", self.address))?;
        plain.set_nodelay(true).context("send at once")?;
        notice_silence(&plain).context("have the connection checked")?;
        let mut greeting = [0; GREETING_BYTES];
        plain.read_exact(&mut greeting).await.context("read the greeting")?;
        check_greeting(&greeting)?;
        plain.write_all(&start_tls()).await.context("ask for TLS")?;
        ensure!(option_reply(&mut plain).await? == OptionReply::Ack, "no TLS");
        let server = ServerName::try_from(Member::Server.dns_name()).context("name the server")?;
        let mut secure = self.tls.connect(server, plain).await.context("shake hands by TLS")?;
        secure.write_all(&go(&self.name)).await.context("ask for the volume")?;
        secure.flush().await.context("ask for the volume")?;
        let mut export = None;
        loop {
            match option_reply(&mut secure).await? {
                OptionReply::Export(found) => export = Some(found),
                OptionReply::Other => {}
                OptionReply::Ack => break,
            }
        }
        Ok((secure, export.context("the server does not say how large the volume is")?))
    }
}

async fn option_reply<S: AsyncRead + Unpin>(stream: &mut S) -> Result<OptionReply> {
    let mut head = [0; REPLY_HEAD_BYTES];
    stream.read_exact(&mut head).await.context("read a reply")?;
    let head = ReplyHead::parse(&head)?;
    let mut data = vec![0; head.length as usize];
    stream.read_exact(&mut data).await.context("read a reply")?;
    Ok(head.read(&data)?)
}

/// A request of the kernel.
struct Asked {
    head: [u8; REQUEST_BYTES],
    request: Request,
    payload: Vec<u8>,
}

/// Serves `kernel`, which sends requests and takes simple replies, by the volume until it says that nothing follows. `say`
/// hears when the server goes away and is back.
///
/// # Errors
/// When the kernel's end does not speak the protocol. A server that is away is waited for without end.
pub async fn keep(
    kernel: UnixStream,
    place: &Place,
    first: Connection,
    export: Export,
    say: impl Fn(&str),
) -> Result<()> {
    let (from_kernel, to_kernel) = kernel.into_split();
    let (ask, mut asked) = mpsc::channel(QUEUE);
    let (reply, replies) = mpsc::channel(QUEUE);
    let reading = tokio::spawn(read_requests(from_kernel, ask));
    let writing = tokio::spawn(write_replies(to_kernel, replies));
    let redo = Mutex::new(Redo::default());
    let mut connection = first;
    loop {
        let (from, to) = tokio::io::split(connection);
        let broke = tokio::select! {
            ended = forward(&redo, &mut asked, to) => match ended {
                Ok(()) => break,
                Err(error) => error,
            },
            broke = bring(&redo, from, &reply) => match broke {
                Ok(never) => match never {},
                Err(error) => error,
            },
        };
        say(&format!("the server of the disk is away ({broke:#}); waiting for it"));
        connection = connect_again(place, export, &redo).await;
        say("the server of the disk is back");
    }
    drop(reply);
    reading.await.context("wait for the reader")??;
    writing.await.context("wait for the writer")?
}

fn lock(redo: &Mutex<Redo>) -> MutexGuard<'_, Redo> {
    redo.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_requests<S: AsyncRead + Unpin>(kernel: S, ask: mpsc::Sender<Asked>) -> Result<()> {
    let mut kernel = BufReader::with_capacity(BUFFER, kernel);
    loop {
        let mut head = [0; REQUEST_BYTES];
        match kernel.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("read from the kernel"),
        }
        let request = Request::parse(&head)?;
        ensure!(request.payload() <= MAX_PAYLOAD, "the kernel writes too much at once");
        let mut payload = vec![0; request.payload() as usize];
        kernel.read_exact(&mut payload).await.context("read from the kernel")?;
        if request.is_disconnect() || ask.send(Asked { head, request, payload }).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_replies<S: AsyncWrite + Unpin>(
    kernel: S,
    mut replies: mpsc::Receiver<Vec<u8>>,
) -> Result<()> {
    let mut kernel = BufWriter::with_capacity(BUFFER, kernel);
    while let Some(reply) = replies.recv().await {
        kernel.write_all(&reply).await.context("answer the kernel")?;
        if replies.is_empty() {
            kernel.flush().await.context("answer the kernel")?;
        }
    }
    Ok(())
}

/// Sends what is open, then what the kernel asks, until it says that nothing follows.
async fn forward(
    redo: &Mutex<Redo>,
    asked: &mut mpsc::Receiver<Asked>,
    server: WriteHalf<Connection>,
) -> Result<()> {
    let mut server = BufWriter::with_capacity(BUFFER, server);
    let open = lock(redo).open();
    for bytes in open {
        server.write_all(&bytes).await?;
    }
    loop {
        if asked.is_empty() {
            server.flush().await?;
        }
        // Taken and noted without waiting in between: nothing is lost when this is dropped.
        let Some(Asked { head, request, payload }) = asked.recv().await else { return Ok(()) };
        let bytes = lock(redo).send(&head, request, &payload);
        server.write_all(&bytes).await?;
        let flush = lock(redo).flush_due();
        if let Some(flush) = flush {
            server.write_all(&flush).await?;
        }
    }
}

/// Hands the server's answers to the kernel.
async fn bring(
    redo: &Mutex<Redo>,
    server: ReadHalf<Connection>,
    reply: &mpsc::Sender<Vec<u8>>,
) -> Result<Infallible> {
    let mut server = BufReader::with_capacity(BUFFER, server);
    loop {
        let answer = simple_reply(&mut server).await?;
        let length = match answer.error {
            0 => lock(redo).read_length(answer.cookie)?,
            ENDING => bail!("it is ending"),
            _ => 0,
        };
        // Room for it first: what was noted as answered must not be dropped.
        let room = reply.reserve().await.context("the kernel takes no answers")?;
        let mut data = vec![0; length as usize];
        server.read_exact(&mut data).await?;
        let cookie = lock(redo).answer(answer.cookie, answer.error)?;
        if let Some(cookie) = cookie {
            let mut bytes = SimpleReply { cookie, ..answer }.to_bytes();
            bytes.append(&mut data);
            room.send(bytes);
        }
    }
}

async fn simple_reply<S: AsyncRead + Unpin>(server: &mut S) -> Result<SimpleReply> {
    let mut head = [0; SIMPLE_REPLY_BYTES];
    server.read_exact(&mut head).await.context("read from the server")?;
    Ok(SimpleReply::parse(&head)?)
}

/// Connects until it works and everything that is kept was done again.
async fn connect_again(place: &Place, export: Export, redo: &Mutex<Redo>) -> Connection {
    let mut pause = FIRST_PAUSE;
    loop {
        let kept = lock(redo).kept();
        match again(place, export, kept).await {
            Ok(connection) => return connection,
            Err(error) => tracing::debug!(error = %format!("{error:#}"), "connect again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn again(
    place: &Place,
    export: Export,
    kept: Vec<(u64, cairn_core::nbd::redo::Bytes)>,
) -> Result<Connection> {
    let (mut connection, found) = place.connect().await?;
    ensure!(found.size >= export.size, "the volume is smaller than it was");
    for (number, bytes) in kept {
        connection.write_all(&bytes).await?;
        connection.flush().await?;
        let answer = timeout(PATIENCE, simple_reply(&mut connection)).await??;
        ensure!(answer.cookie == number && answer.error == 0, "a change cannot be done again");
    }
    Ok(connection)
}
