//! Bringing the network up: every link, DHCP on each that has a carrier, all at the same time.
//!
//! busybox's udhcpc speaks DHCP and stays, so that a lease that ends during a long install is renewed; the script
//! below does what it says and leaves a file per configured link. The first lease is enough to go on; a machine
//! with several cards may reach the server over a later one.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::modules::Drivers;

const LOOK_EVERY: Duration = Duration::from_millis(250);
const SAY_EVERY: Duration = Duration::from_secs(15);
/// A switch with spanning tree forwards nothing for 30 s after the link came up.
const PATIENCE: Duration = Duration::from_secs(90);

/// udhcpc calls it with what happened and the lease in its environment. The metric keeps default routes of several
/// cards apart; `ifconfig` sets the same address again without an error when a lease is renewed.
const SCRIPT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
lease="$CAIRN_RUN/lease.$interface"
case "$1" in
deconfig)
    $b rm -f "$lease"
    $b ifconfig "$interface" 0.0.0.0 up
    ;;
bound|renew)
    $b ifconfig "$interface" "$ip" netmask "${subnet:-255.255.255.0}" ${broadcast:+broadcast "$broadcast"}
    [ -n "$mtu" ] && $b ifconfig "$interface" mtu "$mtu"
    read -r metric < "/sys/class/net/$interface/ifindex"
    while $b ip route del default dev "$interface" 2>/dev/null; do :; done
    for gateway in $router; do
        $b ip route add default via "$gateway" dev "$interface" metric "$metric" && break
    done
    for server in $dns; do echo "nameserver $server"; done > "$CAIRN_RUN/resolv.new"
    $b mv "$CAIRN_RUN/resolv.new" /etc/resolv.conf
    echo "$ip" > "$lease.new"
    $b mv "$lease.new" "$lease"
    ;;
esac
exit 0
"#;

/// Why there is no network, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NetworkFault {
    #[error(
        "no driver fits this machine's network card; ask for it in the boot payload (`cairn-server boot build`) \
         or use another card"
    )]
    Card,
    #[error("no network cable is connected ({0}); plug one in, or check the switch port")]
    Link(String),
    #[error(
        "no DHCP server answered ({0}); check that this network has one and that the port is in the right VLAN"
    )]
    Lease(String),
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    carrier: bool,
}

/// The network of a blank machine. Its DHCP clients are children of this process and go with it.
#[derive(Debug)]
pub(super) struct Network {
    sys: PathBuf,
    run: PathBuf,
    clients: BTreeMap<String, Child>,
}

impl Network {
    /// Writes the DHCP script below `run`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn new(sys: PathBuf, run: PathBuf) -> Result<Self> {
        fs::create_dir_all(&run).with_context(|| format!("create {}", run.display()))?;
        let script = run.join("dhcp");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o755)
            .open(&script)
            .with_context(|| format!("create {}", script.display()))?;
        file.write_all(SCRIPT.as_bytes()).with_context(|| format!("write {}", script.display()))?;
        Ok(Self { sys, run, clients: BTreeMap::new() })
    }

    /// Waits for the first address; meanwhile drivers of late hardware are loaded. `say` hears what is waited for.
    ///
    /// # Errors
    /// [`NetworkFault`] when none came in time.
    pub(super) fn wait_for_lease(
        &mut self,
        drivers: &mut Drivers,
        say: impl Fn(&str),
    ) -> Result<(), NetworkFault> {
        let start = Instant::now();
        let mut said = start;
        loop {
            self.tend();
            let leases = self.leases();
            if !leases.is_empty() {
                say(&format!("network: {}", leases.join(", ")));
                return Ok(());
            }
            let waiting = why(&links(&self.sys));
            if start.elapsed() >= PATIENCE {
                return Err(waiting);
            }
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                say(&format!("still waiting for the network: {waiting}"));
            }
            drivers.load_new(&self.sys);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Brings new links up and starts a DHCP client on each that has a carrier and none yet.
    pub(super) fn tend(&mut self) {
        for link in links(&self.sys) {
            if !link.carrier {
                // Without effect on a link that is up already.
                busybox(&["ip", "link", "set", "dev", &link.name, "up"]);
                continue;
            }
            let ended = match self.clients.get_mut(&link.name) {
                Some(client) => !matches!(client.try_wait(), Ok(None)),
                None => true,
            };
            if ended && let Some(client) = self.start_client(&link.name) {
                self.clients.insert(link.name, client);
            }
        }
    }

    fn start_client(&self, link: &str) -> Option<Child> {
        let started = Command::new("/bin/busybox")
            .args([
                "udhcpc",
                "-f",
                "-i",
                link,
                "-t",
                "6",
                "-T",
                "2",
                "-A",
                "3",
                "-V",
                "cairn-agent",
                "-s",
            ])
            .arg(self.run.join("dhcp"))
            .env("CAIRN_RUN", &self.run)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        started.inspect_err(|error| tracing::warn!(%error, link, "start the DHCP client")).ok()
    }

    /// Has a system that takes over keep the addresses by which it reaches its disk. systemd's networkd would begin by taking
    /// them away; others leave a card that is configured alone.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn hand_over(&self, folder: &Path) -> Result<()> {
        let leased = |link: &Link| self.run.join(format!("lease.{}", link.name)).exists();
        let addresses = links(&self.sys).into_iter().filter(leased).filter_map(|link| {
            let path = self.sys.join("class/net").join(link.name).join("address");
            Some(fs::read_to_string(path).ok()?.trim().to_owned())
        });
        let addresses: Vec<String> = addresses.collect();
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let file = folder.join("00-cairn.network");
        let text = format!(
            "# The root file system is reached by this card.\n[Match]\nMACAddress={}\n\n\
             [Network]\nDHCP=yes\nKeepConfiguration=yes\n",
            addresses.join(" ")
        );
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    /// `eth0 10.0.0.7` for each link with a lease.
    fn leases(&self) -> Vec<String> {
        let lease = |link: Link| {
            let text = fs::read_to_string(self.run.join(format!("lease.{}", link.name))).ok()?;
            Some(format!("{} {}", link.name, text.trim()))
        };
        links(&self.sys).into_iter().filter_map(lease).collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for client in self.clients.values_mut() {
            // One that has ended already cannot be killed.
            drop(client.kill());
            drop(client.wait());
        }
    }
}

