//! All sockets of this crate, and the loops between them and the pure parts.
//!
//! | port     | bound to                 | for                                                                   |
//! |----------|--------------------------|-----------------------------------------------------------------------|
//! | UDP 67   | any address, interface   | broadcasts of clients                                                 |
//! | UDP 67   | our address, interface   | renewals and relays, and everything we send, so that it is from us    |
//! | UDP 4011 | our address, interface   | the boot server                                                       |
//! | UDP 69   | our address, interface   | TFTP requests; each transfer has a socket of its own                  |
//! | TCP      | as configured            | boot files                                                            |
//!
//! Everything is bound before anything runs: [`bind`] returning is the sign that machines are answered.
//!
//! Port 67 and a neighbour: the first bind is exclusive, so that a second DHCP server on this machine is noticed. A *full*
//! server then refuses to start. A *proxy* shares the port, bound to 255.255.255.255 only: it sees the broadcasts it needs
//! and never takes a unicast packet (a renewal) from the neighbour.
//!
//! Invariants: one task owns the leases; a lease is on the disk before its ACK is on the wire; transfers and connections are
//! bounded in number, and none outlives [`Bound::run`].

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use axum::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::boot_files::{BootFiles, LookUpError, Opened, normalise};
use crate::config::{DhcpMode, PxeConfig};
use crate::counters::Record;
use crate::decision::BootDecider;
use crate::dhcp::{self, Arrival, Leases, MessageType, Outcome, Packet, UnixSeconds};
use crate::tftp::{self, End, ErrorCode, ReadRequest, Transfer, Transmit};
use crate::{http, lease_file};

mod interface;

pub use interface::{address_of_interface, survey, wake};

/// One byte more than a packet may have, so that a longer one is seen to be longer.
const DATAGRAM_BUFFER: usize = 2048;
const GREATEST_TRANSFERS: usize = 256;
const GREATEST_CONNECTIONS: usize = 1024;
/// Also how long an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything bound, nothing running yet.
pub struct Bound {
    dhcp: Option<DhcpServer>,
    tftp: Option<TftpServer>,
    http: HttpServer,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("http", &self.http.listener).finish_non_exhaustive()
    }
}

/// Binds everything and runs until `stop`; see [`bind`] for errors.
pub async fn serve(
    config: PxeConfig,
    decider: Arc<dyn BootDecider>,
    record: Arc<Record>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    bind(config, decider, record).await?.run(stop).await
}

/// Checks the configuration, loads what is served from memory, and binds every socket.
///
/// # Errors
/// Each says what to do: another DHCP server on the port, no such interface or address, missing rights, iPXE's package
/// not installed.
pub async fn bind(
    config: PxeConfig,
    decider: Arc<dyn BootDecider>,
    record: Arc<Record>,
) -> anyhow::Result<Bound> {
    let (dhcp_config, pool) = config.checked().context("check network boot configuration")?;
    let files = Arc::new(match &config.interface {
        Some(_) => BootFiles::load(&config.ipxe_dir, &config.files).context("load iPXE")?,
        None => BootFiles::payload_only(&config.files),
    });
    let interface =
        config.interface.clone().map(|name| Interface { name, address: config.server_addr });
    // DHCP first: it is the likeliest to be refused.
    let dhcp = match (&interface, &config.dhcp) {
        (None, _) | (_, DhcpMode::Off) => None,
        (Some(interface), mode) => {
            let lease_file = lease_file::path_in(&config.state_dir);
            let (may_share, leases) = match mode {
                DhcpMode::Full(_) => (false, Leases::restore(pool, lease_file::load(&lease_file)?)),
                DhcpMode::Proxy | DhcpMode::Off => (true, Leases::new(pool)),
            };
            let (broadcasts, own) = interface.bind_dhcp(may_share)?;
            Some(DhcpServer {
                broadcasts,
                own,
                boot_server: interface.bind_own(dhcp::BOOT_SERVER_PORT)?,
                config: dhcp_config,
                leases,
                lease_file,
                record: Arc::clone(&record),
            })
        }
    };
    let tftp = match interface {
        Some(interface) => Some(TftpServer {
            socket: interface.bind_own(tftp::SERVER_PORT)?,
            interface,
            files: Arc::clone(&files),
            record: Arc::clone(&record),
        }),
        None => None,
    };
    let listener = TcpListener::bind(config.http_addr).await.with_context(|| {
        format!("listen on {} for boot files over HTTP: is it free, and ours?", config.http_addr)
    })?;
    let base_url = config.base_url(listener.local_addr().context("read HTTP address")?.port());
    let router = http::router(files, decider, record, base_url);
    Ok(Bound { dhcp, tftp, http: HttpServer { listener, router } })
}

