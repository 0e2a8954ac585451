//! The boot server on UDP 4011: a machine that has its address already asks us what to boot.
//!
//! UEFI sends a unicast REQUEST from 4011 to 4011 with `ciaddr` set, and takes `siaddr` and `file` of the ACK; it needs
//! no option 43. The answer goes back to where the request came from.

use std::net::SocketAddrV4;

use super::client::{Client, put_boot_file};
use super::packet::{MessageType, Packet, code};
use super::proxy::put_discovery_control;
use super::{Config, IgnoreReason, Outcome, Reply, echo_identity, reply_to};

pub(super) fn answer(
    request: &Packet,
    from: SocketAddrV4,
    config: &Config,
) -> Result<Outcome, IgnoreReason> {
    if !matches!(request.message_type(), Some(MessageType::Request | MessageType::Inform)) {
        return Err(IgnoreReason::NothingToAnswer);
    }
    match request.options.address(code::SERVER_IDENTIFIER) {
        Some(server) if server != config.server => return Err(IgnoreReason::ForAnotherServer),
        _ => {}
    }
    // Nobody boots from port 0 or a group address; answering would only help who forged it.
    if from.port() == 0
        || from.ip().is_unspecified()
        || from.ip().is_broadcast()
        || from.ip().is_multicast()
    {
        return Err(IgnoreReason::NothingToAnswer);
    }
    let client = Client::of(request);
    let file = client.boot_file(config)?;
    let mut reply = reply_to(request, MessageType::Ack, config);
    reply.ciaddr = request.ciaddr;
    reply.sname = config.server.to_string().into_bytes();
    reply.options.push(code::CLASS, client.class_to_echo());
    put_boot_file(&mut reply, file);
    put_discovery_control(&client, &mut reply);
    echo_identity(request, &mut reply);
    Ok(Outcome {
        mac: request.mac,
        reply: Some(Reply { packet: reply, to: from }),
        leases_changed: false,
    })
}
