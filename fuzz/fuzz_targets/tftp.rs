//! TFTP from anybody: never a panic, what is read is written back equal, and a transfer stays inside its file and answers
//! at most a window per packet, whatever the client says.
//!
//! Input: packets, each after one byte of length; those that are requests start transfers, the others go to the last.
#![no_main]

use std::time::{Duration, Instant};

use cairn_pxe::tftp::{Packet, Transfer, Transmit};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let start = Instant::now();
    let mut transfer: Option<(Transfer, u64)> = None;
    let mut rest = input;
    while let Some((&len, after)) = rest.split_first() {
        let (bytes, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        let now = start + Duration::from_millis(rest.len() as u64 * 300);
        if let Ok(packet) = Packet::parse(bytes) {
            let written = packet.to_bytes();
            assert_eq!(Packet::parse(&written).as_ref(), Ok(&packet));
            if let Packet::Read(request) = packet {
                let size = request.name.len() as u64 * 997;
                transfer = Some((Transfer::new(&request, size, now), size));
            }
        }
        let Some((transfer, size)) = &mut transfer else { continue };
        transfer.handle_packet(bytes, now);
        transfer.handle_timeout(now);
        if let Some(Transmit::Blocks { count, offset, len, .. }) = transfer.poll_transmit() {
            assert!((1..=64).contains(&count) && offset + len as u64 <= *size);
            assert!(len <= usize::from(count) * transfer.block_bytes());
        }
        assert_eq!(transfer.poll_transmit(), None);
        assert_eq!(transfer.poll_timeout().is_none(), transfer.end().is_some());
    }
});