impl Bound {
    /// Where boot files are served.
    pub fn http_addr(&self) -> io::Result<SocketAddr> {
        self.http.listener.local_addr()
    }

    /// Serves until `stop`, or until something fails for good.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        if let Some(dhcp) = self.dhcp {
            tasks.spawn(dhcp.run(stop.clone()));
        }
        if let Some(tftp) = self.tftp {
            tasks.spawn(tftp.run(stop.clone()));
        }
        tasks.spawn(self.http.run(stop));
        // The first failure ends the others: dropping the set aborts them.
        while let Some(ended) = tasks.join_next().await {
            ended.context("run network boot")??;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Interface {
    name: String,
    address: Ipv4Addr,
}

impl Interface {
    /// The sockets of port 67: for broadcasts, and, unless the port is shared, for what is sent to and from our address.
    fn bind_dhcp(&self, may_share: bool) -> anyhow::Result<(UdpSocket, Option<UdpSocket>)> {
        let exclusive = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, dhcp::SERVER_PORT);
        match self.bind(exclusive, false) {
            Ok(socket) => {
                // Only now may another socket have the port: our own.
                socket2::SockRef::from(&socket)
                    .set_reuse_address(true)
                    .context("share UDP port 67 with ourselves")?;
                let own = SocketAddrV4::new(self.address, dhcp::SERVER_PORT);
                let own = self.bind(own, true).map_err(|error| self.explain(own, error))?;
                Ok((socket, Some(own)))
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse && may_share => {
                let shared = SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::SERVER_PORT);
                let socket =
                    self.bind(shared, true).map_err(|error| self.explain(shared, error))?;
                tracing::warn!(
                    interface = self.name,
                    "another DHCP server runs on this machine; sharing UDP port 67"
                );
                Ok((socket, None))
            }
            Err(error) => Err(self.explain(exclusive, error)),
        }
    }

    fn bind_own(&self, port: u16) -> anyhow::Result<UdpSocket> {
        let address = SocketAddrV4::new(self.address, port);
        self.bind(address, false).map_err(|error| self.explain(address, error))
    }

    fn bind(&self, address: SocketAddrV4, reuse: bool) -> io::Result<UdpSocket> {
        let socket = udp_socket()?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        socket.set_reuse_address(reuse)?;
        socket.bind_device(Some(self.name.as_bytes()))?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// Turns what the system says into what to do.
    fn explain(&self, address: SocketAddrV4, error: io::Error) -> anyhow::Error {
        let (name, port) = (&self.name, address.port());
        let advice = match (error.kind(), port) {
            (ErrorKind::AddrInUse, dhcp::SERVER_PORT) => format!(
                "another DHCP server has UDP port {port} on this machine (`ss -lunp sport = :{port}` shows it): stop it, \
                 choose the DHCP mode `off` and let that server name our boot files, or run Cairn on another machine"
            ),
            (ErrorKind::AddrInUse, _) => format!(
                "another boot or TFTP server has UDP port {port} on this machine (`ss -lunp sport = :{port}` shows it): \
                 stop it, or run Cairn on another machine"
            ),
            (ErrorKind::AddrNotAvailable, _) => {
                format!(
                    "{} is not an address of this machine; give it to interface {name}",
                    address.ip()
                )
            }
            (ErrorKind::PermissionDenied, _) => format!(
                "UDP port {port} needs the right to bind low ports: run as root or with CAP_NET_BIND_SERVICE and CAP_NET_RAW"
            ),
            _ => format!("is {name} the right interface, and up?"),
        };
        anyhow::Error::new(error)
            .context(format!("bind UDP port {port} on interface {name}: {advice}"))
    }
}

fn udp_socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
}

