//! A segment from outside: the frame table never panics, and every frame it names lies within the bytes.
#![no_main]

use cairn_core::{segment::FrameTable, units::FrameIndex};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = FrameTable::parse(bytes) {
        for index in (0..=u16::MAX).take(table.len()) {
            let place = table.place(FrameIndex(index)).expect("a frame of the table");
            assert!(bytes.get(place.offset..place.offset + place.sealed_bytes).is_some());
        }
    }
});
