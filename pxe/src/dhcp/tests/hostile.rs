//! Packets nobody should send: counted by reason, never a panic, never a reply that cannot be read.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn changed(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = request(1, MessageType::Discover).to_bytes(1472);
    bytes[at] = byte;
    bytes
}

fn with_options(options: &[u8]) -> Vec<u8> {
    let mut bytes = request(1, MessageType::Discover).to_bytes(1472);
    bytes.truncate(240);
    bytes.extend(options);
    bytes
}

#[test]
fn every_way_to_be_malformed_has_its_name() {
    for (bytes, expected) in [
        (Vec::new(), Malformed::TooShort { len: 0 }),
        (vec![1; 239], Malformed::TooShort { len: 239 }),
        (vec![1; 1501], Malformed::TooLong),
        (changed(0, 3), Malformed::Op { op: 3 }),
        (changed(1, 6), Malformed::Hardware { htype: 6, hlen: 6 }),
        // An address length beyond the field makes some codecs read out of bounds.
        (changed(2, 255), Malformed::Hardware { htype: 1, hlen: 255 }),
        (changed(28, 1), Malformed::HardwareAddress),
        (changed(236, 0), Malformed::Cookie),
        (with_options(&[]), Malformed::NoMessageType),
        (with_options(&[255, 53, 1, 1]), Malformed::NoMessageType),
        (with_options(&[53]), Malformed::TruncatedOption { code: 53 }),
        (with_options(&[53, 1, 1, 60, 9, b'P']), Malformed::TruncatedOption { code: 60 }),
        (with_options(&[53, 1, 0]), Malformed::MessageType { value: 0 }),
        (with_options(&[53, 1, 9]), Malformed::MessageType { value: 9 }),
        (with_options(&[53, 2, 1, 1]), Malformed::OptionLength { code: 53, len: 2 }),
        (with_options(&[53, 1, 1, 53, 1, 1]), Malformed::OptionLength { code: 53, len: 2 }),
        (with_options(&[53, 1, 1, 50, 3, 1, 1, 1]), Malformed::OptionLength { code: 50, len: 3 }),
        (with_options(&[53, 1, 1, 93, 1, 0]), Malformed::OptionLength { code: 93, len: 1 }),
        (with_options(&[53, 1, 1, 97, 1, 0]), Malformed::OptionLength { code: 97, len: 1 }),
        (with_options(&[53, 1, 1, 61, 0]), Malformed::OptionLength { code: 61, len: 0 }),
    ] {
        assert_eq!(Packet::parse(&bytes), Err(expected), "{expected}");
    }
}

/// A well-formed packet with whatever options and addresses.
fn any_packet() -> impl Strategy<Value = Packet> {
    let value = prop::collection::vec(any::<u8>(), 0..40);
    let known = prop_oneof![
        (1..=8_u8).prop_map(|message_type| (code::MESSAGE_TYPE, vec![message_type])),
        Just((code::CLASS, b"PXEClient:Arch:00007".to_vec())),
        Just((code::CLASS, b"HTTPClient".to_vec())),
        Just((code::USER_CLASS, b"iPXE".to_vec())),
        (0..20_u8).prop_map(|architecture| (code::ARCHITECTURE, vec![0, architecture])),
        (95..110_u8).prop_map(|last| (code::REQUESTED_ADDRESS, vec![10, 77, 0, last])),
        (1..4_u8).prop_map(|last| (code::SERVER_IDENTIFIER, vec![10, 77, 0, last])),
        prop::collection::vec(any::<u8>(), 2..255).prop_map(|id| (code::CLIENT_IDENTIFIER, id)),
        prop::collection::vec(any::<u8>(), 1..255).prop_map(|relay| (code::RELAY, relay)),
        prop::collection::vec(any::<u8>(), 17).prop_map(|uuid| (code::MACHINE_UUID, uuid)),
        any::<[u8; 2]>().prop_map(|size| (code::GREATEST_SIZE, size.to_vec())),
        (1..255_u8, value),
    ];
    let options = prop::collection::vec(known, 0..12);
    let last_octets = (0..3_u8, any::<u8>(), 0..4_u8, any::<[u8; 16]>());
    (1..=8_u8, options, last_octets).prop_map(
        |(message_type, options, (relay, own, client, noise))| {
            let mut packet = request(client, MessageType::try_from(message_type).unwrap());
            for (code, value) in options {
                packet.options.push(code, value);
            }
            packet.giaddr = if relay == 1 { address(1) } else { Ipv4Addr::UNSPECIFIED };
            packet.ciaddr = if own > 128 { address(own) } else { Ipv4Addr::UNSPECIFIED };
            packet.xid = u32::from_be_bytes([noise[0], noise[1], noise[2], noise[3]]);
            packet.flags = u16::from_be_bytes([noise[4], noise[5]]);
            packet
        },
    )
}

