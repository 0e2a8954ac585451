//! What an NBD server answers, and when it breaks off: never panics, and each request is answered once at most.
#![no_main]

use std::collections::BTreeSet;

use cairn_core::nbd::{
    client::{REPLY_HEAD_BYTES, ReplyHead, SIMPLE_REPLY_BYTES, SimpleReply},
    redo::Redo,
    request::{REQUEST_BYTES, Request},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((head, data)) = bytes.split_first_chunk::<REPLY_HEAD_BYTES>()
        && let Ok(head) = ReplyHead::parse(head)
    {
        let _said = head.read(data);
    }
    if let Some(reply) = bytes.first_chunk::<SIMPLE_REPLY_BYTES>() {
        let _reply = SimpleReply::parse(reply);
    }
    let mut redo = Redo::default();
    let (mut asked, mut answered) = (0_u64, BTreeSet::new());
    for step in bytes.chunks(4) {
        match *step {
            [0..=99, command, number, _] => {
                let mut head = Request::with_cookie(&Request::flush(), asked);
                head[7] = command;
                head[27] = number;
                let Ok(request) = Request::parse(&head) else { return };
                assert!(redo.send(&head, request, &[]).len() >= REQUEST_BYTES);
                asked += 1;
            }
            [100..=199, error, number, _] => {
                let number = u64::from(number);
                let known = redo.read_length(number).is_ok();
                let answer = redo.answer(number, error.into());
                assert_eq!(answer.is_ok(), known);
                if let Ok(Some(cookie)) = answer {
                    assert!(cookie < asked && answered.insert(cookie), "answered twice");
                }
            }
            _ => {
                let _flush = redo.flush_due();
                assert!(redo.kept().len() + redo.open().len() <= asked as usize + 1);
            }
        }
    }
});
