//! Who a certificate speaks for.

use cairn_core::id::{AgentId, InstallId, VolumeId};

const DOMAIN: &str = "cairn.internal";

/// A party of the site. Its DNS name is the only name in its certificate that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    Server,
    Agent(AgentId),
    /// A machine during one install.
    Target(InstallId),
    /// Whoever may use a volume from another machine.
    Volume(VolumeId),
}

impl Member {
    /// `server.cairn.internal`, `<hex>.agent.cairn.internal` and so on.
    #[must_use]
    pub fn dns_name(&self) -> String {
        match self {
            Self::Server => format!("server.{DOMAIN}"),
            Self::Agent(id) => format!("{id}.agent.{DOMAIN}"),
            Self::Target(id) => format!("{id}.target.{DOMAIN}"),
            Self::Volume(id) => format!("{id}.volume.{DOMAIN}"),
        }
    }

    /// The member with this DNS name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let local = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        match local.split_once('.') {
            None => (local == "server").then_some(Self::Server),
            Some((id, "agent")) => id.parse().ok().map(Self::Agent),
            Some((id, "target")) => id.parse().ok().map(Self::Target),
            Some((id, "volume")) => id.parse().ok().map(Self::Volume),
            Some(_) => None,
        }
    }
}
