//! A slot header from a disk: never panics, and what is accepted is within its limits and written back byte
//! for byte.
#![no_main]

use cairn_array::dsf::SlotHeader;
use cairn_core::units::SEGMENT_MAX_BYTES;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    assert_faithful(bytes);
    // With the right checksum, so that the fields behind it are reached.
    let mut sector = bytes.to_vec();
    sector.resize(508, 0);
    let checksum = crc_fast::crc32_iscsi(&sector);
    sector.extend_from_slice(&checksum.to_le_bytes());
    assert_faithful(&sector);
});

fn assert_faithful(bytes: &[u8]) {
    if let Ok(header) = SlotHeader::decode(bytes) {
        assert!((1..=SEGMENT_MAX_BYTES).contains(&(header.length as usize)));
        assert_eq!(header.encode()[..512], bytes[..512]);
    }
}
