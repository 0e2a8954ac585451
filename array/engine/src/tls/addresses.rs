//! The addresses of this machine, as the kernel lists them.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use anyhow::Context as _;

/// Every address of every interface, loopback included; link-local IPv6 addresses are left out, a URL cannot name them.
///
/// # Errors
/// When the kernel does not list them.
pub fn local_addresses() -> anyhow::Result<BTreeSet<IpAddr>> {
    let cards = if_addrs::get_if_addrs().context("list the addresses of this machine")?;
    let mut addresses: BTreeSet<_> = cards.iter().map(if_addrs::Interface::ip).collect();
    addresses.retain(|address| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    });
    addresses.insert(Ipv4Addr::LOCALHOST.into());
    addresses.insert(Ipv6Addr::LOCALHOST.into());
    Ok(addresses)
}

/// An IPv4 address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub interface: String,
    pub address: Ipv4Addr,
}

/// The interfaces that have IPv4 addresses, without the loopback, by name.
///
/// # Errors
/// When the kernel does not list them.
pub fn interface_addresses() -> anyhow::Result<Vec<InterfaceAddress>> {
    let cards = if_addrs::get_if_addrs().context("list the addresses of this machine")?;
    let known = cards.into_iter().filter(|card| !card.is_loopback());
    let known = known.filter_map(|card| match card.ip() {
        IpAddr::V4(address) => Some(InterfaceAddress { interface: card.name, address }),
        IpAddr::V6(_) => None,
    });
    let mut known: Vec<_> = known.collect();
    known.sort_by(|one, other| one.interface.cmp(&other.interface));
    Ok(known)
}

/// The Ethernet address of the card by which `there` is reached, lower-case and colon-separated; none when it is reached
/// without one, over the loopback for example.
///
/// # Errors
/// When the kernel knows no way there.
pub fn card_towards(there: SocketAddr) -> io::Result<Option<String>> {
    let here = match there {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    // Sends nothing: the kernel chooses the way.
    here.connect(there)?;
    let here = here.local_addr()?.ip();
    let cards = if_addrs::get_if_addrs()?;
    let Some(card) = cards.iter().find(|card| card.ip() == here && !card.is_loopback()) else {
        return Ok(None);
    };
    let address = Path::new("/sys/class/net").join(&card.name).join("address");
    let address = fs::read_to_string(address)?.trim().to_ascii_lowercase();
    // A tunnel has none, or one of another kind.
    Ok((address.len() == 17 && address != "00:00:00:00:00:00").then_some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_its_loopback() {
        assert!(local_addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    #[test]
    fn the_loopback_is_no_card() {
        assert_eq!(card_towards((Ipv4Addr::LOCALHOST, 9).into()).unwrap(), None);
    }
}
