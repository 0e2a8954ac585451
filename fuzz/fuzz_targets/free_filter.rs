//! An image from outside streams through the filter of free blocks: never panics, keeps the image's head.
#![no_main]

use cairn_core::free::{FreeFilter, Use};
use cairn_core::units::{BLOCK_BYTES, BlockIndex, ByteCount};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, Vec<u8>)| {
    let (size, image) = input;
    let mut filter = FreeFilter::new(ByteCount(size));
    for (at, part) in (0..).zip(image.chunks(BLOCK_BYTES)) {
        let mut block = [0; BLOCK_BYTES];
        block[..part.len()].copy_from_slice(part);
        let verdict = filter.observe(BlockIndex(at), &block);
        assert!(at >= 16 || verdict == Use::Keep);
    }
});
