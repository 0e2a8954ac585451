//! Goldens: captures of real firmware that booted from another server (`tests-data/*.pcap`). Given the machine's packets,
//! our replies must have what the recorded replies had that made it boot.

use std::path::Path;

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use dhcproto::{Decodable as _, Decoder};

use super::*;

struct Datagram {
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: Vec<u8>,
}

/// Reads a classic little-endian pcap of Ethernet frames; UDP over IPv4 is kept.
fn datagrams(name: &str) -> Vec<Datagram> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests-data").join(name);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[..4], [0xd4, 0xc3, 0xb2, 0xa1], "{name} is a classic pcap");
    let mut rest = &bytes[24..];
    let mut found = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let (frame, after) = after.split_at(len);
        rest = after;
        let ip = &frame[14..];
        let is_udp = frame[12..14] == [8, 0] && ip[9] == 17;
        if !is_udp {
            continue;
        }
        let udp = &ip[usize::from(ip[0] & 15) * 4..];
        let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        let ip_at = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let payload = udp[8..].get(..usize::from(word(4)) - 8).unwrap_or_default().to_vec();
        found.push(Datagram {
            from: SocketAddrV4::new(ip_at(12), word(0)),
            to: SocketAddrV4::new(ip_at(16), word(2)),
            payload,
        });
    }
    found
}

fn is_dhcp(datagram: &Datagram) -> bool {
    [SERVER_PORT, BOOT_SERVER_PORT].contains(&datagram.to.port())
        || [67, 4011].contains(&datagram.from.port())
}

/// The name or URL a packet tells to boot, and whether it stands in option 67 or in the header.
fn boot_file(packet: &Packet) -> Option<String> {
    let option =
        packet.options.get(code::BOOT_FILE).map(|value| value.strip_suffix(&[0]).unwrap_or(value));
    let file = option.or(Some(&packet.file)).filter(|file| !file.is_empty())?;
    Some(String::from_utf8(file.to_vec()).unwrap())
}

/// What ours must be where the recorded server said `recorded`.
fn our_boot_file(recorded: &str) -> &'static str {
    match recorded {
        "ipxe.efi" | "snponly.efi" | "shimx64.efi" => "snponly.efi",
        url if url.ends_with(".ipxe") => SCRIPT,
        url if url.ends_with(".efi") => HTTP_LOADER,
        other => panic!("unknown recorded boot file {other}"),
    }
}

/// An independent decoder reads our bytes and finds what we meant.
fn check_with_dhcproto(ours: &Packet, bytes: &[u8]) {
    let read = Message::decode(&mut Decoder::new(bytes)).unwrap();
    assert_eq!(read.xid(), ours.xid);
    assert_eq!((read.yiaddr(), read.siaddr()), (ours.yiaddr, ours.siaddr));
    assert_eq!(read.chaddr(), ours.mac.0);
    assert_eq!(read.opts().msg_type().map(u8::from), ours.message_type().map(u8::from));
    assert_eq!(read.opts().iter().count(), ours.options.iter().count());
    let file = read.fname().unwrap_or_default();
    assert_eq!(file.strip_suffix(&[0]).unwrap_or(file), ours.file);
    if let Some(DhcpOption::BootfileName(name)) = read.opts().get(OptionCode::BootfileName) {
        assert_eq!(Some(name.as_slice()), ours.options.get(code::BOOT_FILE));
    }
}

