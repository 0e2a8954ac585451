//! A volume's root, map pages and table pages from outside: never panics, and pages are written back byte for byte.
#![no_main]

use cairn_core::volume::{
    checkpoint::{Root, decode_page, encode_page},
    table::SegmentTable,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    Root::decode(bytes).ok();
    let mut page = bytes.to_vec();
    page.resize(bytes.len().next_multiple_of(4096), 0);
    if let Ok(runs) = decode_page(&page, 0) {
        let written = encode_page(0, &runs);
        assert_eq!(written, page[..written.len()]);
    }
    let mut table = SegmentTable::default();
    if table.decode_page(&page).is_ok() {
        let written = table.encode_page(0).expect("a page that was read");
        assert_eq!(written, page[..written.len()]);
    }
});
