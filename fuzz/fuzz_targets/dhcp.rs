//! DHCP packets from anybody: never a panic, what is read is written back equal, and every reply can be read, fits and
//! goes somewhere, in every mode.
//!
//! Input: packets, each after two bytes of length.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};

use cairn_pxe::dhcp::{
    Arrival, Config, Leases, Mode, Network, Op, Packet, Pool, UnixSeconds, respond,
};
use libfuzzer_sys::fuzz_target;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

fn config(mode: Mode) -> Config {
    let url = |name: &str| format!("http://{SERVER}:8441/boot/{name}");
    Config {
        server: SERVER,
        script_url: url("start.ipxe"),
        http_loader_url: url("snponly.efi"),
        mode,
    }
}

fuzz_target!(|input: &[u8]| {
    let network = Network {
        mask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(SERVER),
        dns: vec![SERVER; 8],
        lease_seconds: 600,
    };
    let configs = [config(Mode::Full(network)), config(Mode::Proxy), config(Mode::Off)];
    let pool = Pool {
        start: Ipv4Addr::new(10, 77, 0, 1),
        end: Ipv4Addr::new(10, 77, 0, 5),
        excluded: vec![SERVER],
    };
    let mut leases = Leases::new(pool);
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 9), 4011);
    let (mut rest, mut now) = (input, UnixSeconds(1_700_000_000));
    while let Some((&[high, low], after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (bytes, after) = after.split_at(len);
        rest = after;
        now = now.plus(len as u64);
        let Ok(packet) = Packet::parse(bytes) else { continue };
        let written = packet.to_bytes(usize::MAX);
        assert_eq!(Packet::parse(&written).as_ref(), Ok(&packet));
        for config in &configs {
            for arrival in [Arrival::Dhcp, Arrival::BootServer { from }] {
                let outcome = respond(&packet, arrival, config, &mut leases, now);
                let Some(reply) = outcome.ok().and_then(|outcome| outcome.reply) else { continue };
                let bytes = reply.packet.to_bytes(packet.greatest_reply());
                let read = Packet::parse(&bytes).expect("our reply can be read");
                assert_eq!((read.op, read.xid, read.mac), (Op::Reply, packet.xid, packet.mac));
                assert!((300..=1472).contains(&bytes.len()));
                assert!(reply.to.port() != 0 && !reply.to.ip().is_unspecified());
            }
        }
        assert!(leases.iter().count() <= 4);
    }
});