/// Plays a capture: whatever the recorded server answered we answer alike, whatever it left alone we leave alone.
/// Returns how many replies were compared.
fn replay(name: &str, mode: &str) -> usize {
    let datagrams: Vec<_> = datagrams(name).into_iter().filter(is_dhcp).collect();
    let packets: Vec<_> =
        datagrams.iter().map(|datagram| Packet::parse(&datagram.payload).unwrap()).collect();
    let lease = packets.iter().find_map(|packet| packet.options.get(code::LEASE_SECONDS));
    let lease = u32::from_be_bytes(lease.unwrap().try_into().unwrap());
    let config = if mode == "full" { full(lease) } else { config(Mode::Proxy) };
    let mut leases = pool(10);
    let mut compared = 0;
    for (at, (datagram, request)) in datagrams.iter().zip(&packets).enumerate() {
        if request.op == Op::Reply {
            continue;
        }
        let arrival = match datagram.to.port() {
            BOOT_SERVER_PORT => Arrival::BootServer { from: datagram.from },
            _ => Arrival::Dhcp,
        };
        let outcome = respond(request, arrival, &config, &mut leases, UnixSeconds(1_700_000_000));
        let next_request = packets.iter().skip(at + 1).position(|packet| packet.op == Op::Request);
        let answers = at + 1..next_request.map_or(packets.len(), |next| at + 1 + next);
        let recorded = answers.into_iter().find(|at| *datagrams[*at].from.ip() == SERVER);
        let Some(recorded) = recorded else {
            assert!(
                outcome.is_err(),
                "{name} packet {at}: the recorded server was silent, ours said {outcome:?}"
            );
            continue;
        };
        let reply = outcome.unwrap().reply.unwrap();
        assert_alike(&format!("{name} packet {at}"), &packets[recorded], &reply.packet);
        match *datagrams[recorded].to.ip() {
            // To an address the client does not answer ARP for yet; everybody hears a broadcast.
            unicast if unicast != Ipv4Addr::BROADCAST && arrival == Arrival::Dhcp => {
                assert_eq!(reply.to, broadcast())
            }
            _ => assert_eq!(reply.to, datagrams[recorded].to),
        }
        check_with_dhcproto(&reply.packet, &reply.packet.to_bytes(request.greatest_reply()));
        compared += 1;
    }
    compared
}

fn assert_alike(what: &str, recorded: &Packet, ours: &Packet) {
    assert_eq!(ours.message_type(), recorded.message_type(), "{what}");
    assert_eq!(
        (ours.xid, ours.secs, ours.mac),
        (recorded.xid, recorded.secs, recorded.mac),
        "{what}"
    );
    assert_eq!(ours.yiaddr, recorded.yiaddr, "{what}: yiaddr");
    assert_eq!(ours.siaddr, SERVER, "{what}: siaddr");
    for (code, value) in recorded.options.iter().filter(|(code, _)| *code != code::BOOT_FILE) {
        assert_eq!(ours.options.get(code), Some(value), "{what}: option {code}");
    }
    assert_eq!(
        boot_file(ours).as_deref(),
        boot_file(recorded).as_deref().map(our_boot_file),
        "{what}: boot file"
    );
    // Where it stands in the header, it stands in the header here too.
    assert!(recorded.file.is_empty() || !ours.file.is_empty(), "{what}: file field");
    assert!(recorded.sname.is_empty() || !ours.sname.is_empty(), "{what}: sname field");
}

#[test]
fn bios_with_ipxe_in_rom_boots_beside_another_dhcp_server() {
    assert_eq!(replay("bios-virtio-proxy.pcap", "proxy"), 1);
}

#[test]
fn uefi_pxe_boots_beside_another_dhcp_server() {
    // The offer, the boot server's answer on 4011, and the offer to the iPXE it loaded.
    assert_eq!(replay("uefi-virtio-proxy.pcap", "proxy"), 3);
}

#[test]
fn every_firmware_boots_from_us_alone() {
    for (name, replies) in [
        ("bios-virtio-full.pcap", 3),
        ("bios-e1000-full.pcap", 4),
        ("bios-undionly-chain.pcap", 6),
        ("uefi-virtio-full.pcap", 7),
        ("uefi-e1000-snponly.pcap", 6),
        ("uefi-http.pcap", 5),
        ("bw-bios-virtio.pcap", 5),
        ("bw-uefi-virtio.pcap", 5),
        ("sb-pxe-shim.pcap", 4),
        ("sb-http-shim.pcap", 2),
    ] {
        assert_eq!(replay(name, "full"), replies, "{name}");
    }
}