/// The network cards that are hardware, Ethernet, in the order of their names.
fn links(sys: &Path) -> Vec<Link> {
    let Ok(entries) = fs::read_dir(sys.join("class/net")) else { return Vec::new() };
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mut links: Vec<Link> = entries
        .flatten()
        .filter(|entry| {
            entry.path().join("device").exists() && read(entry.path().join("type")) == "1"
        })
        .filter_map(|entry| {
            // Unreadable while the link is down.
            let carrier = read(entry.path().join("carrier")) == "1";
            Some(Link { name: entry.file_name().into_string().ok()?, carrier })
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

fn why(links: &[Link]) -> NetworkFault {
    let names = |links: &mut dyn Iterator<Item = &Link>| {
        links.map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    if links.is_empty() {
        NetworkFault::Card
    } else if links.iter().all(|link| !link.carrier) {
        NetworkFault::Link(names(&mut links.iter()))
    } else {
        NetworkFault::Lease(names(&mut links.iter().filter(|link| link.carrier)))
    }
}

fn busybox(arguments: &[&str]) {
    let outcome = Command::new("/bin/busybox")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = outcome {
        tracing::warn!(%error, "start busybox");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(sys: &Path, name: &str, carrier: &str, hardware: bool) {
        let folder = sys.join("class/net").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("carrier"), carrier).unwrap();
        fs::write(folder.join("type"), "1\n").unwrap();
        if hardware {
            fs::create_dir_all(folder.join("device")).unwrap();
        }
    }

    #[test]
    fn a_card_with_a_lease_is_kept_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (sys, run) = (folder.path().join("sys"), folder.path().join("run"));
        for (name, address) in [("eth0", "52:54:00:00:00:01"), ("eth1", "52:54:00:00:00:02")] {
            link(&sys, name, "1\n", true);
            fs::write(sys.join("class/net").join(name).join("address"), address).unwrap();
        }
        let network = Network::new(sys, run.clone()).unwrap();
        fs::write(run.join("lease.eth1"), "10.0.0.7\n").unwrap();
        let to = folder.path().join("systemd/network");
        network.hand_over(&to).unwrap();
        let text = fs::read_to_string(to.join("00-cairn.network")).unwrap();
        assert!(text.contains("MACAddress=52:54:00:00:00:02\n"), "{text}");
        assert!(text.contains("KeepConfiguration=yes"), "{text}");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let sys = tempfile::tempdir().unwrap();
        link(sys.path(), "br0", "1\n", false);
        assert_eq!(why(&links(sys.path())), NetworkFault::Card);
        link(sys.path(), "eth1", "0\n", true);
        link(sys.path(), "eth0", "", true);
        assert_eq!(why(&links(sys.path())), NetworkFault::Link("eth0, eth1".to_owned()));
        link(sys.path(), "eth1", "1\n", true);
        assert_eq!(why(&links(sys.path())), NetworkFault::Lease("eth1".to_owned()));
    }

    #[test]
    fn the_dhcp_script_is_a_program_that_the_shell_accepts() {
        let run = tempfile::tempdir().unwrap();
        Network::new("/sys".into(), run.path().to_owned()).unwrap();
        let checked =
            Command::new("busybox").args(["sh", "-n"]).arg(run.path().join("dhcp")).status();
        assert!(checked.expect("busybox-static is installed").success());
    }
}
