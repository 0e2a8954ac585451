//! Fetching the bundle ([`cairn_core::bundle`]) from the clients that hold it.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use cairn_core::{directory::Directory, id::AgentId, manifest::SegmentEntry};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    peer::{PeerClient, Source},
    random,
};

/// Segments on their way at once.
const AT_ONCE: usize = 4;

/// The bytes of the bundle that the directory names, each segment checked.
///
/// # Errors
/// When the directory names none, or a segment is held by nobody that can be reached.
pub async fn fetch(peers: &PeerClient, directory: &Directory) -> Result<Vec<u8>> {
    ensure!(
        !directory.bundle.is_empty(),
        "the directory names no boot files and manifests: no client had room for them while the server was there \
         (one must lend four times their size), so nothing can be built on them"
    );
    let all = directory.members.iter().map(|member| member.agent);
    let members: Vec<AgentId> = all.filter(|agent| directory.is_member(agent)).collect();
    // Not everybody asks the same client first.
    let shift = usize::from(random::array::<1>()?[0]);
    let parts = directory.bundle.iter().enumerate();
    let parts: Vec<Bytes> = stream::iter(parts)
        .map(|(number, segment)| one(peers, &members, shift + number, segment))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(parts.concat())
}

/// One segment, from the first member that gives it.
async fn one(
    peers: &PeerClient,
    members: &[AgentId],
    shift: usize,
    segment: &SegmentEntry,
) -> Result<Bytes> {
    let mut last = None;
    let order = members.iter().cycle().skip(shift % members.len().max(1)).take(members.len());
    for member in order {
        match peers.fetch(Source::Peer(*member), segment.id, segment.bytes, None).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => {
                tracing::debug!(%member, segment = %segment.id, %error, "no part of the bundle");
                last = Some(anyhow::Error::from(error).context(format!("client {member}")));
            }
        }
    }
    match last {
        Some(error) => Err(error).with_context(|| {
            format!(
                "no client gives segment {} of the boot files and manifests: switch more clients on",
                segment.id
            )
        }),
        None => bail!("the directory names no client"),
    }
}
