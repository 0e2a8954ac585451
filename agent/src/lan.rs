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
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use cairn_array::tls::{Member, NameTable};
use cairn_core::id::{AgentId, SiteId};
use mdns_sd::{Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::home::Membership;

const SERVICE: &str = "_cairn._tcp.local.";
const SITE: &str = "site";
/// Answers come within a fifth of a second (RFC 6762, 6): whoever has not answered by then is not there.
const ANSWER: Duration = Duration::from_secs(1);
const NOTED: Duration = Duration::from_millis(10);

/// A client that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heard {
    agent: AgentId,
    addresses: BTreeSet<SocketAddr>,
}

/// A place on the LAN, until it is dropped.
pub struct Lan {
    daemon: ServiceDaemon,
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
    /// Takes a place among the clients of this site; nothing is asked or told yet.
    ///
    /// # Errors
    /// When there is no network that does multicast.
    pub fn enter(site: SiteId) -> Result<Self> {
        let daemon = ServiceDaemon::new().context("start multicast DNS")?;
        Ok(Self { daemon, site })
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

    /// Asks for the others, and notes in `names` where members are until it is dropped. `is_member` says who may be looked for.
    ///
    /// # Errors
    /// When the question cannot be sent, or the service has ended.
    pub async fn follow(
        &self,
        names: &NameTable,
        is_member: impl Fn(&AgentId) -> bool,
    ) -> Result<Infallible> {
        let asked = Asked::begin(&self.daemon)?;
        while let Ok(event) = asked.events.recv_async().await {
            if let ServiceEvent::ServiceResolved(service) = event
                && let Some(heard) = read(&service, self.site)
                && is_member(&heard.agent)
            {
                note(names, &heard);
            }
        }
        bail!("multicast DNS has ended")
    }
}

/// A question that is asked again and again until it is dropped.
struct Asked<'a> {
    daemon: &'a ServiceDaemon,
    events: Receiver<ServiceEvent>,
}

impl<'a> Asked<'a> {
    fn begin(daemon: &'a ServiceDaemon) -> Result<Self> {
        let events = daemon.browse(SERVICE).context("ask by multicast DNS")?;
        Ok(Self { daemon, events })
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        // The thread may have ended before.
        drop(self.daemon.stop_browse(SERVICE));
    }
}

/// A running client among the others, until it is told to stop: it always answers, and asks only while the server does not
/// answer it (`alone`): thousands that ask all the time would be heard by thousands. Where there is no multicast the directory is
/// all there is.
pub(crate) async fn meet(
    membership: Membership,
    port: u16,
    names: Arc<NameTable>,
    is_member: impl Fn(&AgentId) -> bool,
    mut alone: watch::Receiver<bool>,
    stop: CancellationToken,
) -> Result<()> {
    let entered = Lan::enter(membership.site)
        .and_then(|lan| lan.announce(membership.agent, port).map(|()| lan));
    let lan = match entered {
        Ok(lan) => lan,
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "other clients are not looked for on the LAN"
            );
            stop.cancelled().await;
            return Ok(());
        }
    };
    let is_other = |agent: &AgentId| *agent != membership.agent && is_member(agent);
    loop {
        let is_alone = *alone.borrow_and_update();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = alone.changed() => if changed.is_err() {
                stop.cancelled().await;
                return Ok(());
            },
            Err(error) = lan.follow(&names, &is_other), if is_alone => {
                tracing::warn!(error = format!("{error:#}"), "other clients are not looked for on the LAN");
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}

/// Members that are looked for.
#[derive(Clone, Debug)]
pub struct Looking {
    heard: watch::Receiver<BTreeSet<AgentId>>,
    wanted: usize,
    since: Instant,
}

/// Looks for members in the background, for as long as the program runs.
pub fn look(site: SiteId, names: Arc<NameTable>, members: Vec<AgentId>) -> Looking {
    let (hear, heard) = watch::channel(BTreeSet::new());
    let looking = Looking { heard, wanted: members.len(), since: Instant::now() };
    let lan = match Lan::enter(site) {
        Ok(lan) => lan,
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "nobody is looked for on the LAN");
            return looking;
        }
    };
    tokio::spawn(async move {
        let is_member = |agent: &AgentId| {
            let ours = members.contains(agent);
            if ours {
                hear.send_if_modified(|heard| heard.insert(*agent));
            }
            ours
        };
        // When it ends there is what was found until then.
        let Err(error) = lan.follow(&names, is_member).await;
        tracing::debug!(error = format!("{error:#}"), "nobody is looked for on the LAN any more");
    });
    looking
}

impl Looking {
    /// Waits until all have answered, for a moment at most since they were asked.
    pub async fn found(&self) {
        let mut heard = self.heard.clone();
        // This client is one of them.
        let all = heard.wait_for(|heard| heard.len() + 1 >= self.wanted);
        let all = tokio::time::timeout_at(self.since + ANSWER, all).await.is_ok();
        if all {
            // Where the last one is, is noted right after it was heard.
            tokio::time::sleep(NOTED).await;
        } else {
            tracing::debug!("not every client answers on the LAN");
        }
    }
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
