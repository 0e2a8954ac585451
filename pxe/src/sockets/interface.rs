//! What is asked of one interface, or told on its network, now and then.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UdpSocket;

use super::{DATAGRAM_BUFFER, udp_socket, unix_now};
use crate::dhcp;
use crate::identity::MacAddr;
use crate::wake::magic_packet;

/// The first address of an interface, for a server that was only told the interface's name.
///
/// # Errors
/// When there is no such interface, or it has no IPv4 address.
pub fn address_of_interface(name: &str) -> anyhow::Result<Ipv4Addr> {
    let ask = || -> io::Result<SocketAddr> {
        // Connecting a datagram socket sends nothing; it makes the kernel choose the address it would send from.
        let socket = udp_socket()?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(name.as_bytes()))?;
        socket.connect(&SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT).into())?;
        std::net::UdpSocket::from(socket).local_addr()
    };
    match ask().with_context(|| format!("find the address of interface {name}"))? {
        SocketAddr::V4(address) if !address.ip().is_unspecified() => Ok(*address.ip()),
        _ => anyhow::bail!(
            "interface {name} has no IPv4 address: give it one, or name another interface"
        ),
    }
}

/// The port that magic packets are sent to: discard.
const WAKE_PORT: u16 = 9;
/// A datagram may be lost, and nobody tells.
const WAKE_TIMES: usize = 3;

/// Wakes the machine with this address on the network of an interface.
///
/// # Errors
/// When there is no such interface, or it cannot send.
pub fn wake(interface: &str, mac: MacAddr) -> io::Result<()> {
    let socket = udp_socket()?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, WAKE_PORT).into();
    for _ in 0..WAKE_TIMES {
        socket.send_to(&magic_packet(mac), &everybody)?;
    }
    Ok(())
}

/// Asks a network who gives addresses and boot files, and listens for so long. Each server is named once.
///
/// # Errors
/// When there is no such interface, or this machine's own DHCP client has the port (`AddrInUse`).
pub async fn survey(interface: &str, patience: Duration) -> io::Result<Vec<dhcp::Offer>> {
    let socket = udp_socket()?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, dhcp::CLIENT_PORT).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    // An address of nobody's, another one each time, so that no lease of a machine is touched.
    let seed = unix_now().0.to_be_bytes();
    let mac = MacAddr([2, seed[3], seed[4], seed[5], seed[6], seed[7]]);
    let xid = u32::from_be_bytes([seed[4], seed[5], seed[6], seed[7]]);
    let question = dhcp::survey::discover(mac, xid).to_bytes(DATAGRAM_BUFFER);
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::SERVER_PORT);
    socket.send_to(&question, everybody).await?;
    let (mut offers, mut buffer) = (Vec::new(), [0; DATAGRAM_BUFFER]);
    let end = tokio::time::Instant::now() + patience;
    while let Ok(heard) = tokio::time::timeout_at(end, socket.recv_from(&mut buffer)).await {
        let (length, SocketAddr::V4(from)) = heard? else { continue };
        let bytes = buffer.get(..length).unwrap_or_default();
        let offer = dhcp::survey::offer(bytes, mac, xid, *from.ip());
        if let Some(offer) = offer.filter(|offer| !offers.contains(offer)) {
            offers.push(offer);
        }
    }
    Ok(offers)
}
