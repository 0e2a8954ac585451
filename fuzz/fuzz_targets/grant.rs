//! A grant's body from outside: never panics, and what is accepted is written back byte for byte.
#![no_main]

use cairn_core::{grant::Grant, sign::{SIGNATURE_BYTES, SigningKey}};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(grant) = Grant::decode(body) {
        let signed = grant.seal(&SigningKey::from_seed(&[1; 32]).expect("a seed"));
        assert_eq!(&signed[..signed.len() - SIGNATURE_BYTES], body);
    }
});
