//! A map page from outside: never panics, and what is accepted is written back byte for byte.
#![no_main]

use cairn_core::map::MapPage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(page) = MapPage::decode(bytes, 1000) {
        let written = page.encode();
        assert!(written.starts_with(bytes) || bytes.starts_with(&written));
        assert!(page.data().all(|(extent, hashes)| hashes.len() == usize::from(extent.blocks)));
    }
});
