//! The addresses of this machine, as the kernel lists them.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Context as _;

/// Every address of every interface, loopback included; link-local IPv6 addresses are left out, a URL cannot name them.
///
/// # Errors
/// When the kernel's tables cannot be read.
pub fn local_addresses() -> anyhow::Result<BTreeSet<IpAddr>> {
    let table = fs::read_to_string("/proc/net/fib_trie").context("read /proc/net/fib_trie")?;
    let mut addresses: BTreeSet<IpAddr> = ipv4_of(&table).map(IpAddr::V4).collect();
    match fs::read_to_string("/proc/net/if_inet6") {
        Ok(table) => addresses.extend(ipv6_of(&table).map(IpAddr::V6)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("read /proc/net/if_inet6"),
    }
    addresses.insert(Ipv4Addr::LOCALHOST.into());
    addresses.insert(Ipv6Addr::LOCALHOST.into());
    Ok(addresses)
}

/// Leaves of the table are `|-- ADDRESS`, each followed by what it is: `/32 host LOCAL` for an address of our own.
fn ipv4_of(table: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    table.lines().zip(table.lines().skip(1)).filter_map(|(leaf, kind)| {
        let address = leaf.trim().strip_prefix("|-- ")?;
        kind.trim().starts_with("/32 host LOCAL").then(|| address.parse().ok()).flatten()
    })
}

/// Each line starts with the address in 32 hex digits.
fn ipv6_of(table: &str) -> impl Iterator<Item = Ipv6Addr> + '_ {
    table.lines().filter_map(|line| {
        let mut bytes = [0; 16];
        hex::decode_to_slice(line.split_whitespace().next()?, &mut bytes).ok()?;
        let address = Ipv6Addr::from(bytes);
        (!address.is_unicast_link_local()).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "Local:\n  +-- 10.77.0.0/24 2 0 2\n     |-- 10.77.0.0\n        /24 link UNICAST\n     |-- 10.77.0.2\n        /32 host LOCAL\n     |-- 10.77.0.255\n        /32 link BROADCAST\n";
        assert_eq!(ipv4_of(table).collect::<Vec<_>>(), [Ipv4Addr::new(10, 77, 0, 2)]);
        let table = "fe80000000000000505400fffe000001 02 40 20 80     eth0\nfd000000000000000000000000000001 02 40 00 80     eth0\n";
        assert_eq!(ipv6_of(table).collect::<Vec<_>>(), ["fd00::1".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn this_machine_has_its_loopback() {
        assert!(local_addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