struct DhcpServer {
    broadcasts: UdpSocket,
    own: Option<UdpSocket>,
    boot_server: UdpSocket,
    config: dhcp::Config,
    leases: Leases,
    lease_file: PathBuf,
    record: Arc<Record>,
}

impl DhcpServer {
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut buffers = [[0; DATAGRAM_BUFFER]; 3];
        let [first, second, third] = &mut buffers;
        loop {
            let (bytes, arrival) = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                received = receive(Some(&self.broadcasts), first) => (received?.0, Arrival::Dhcp),
                received = receive(self.own.as_ref(), second) => (received?.0, Arrival::Dhcp),
                received = receive(Some(&self.boot_server), third) => {
                    let (bytes, from) = received?;
                    (bytes, Arrival::BootServer { from })
                }
            };
            self.handle(bytes, arrival).await;
        }
    }

    async fn handle(&mut self, bytes: &[u8], arrival: Arrival) {
        let request = match Packet::parse(bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, "malformed DHCP packet");
                return self.record.counters.ignored(dhcp::IgnoreReason::MalformedPacket);
            }
        };
        self.record.trails.asked(&request, self.config.server, SystemTime::now());
        match dhcp::respond(&request, arrival, &self.config, &mut self.leases, unix_now()) {
            Ok(outcome) => self.carry_out(&request, outcome, arrival).await,
            Err(reason) => {
                tracing::debug!(mac = %request.mac, reason = reason.name(), "DHCP packet ignored");
                self.record.counters.ignored(reason);
                self.record.trails.ignored(request.mac, reason);
            }
        }
    }

    async fn carry_out(&self, request: &Packet, outcome: Outcome, arrival: Arrival) {
        if outcome.leases_changed {
            let (path, text) = (self.lease_file.clone(), lease_file::encode(&self.leases));
            let saved = tokio::task::spawn_blocking(move || lease_file::save(&path, &text)).await;
            // Without the promise on the disk there is no ACK: the client asks again.
            if let Err(error) = saved.map_err(anyhow::Error::from).and_then(|saved| saved) {
                return tracing::error!(mac = %outcome.mac, "lease not given: {error:#}");
            }
        }
        let Some(reply) = outcome.reply else { return };
        let bytes = reply.packet.to_bytes(request.greatest_reply());
        let socket = match arrival {
            Arrival::BootServer { .. } => &self.boot_server,
            Arrival::Dhcp => self.own.as_ref().unwrap_or(&self.broadcasts),
        };
        if let Err(error) = socket.send_to(&bytes, reply.to).await {
            tracing::warn!(mac = %outcome.mac, to = %reply.to, %error, "cannot send DHCP reply");
            return self.record.counters.dhcp_send_failures.add();
        }
        let counter = match reply.packet.message_type() {
            Some(MessageType::Offer) => &self.record.counters.dhcp_offers,
            Some(MessageType::Nak) => &self.record.counters.dhcp_naks,
            _ => &self.record.counters.dhcp_acks,
        };
        counter.add();
        let client = dhcp::Client::of(request);
        let (reply_type, address) = (reply.packet.message_type(), reply.packet.yiaddr);
        self.record.trails.answered(request, address, SystemTime::now());
        tracing::info!(mac = %outcome.mac, firmware = ?client.firmware, architecture = ?client.architecture,
            reply = ?reply_type, %address, "DHCP reply sent");
    }
}

