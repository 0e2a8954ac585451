//! A manifest's body from outside: the public part never panics, and a stranger's secret part never opens.
#![no_main]

use cairn_core::{manifest::Public, seal::SealKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(public) = Public::decode(body) {
        assert!(public.segments().all(|entry| entry.bytes > 0));
        assert!(public.open_secret(&SealKey([0; 32])).is_err());
    }
});
