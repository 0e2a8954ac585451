//! A piece of a journal's tail from a client: never panics, and a head that is accepted says how long its piece is.
#![no_main]

use cairn_core::{
    seal::SealKey,
    volume::{
        journal::crc32c,
        tail::{HEAD_BYTES, Head, MAX_PIECE_BYTES, Reached},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut piece = bytes.to_vec();
    piece.resize(piece.len().max(HEAD_BYTES), 0);
    // The checksum is no secret: whoever writes foreign bytes can write it, too.
    let crc = crc32c(&piece[..HEAD_BYTES - 4]);
    piece[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    if let Ok(head) = Head::decode(&piece) {
        assert!(head.piece_bytes() <= MAX_PIECE_BYTES && head.end() - head.needed <= head.capacity);
        assert!(head.open(&SealKey([1; 32]), &mut piece).is_err());
        if let Ok(reached) = Reached::with(None, &head) {
            assert_eq!(reached.end, head.end());
        }
    }
});
