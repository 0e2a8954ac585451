//! What the caller sets, checked before anything is bound.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::dhcp::{Config, Mode, Network, Pool, UEFI_LOADER};

/// Leases are scanned in order and written as one file, so the pool is bounded.
const GREATEST_POOL: u32 = 16_384;
const LEAST_LEASE_SECONDS: u32 = 60;
const GREATEST_DNS: usize = 8;

#[derive(Debug, Clone)]
pub struct PxeConfig {
    /// The boot interface. Without one there is HTTP only, no DHCP and no TFTP.
    pub interface: Option<String>,
    /// Our address on that interface, which machines are sent to.
    pub server_addr: Ipv4Addr,
    /// Where the boot files are served by plain HTTP.
    pub http_addr: SocketAddr,
    pub dhcp: DhcpMode,
    /// The folder that has `undionly.kpxe`, `snponly.efi` and `ipxe.efi`; Debian's is `/usr/lib/ipxe`.
    pub ipxe_dir: PathBuf,
    pub files: PayloadFiles,
    /// Where leases are kept; exists already.
    pub state_dir: PathBuf,
}

/// Kernel and initramfs, served as `/boot/vmlinuz` and `/boot/initrd`. They may be made after the server started.
#[derive(Debug, Clone)]
pub struct PayloadFiles {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

#[derive(Debug, Clone)]
pub enum DhcpMode {
    /// Beside an existing DHCP server: says what to boot, gives no addresses.
    Proxy,
    /// The net's only DHCP server.
    Full(FullDhcp),
    Off,
}

#[derive(Debug, Clone)]
pub struct FullDhcp {
    /// The first and the last address to give.
    pub pool_start: Ipv4Addr,
    pub pool_end: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub lease_seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error("DHCP needs a boot interface: name one, or turn DHCP off")]
    NoInterface,
    #[error("{0} cannot be the server's address")]
    ServerAddress(Ipv4Addr),
    #[error("the HTTP port must be set: machines are told it")]
    HttpPort,
    #[error(
        "the HTTP server listens on {listen}, where machines that are sent to {server} do not reach it"
    )]
    HttpAddress { listen: SocketAddr, server: Ipv4Addr },
    #[error("{0} is not a network mask")]
    Mask(Ipv4Addr),
    #[error("the pool {start} to {end} is not inside the network of {server} with mask {mask}")]
    PoolOutside { start: Ipv4Addr, end: Ipv4Addr, server: Ipv4Addr, mask: Ipv4Addr },
    #[error("the pool {start} to {end} ends before it starts")]
    PoolBackwards { start: Ipv4Addr, end: Ipv4Addr },
    #[error("the pool has {addresses} addresses; {GREATEST_POOL} are the most")]
    PoolTooLarge { addresses: u32 },
    #[error("the pool has no address besides the server's and the router's")]
    PoolEmpty,
    #[error("a lease of {seconds} s is too short; {LEAST_LEASE_SECONDS} s is the least")]
    Lease { seconds: u32 },
    #[error("{count} name servers are too many; {GREATEST_DNS} are the most")]
    TooManyDns { count: usize },
}

impl PxeConfig {
    /// What the DHCP responder works with.
    pub(crate) fn checked(&self) -> Result<(Config, Pool), InvalidConfig> {
        let server = self.server_addr;
        if server.is_unspecified() || server.is_broadcast() || server.is_multicast() {
            return Err(InvalidConfig::ServerAddress(server));
        }
        if self.interface.is_none() && !matches!(self.dhcp, DhcpMode::Off) {
            return Err(InvalidConfig::NoInterface);
        }
        if self.interface.is_some() {
            self.check_http_is_reachable()?;
        }
        let (mode, pool) = match &self.dhcp {
            DhcpMode::Proxy => (Mode::Proxy, Pool::empty()),
            DhcpMode::Off => (Mode::Off, Pool::empty()),
            DhcpMode::Full(full) => {
                let (network, pool) = full.checked(server)?;
                (Mode::Full(network), pool)
            }
        };
        let base = self.base_url(self.http_addr.port());
        let config = Config {
            server,
            script_url: format!("{base}/{}", crate::ipxe::START_SCRIPT),
            http_loader_url: format!("{base}/{UEFI_LOADER}"),
            mode,
        };
        Ok((config, pool))
    }

    /// Everything is served below this URL; `port` is the one that was bound.
    pub(crate) fn base_url(&self, port: u16) -> String {
        format!("http://{}:{port}/boot", self.server_addr)
    }

    fn check_http_is_reachable(&self) -> Result<(), InvalidConfig> {
        if self.http_addr.port() == 0 {
            return Err(InvalidConfig::HttpPort);
        }
        if !self.http_addr.ip().is_unspecified() && self.http_addr.ip() != self.server_addr {
            return Err(InvalidConfig::HttpAddress {
                listen: self.http_addr,
                server: self.server_addr,
            });
        }
        Ok(())
    }
}

