//! DHCP for booting machines: what arrives is parsed, classified and answered by pure functions.
//!
//! Three roles ([`Mode`]): *proxy* answers only machines that boot from the network and never gives an address, so it
//! lives beside a DHCP server that nobody may touch; *full* gives addresses from a pool as well; *off* says nothing.
//!
//! ```text
//! bytes ─ Packet::parse ─► Packet ─ Client::of ─► Client ─ proxy::offer | boot_server::answer | full::answer ─► Outcome
//!           │ Malformed                              │ IgnoreReason                              │ IgnoreReason
//!           └──────────────────── counted, never answered ──────────────────────────────────────┘
//! ```
//!
//! # The packet (RFC 951, RFC 2131 section 2; all numbers big-endian)
//!
//! | offset | bytes | field    | here                                                                        |
//! |-------:|------:|----------|-----------------------------------------------------------------------------|
//! |      0 |     1 | op       | 1 request, 2 reply                                                          |
//! |      1 |     1 | htype    | 1, Ethernet; anything else is malformed                                     |
//! |      2 |     1 | hlen     | 6                                                                           |
//! |      3 |     1 | hops     | set by relays; not looked at                                                |
//! |      4 |     4 | xid      | echoed                                                                      |
//! |      8 |     2 | secs     | echoed                                                                      |
//! |     10 |     2 | flags    | 0x8000: the client wants a broadcast; echoed                                |
//! |     12 |     4 | ciaddr   | the client's address if it has one already                                  |
//! |     16 |     4 | yiaddr   | the address we give                                                         |
//! |     20 |     4 | siaddr   | **our address**: iPXE does not boot from a ProxyDHCP offer without it       |
//! |     24 |     4 | giaddr   | the relay's address, and then where the reply goes                          |
//! |     28 |    16 | chaddr   | hardware address, zero-padded                                               |
//! |     44 |    64 | sname    | our address as text where the firmware expects a name                       |
//! |    108 |   128 | file     | name or URL of what to boot, NUL-terminated                                 |
//! |    236 |     4 | cookie   | 63 82 53 63                                                                 |
//! |    240 |     … | options  | code, length, value …, ended by 255 (RFC 2132; long ones by RFC 3396)       |
//!
//! Options that matter: 1 mask, 3 router, 6 DNS, 28 broadcast, 43 vendor, 50 requested address, 51 lease, 53 message
//! type, 54 server, 57 greatest size, 58/59 renewal, 60 class, 61 client identifier, 67 boot file, 77 user class,
//! 82 relay, 93 architecture, 97 UUID (both RFC 4578), 175 iPXE.
//!
//! # Why the codec is our own
//!
//! `dhcproto` 0.15 panics on bytes from outside (`chaddr()` indexes by an unchecked hlen; options 80, 81, 94 and 151 of
//! unexpected length hit debug assertions or underflow), stops without a word at the first option it cannot read, so
//! malformed packets cannot be counted, and writes options in numeric order while boot ROMs expect 53 first. It serves
//! as the independent reader of our replies in the tests.

mod boot_server;
mod client;
mod full;
mod leases;
mod packet;
mod proxy;
pub(crate) mod survey;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddrV4};

pub use client::LOADERS;
pub(crate) use client::UEFI_LOADER;
pub use client::{Architecture, Client, Firmware};
pub use leases::{Lease, LeaseKey, LeaseState, Leases, NotAvailable, Pool, UnixSeconds};
pub use packet::{Malformed, MessageType, Op, Options, Packet, code};
pub use survey::Offer;

use crate::identity::MacAddr;

/// The port DHCP servers listen on (RFC 2131).
pub const SERVER_PORT: u16 = 67;
/// The port DHCP clients listen on.
pub const CLIENT_PORT: u16 = 68;
/// The port PXE boot servers listen on (Intel PXE 2.1, section 2.2).
pub const BOOT_SERVER_PORT: u16 = 4011;

/// What the responder needs to know; made once at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our address on the boot interface: server identifier, next server, TFTP server.
    pub server: Ipv4Addr,
    /// What a machine that already runs iPXE gets: the URL of the first script.
    pub script_url: String,
    /// What UEFI HTTP Boot gets: the URL of the UEFI loader.
    pub http_loader_url: String,
    pub mode: Mode,
}

#[derive(Debug, Clone)]
pub enum Mode {
    Proxy,
    Full(Network),
    Off,
}

/// What a full DHCP server tells about the net. The pool itself is in [`Leases`].
#[derive(Debug, Clone)]
pub struct Network {
    pub mask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub lease_seconds: u32,
}

