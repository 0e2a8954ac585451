//! The site's DHCP server, which Cairn may not touch: a plain dnsmasq that knows nothing of booting.

use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    netns::{Host, Lab},
    process::{Process, Program},
};

const START: Duration = Duration::from_secs(10);
/// The pool: .100 to .199 of the lab's network.
const POOL: &str = "10.77.0.100,10.77.0.199,255.255.255.0,1h";

#[derive(Debug)]
pub struct Dhcpd {
    process: Process,
    leases: PathBuf,
}

impl Dhcpd {
    /// Starts it on `host` and waits until it answers.
    ///
    /// # Errors
    /// dnsmasq is not installed or refuses.
    pub fn start(lab: &Lab, host: &Host) -> Result<Self> {
        let leases = lab.dir().join("leases");
        let process = Program::new("dnsmasq", "dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--log-facility=-",
                "--log-dhcp",
            ])
            .args(["--port=0", "--interface=eth0", "--bind-interfaces", "--dhcp-authoritative"])
            .args(["--user=root", "--pid-file="])
            .args([
                format!("--dhcp-range={POOL}"),
                format!("--dhcp-leasefile={}", leases.display()),
            ])
            .on(host)
            .log(lab.dir().join("dnsmasq.log"))
            .start()?;
        process.wait_for_line("DHCP, IP range", START).context("start the site's DHCP server")?;
        Ok(Self { process, leases })
    }

    /// The address that it gave to the interface with this MAC address, if it did.
    ///
    /// # Errors
    /// The list of leases cannot be read.
    pub fn lease_of(&self, mac: &str) -> Result<Option<Ipv4Addr>> {
        let text = fs::read_to_string(&self.leases).context("read the leases")?;
        // One lease a line: expiry, MAC, address, name, client id.
        let mut leases = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let lease = leases.find(|fields| fields.get(1).is_some_and(|found| *found == mac));
        lease
            .and_then(|fields| fields.get(2).map(|address| address.parse()))
            .transpose()
            .context("parse a lease")
    }

    pub fn process(&self) -> &Process {
        &self.process
    }
}