impl FullDhcp {
    fn checked(&self, server: Ipv4Addr) -> Result<(Network, Pool), InvalidConfig> {
        let (start, end, mask) = (self.pool_start, self.pool_end, self.mask);
        let mask_bits = u32::from(mask);
        if mask_bits.leading_ones() + mask_bits.trailing_zeros() != 32
            || !(1..=30).contains(&mask_bits.leading_ones())
        {
            return Err(InvalidConfig::Mask(mask));
        }
        if start > end {
            return Err(InvalidConfig::PoolBackwards { start, end });
        }
        // The first and the last address of a network are no host's.
        let first_host = u32::from(server & mask) + 1;
        let last_host = u32::from(server | !mask) - 1;
        if u32::from(start) < first_host || u32::from(end) > last_host {
            return Err(InvalidConfig::PoolOutside { start, end, server, mask });
        }
        let addresses = u32::from(end) - u32::from(start) + 1;
        if addresses > GREATEST_POOL {
            return Err(InvalidConfig::PoolTooLarge { addresses });
        }
        let excluded: Vec<Ipv4Addr> = [Some(server), self.router].into_iter().flatten().collect();
        let pool = Pool { start, end, excluded };
        if !(u32::from(start)..=u32::from(end)).any(|address| pool.contains(address.into())) {
            return Err(InvalidConfig::PoolEmpty);
        }
        if self.lease_seconds < LEAST_LEASE_SECONDS {
            return Err(InvalidConfig::Lease { seconds: self.lease_seconds });
        }
        if self.dns.len() > GREATEST_DNS {
            return Err(InvalidConfig::TooManyDns { count: self.dns.len() });
        }
        let network = Network {
            mask,
            router: self.router,
            dns: self.dns.clone(),
            lease_seconds: self.lease_seconds,
        };
        Ok((network, pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

    fn full() -> FullDhcp {
        FullDhcp {
            pool_start: Ipv4Addr::new(10, 77, 0, 100),
            pool_end: Ipv4Addr::new(10, 77, 0, 120),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            router: Some(Ipv4Addr::new(10, 77, 0, 1)),
            dns: Vec::new(),
            lease_seconds: 600,
        }
    }

    #[test]
    fn a_pool_that_cannot_be_is_refused() {
        let at = |last| Ipv4Addr::new(10, 77, 0, last);
        assert!(full().checked(SERVER).is_ok());
        let refused = |full: FullDhcp| full.checked(SERVER).unwrap_err();
        assert_eq!(
            refused(FullDhcp { mask: Ipv4Addr::new(255, 0, 255, 0), ..full() }),
            InvalidConfig::Mask(Ipv4Addr::new(255, 0, 255, 0))
        );
        assert!(matches!(
            refused(FullDhcp { pool_end: at(255), ..full() }),
            InvalidConfig::PoolOutside { .. }
        ));
        assert!(matches!(
            refused(FullDhcp { pool_start: at(0), ..full() }),
            InvalidConfig::PoolOutside { .. }
        ));
        assert!(matches!(
            refused(FullDhcp { pool_end: at(9), ..full() }),
            InvalidConfig::PoolBackwards { .. }
        ));
        assert_eq!(
            refused(FullDhcp { pool_start: at(1), pool_end: at(2), ..full() }),
            InvalidConfig::PoolEmpty
        );
        assert_eq!(
            refused(FullDhcp { lease_seconds: 5, ..full() }),
            InvalidConfig::Lease { seconds: 5 }
        );
        let wide = FullDhcp {
            mask: Ipv4Addr::new(255, 0, 0, 0),
            pool_end: Ipv4Addr::new(10, 200, 0, 0),
            ..full()
        };
        assert!(matches!(refused(wide), InvalidConfig::PoolTooLarge { .. }));
    }

    #[test]
    fn a_server_that_machines_cannot_reach_is_refused() {
        let config = PxeConfig {
            interface: Some("eth0".to_owned()),
            server_addr: SERVER,
            http_addr: "0.0.0.0:8441".parse().unwrap(),
            dhcp: DhcpMode::Proxy,
            ipxe_dir: "/usr/lib/ipxe".into(),
            files: PayloadFiles { kernel: "k".into(), initrd: "i".into() },
            state_dir: "/".into(),
        };
        let (checked, _) = config.checked().unwrap();
        assert_eq!(checked.script_url, "http://10.77.0.2:8441/boot/start.ipxe");
        let refused = |change: &dyn Fn(&mut PxeConfig)| {
            let mut config = config.clone();
            change(&mut config);
            config.checked().unwrap_err()
        };
        assert_eq!(refused(&|c| c.interface = None), InvalidConfig::NoInterface);
        assert_eq!(refused(&|c| c.http_addr.set_port(0)), InvalidConfig::HttpPort);
        assert!(matches!(
            refused(&|c| c.http_addr = "127.0.0.1:8441".parse().unwrap()),
            InvalidConfig::HttpAddress { .. }
        ));
        assert!(matches!(
            refused(&|c| c.server_addr = Ipv4Addr::UNSPECIFIED),
            InvalidConfig::ServerAddress(_)
        ));
    }
}
