//! What an NBD client sends: never panics, what passes is within the export, and replies stay small.
#![no_main]

use cairn_core::nbd::{
    handshake::{Catalog, ExportInfo, Handshake, Next, OPTION_HEAD_BYTES, OptionHead, TlsOffer},
    request::{Command, REQUEST_BYTES, Request, Served},
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 20;

struct One;

impl Catalog for One {
    fn names(&self) -> Vec<String> {
        vec!["disk".into()]
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        (name == "disk").then(|| ExportInfo { name: name.into(), size: SIZE, read_only: false })
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, mut rest)) = bytes.split_first_chunk::<4>() else { return };
    let Ok(mut handshake) = Handshake::new(u32::from_be_bytes(*flags), TlsOffer::Offered) else { return };
    while let Some((head, after)) = rest.split_first_chunk::<OPTION_HEAD_BYTES>() {
        let Ok(option) = OptionHead::parse(head) else { return };
        let Some((data, after)) = after.split_at_checked(option.length as usize) else { return };
        rest = after;
        let Ok((reply, next)) = handshake.answer(option.option, Some(data), &One) else { return };
        assert!(reply.len() < 4096);
        match next {
            Next::Option | Next::StartTls => {}
            Next::End => return,
            Next::Transmit(_) => break,
        }
    }
    let served = Served { size: SIZE, read_only: false, block_status: true };
    while let Some((head, after)) = rest.split_first_chunk::<REQUEST_BYTES>() {
        rest = after;
        let Ok(request) = Request::parse(head) else { return };
        match request.check(served) {
            Ok(Command::Flush | Command::Disconnect) | Err(_) => {}
            Ok(_) => assert!(request.offset + u64::from(request.length) <= SIZE),
        }
    }
});