/// Waits for a datagram; forever when there is no socket.
async fn receive<'a>(
    socket: Option<&UdpSocket>,
    buffer: &'a mut [u8; DATAGRAM_BUFFER],
) -> anyhow::Result<(&'a [u8], SocketAddrV4)> {
    let Some(socket) = socket else { return std::future::pending().await };
    loop {
        let (len, from) = socket.recv_from(buffer).await.context("receive datagram")?;
        if let SocketAddr::V4(from) = from {
            return Ok((buffer.get(..len).unwrap_or_default(), from));
        }
    }
}

fn unix_now() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

struct TftpServer {
    socket: UdpSocket,
    interface: Interface,
    files: Arc<BootFiles>,
    record: Arc<Record>,
}

/// A transfer in progress, by the client's address and port.
struct Running {
    request: ReadRequest,
    task: AbortHandle,
}

impl TftpServer {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut running: HashMap<SocketAddrV4, Running> = HashMap::new();
        let mut transfers: JoinSet<()> = JoinSet::new();
        let mut buffer = [0; DATAGRAM_BUFFER];
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(ended) = transfers.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    running.retain(|_, transfer| transfer.task.id() != id);
                }
                received = receive(Some(&self.socket), &mut buffer) => {
                    let (bytes, client) = received?;
                    self.handle(bytes, client, &mut running, &mut transfers).await;
                }
            }
        }
    }

    async fn handle(
        &self,
        bytes: &[u8],
        client: SocketAddrV4,
        running: &mut HashMap<SocketAddrV4, Running>,
        transfers: &mut JoinSet<()>,
    ) {
        let request = match tftp::Packet::parse(bytes) {
            Ok(tftp::Packet::Read(request)) if request.is_octet => request,
            Ok(tftp::Packet::Read(_)) => {
                self.record.counters.tftp_refused.add();
                return self
                    .refuse(client, ErrorCode::NotDefined, "only octet mode is served")
                    .await;
            }
            Ok(tftp::Packet::Write) => {
                self.record.counters.tftp_refused.add();
                return self
                    .refuse(client, ErrorCode::AccessViolation, "boot files can only be read")
                    .await;
            }
            // The rest belongs on a transfer's own port.
            Ok(_) | Err(_) => return self.record.counters.tftp_malformed.add(),
        };
        if let Some(former) = running.get(&client) {
            if former.request == request {
                // Sent again because our answer was slow or lost; the transfer repeats it by itself.
                return;
            }
            former.task.abort();
        } else if running.len() >= GREATEST_TRANSFERS {
            // Dropped, not refused: the client asks again in a second or two, when others are done.
            return self.record.counters.tftp_busy.add();
        }
        if let Some((socket, file)) = self.open(client, &request).await {
            let record = Arc::clone(&self.record);
            let transfer = Transfer::new(&request, file.size(), Instant::now());
            let name = normalise(&request.name).unwrap_or_default();
            let file = (name, Arc::new(file));
            let task = transfers.spawn(send_file(socket, client, file, transfer, record));
            running.insert(client, Running { request, task });
        }
    }

    /// The socket and the file of a transfer; `None` when there is none, which the client then has been told.
    async fn open(
        &self,
        client: SocketAddrV4,
        request: &ReadRequest,
    ) -> Option<(UdpSocket, Opened)> {
        let (files, name) = (Arc::clone(&self.files), request.name.clone());
        match tokio::task::spawn_blocking(move || files.open(&name)).await {
            Ok(Ok(file)) => {
                let socket = self.transfer_socket(client).await;
                tracing::info!(%client, name = request.name, size = file.size(), "TFTP transfer");
                socket
                    .inspect_err(|error| tracing::warn!(%client, %error, "cannot open TFTP socket"))
                    .ok()
                    .map(|socket| (socket, file))
            }
            // Firmware probes for many names; that is no event.
            Ok(Err(LookUpError::Unknown | LookUpError::Absent { .. })) => {
                self.record.counters.tftp_not_found.add();
                self.refuse(client, ErrorCode::NotFound, "no such boot file").await;
                None
            }
            Ok(Err(error)) => {
                tracing::error!(name = request.name, "{:#}", anyhow::Error::from(error));
                self.refuse(client, ErrorCode::NotDefined, "the boot file cannot be read").await;
                None
            }
            Err(error) => {
                tracing::error!(%error, "reading task failed");
                None
            }
        }
    }

    async fn refuse(&self, client: SocketAddrV4, code: ErrorCode, message: &str) {
        let packet = tftp::Packet::error(code, message).to_bytes();
        let sent = async { self.transfer_socket(client).await?.send(&packet).await };
        if let Err(error) = sent.await {
            tracing::debug!(%client, %error, "cannot send TFTP error");
        }
    }

    /// A socket that talks to one client from a port of its own, which is how TFTP tells transfers apart.
    async fn transfer_socket(&self, client: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.interface.bind(SocketAddrV4::new(self.interface.address, 0), false)?;
        socket.connect(client).await?;
        Ok(socket)
    }
}

