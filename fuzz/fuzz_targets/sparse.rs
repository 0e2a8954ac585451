//! A sparse stream from outside, in pieces: never panics, data never leaves the image.
#![no_main]

use cairn_core::sparse::{Decoder, Event, RECORD_MAX_BYTES};
use cairn_core::units::ByteCount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, u16)| {
    let (stream, piece) = input;
    let mut decoder = Decoder::new(ByteCount(1 << 40));
    let (mut size, mut end) = (0, 0);
    for mut piece in stream.chunks(usize::from(piece).max(1)) {
        loop {
            let Ok(event) = decoder.next(&mut piece) else { return };
            let Some(event) = event else { break };
            match event {
                Event::Start { total } => size = total.0,
                Event::Data { offset, bytes } => {
                    assert!(offset >= end && bytes.len() <= RECORD_MAX_BYTES);
                    end = offset + bytes.len() as u64;
                    assert!(end <= size);
                }
                Event::End => {}
            }
        }
    }
});
