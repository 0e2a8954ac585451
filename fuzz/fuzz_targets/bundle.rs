//! A bundle from outside: never panics, and what is accepted is written back byte for byte.
#![no_main]

use cairn_core::bundle::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(items) = decode(bytes) {
        assert_eq!(encode(&items), bytes);
    }
});