impl Network {
    pub(crate) fn broadcast(&self, server: Ipv4Addr) -> Ipv4Addr {
        server | !self.mask
    }
}

/// Which of our two ports a packet arrived on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// UDP 67: broadcasts, and what relays and renewing clients send to us.
    Dhcp,
    /// UDP 4011: machines that ask the boot server directly, from this address and port.
    BootServer { from: SocketAddrV4 },
}

/// A packet to send and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub packet: Packet,
    pub to: SocketAddrV4,
}

/// What came of a packet that was for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub mac: MacAddr,
    /// `None` after a release or a decline, which are never answered.
    pub reply: Option<Reply>,
    /// True when [`Leases`] must reach the disk before the reply is sent.
    pub leases_changed: bool,
}

/// Why a packet was not answered. Counted by this, so without fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IgnoreReason {
    MalformedPacket,
    NotARequest,
    /// An ordinary DHCP client while we are a proxy.
    NotABootClient,
    /// It boots from the network, but not an architecture we have a loader for.
    UnsupportedArchitecture,
    /// It talks to another DHCP server.
    ForAnotherServer,
    /// A message type that asks nothing of us in this mode.
    NothingToAnswer,
    PoolExhausted,
    Off,
}

impl IgnoreReason {
    pub const ALL: [Self; 8] = [
        Self::MalformedPacket,
        Self::NotARequest,
        Self::NotABootClient,
        Self::UnsupportedArchitecture,
        Self::ForAnotherServer,
        Self::NothingToAnswer,
        Self::PoolExhausted,
        Self::Off,
    ];

    /// A stable name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::MalformedPacket => "malformed",
            Self::NotARequest => "not_a_request",
            Self::NotABootClient => "not_a_boot_client",
            Self::UnsupportedArchitecture => "unsupported_architecture",
            Self::ForAnotherServer => "for_another_server",
            Self::NothingToAnswer => "nothing_to_answer",
            Self::PoolExhausted => "pool_exhausted",
            Self::Off => "off",
        }
    }
}

/// Answers one packet, or says why not. Pure: the only state is `leases`, the only clock `now`.
pub fn respond(
    request: &Packet,
    arrival: Arrival,
    config: &Config,
    leases: &mut Leases,
    now: UnixSeconds,
) -> Result<Outcome, IgnoreReason> {
    if request.op != Op::Request {
        return Err(IgnoreReason::NotARequest);
    }
    match (&config.mode, arrival) {
        (Mode::Off, _) => Err(IgnoreReason::Off),
        (_, Arrival::BootServer { from }) => boot_server::answer(request, from, config),
        (Mode::Proxy, Arrival::Dhcp) => proxy::offer(request, config),
        (Mode::Full(network), Arrival::Dhcp) => full::answer(request, config, network, leases, now),
    }
}

/// The parts every reply has: what is echoed, and who we are.
fn reply_to(request: &Packet, message_type: MessageType, config: &Config) -> Packet {
    let mut options = Options::default();
    options.push(code::MESSAGE_TYPE, vec![message_type.into()]);
    options.push(code::SERVER_IDENTIFIER, config.server.octets().to_vec());
    Packet {
        op: Op::Reply,
        xid: request.xid,
        secs: request.secs,
        flags: request.flags,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: config.server,
        giaddr: request.giaddr,
        mac: request.mac,
        sname: Vec::new(),
        file: Vec::new(),
        options,
    }
}

/// Echoes what the standards ask a server to echo: 97 (RFC 4578), and 82 for a relay (RFC 3046), which comes last.
fn echo_identity(request: &Packet, reply: &mut Packet) {
    if let Some(uuid) = request.options.get(code::MACHINE_UUID) {
        reply.options.push(code::MACHINE_UUID, uuid.to_vec());
    }
    if let Some(relay) =
        request.options.get(code::RELAY).filter(|_| !request.giaddr.is_unspecified())
    {
        reply.options.push(code::RELAY, relay.to_vec());
    }
}

/// Where a reply to a client on port 68 goes (RFC 2131 section 4.1).
///
/// A client without an address gets a broadcast even when it asked for unicast: `SeaBIOS`'s iPXE does not answer ARP
/// before it has its address, so a unicast reply would need an ARP entry made by hand.
fn destination(request: &Packet) -> SocketAddrV4 {
    if !request.giaddr.is_unspecified() {
        SocketAddrV4::new(request.giaddr, SERVER_PORT)
    } else if !request.ciaddr.is_unspecified() {
        SocketAddrV4::new(request.ciaddr, CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}
