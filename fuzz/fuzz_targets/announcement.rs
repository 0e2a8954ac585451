//! What another target announces: never panics, never more than there is, and the same whatever the pieces.
#![no_main]

use cairn_core::announcement::{BYTES, Listener};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<Vec<u8>>)| {
    let (segments, pieces) = input;
    let mut listener = Listener::new(segments.into());
    let mut heard = Vec::new();
    for piece in &pieces {
        match listener.hear(piece) {
            Ok(words) => heard.extend(words),
            Err(_) => break,
        }
    }
    assert!(heard.len() <= usize::from(segments) + 1);
    let bytes: Vec<u8> = heard.iter().flat_map(|word| word.to_bytes()).collect();
    assert_eq!(bytes, pieces.concat()[..heard.len() * BYTES]);
});
