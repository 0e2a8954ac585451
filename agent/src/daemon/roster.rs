//! The directory as this agent knows it: checked, kept on disk, and turned into addresses.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use cairn_array::tls::{Member, NameTable};
use cairn_core::{
    bytes::DecodeError,
    directory::Directory,
    id::{AgentId, SiteId},
    sign::VerifyingKey,
    units::Generation,
};
use tokio::sync::watch;

use crate::{
    home::{Home, Membership},
    place::ServerPlace,
};

/// Who may be asked and served, as sets for quick answers.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) number: Generation,
    agents: HashSet<AgentId>,
    revoked: HashSet<AgentId>,
    /// The site's keys, for the recovery key alone.
    pub(super) authority: Bytes,
    /// The directory as the server signed it; empty before the first.
    pub(super) signed: Bytes,
}

impl Members {
    fn of(directory: &Directory, signed: &[u8]) -> Self {
        Self {
            number: directory.number,
            authority: Bytes::copy_from_slice(&directory.authority),
            signed: Bytes::copy_from_slice(signed),
            agents: directory.members.iter().map(|member| member.agent).collect(),
            revoked: directory.revoked.iter().copied().collect(),
        }
    }

    /// Whether `agent` may be served and asked.
    pub(super) fn is_member(&self, agent: &AgentId) -> bool {
        self.agents.contains(agent) && !self.revoked.contains(agent)
    }
}

/// Why a directory was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadDirectory {
    #[error("the directory is not one that this site signed")]
    Unreadable(#[from] DecodeError),
    #[error("the directory is of site {theirs}, this agent of site {ours}")]
    OtherSite { ours: SiteId, theirs: SiteId },
    #[error("directory {offered} is older than directory {have}")]
    Older { have: Generation, offered: Generation },
}

/// The owner of the directory.
#[derive(Debug)]
pub(super) struct Roster {
    home: Home,
    site: SiteId,
    signing_key: VerifyingKey,
    names: Arc<NameTable>,
    /// Where this agent joined the server, and whether it is looked for there now.
    joined_at: ServerPlace,
    at_joined: bool,
    /// Where the directory says that the server is.
    told: Option<SocketAddr>,
    /// Members whose address is in the name table.
    named: HashSet<AgentId>,
    members: watch::Sender<Arc<Members>>,
}

impl Roster {
    /// Starts from the directory on disk, so that peers are served while the server is away.
    pub(super) fn load(
        home: Home,
        membership: &Membership,
        names: Arc<NameTable>,
    ) -> Result<(Self, watch::Receiver<Arc<Members>>)> {
        let (members, reader) = watch::channel(Arc::new(Members::default()));
        let kept = home.directory()?;
        let mut roster = Self {
            home,
            site: membership.site,
            signing_key: membership.signing_key,
            names,
            joined_at: membership.server.clone(),
            at_joined: true,
            told: None,
            named: HashSet::new(),
            members,
        };
        if let Some(signed) = kept {
            match roster.check(&signed) {
                Ok(directory) => roster.publish(&directory, &signed),
                // The server gives it anew; until then nobody is served.
                Err(error) => tracing::warn!(error = %error, "the directory on disk is of no use"),
            }
        }
        Ok((roster, reader))
    }

    /// Those who may be asked.
    pub(super) fn members(&self) -> Vec<AgentId> {
        let members = self.members.borrow();
        members.agents.iter().filter(|agent| members.is_member(agent)).copied().collect()
    }

    /// Where everybody is.
    pub(super) fn names(&self) -> &NameTable {
        &self.names
    }

    pub(super) fn number(&self) -> Generation {
        self.members.borrow().number
    }

    /// Takes a directory that the server gave, unless it is wrong or older than what is known.
    pub(super) fn take(&mut self, signed: &[u8]) -> Result<()> {
        let directory = self.check(signed)?;
        if directory.number > self.number() {
            self.home.keep_directory(signed).context("keep the directory")?;
            self.publish(&directory, signed);
        }
        Ok(())
    }

