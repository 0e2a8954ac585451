//! Finding a site by its clients: its keys, its newest directory, its bundle.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cairn_array::{
    authority::SiteKeys,
    peer::PeerClient,
    tls::{self, Fingerprint, Member, NameTable, Trust, client_of_strangers, url},
    wire::SiteLine,
    wrap::Identity,
};
use cairn_core::{directory::Directory, id::AgentId};
use futures::{StreamExt as _, stream};
use reqwest::Client;

const PATIENCE: Duration = Duration::from_secs(20);
/// The largest answers: a sealed key, and a directory of 65,535 members.
const MAX_SITE_BYTES: usize = 64 << 10;
const MAX_DIRECTORY_BYTES: usize = 48 << 20;
/// Clients asked at once.
const AT_ONCE: usize = 16;

/// A site as its clients know it.
pub(super) struct Fleet {
    pub(super) keys: SiteKeys,
    /// The newest that any client gave.
    pub(super) directory: Directory,
    pub(super) peers: PeerClient,
    /// Members with an address that may be asked.
    pub(super) members: Vec<AgentId>,
    /// Members that answered.
    pub(super) there: usize,
}

/// Asks the clients at these addresses, and by them all others.
///
/// # Errors
/// When none of them answers, or the recovery key is of another site.
pub(super) async fn find(
    addresses: &[SocketAddr],
    recovery: &Identity,
    wanted: Option<Fingerprint>,
) -> Result<Fleet> {
    let (keys, known) = keys(addresses, recovery, wanted).await?;
    let names = Arc::new(NameTable::default());
    for (agent, addr) in &known {
        names.set(Member::Agent(*agent), *addr);
    }
    let papers = keys.authority()?.certify_server(None, &tls::local_addresses()?)?;
    let client = tls::client(&Trust::Ca(keys.ca_pem.clone()), Some(&papers), Arc::clone(&names))?;
    let first: Vec<AgentId> = known.iter().map(|(agent, _)| *agent).collect();
    let (directory, _) = newest(&client, &keys, &first).await?;
    let directory = directory.context(
        "none of these clients gives a directory that this site signed: name others with --peer",
    )?;
    let members = announce(&directory, &names);
    // Somebody may have a newer one: an older would bring back members that were revoked.
    let (newer, there) = newest(&client, &keys, &members).await?;
    let directory = newer.filter(|it| it.number > directory.number).unwrap_or(directory);
    let members = announce(&directory, &names);
    Ok(Fleet { keys, directory, peers: PeerClient::new(client), members, there })
}

/// Says where the members are; returns those that may be asked.
fn announce(directory: &Directory, names: &NameTable) -> Vec<AgentId> {
    let mut members = Vec::new();
    for member in directory.members.iter().filter(|member| directory.is_member(&member.agent)) {
        if let Some(addr) = member.addr {
            names.set(Member::Agent(member.agent), addr);
            members.push(member.agent);
        }
    }
    members
}

/// The site's keys from the first client that has them, and who is at the addresses.
async fn keys(
    addresses: &[SocketAddr],
    recovery: &Identity,
    wanted: Option<Fingerprint>,
) -> Result<(SiteKeys, Vec<(AgentId, SocketAddr)>)> {
    let client = client_of_strangers()?;
    let (mut opened, mut known, mut last) = (None, Vec::new(), None);
    for addr in addresses {
        match site_at(&client, *addr, recovery).await {
            Ok((agent, keys)) => {
                known.push((agent, *addr));
                opened.get_or_insert(keys);
            }
            Err(error) => {
                let error = error.context(format!("ask the client at {addr}"));
                tracing::warn!(error = format!("{error:#}"), "a client is left out");
                last = Some(error);
            }
        }
    }
    let Some(keys) = opened else {
        return Err(last.unwrap_or_else(|| anyhow::anyhow!("name a client with --peer ADDR")));
    };
    if let Some(wanted) = wanted {
        ensure!(
            keys.fingerprint()? == wanted,
            "these clients are of another site than the recovery key's file names: somebody may have put them there"
        );
    }
    Ok((keys, known))
}

async fn site_at(
    client: &Client,
    addr: SocketAddr,
    recovery: &Identity,
) -> Result<(AgentId, SiteKeys)> {
    let call = client.get(format!("https://{addr}/peer/v1/site"));
    let line: SiteLine = serde_json::from_slice(&body(call, MAX_SITE_BYTES).await?)
        .context("read what it says of its site")?;
    let sealed = STANDARD.decode(&line.authority).context("read what it says of its site")?;
    ensure!(
        !sealed.is_empty(),
        "its directory carries no keys: it has not run since the server was updated"
    );
    Ok((line.agent, SiteKeys::open(recovery, &sealed)?))
}

/// The newest directory of these members, and how many answered.
async fn newest(
    client: &Client,
    keys: &SiteKeys,
    members: &[AgentId],
) -> Result<(Option<Directory>, usize)> {
    let verifier = keys.signer()?.verifying_key();
    let asked = stream::iter(members).map(|agent| async move {
        let call = client.get(url(&Member::Agent(*agent), "/peer/v1/directory"));
        (agent, body(call, MAX_DIRECTORY_BYTES).await)
    });
    let mut answers = asked.buffer_unordered(AT_ONCE);
    let (mut newest, mut there): (Option<Directory>, _) = (None, 0);
    while let Some((agent, answer)) = answers.next().await {
        let opened = answer
            .and_then(|signed| Directory::open(&verifier, &signed).context("read its directory"));
        match opened {
            Ok(directory) => {
                there += 1;
                if newest.as_ref().is_none_or(|known| directory.number > known.number) {
                    newest = Some(directory);
                }
            }
            Err(error) => {
                tracing::warn!(%agent, error = format!("{error:#}"), "a client does not answer");
            }
        }
    }
    Ok((newest, there))
}

async fn body(call: reqwest::RequestBuilder, limit: usize) -> Result<Vec<u8>> {
    let mut answer = call.timeout(PATIENCE).send().await.context("reach it")?;
    if !answer.status().is_success() {
        bail!("it answers with {}", answer.status());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.context("read its answer")? {
        ensure!(body.len() + chunk.len() <= limit, "its answer is longer than {limit} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
