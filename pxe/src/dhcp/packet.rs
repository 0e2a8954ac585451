//! The DHCP packet as bytes; the layout is in the header of [`crate::dhcp`].
//!
//! Invariants: parsing never panics and never allocates more than the packet is long; what [`Packet::to_bytes`] writes,
//! [`Packet::parse`] reads back equal.

use std::net::Ipv4Addr;

use crate::identity::MacAddr;

/// Option codes used here.
pub mod code {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const BROADCAST: u8 = 28;
    pub const VENDOR: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_SECONDS: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_IDENTIFIER: u8 = 54;
    pub const GREATEST_SIZE: u8 = 57;
    pub const RENEWAL_SECONDS: u8 = 58;
    pub const REBINDING_SECONDS: u8 = 59;
    pub const CLASS: u8 = 60;
    pub const CLIENT_IDENTIFIER: u8 = 61;
    pub const BOOT_FILE: u8 = 67;
    pub const USER_CLASS: u8 = 77;
    pub const RELAY: u8 = 82;
    pub const ARCHITECTURE: u8 = 93;
    pub const MACHINE_UUID: u8 = 97;
    pub const IPXE: u8 = 175;
    pub const END: u8 = 255;
}

/// Longest packet read: an Ethernet frame's worth. Longer ones are malformed.
pub(crate) const GREATEST_PACKET: usize = 1500;
/// BOOTP relays and some ROMs drop shorter replies (RFC 1542 section 2.1).
const LEAST_REPLY: usize = 300;
/// What every client must accept (RFC 2131 section 2): a 576-byte datagram less IP and UDP headers.
const LEAST_GREATEST: usize = 576 - IP_UDP_HEADERS;
const IP_UDP_HEADERS: usize = 28;
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
const OPTIONS_AT: usize = 240;
const SNAME_LEN: usize = 64;
const FILE_LEN: usize = 128;

/// Options that may go when a reply is too long for the client, most dispensable first. Option 67 repeats `file`.
const DISPENSABLE: [u8; 4] = [code::IPXE, code::CLIENT_IDENTIFIER, code::BOOT_FILE, code::DNS];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Request,
    Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub op: Op,
    pub xid: u32,
    pub secs: u16,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub mac: MacAddr,
    /// Without its terminating NUL; at most 63 bytes.
    pub sname: Vec<u8>,
    /// Without its terminating NUL; at most 127 bytes.
    pub file: Vec<u8>,
    pub options: Options,
}

/// Options in the order they are written, each code at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(Vec<(u8, Vec<u8>)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{len} bytes are too few for a DHCP packet")]
    TooShort { len: usize },
    #[error("longer than {GREATEST_PACKET} bytes")]
    TooLong,
    #[error("op {op} is neither request nor reply")]
    Op { op: u8 },
    #[error("hardware type {htype} with {hlen} address bytes is not Ethernet")]
    Hardware { htype: u8, hlen: u8 },
    #[error("hardware address is zero or a group address")]
    HardwareAddress,
    #[error("no DHCP magic cookie")]
    Cookie,
    #[error("option {code} reaches beyond the packet")]
    TruncatedOption { code: u8 },
    #[error("option {code} has {len} bytes")]
    OptionLength { code: u8, len: usize },
    #[error("no message type")]
    NoMessageType,
    #[error("unknown message type {value}")]
    MessageType { value: u8 },
}

