//! Wake-on-LAN: the magic packet.
//!
//! | bytes | what | why there |
//! |---|---|---|
//! | 0–5 | FF six times | what a sleeping adapter looks for |
//! | 6–101 | its address, sixteen times | long enough that no other traffic looks like it |
//!
//! No version: adapters know no other form. Sent as a UDP datagram to port 9 (discard), which nobody answers.
//! Source: AMD, Magic Packet Technology (publication 20213), 1995.

use crate::MacAddr;

/// Bytes of a magic packet.
pub const MAGIC_PACKET_BYTES: usize = 102;

/// The packet that wakes the machine with this address.
#[must_use]
pub fn magic_packet(mac: MacAddr) -> [u8; MAGIC_PACKET_BYTES] {
    let mut packet = [0xff; MAGIC_PACKET_BYTES];
    for place in packet.chunks_exact_mut(6).skip(1) {
        place.copy_from_slice(&mac.0);
    }
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_six_times_ff_and_sixteen_times_the_address(mac in any::<[u8; 6]>()) {
            let packet = magic_packet(MacAddr(mac));
            let (sync, rest) = packet.split_at(6);
            prop_assert_eq!(sync, [0xff; 6]);
            prop_assert_eq!(rest, mac.repeat(16));
        }
    }
}
