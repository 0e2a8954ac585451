//! A whole DHCP server for a net that has none (RFC 2131 section 4.3): it serves every client, and machines that boot get
//! their boot file in the same offer, so that no dialogue on port 4011 is needed.
//!
//! It is authoritative: what it cannot confirm it denies, so that a machine with an address of another net starts over
//! at once.

use std::net::Ipv4Addr;

use super::client::{Client, Firmware, put_boot_file};
use super::leases::{LeaseKey, Leases, NotAvailable, UnixSeconds};
use super::packet::{MessageType, Packet, code};
use super::{Config, IgnoreReason, Network, Outcome, Reply, destination, echo_identity, reply_to};

/// Option 175: iPXE's `no-pxedhcp`, set. Without it iPXE waits seconds for a ProxyDHCP that is not there.
const NO_PROXY_DHCP: [u8; 3] = [0xb0, 1, 1];

pub(super) fn answer(
    request: &Packet,
    config: &Config,
    network: &Network,
    leases: &mut Leases,
    now: UnixSeconds,
) -> Result<Outcome, IgnoreReason> {
    let key = LeaseKey::of(request.mac, request.options.get(code::CLIENT_IDENTIFIER));
    let server = request.options.address(code::SERVER_IDENTIFIER);
    let served = Served { request, config, network };
    match request.message_type() {
        Some(MessageType::Discover) => {
            let wish = request.options.address(code::REQUESTED_ADDRESS);
            let address = leases.offer(&key, wish, now).ok_or(IgnoreReason::PoolExhausted)?;
            Ok(served.outcome(served.grant(MessageType::Offer, address), false))
        }
        Some(MessageType::Request) if server.is_some_and(|server| server != config.server) => {
            // It took another server's offer; ours is free again.
            leases.release(&key, None, now);
            Err(IgnoreReason::ForAnotherServer)
        }
        Some(MessageType::Request) => served.confirm(&key, leases, now),
        Some(MessageType::Decline) => {
            let address = request.options.address(code::REQUESTED_ADDRESS);
            let changed = address.is_some_and(|address| leases.decline(&key, address, now));
            Ok(Outcome { mac: request.mac, reply: None, leases_changed: changed })
        }
        Some(MessageType::Release) => {
            let changed = leases.release(&key, Some(request.ciaddr), now);
            Ok(Outcome { mac: request.mac, reply: None, leases_changed: changed })
        }
        Some(MessageType::Inform) if !request.ciaddr.is_unspecified() => {
            Ok(served.outcome(served.information(), false))
        }
        _ => Err(IgnoreReason::NothingToAnswer),
    }
}

struct Served<'a> {
    request: &'a Packet,
    config: &'a Config,
    network: &'a Network,
}

impl Served<'_> {
    /// A REQUEST that selects our offer, renews, rebinds, or comes after a restart: they differ in where the address
    /// stands, and all ask whether it is still right.
    fn confirm(
        &self,
        key: &LeaseKey,
        leases: &mut Leases,
        now: UnixSeconds,
    ) -> Result<Outcome, IgnoreReason> {
        let wanted = self.request.options.address(code::REQUESTED_ADDRESS);
        let wanted = wanted
            .or_else(|| Some(self.request.ciaddr).filter(|address| !address.is_unspecified()));
        let Some(address) = wanted else { return Err(IgnoreReason::NothingToAnswer) };
        match leases.bind(key, address, now, self.network.lease_seconds) {
            Ok(()) => Ok(self.outcome(self.grant(MessageType::Ack, address), true)),
            Err(NotAvailable) => Ok(self.deny()),
        }
    }

    fn grant(&self, message_type: MessageType, address: Ipv4Addr) -> Packet {
        let mut reply = reply_to(self.request, message_type, self.config);
        reply.yiaddr = address;
        let lease = self.network.lease_seconds;
        reply.options.push(code::LEASE_SECONDS, lease.to_be_bytes().to_vec());
        // RFC 2131 section 4.4.5: half, and seven eighths.
        reply.options.push(code::RENEWAL_SECONDS, (lease / 2).to_be_bytes().to_vec());
        reply.options.push(
            code::REBINDING_SECONDS,
            (lease / 8 * 7 + lease % 8 * 7 / 8).to_be_bytes().to_vec(),
        );
        if message_type == MessageType::Ack {
            reply.ciaddr = self.request.ciaddr;
        }
        self.put_network(&mut reply);
        self.put_boot(&mut reply);
        self.put_identity(&mut reply);
        reply
    }

    /// To a client that has an address by other means: everything but an address and a lease.
    fn information(&self) -> Packet {
        let mut reply = reply_to(self.request, MessageType::Ack, self.config);
        reply.ciaddr = self.request.ciaddr;
        self.put_network(&mut reply);
        self.put_boot(&mut reply);
        self.put_identity(&mut reply);
        reply
    }

    /// A NAK names the server and nothing else, and is broadcast: the address it denies cannot be used to reach anyone.
    fn deny(&self) -> Outcome {
        let mut reply = reply_to(self.request, MessageType::Nak, self.config);
        reply.siaddr = Ipv4Addr::UNSPECIFIED;
        self.put_identity(&mut reply);
        let to = destination(&Packet { ciaddr: Ipv4Addr::UNSPECIFIED, ..self.request.clone() });
        if !self.request.giaddr.is_unspecified() {
            // So that the relay broadcasts it as well (RFC 2131 section 4.3.2).
            reply.flags |= 0x8000;
        }
        Outcome {
            mac: self.request.mac,
            reply: Some(Reply { packet: reply, to }),
            leases_changed: false,
        }
    }

    fn outcome(&self, packet: Packet, leases_changed: bool) -> Outcome {
        let to = destination(self.request);
        Outcome { mac: self.request.mac, reply: Some(Reply { packet, to }), leases_changed }
    }

    fn put_network(&self, reply: &mut Packet) {
        let Network { mask, router, dns, .. } = self.network;
        let broadcast = self.network.broadcast(self.config.server);
        reply.options.push(code::SUBNET_MASK, mask.octets().to_vec());
        reply.options.push(code::BROADCAST, broadcast.octets().to_vec());
        if let Some(router) = router {
            reply.options.push(code::ROUTER, router.octets().to_vec());
        }
        if !dns.is_empty() {
            reply.options.push(code::DNS, dns.iter().flat_map(|server| server.octets()).collect());
        }
    }

    /// A machine whose architecture we have nothing for still gets its address.
    fn put_boot(&self, reply: &mut Packet) {
        let client = Client::of(self.request);
        let Ok(file) = client.boot_file(self.config) else { return };
        put_boot_file(reply, file);
        match client.firmware {
            Firmware::Http => reply.options.push(code::CLASS, client.class_to_echo()),
            Firmware::Ipxe => reply.options.push(code::IPXE, NO_PROXY_DHCP.to_vec()),
            // Not echoed: `PXEClient` in an offer would send the firmware to port 4011.
            Firmware::Pxe | Firmware::Other => {}
        }
    }

    fn put_identity(&self, reply: &mut Packet) {
        // RFC 6842: the client identifier comes back in every reply.
        if let Some(identifier) = self.request.options.get(code::CLIENT_IDENTIFIER) {
            reply.options.push(code::CLIENT_IDENTIFIER, identifier.to_vec());
        }
        echo_identity(self.request, reply);
    }
}
