use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn request(name: &str) -> ReadRequest {
    ReadRequest {
        name: name.to_owned(),
        is_octet: true,
        block_bytes: None,
        timeout_seconds: None,
        wants_size: false,
        window_blocks: None,
    }
}

/// A small client by the RFCs, for the other end of a simulated net.
struct Client {
    received: Vec<u8>,
    block_bytes: usize,
    window: u16,
    in_window: u16,
    expected: u64,
    done: bool,
}

impl Client {
    /// What the client answers, if anything.
    fn handle(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        match Packet::parse(bytes).unwrap() {
            Packet::OptionAcknowledge { options } => {
                for (name, value) in options {
                    match name.as_str() {
                        "blksize" => self.block_bytes = value.parse().unwrap(),
                        "windowsize" => self.window = value.parse().unwrap(),
                        _ => {}
                    }
                }
                (self.expected == 1).then(|| Packet::Acknowledge { block: 0 }.to_bytes())
            }
            Packet::Data { block, payload } => {
                let [.., high, low] = self.expected.to_be_bytes();
                if block == u16::from_be_bytes([high, low]) && !self.done {
                    self.received.extend(payload);
                    self.expected += 1;
                    self.in_window += 1;
                    self.done = payload.len() < self.block_bytes;
                    if !self.done && self.in_window < self.window {
                        return None;
                    }
                } else if self.expected == 1 {
                    return None;
                }
                // In order to the end of a window, or out of order: say what came last.
                self.in_window = 0;
                let [.., high, low] = (self.expected - 1).to_be_bytes();
                Some(Packet::Acknowledge { block: u16::from_be_bytes([high, low]) }.to_bytes())
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

/// Runs a transfer over a net that delays, loses, doubles and reorders as `fate` says: of every packet, the delays in
/// milliseconds of its copies.
fn run(
    file: &[u8],
    request: &ReadRequest,
    mut fate: impl FnMut() -> Vec<u64>,
) -> (Option<End>, Client) {
    let start = Instant::now();
    let mut now = start;
    let mut transfer = Transfer::new(request, file.len() as u64, now);
    let mut client = Client {
        received: Vec::new(),
        block_bytes: 512,
        window: 1,
        in_window: 0,
        expected: 1,
        done: false,
    };
    let mut net: BinaryHeap<std::cmp::Reverse<(Instant, To)>> = BinaryHeap::new();
    for _ in 0..200_000 {
        while let Some(transmit) = transfer.poll_transmit() {
            let datagrams = match transmit {
                Transmit::Options(bytes) => vec![bytes],
                Transmit::Blocks { first_block, count, offset, len } => {
                    let data = &file[usize::try_from(offset).unwrap()..][..len];
                    (0..count)
                        .map(|at| {
                            let from = (usize::from(at) * transfer.block_bytes()).min(len);
                            let to = (from + transfer.block_bytes()).min(len);
                            Packet::Data {
                                block: first_block.wrapping_add(at),
                                payload: &data[from..to],
                            }
                            .to_bytes()
                        })
                        .collect()
                }
            };
            for datagram in datagrams {
                for delay in fate() {
                    let at = now + Duration::from_millis(delay);
                    net.push(std::cmp::Reverse((at, To::Client(datagram.clone()))));
                }
            }
        }
        let Some(deadline) = transfer.poll_timeout() else { break };
        let next_arrival = net.peek().map(|entry| entry.0.0);
        if let Some(at) = next_arrival.filter(|at| *at <= deadline) {
            now = at;
            match net.pop().unwrap().0.1 {
                To::Server(bytes) => transfer.handle_packet(&bytes, now),
                To::Client(bytes) => {
                    for (answer, delay) in client
                        .handle(&bytes)
                        .into_iter()
                        .flat_map(|a| fate().into_iter().map(move |delay| (a.clone(), delay)))
                    {
                        net.push(std::cmp::Reverse((
                            now + Duration::from_millis(delay),
                            To::Server(answer),
                        )));
                    }
                }
            }
        } else {
            now = deadline;
            transfer.handle_timeout(now);
        }
    }
    assert!(transfer.end().is_some(), "it must end in bounded time");
    (transfer.end(), client)
}

#[test]
fn a_file_of_whole_blocks_ends_with_an_empty_one_and_block_numbers_wrap() {
    for size in [0, 1, 511, 512, 513, 1024, 8 * 70_000] {
        let file: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let request = ReadRequest { block_bytes: (size > 10_000).then_some(8), ..request("f") };
        let (end, client) = run(&file, &request, || vec![1]);
        assert_eq!(end, Some(End::Complete), "{size}");
        assert!(client.done && client.received == file, "{size}");
    }
}

#[test]
fn a_silent_client_is_given_up() {
    let mut now = Instant::now();
    let start = now;
    let mut transfer = Transfer::new(&request("f"), 10, now);
    let mut sent = 0;
    while let Some(deadline) = transfer.poll_timeout() {
        sent += usize::from(transfer.poll_transmit().is_some());
        assert_eq!(transfer.poll_transmit(), None, "once per event");
        now = deadline;
        transfer.handle_timeout(now);
    }
    assert_eq!(transfer.end(), Some(End::Silent));
    assert_eq!(sent, 7);
    assert!(now - start < Duration::from_secs(60));
    assert_eq!(transfer.poll_transmit(), None);
}

#[test]
fn uefi_probes_the_size_and_asks_again() {
    let now = Instant::now();
    let probe = b"\0\x01ipxe.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
    let Ok(Packet::Read(probe)) = Packet::parse(probe) else { panic!("not read") };
    assert_eq!(
        probe,
        ReadRequest {
            wants_size: true,
            block_bytes: Some(1468),
            window_blocks: Some(4),
            ..request("ipxe.efi")
        }
    );
    let mut transfer = Transfer::new(&probe, 996_864, now);
    let Some(Transmit::Options(oack)) = transfer.poll_transmit() else { panic!("no OACK") };
    assert_eq!(oack, b"\0\x06blksize\x001468\0tsize\x00996864\0windowsize\x004\0");
    transfer.handle_packet(b"\0\x05\0\x08User aborted the transfer\0", now);
    assert_eq!(transfer.end(), Some(End::Probe));

    let again = ReadRequest { wants_size: false, ..probe };
    let mut transfer = Transfer::new(&again, 996_864, now);
    transfer.poll_transmit().unwrap();
    transfer.handle_packet(&[0, 4, 0, 0], now);
    let window = Transmit::Blocks { first_block: 1, count: 4, offset: 0, len: 4 * 1468 };
    assert_eq!(transfer.poll_transmit(), Some(window));
}

#[test]
fn a_duplicate_acknowledgement_sends_nothing_twice() {
    let now = Instant::now();
    let mut transfer = Transfer::new(&request("f"), 5000, now);
    transfer.poll_transmit().unwrap();
    transfer.handle_packet(&[0, 4, 0, 1], now);
    assert!(transfer.poll_transmit().is_some());
    for stale in [[0, 4, 0, 1], [0, 4, 0, 0], [0, 4, 0, 3], [0, 4, 0xff, 0xff]] {
        transfer.handle_packet(&stale, now);
        assert_eq!(transfer.poll_transmit(), None, "{stale:?}");
    }
}

#[test]
fn options_that_cannot_be_are_ignored_and_greedy_ones_are_capped() {
    let read = |bytes: &[u8]| match Packet::parse(bytes) {
        Ok(Packet::Read(request)) => request,
        other => panic!("{other:?}"),
    };
    let odd = read(b"\0\x01f\0OCTET\0blksize\x007\0timeout\x000\0windowsize\x000\0multicast\0\0");
    assert_eq!(odd, request("f"));
    let mut greedy = Transfer::new(
        &read(b"\0\x01f\0octet\0BLKSIZE\x0065464\0windowsize\x0065535\0timeout\x005\0"),
        1 << 30,
        Instant::now(),
    );
    let Some(Transmit::Options(oack)) = greedy.poll_transmit() else { panic!("no OACK") };
    assert_eq!(oack, b"\0\x06blksize\x001468\0timeout\x005\0windowsize\x0064\0");
    assert_eq!(read(b"\0\x01f\0octet\0\0\0\0"), request("f"), "padding is no option");
}

#[test]
fn an_error_text_is_bounded_and_printable() {
    let bytes = [&[0, 5, 0, 1][..], &[0x9c; 300], b"\n\0"].concat();
    let Ok(Packet::Error { code: 1, message }) = Packet::parse(&bytes) else { panic!("not read") };
    assert_eq!(message, "?".repeat(255));
    let again = Packet::Error { code: 1, message }.to_bytes();
    assert_eq!(Packet::parse(&again), Packet::parse(&bytes));
}

#[test]
fn malformed_requests_are_refused() {
    let many: Vec<u8> = [&b"\0\x01f\0octet\0"[..], &b"a\0b\0".repeat(17)].concat();
    for (bytes, reason) in [
        (&b""[..], Malformed::Length),
        (b"\0", Malformed::Length),
        (b"\0\x09", Malformed::Opcode { opcode: 9 }),
        (b"\0\x01", Malformed::Text),
        (b"\0\x01file", Malformed::Text),
        (b"\0\x01file\0octet", Malformed::Text),
        (b"\0\x01\0octet\0", Malformed::Text),
        (b"\0\x01fi\x07le\0octet\0", Malformed::Text),
        (b"\0\x01f\0octet\0blksize\0", Malformed::Text),
        (b"\0\x04\0", Malformed::Length),
        (&many, Malformed::TooManyOptions),
        (&[&b"\0\x01"[..], &[b'a'; 600], b"\0octet\0"].concat(), Malformed::Length),
    ] {
        assert_eq!(Packet::parse(bytes), Err(reason), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn every_file_arrives_over_a_bad_net(
        size in 0..20_000_usize,
        block_bytes in proptest::option::of(8..2000_u16),
        window_blocks in proptest::option::of(1..20_u16),
        seed in any::<u64>(),
    ) {
        let file: Vec<u8> = (0..size).map(|at| u8::try_from(at * 7 % 253).unwrap()).collect();
        let request = ReadRequest { block_bytes, window_blocks, ..request("f") };
        let mut random = seed | 1;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        // Some are lost, some come twice, everything is late by a different time.
        let (end, client) = run(&file, &request, || match next() % 30 {
            0 => vec![],
            1..=3 => vec![next() % 5, next() % 30],
            _ => vec![next() % 5],
        });
        prop_assert_eq!(&client.received, &file, "seed {}", seed);
        prop_assert!(client.done);
        // Its last ACK may be lost with the client gone; then the server only sees silence.
        prop_assert!(matches!(end, Some(End::Complete | End::Silent)));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(packet) = Packet::parse(&bytes) {
            let again = packet.to_bytes();
            prop_assert_eq!(Packet::parse(&again), Ok(packet));
        }
    }

    #[test]
    fn near_requests_are_parsed_or_refused(
        fields in prop::collection::vec("[ -~]{0,12}", 2..10),
        tail in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut bytes = vec![0, 1];
        for field in &fields {
            bytes.extend(field.as_bytes());
            bytes.push(0);
        }
        bytes.extend(tail);
        if let Ok(Packet::Read(request)) = Packet::parse(&bytes) {
            let again = Packet::Read(request.clone()).to_bytes();
            prop_assert_eq!(Packet::parse(&again), Ok(Packet::Read(request)));
        }
    }

    /// Whatever the client sends, a transfer answers at most a window per packet and stays inside the file.
    #[test]
    fn no_client_can_confuse_a_transfer(
        size in 0..100_000_u64,
        packets in prop::collection::vec(
            prop_oneof![
                (0..80_u16).prop_map(|block| Packet::Acknowledge { block }.to_bytes()),
                prop::collection::vec(any::<u8>(), 0..8),
            ],
            0..60,
        ),
        window_blocks in proptest::option::of(any::<u16>()),
    ) {
        let now = Instant::now();
        let mut transfer = Transfer::new(&ReadRequest { window_blocks, ..request("f") }, size, now);
        for packet in packets {
            if let Some(Transmit::Blocks { count, offset, len, .. }) = transfer.poll_transmit() {
                prop_assert!((1..=64).contains(&count));
                prop_assert!(offset + len as u64 <= size);
            }
            prop_assert_eq!(transfer.poll_transmit(), None);
            transfer.handle_packet(&packet, now);
        }
    }
}
