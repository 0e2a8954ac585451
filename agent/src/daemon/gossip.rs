//! News from the other clients while the server does not answer: one of them may have a newer directory, which may say
//! that the server is elsewhere.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cairn_array::tls::{Member, url};
use cairn_core::{id::AgentId, units::Generation};
use reqwest::{Client, StatusCode};

use super::sync::MAX_DIRECTORY_BYTES;

const PATIENCE: Duration = Duration::from_secs(10);

/// Asks one member after the other.
#[derive(Debug)]
pub(super) struct Gossip {
    me: AgentId,
    client: Client,
    /// Who was asked last.
    last: Option<AgentId>,
}

impl Gossip {
    pub(super) const fn new(me: AgentId, client: Client) -> Self {
        Self { me, client, last: None }
    }

    /// The directory of the next member, when it is newer than `known`.
    pub(super) async fn ask(
        &mut self,
        members: &[AgentId],
        known: Generation,
    ) -> Result<Option<Vec<u8>>> {
        let Some(member) = next(members, self.me, self.last) else { return Ok(None) };
        self.last = Some(member);
        let path = format!("/peer/v1/directory?newer={known}");
        let call = self.client.get(url(&Member::Agent(member), &path)).timeout(PATIENCE);
        let what = || format!("ask client {member} for its directory");
        let mut answer = call.send().await.with_context(what)?;
        if answer.status() != StatusCode::OK {
            return Ok(None);
        }
        let mut signed = Vec::new();
        while let Some(chunk) = answer.chunk().await.with_context(what)? {
            ensure!(signed.len() + chunk.len() <= MAX_DIRECTORY_BYTES, "its directory is too long");
            signed.extend_from_slice(&chunk);
        }
        Ok(Some(signed))
    }
}

/// The member behind `last` in the order of ids, around and around, without oneself.
fn next(members: &[AgentId], me: AgentId, last: Option<AgentId>) -> Option<AgentId> {
    let others = || members.iter().copied().filter(|member| *member != me);
    let behind = last.unwrap_or(me);
    others().filter(|member| *member > behind).min().or_else(|| others().min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_asked_in_turn_and_each_begins_elsewhere() {
        let id = |byte| AgentId([byte; 16]);
        let members = [id(5), id(1), id(3)];
        assert_eq!(next(&members, id(3), None), Some(id(5)));
        assert_eq!(next(&members, id(3), Some(id(5))), Some(id(1)));
        assert_eq!(next(&members, id(3), Some(id(1))), Some(id(5)));
        assert_eq!(next(&[id(3)], id(3), None), None);
        assert_eq!(next(&[], id(3), None), None);
    }
}
