//! A stripe map's body from outside: never panics, and what is accepted is written back byte for byte.
#![no_main]

use cairn_core::stripe_map::StripeMap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(map) = StripeMap::decode(body) {
        assert_eq!(map.encode(), body);
        let places = map.places();
        assert_eq!(places.len(), map.stripes.iter().map(|stripe| stripe.shards().count()).sum::<usize>());
    }
});
