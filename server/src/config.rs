//! What `serve` is told, checked before anything is opened.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use cairn_array::store::DeviceAddress;
use clap::{Arg, ArgAction, Args, Command, ValueEnum};

use crate::{db::DatabaseAddress, register::ImageHost};

/// The database file in the data folder.
pub const DATABASE_FILE: &str = "cairn.db";

/// The configuration file that is read when none is named.
pub const CONFIG_FILE: &str = "/etc/cairn/server.toml";
/// Where the package `cairn-boot` has the agent's package.
const AGENT_PACKAGE: &str = "/usr/share/cairn/agent.deb";

/// The flags of `cairn-server serve`. Names and defaults are a contract with scripts outside. Each flag has a variable and a
/// key in the configuration file ([`cairn_array::settings`]).
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// Where database, secrets and, by default, the store are kept
    #[arg(long, env = "CAIRN_DATA_DIR", default_value = "./cairn-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// HTTPS: dashboard, API, agents
    #[arg(long, env = "CAIRN_LISTEN", default_value = "0.0.0.0:8440", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// HTTP: boot files only
    #[arg(
        long,
        env = "CAIRN_BOOT_LISTEN",
        default_value = "0.0.0.0:8441",
        value_name = "ADDR:PORT"
    )]
    pub boot_listen: SocketAddr,
    /// NBD: volumes, to clients on this machine, and by TLS to others
    #[arg(long, env = "CAIRN_NBD", default_value = "0.0.0.0:10809", value_name = "ADDR:PORT")]
    pub nbd: SocketAddr,
    /// Turns DHCP and TFTP on, on this interface
    #[arg(long, env = "CAIRN_BOOT_INTERFACE", value_name = "IF")]
    pub boot_interface: Option<String>,
    /// Beside an existing DHCP server, as the net's only one, or not at all
    #[arg(long, env = "CAIRN_DHCP", value_enum, default_value_t = DhcpChoice::Proxy)]
    pub dhcp: DhcpChoice,
    /// The addresses that full DHCP gives, first and last; full DHCP needs them
    #[arg(long, env = "CAIRN_DHCP_POOL", value_name = "A-B")]
    pub dhcp_pool: Option<Pool>,
    /// The network mask that full DHCP tells
    #[arg(long, env = "CAIRN_DHCP_MASK", value_name = "MASK", default_value = "255.255.255.0")]
    pub dhcp_mask: Ipv4Addr,
    /// The router that full DHCP tells
    #[arg(long, env = "CAIRN_DHCP_ROUTER", value_name = "ADDR")]
    pub dhcp_router: Option<Ipv4Addr>,
    /// A name server that full DHCP tells (repeatable)
    #[arg(long, env = "CAIRN_DHCP_DNS", value_name = "ADDR")]
    pub dhcp_dns: Vec<Ipv4Addr>,
    /// How long a lease of full DHCP lasts
    #[arg(long, env = "CAIRN_DHCP_LEASE", value_name = "SECONDS", default_value_t = 3600)]
    pub dhcp_lease: u32,
    /// A device of the store: a folder, or `s3://BUCKET/PREFIX` (repeatable; default: `store` in the data folder)
    #[arg(long, env = "CAIRN_STORE", value_name = "DIR-OR-URL")]
    pub store: Vec<DeviceAddress>,
    /// The database: `sqlite:PATH` or `postgres://USER@HOST/NAME` (default: SQLite in the data folder)
    #[arg(long, env = "CAIRN_DATABASE", hide_env_values = true, value_name = "URL")]
    pub database: Option<DatabaseAddress>,
    /// Wait until no other server uses the site, then take its place: with a PostgreSQL database and a store in buckets
    #[arg(
        long,
        env = "CAIRN_STANDBY",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value_t = false
    )]
    pub standby: bool,
    /// A host that images may be fetched from, `NAME` or `NAME:PORT` (repeatable; default: none)
    #[arg(long, env = "CAIRN_IMAGE_HOST", value_name = "HOST")]
    pub image_host: Vec<ImageHost>,
    /// Where the distribution's package keeps iPXE
    #[arg(long, env = "CAIRN_IPXE_DIR", value_name = "DIR", default_value = "/usr/lib/ipxe")]
    pub ipxe_dir: PathBuf,
    /// Kernel and initramfs for blank machines, made by `cairn-server boot build` (default: `boot` in the data folder)
    #[arg(long, env = "CAIRN_BOOT_DIR", value_name = "DIR")]
    pub boot_dir: Option<PathBuf>,
    /// The agent's Debian package, which machines that are to become clients get (default:
    /// `/usr/share/cairn/agent.deb` if it is there)
    #[arg(long, env = "CAIRN_AGENT_PACKAGE", value_name = "FILE")]
    pub agent_package: Option<PathBuf>,
}

/// What we do about DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DhcpChoice {
    Proxy,
    Full,
    Off,
}

/// The first and the last address of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for Pool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "two IPv4 addresses with a dash between them, like 10.0.0.100-10.0.0.200".to_owned();
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        Ok(Self {
            first: first.trim().parse().map_err(|_| wrong())?,
            last: last.trim().parse().map_err(|_| wrong())?,
        })
    }
}

