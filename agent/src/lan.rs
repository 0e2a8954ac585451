//! The other clients on the same LAN, by multicast DNS (RFC 6762, RFC 6763): where they are, when the directory's word on it
//! has grown old and there is no server to give a new one.
//!
//! | record | content |
//! |---|---|
//! | PTR `_cairn._tcp.local` | one instance for each client, named by its agent id |
//! | SRV of the instance | port of its peer service, host `cairn-AGENT.local` |
//! | TXT of the instance | `site=SITE`: clients of other sites are passed over before anything is asked of them |
//! | A, AAAA of the host | all addresses of the machine |
//!
//! Whoever is on the LAN can answer anything. So an answer only says where to look: a member is who shows its certificate, and
//! nobody becomes one by it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use cairn_array::tls::{Member, NameTable};
use cairn_core::id::{AgentId, SiteId};
use mdns_sd::{Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio_util::sync::CancellationToken;

use crate::home::Membership;

const SERVICE: &str = "_cairn._tcp.local.";
const SITE: &str = "site";
/// Answers come within a fifth of a second (RFC 6762, 6): whoever has not answered by then is not there.
const ANSWER: Duration = Duration::from_secs(1);

/// A client that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heard {
    agent: AgentId,
    addresses: BTreeSet<SocketAddr>,
}

/// Listens on the LAN until it is dropped.
pub struct Lan {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    site: SiteId,
}

impl std::fmt::Debug for Lan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lan").field("site", &self.site).finish_non_exhaustive()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // Says goodbye, in its own thread.
        drop(self.daemon.shutdown());
    }
}

impl Lan {
    /// Listens for clients of this site.
    ///
    /// # Errors
    /// When there is no network that does multicast.
    pub fn listen(site: SiteId) -> Result<Self> {
        let daemon = ServiceDaemon::new().context("start multicast DNS")?;
        let events = daemon.browse(SERVICE).context("ask by multicast DNS")?;
        Ok(Self { daemon, events, site })
    }

    /// Tells the others where this client is.
    ///
    /// # Errors
    /// When the service does not take it.
    pub fn announce(&self, agent: AgentId, port: u16) -> Result<()> {
        let (name, host) = (agent.to_string(), format!("cairn-{agent}.local."));
        let site = self.site.to_string();
        let service =
            ServiceInfo::new(SERVICE, &name, &host, (), port, &[(SITE, site.as_str())][..])
                .context("describe this client for multicast DNS")?;
        self.daemon.register(service.enable_addr_auto()).context("answer multicast DNS")
    }

    /// Notes in `names` where members are, for as long as it is polled. `is_member` says who may be looked for.
    pub async fn follow(&self, names: &NameTable, is_member: impl Fn(&AgentId) -> bool) {
        while let Ok(event) = self.events.recv_async().await {
            if let ServiceEvent::ServiceResolved(service) = event
                && let Some(heard) = read(&service, self.site)
                && is_member(&heard.agent)
            {
                note(names, &heard);
            }
        }
        // The thread has ended: nothing more comes.
        std::future::pending().await
    }
}

/// A running client among the others: answers them and hears them until it is told to stop. Where there is no multicast the
/// directory is all there is.
pub(crate) async fn meet(
    membership: Membership,
    port: u16,
    names: Arc<NameTable>,
    is_member: impl Fn(&AgentId) -> bool,
    stop: CancellationToken,
) -> Result<()> {
    let lan = Lan::listen(membership.site)
        .and_then(|lan| lan.announce(membership.agent, port).map(|()| lan));
    let is_other = |agent: &AgentId| *agent != membership.agent && is_member(agent);
    match lan {
        Ok(lan) => drop(stop.run_until_cancelled(lan.follow(&names, is_other)).await),
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "other clients are not looked for on the LAN"
            );
            stop.cancelled().await;
        }
    }
    Ok(())
}

/// Looks for members for a moment, then goes on in the background for as long as the program runs.
pub async fn look(site: SiteId, names: Arc<NameTable>, members: Vec<AgentId>) {
    let lan = match Lan::listen(site) {
        Ok(lan) => lan,
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "nobody is looked for on the LAN");
            return;
        }
    };
    let follow = async move { lan.follow(&names, |agent| members.contains(agent)).await };
    tokio::spawn(follow);
    tokio::time::sleep(ANSWER).await;
}

fn note(names: &NameTable, heard: &Heard) {
    let member = Member::Agent(heard.agent);
    let known = names.get(&member);
    if known.is_some_and(|known| heard.addresses.contains(&known)) {
        names.forget_nearby(&member);
    } else if let Some(addr) = heard.addresses.first() {
        tracing::info!(agent = %heard.agent, %addr, "a client is found on the LAN elsewhere than where the directory says");
        names.set_nearby(member, *addr);
    }
}

/// What an answer says, when it is of this site. Link-local addresses are left out: they need a scope.
fn read(service: &ResolvedService, site: SiteId) -> Option<Heard> {
    let told = service.txt_properties.get_property_val_str(SITE)?;
    (told.parse() == Ok(site)).then_some(())?;
    let agent = service.fullname.strip_suffix(SERVICE)?.strip_suffix('.')?.parse().ok()?;
    let addresses = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr);
    let reachable = addresses.filter(|address| match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
    });
    let addresses: BTreeSet<_> =
        reachable.map(|address| SocketAddr::new(address, service.port)).collect();
    (!addresses.is_empty()).then_some(Heard { agent, addresses })
}