fn check_reply(
    request: &Packet,
    outcome: &Result<Outcome, IgnoreReason>,
) -> Result<(), TestCaseError> {
    let Ok(Outcome { reply: Some(reply), .. }) = outcome else { return Ok(()) };
    let bytes = reply.packet.to_bytes(request.greatest_reply());
    let read = Packet::parse(&bytes);
    prop_assert!(read.is_ok(), "{read:?}");
    prop_assert!((300..=1472).contains(&bytes.len()));
    prop_assert_eq!(reply.packet.op, Op::Reply);
    prop_assert_eq!(reply.packet.xid, request.xid);
    prop_assert_eq!(
        reply.packet.options.iter().next().map(|(code, _)| code),
        Some(code::MESSAGE_TYPE)
    );
    prop_assert!(!reply.to.ip().is_unspecified() && reply.to.port() != 0);
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1600)) {
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert_eq!(Packet::parse(&packet.to_bytes(1472)), Ok(packet));
        }
    }

    #[test]
    fn any_options_are_parsed_or_refused(options in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = with_options(&[&[53, 1, 1][..], &options].concat());
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert_eq!(packet.message_type(), Some(MessageType::Discover));
            let outcome = respond(&packet, Arrival::Dhcp, &full(600), &mut pool(3), UnixSeconds(5));
            check_reply(&packet, &outcome)?;
        }
    }

    /// In every mode and on both ports, replies can be read, fit, and go somewhere; and what was ACKed to one client and
    /// has not run out is never ACKed to another.
    #[test]
    fn whatever_is_asked_the_answers_hold(
        requests in prop::collection::vec((any_packet(), 0..200_u64, 0..4_u8), 1..60),
    ) {
        let configs = [full(600), config(Mode::Proxy), config(Mode::Off)];
        let mut leases = pool(6);
        let mut now = UnixSeconds(1_000_000);
        let mut held: HashMap<Ipv4Addr, (LeaseKey, UnixSeconds)> = HashMap::new();
        for (request, seconds, which) in requests {
            now = now.plus(seconds);
            let Ok(request) = Packet::parse(&request.to_bytes(1472)) else { continue };
            let from = SocketAddrV4::new(address(130), 68);
            for config in &configs[1..] {
                check_reply(&request, &respond(&request, Arrival::Dhcp, config, &mut leases, now))?;
            }
            let arrival = if which == 0 { Arrival::BootServer { from } } else { Arrival::Dhcp };
            let outcome = respond(&request, arrival, &configs[0], &mut leases, now);
            check_reply(&request, &outcome)?;
            let key = LeaseKey::of(request.mac, request.options.get(code::CLIENT_IDENTIFIER));
            let Ok(Outcome { reply, leases_changed, .. }) = outcome else { continue };
            match reply {
                None if leases_changed => held.retain(|_, (holder, _)| *holder != key),
                Some(reply)
                    if reply.packet.message_type() == Some(MessageType::Ack)
                        && !reply.packet.yiaddr.is_unspecified() =>
                {
                    held.retain(|_, (holder, _)| *holder != key);
                    if let Some((_, until)) = held.insert(reply.packet.yiaddr, (key, now.plus(600))) {
                        prop_assert!(until <= now, "{} was leased twice", reply.packet.yiaddr);
                    }
                }
                _ => {}
            }
        }
    }
}