async fn send_file(
    socket: UdpSocket,
    client: SocketAddrV4,
    (name, file): (String, Arc<Opened>),
    mut transfer: Transfer,
    record: Arc<Record>,
) {
    let outcome = drive(&socket, &file, &mut transfer).await;
    match (outcome, transfer.end()) {
        (Ok(()), Some(End::Complete)) => {
            record.counters.tftp_transfers.add();
            record.trails.sent(*client.ip(), &name, SystemTime::now());
        }
        (Ok(()), Some(End::Probe)) => record.counters.tftp_probes.add(),
        (outcome, end) => {
            tracing::warn!(%client, ?outcome, ?end, "TFTP transfer broke off");
            record.counters.tftp_failures.add();
            record.trails.broke_off(*client.ip());
        }
    }
}

async fn drive(socket: &UdpSocket, file: &Arc<Opened>, transfer: &mut Transfer) -> io::Result<()> {
    let mut buffer = [0; DATAGRAM_BUFFER];
    while let Some(deadline) = transfer.poll_timeout() {
        match transfer.poll_transmit() {
            Some(Transmit::Options(packet)) => {
                socket.send(&packet).await?;
            }
            Some(Transmit::Blocks { first_block, count, offset, len }) => {
                let file = Arc::clone(file);
                let read = tokio::task::spawn_blocking(move || file.read_at(offset, len));
                let bytes = read.await.map_err(io::Error::other)??;
                let mut blocks = bytes.chunks(transfer.block_bytes());
                for at in 0..count {
                    // None for the empty block that ends a file of whole blocks.
                    let payload = blocks.next().unwrap_or_default();
                    let packet =
                        tftp::Packet::Data { block: first_block.wrapping_add(at), payload };
                    socket.send(&packet.to_bytes()).await?;
                }
            }
            None => {}
        }
        tokio::select! {
            received = socket.recv(&mut buffer) => {
                transfer.handle_packet(buffer.get(..received?).unwrap_or_default(), Instant::now());
            }
            () = tokio::time::sleep_until(deadline.into()) => transfer.handle_timeout(Instant::now()),
        }
    }
    Ok(())
}

struct HttpServer {
    listener: TcpListener,
    router: axum::Router,
}

impl HttpServer {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(GREATEST_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "HTTP connection task failed");
                    }
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match (accepted, Arc::clone(&places).try_acquire_owned()) {
                (Ok((stream, peer)), Ok(place)) => {
                    let router = self.router.clone().layer(Extension(http::From(peer)));
                    connections.spawn(async move {
                        serve_connection(stream, router).await;
                        drop(place);
                    });
                }
                (Ok((_, peer)), Err(_)) => {
                    tracing::warn!(%peer, "too many HTTP connections; refused")
                }
                (Err(error), _) => {
                    // Out of file descriptors, most likely; without a pause this would spin.
                    tracing::error!(%error, "cannot accept HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: axum::Router) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "HTTP connection ended early");
    }
}
