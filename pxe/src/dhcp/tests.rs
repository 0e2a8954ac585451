//! The responder against what real firmware sent, and against what nobody should send.

mod dialogues;
mod hostile;
mod recorded;

use std::net::{Ipv4Addr, SocketAddrV4};

use super::*;

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(super) const SCRIPT: &str = "http://10.77.0.2:8441/boot/start.ipxe";
pub(super) const HTTP_LOADER: &str = "http://10.77.0.2:8441/boot/snponly.efi";

pub(super) fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

pub(super) fn config(mode: Mode) -> Config {
    Config {
        server: SERVER,
        script_url: SCRIPT.to_owned(),
        http_loader_url: HTTP_LOADER.to_owned(),
        mode,
    }
}

pub(super) fn full(lease_seconds: u32) -> Config {
    config(Mode::Full(Network {
        mask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(SERVER),
        dns: Vec::new(),
        lease_seconds,
    }))
}

pub(super) fn pool(count: u8) -> Leases {
    Leases::new(Pool { start: address(100), end: address(99 + count), excluded: vec![SERVER] })
}

/// A request as an ordinary client would send it.
pub(super) fn request(client: u8, message_type: MessageType) -> Packet {
    let mut options = Options::default();
    options.push(code::MESSAGE_TYPE, vec![message_type.into()]);
    Packet {
        op: Op::Request,
        xid: 0x1234_5678,
        secs: 3,
        flags: 0,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        mac: MacAddr([2, 0, 0, 0, 0, client]),
        sname: Vec::new(),
        file: Vec::new(),
        options,
    }
}

pub(super) fn with_address(mut packet: Packet, code: u8, address: Ipv4Addr) -> Packet {
    packet.options.push(code, address.octets().to_vec());
    packet
}

pub(super) fn broadcast() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
}