impl ServeOptions {
    /// The options as clap has them: the keys of the configuration file.
    #[must_use]
    pub fn arguments() -> Vec<Arg> {
        Self::augment_args(Command::new("serve")).get_arguments().cloned().collect()
    }

    /// Checks what one option wants of another.
    ///
    /// # Errors
    /// A sentence that says which option is missing.
    pub fn check(&self) -> Result<(), &'static str> {
        match (self.dhcp, self.dhcp_pool) {
            (DhcpChoice::Full, None) => {
                Err("full DHCP needs --dhcp-pool A-B: which addresses may it give?")
            }
            _ => Ok(()),
        }
    }

    /// Where the agent's package is, if it is there.
    ///
    /// # Errors
    /// When one was named that is not there.
    pub fn agent_package(&self) -> anyhow::Result<PathBuf> {
        let Some(named) = &self.agent_package else { return Ok(AGENT_PACKAGE.into()) };
        let found = std::fs::metadata(named);
        let found =
            found.with_context(|| format!("look for the agent's package {}", named.display()))?;
        ensure!(found.is_file(), "the agent's package {} is not a file", named.display());
        Ok(named.clone())
    }

    /// Where the database is.
    #[must_use]
    pub fn database(&self) -> DatabaseAddress {
        self.database.clone().unwrap_or_else(|| default_database(&self.data_dir))
    }

    /// The devices of the store; at least one.
    #[must_use]
    pub fn store_devices(&self) -> Vec<DeviceAddress> {
        if self.store.is_empty() {
            vec![default_device(&self.data_dir)]
        } else {
            self.store.clone()
        }
    }

    /// The folder with kernel and initramfs.
    #[must_use]
    pub fn boot_folder(&self) -> PathBuf {
        self.boot_dir.clone().unwrap_or_else(|| self.data_dir.join("boot"))
    }
}

/// The database of a site that nobody said more of.
pub(crate) fn default_database(data_dir: &Path) -> DatabaseAddress {
    DatabaseAddress::Sqlite(data_dir.join(DATABASE_FILE))
}

/// The only device of a store that nobody said more of.
pub(crate) fn default_device(data_dir: &Path) -> DeviceAddress {
    DeviceAddress::Folder(data_dir.join("store"))
}

/// The address that others reach a listener at: its own when it is bound to one, else `preferred`, else the first address
/// of this machine that is not loopback.
#[must_use]
pub fn reachable(
    listen: SocketAddr,
    preferred: Option<IpAddr>,
    local: &std::collections::BTreeSet<IpAddr>,
) -> SocketAddr {
    let ip = if listen.ip().is_unspecified() {
        preferred
            .or_else(|| local.iter().copied().find(|ip| ip.is_ipv4() && !ip.is_loopback()))
            .or_else(|| local.iter().copied().find(|ip| !ip.is_loopback()))
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    } else {
        listen.ip()
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use cairn_array::settings::{self, Settings};

    use super::*;

    #[test]
    fn a_pool_is_two_addresses() {
        let pool: Pool = "10.0.0.100-10.0.0.200".parse().unwrap();
        assert_eq!((pool.first.octets()[3], pool.last.octets()[3]), (100, 200));
        assert!("10.0.0.100".parse::<Pool>().is_err());
        assert!("10.0.0.100-x".parse::<Pool>().is_err());
    }

    #[test]
    fn every_option_has_a_variable_named_after_its_flag() {
        for option in ServeOptions::arguments() {
            let long = option.get_long().expect("options of `serve` have long flags");
            let variable = format!("CAIRN_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(option.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn the_example_has_every_key_and_the_defaults() {
        let text = include_str!("../../packaging/server.toml");
        let options = ServeOptions::arguments();
        let path = Path::new("packaging/server.toml");
        let set = Settings::parse(path, text, &options).unwrap();
        let keys: Vec<_> = options.iter().filter_map(settings::key).collect();
        let set: Vec<_> = keys.iter().filter(|key| set.has(key)).collect();
        assert_eq!(set, ["data_dir", "boot_dir"]);
        // With every example in force, all keys are known and all values are right.
        let uncommented = settings::with_examples(text);
        let all = Settings::parse(path, &uncommented, &options).unwrap();
        for option in &options {
            let key = settings::key(option).unwrap();
            assert!(all.has(&key), "packaging/server.toml does not mention {key}");
            let default: Vec<_> =
                option.get_default_values().iter().map(|it| it.to_str().unwrap()).collect();
            if key != "data_dir" && !default.is_empty() {
                assert_eq!(all.values(&key), default, "{key}");
            }
        }
    }

    #[test]
    fn a_listener_on_every_address_is_reached_at_a_real_one() {
        let listen = "0.0.0.0:8440".parse().unwrap();
        let lan: IpAddr = "10.77.0.2".parse().unwrap();
        let local = [lan, Ipv4Addr::LOCALHOST.into()].into();
        assert_eq!(reachable(listen, None, &local).ip(), lan);
        let boot: IpAddr = "10.78.0.2".parse().unwrap();
        assert_eq!(reachable(listen, Some(boot), &local).ip(), boot);
        let alone = [IpAddr::V4(Ipv4Addr::LOCALHOST)].into();
        assert!(reachable(listen, None, &alone).ip().is_loopback());
        let bound = "127.0.0.1:1".parse().unwrap();
        assert_eq!(reachable(bound, Some(boot), &local), bound);
    }
}
