//! ProxyDHCP: offers that carry what to boot, never an address (Intel PXE 2.1, section 2.2.3).
//!
//! What each firmware needs was seen on the wire:
//! - *iPXE* boots from the offer alone if `siaddr` is ours and `file` a URL. With `siaddr` 0 it asks port 4011 four times,
//!   ignores the answers and says "Nothing to boot".
//! - *UEFI PXE* gets an offer without a file and then asks port 4011 (`boot_server`).
//! - *BIOS PXE* ROMs load the file of the offer at once when option 43 says so.
//! - *UEFI HTTP Boot* takes the URL from option 67 if its class is echoed.

use super::client::{Client, Firmware, put_boot_file};
use super::packet::{MessageType, Packet, code};
use super::{Config, IgnoreReason, Outcome, Reply, destination, echo_identity, reply_to};
use crate::dhcp::Architecture;

/// Option 43: PXE_DISCOVERY_CONTROL 8 ("boot the file in this offer, ask nobody"), a boot prompt of 0 seconds with a
/// text, and the end mark.
const BOOT_THIS_FILE: [u8; 10] = [6, 1, 8, 10, 4, 0, b'P', b'X', b'E', 255];

pub(super) fn offer(request: &Packet, config: &Config) -> Result<Outcome, IgnoreReason> {
    let client = Client::of(request);
    if client.firmware == Firmware::Other {
        return Err(IgnoreReason::NotABootClient);
    }
    match request.message_type() {
        Some(MessageType::Discover) => {}
        // The address is the other server's business.
        Some(MessageType::Request) => return Err(IgnoreReason::ForAnotherServer),
        _ => return Err(IgnoreReason::NothingToAnswer),
    }
    let file = client.boot_file(config)?;
    let mut reply = reply_to(request, MessageType::Offer, config);
    reply.options.push(code::CLASS, client.class_to_echo());
    if !(client.firmware == Firmware::Pxe && client.architecture == Some(Architecture::UefiX64)) {
        put_boot_file(&mut reply, file);
    }
    put_discovery_control(&client, &mut reply);
    echo_identity(request, &mut reply);
    // Never to ciaddr: a machine that discovers has no address to receive on.
    let to = destination(&Packet { ciaddr: std::net::Ipv4Addr::UNSPECIFIED, ..request.clone() });
    Ok(Outcome {
        mac: request.mac,
        reply: Some(Reply { packet: reply, to }),
        leases_changed: false,
    })
}

/// BIOS boot ROMs need to be told not to look for boot servers; UEFI treats the option as a menu, so it gets none.
pub(super) fn put_discovery_control(client: &Client, reply: &mut Packet) {
    if client.architecture == Some(Architecture::Bios) {
        reply.options.push(code::VENDOR, BOOT_THIS_FILE.to_vec());
    }
}
