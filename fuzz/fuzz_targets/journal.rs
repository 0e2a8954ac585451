//! A journal's blocks from a disk: never panics, and a record that is accepted is written back byte for byte.
#![no_main]

use cairn_core::{
    units::BLOCK_BYTES,
    volume::journal::{Record, Ring, crc32c},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut block = bytes.to_vec();
    block.resize(BLOCK_BYTES, 0);
    Ring::decode(&block).ok();
    // The checksum is no secret: whoever writes foreign bytes can write it, too.
    block[..4].copy_from_slice(b"CREC");
    let crc = crc32c(&block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
    if let Ok(record) = Record::decode(&block) {
        assert_eq!(record.encode(), block);
        assert!(record.payload() == 0 || !record.is_whole(&[]));
    }
});