#[test]
fn the_offer_that_failed_is_not_ours() {
    let datagrams: Vec<_> =
        datagrams("bios-virtio-proxy-FAIL-siaddr0.pcap").into_iter().filter(is_dhcp).collect();
    let discover = Packet::parse(&datagrams[0].payload).unwrap();
    let failed = Packet::parse(&datagrams[1].payload).unwrap();
    assert_eq!(failed.siaddr, Ipv4Addr::UNSPECIFIED, "why iPXE found nothing to boot");
    let mut leases = pool(1);
    let ask = |request: &Packet, arrival, leases: &mut Leases| {
        respond(request, arrival, &config(Mode::Proxy), leases, UnixSeconds(0))
            .unwrap()
            .reply
            .unwrap()
    };
    let offer = ask(&discover, Arrival::Dhcp, &mut leases).packet;
    assert_eq!((offer.siaddr, offer.file.as_slice()), (SERVER, SCRIPT.as_bytes()));
    // It never gets as far as asking 4011 with us; if it does, the answer has the same.
    let asks: Vec<_> =
        datagrams.iter().filter(|datagram| datagram.to.port() == BOOT_SERVER_PORT).collect();
    assert_eq!(asks.len(), 4);
    for datagram in asks {
        let request = Packet::parse(&datagram.payload).unwrap();
        let reply = ask(&request, Arrival::BootServer { from: datagram.from }, &mut leases);
        assert_eq!(reply.to, datagram.from);
        assert_eq!(
            (reply.packet.siaddr, reply.packet.file.as_slice()),
            (SERVER, SCRIPT.as_bytes())
        );
    }
}

#[test]
fn a_proxy_leaves_ordinary_clients_alone() {
    let mut left_alone = 0;
    for name in ["uefi-virtio-full.pcap", "bw-bios-virtio.pcap", "sb-pxe-shim.pcap"] {
        for datagram in datagrams(name).iter().filter(|datagram| datagram.to.port() == SERVER_PORT)
        {
            let request = Packet::parse(&datagram.payload).unwrap();
            if request.options.get(code::CLASS).is_some_and(|class| class.starts_with(b"udhcp")) {
                let outcome = respond(
                    &request,
                    Arrival::Dhcp,
                    &config(Mode::Proxy),
                    &mut pool(1),
                    UnixSeconds(0),
                );
                assert_eq!(outcome, Err(IgnoreReason::NotABootClient));
                left_alone += 1;
            }
        }
    }
    assert_eq!(left_alone, 6);
}

#[test]
fn what_our_codec_writes_is_what_was_recorded() {
    // Every recorded packet survives being read and written, but for the padding after its end.
    for entry in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests-data")).unwrap()
    {
        let name = entry.unwrap().file_name().into_string().unwrap();
        for datagram in datagrams(&name).into_iter().filter(is_dhcp) {
            let packet = Packet::parse(&datagram.payload).unwrap();
            assert_eq!(packet.to_bytes(1472), datagram.payload, "{name}");
        }
    }
}

#[test]
fn the_files_that_firmware_asks_for_by_tftp_are_read() {
    let mut names = Vec::new();
    for name in ["uefi-virtio-proxy.pcap", "sb-pxe-shim.pcap", "bios-undionly-chain.pcap"] {
        for datagram in datagrams(name).into_iter().filter(|datagram| !is_dhcp(datagram)) {
            // Long DATA was cut when it was recorded; everything else is whole and well-formed.
            if datagram.payload.is_empty() {
                continue;
            }
            let packet = crate::tftp::Packet::parse(&datagram.payload).unwrap();
            if let crate::tftp::Packet::Read(request) = packet {
                assert!(request.is_octet);
                names.push((
                    request.name,
                    request.block_bytes,
                    request.window_blocks,
                    request.wants_size,
                ));
            }
        }
    }
    assert_eq!(names[0], ("ipxe.efi".to_owned(), Some(1468), Some(4), true));
    assert_eq!(names[1], ("ipxe.efi".to_owned(), Some(1468), Some(4), false));
    assert!(names.contains(&("grubx64.efi".to_owned(), Some(512), Some(4), false)));
    assert!(names.contains(&("/grub/grub.cfg".to_owned(), Some(1024), None, true)));
    assert!(
        names
            .iter()
            .any(|(name, block_bytes, ..)| name == "autoexec.ipxe" && *block_bytes == Some(1432))
    );
}