    /// The server does not answer where it was looked for: it may be where the directory says, or where it always was.
    /// Whoever answers there must have the server's certificate.
    pub(super) fn try_other_place(&mut self) {
        let Some(told) = self.told else { return };
        self.at_joined = !self.at_joined;
        if self.at_joined {
            self.joined_at.announce(&self.names);
        } else {
            self.names.set(Member::Server, told);
        }
    }

    fn check(&self, signed: &[u8]) -> Result<Directory, BadDirectory> {
        let directory = Directory::open(&self.signing_key, signed)?;
        if directory.site != self.site {
            return Err(BadDirectory::OtherSite { ours: self.site, theirs: directory.site });
        }
        let (have, offered) = (self.number(), directory.number);
        if offered < have {
            return Err(BadDirectory::Older { have, offered });
        }
        Ok(directory)
    }

    fn publish(&mut self, directory: &Directory, signed: &[u8]) {
        self.told = directory.server;
        let mut named = HashSet::new();
        for member in &directory.members {
            if let Some(addr) = member.addr {
                self.names.set(Member::Agent(member.agent), addr);
                named.insert(member.agent);
            }
        }
        for gone in self.named.difference(&named) {
            self.names.remove(&Member::Agent(*gone));
        }
        self.named = named;
        self.members.send_replace(Arc::new(Members::of(directory, signed)));
    }
}

#[cfg(test)]
mod tests {
    use cairn_core::{directory::MemberEntry, sign::SigningKey};

    use super::*;

    fn directory(number: u64, agents: &[u8], revoked: &[u8]) -> Directory {
        let member = |byte: &u8| MemberEntry {
            agent: AgentId([*byte; 16]),
            name: format!("client-{byte}"),
            addr: Some(([127, 0, 0, 1], 8442 + u16::from(*byte)).into()),
        };
        Directory {
            site: SiteId([2; 16]),
            number: Generation(number),
            authority: Vec::new(),
            bundle: Vec::new(),
            server: None,
            members: agents.iter().map(member).collect(),
            revoked: revoked.iter().map(|byte| AgentId([*byte; 16])).collect(),
        }
    }

    #[test]
    fn a_newer_directory_replaces_an_older_one_and_never_the_reverse() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().to_owned());
        let key = SigningKey::from_seed(&[7; 32]).unwrap();
        let membership =
            Membership { signing_key: key.verifying_key(), ..crate::home::tests::membership() };
        let names = Arc::new(NameTable::default());
        let load = || Roster::load(home.clone(), &membership, Arc::clone(&names)).unwrap();
        let (mut roster, members) = load();
        let agent = |byte: u8| AgentId([byte; 16]);
        assert!(!members.borrow().is_member(&agent(1)));

        roster.take(&directory(5, &[1, 2, 3], &[3]).seal(&key)).unwrap();
        assert!(members.borrow().is_member(&agent(1)) && !members.borrow().is_member(&agent(3)));
        assert_eq!(names.get(&Member::Agent(agent(2))), Some(([127, 0, 0, 1], 8444).into()));

        let older = roster.take(&directory(4, &[9], &[]).seal(&key)).unwrap_err();
        assert!(matches!(older.downcast_ref(), Some(BadDirectory::Older { .. })));
        let forged = SigningKey::from_seed(&[8; 32]).unwrap();
        assert!(roster.take(&directory(9, &[9], &[]).seal(&forged)).is_err());
        let foreign = Directory { site: SiteId([9; 16]), ..directory(9, &[9], &[]) };
        assert!(roster.take(&foreign.seal(&key)).is_err());
        assert!(!members.borrow().is_member(&agent(9)));

        roster.take(&directory(6, &[1], &[]).seal(&key)).unwrap();
        assert_eq!(names.get(&Member::Agent(agent(2))), None, "who left has no address");
        let (mut restarted, members) = load();
        assert_eq!(restarted.number(), Generation(6));
        assert!(members.borrow().is_member(&agent(1)));
        // What was seen before the restart counts after it.
        let older = restarted.take(&directory(5, &[9], &[]).seal(&key)).unwrap_err();
        assert!(matches!(older.downcast_ref(), Some(BadDirectory::Older { .. })));
        assert!(!members.borrow().is_member(&agent(9)));
    }
}