impl Packet {
    /// Reads a packet. Everything the rest relies on is checked here, so that nothing later has to.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > GREATEST_PACKET {
            return Err(Malformed::TooLong);
        }
        let (fixed, option_bytes) = bytes
            .split_first_chunk::<OPTIONS_AT>()
            .ok_or(Malformed::TooShort { len: bytes.len() })?;
        let mut reader = Reader(fixed);
        let [op, htype, hlen, _hops] = reader.take();
        let op = match op {
            1 => Op::Request,
            2 => Op::Reply,
            op => return Err(Malformed::Op { op }),
        };
        if (htype, hlen) != (1, 6) {
            return Err(Malformed::Hardware { htype, hlen });
        }
        let xid = u32::from_be_bytes(reader.take());
        let secs = u16::from_be_bytes(reader.take());
        let flags = u16::from_be_bytes(reader.take());
        let ciaddr = Ipv4Addr::from(reader.take::<4>());
        let yiaddr = Ipv4Addr::from(reader.take::<4>());
        let siaddr = Ipv4Addr::from(reader.take::<4>());
        let giaddr = Ipv4Addr::from(reader.take::<4>());
        let mac = MacAddr(reader.take());
        let _padding: [u8; 10] = reader.take();
        let sname = until_nul(&reader.take::<SNAME_LEN>());
        let file = until_nul(&reader.take::<FILE_LEN>());
        if reader.take() != COOKIE {
            return Err(Malformed::Cookie);
        }
        if !mac.is_unicast() {
            return Err(Malformed::HardwareAddress);
        }
        let options = Options::parse(option_bytes)?;
        let packet = Self {
            op,
            xid,
            secs,
            flags,
            ciaddr,
            yiaddr,
            siaddr,
            giaddr,
            mac,
            sname,
            file,
            options,
        };
        packet.check_lengths()?;
        Ok(packet)
    }

    /// Every option that is read later has a length it can be read with.
    fn check_lengths(&self) -> Result<(), Malformed> {
        for (code, value) in self.options.iter() {
            let len = value.len();
            let fits = match code {
                code::MESSAGE_TYPE => len == 1,
                code::GREATEST_SIZE => len == 2,
                code::REQUESTED_ADDRESS | code::SERVER_IDENTIFIER | code::LEASE_SECONDS => len == 4,
                code::ARCHITECTURE => len >= 2 && len.is_multiple_of(2),
                code::CLIENT_IDENTIFIER => (2..=255).contains(&len),
                code::MACHINE_UUID => len == 17,
                code::CLASS | code::RELAY => (1..=255).contains(&len),
                _ => true,
            };
            if !fits {
                return Err(Malformed::OptionLength { code, len });
            }
        }
        self.message_type_checked().map(|_| ())
    }

    fn message_type_checked(&self) -> Result<MessageType, Malformed> {
        let value = self
            .options
            .get(code::MESSAGE_TYPE)
            .and_then(<[u8]>::first)
            .ok_or(Malformed::NoMessageType)?;
        MessageType::try_from(*value)
    }

    /// The message type; a parsed packet always has one.
    pub fn message_type(&self) -> Option<MessageType> {
        self.message_type_checked().ok()
    }

    /// The bytes on the wire: at least 300, at most what the client said it takes (`greatest`).
    pub fn to_bytes(&self, greatest: usize) -> Vec<u8> {
        let mut bytes = self.encode();
        let mut shorter = self.clone();
        for code in DISPENSABLE {
            if bytes.len() <= greatest {
                break;
            }
            shorter.options.remove(code);
            bytes = shorter.encode();
        }
        bytes
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEAST_REPLY);
        let op = match self.op {
            Op::Request => 1,
            Op::Reply => 2,
        };
        bytes.extend([op, 1, 6, 0]);
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(self.secs.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.mac.0);
        bytes.extend([0; 10]);
        // One byte less than the field: readers expect the NUL.
        extend_padded(&mut bytes, &self.sname, SNAME_LEN);
        extend_padded(&mut bytes, &self.file, FILE_LEN);
        bytes.extend(COOKIE);
        for (code, value) in self.options.iter() {
            if value.is_empty() {
                bytes.extend([code, 0]);
            }
            for part in value.chunks(255) {
                bytes.push(code);
                bytes.extend(u8::try_from(part.len()));
                bytes.extend(part);
            }
        }
        bytes.push(code::END);
        if bytes.len() < LEAST_REPLY {
            bytes.resize(LEAST_REPLY, 0);
        }
        bytes
    }

    /// The longest reply this client takes, in bytes of DHCP (option 57, bounded to an Ethernet frame).
    pub fn greatest_reply(&self) -> usize {
        let told = self.options.get(code::GREATEST_SIZE).and_then(|value| value.try_into().ok());
        let told = told.map_or(LEAST_GREATEST, |value| usize::from(u16::from_be_bytes(value)));
        told.saturating_sub(IP_UDP_HEADERS).clamp(LEAST_GREATEST, GREATEST_PACKET - IP_UDP_HEADERS)
    }
}

impl Options {
    fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut options = Self::default();
        while let Some((&code, rest)) = bytes.split_first() {
            match code {
                code::PAD => bytes = rest,
                code::END => break,
                code => {
                    let truncated = Malformed::TruncatedOption { code };
                    let (&len, rest) = rest.split_first().ok_or(truncated)?;
                    let (value, rest) = rest.split_at_checked(usize::from(len)).ok_or(truncated)?;
                    options.append(code, value);
                    bytes = rest;
                }
            }
        }
        Ok(options)
    }

    /// A repeated code continues the value (RFC 3396).
    fn append(&mut self, code: u8, value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| *known == code) {
            Some((_, known)) => known.extend(value),
            None => self.0.push((code, value.to_vec())),
        }
    }

    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
    }

    /// An option that is one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    }

    /// Adds an option, or replaces it.
    pub fn push(&mut self, code: u8, value: Vec<u8>) {
        self.remove(code);
        self.0.push((code, value));
    }

    fn remove(&mut self, code: u8) {
        self.0.retain(|(known, _)| *known != code);
    }

    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, value)| (*code, value.as_slice()))
    }
}

impl From<MessageType> for u8 {
    fn from(message_type: MessageType) -> Self {
        match message_type {
            MessageType::Discover => 1,
            MessageType::Offer => 2,
            MessageType::Request => 3,
            MessageType::Decline => 4,
            MessageType::Ack => 5,
            MessageType::Nak => 6,
            MessageType::Release => 7,
            MessageType::Inform => 8,
        }
    }
}

impl TryFrom<u8> for MessageType {
    type Error = Malformed;

    fn try_from(value: u8) -> Result<Self, Malformed> {
        Ok(match value {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            value => return Err(Malformed::MessageType { value }),
        })
    }
}

/// Takes fields off the fixed part. It is long enough for all of them, so running out yields zeros, not a panic.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

fn until_nul(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

fn extend_padded(bytes: &mut Vec<u8>, text: &[u8], field_len: usize) {
    let text = text.get(..field_len).unwrap_or(text);
    bytes.extend(text);
    bytes.resize(bytes.len() + field_len - text.len(), 0);
}
