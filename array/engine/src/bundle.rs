//! Fetching the bundle ([`cairn_core::bundle`]) from the clients that hold it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use cairn_core::{
    bundle::{self, Catalog},
    directory::Directory,
    id::AgentId,
    manifest::SegmentEntry,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    peer::{self, PeerClient},
    random,
};

/// Segments on their way at once.
const AT_ONCE: usize = 4;

/// The bytes of the bundle that the directory names, each segment checked.
///
/// # Errors
/// When the directory names none, or a segment is held by nobody that can be reached.
pub async fn fetch(peers: &PeerClient, directory: &Directory) -> Result<Vec<u8>> {
    let parts = Source::of(peers, directory)?.fetch(0..directory.bundle.len()).await?;
    Ok(parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().concat())
}

/// The bundle that the directory names without its boot files, of which most segments are not fetched.
///
/// # Errors
/// As [`fetch`], or when it is no bundle.
pub async fn fetch_catalog(peers: &PeerClient, directory: &Directory) -> Result<Vec<u8>> {
    let source = Source::of(peers, directory)?;
    let mut there: BTreeMap<usize, Bytes> = BTreeMap::new();
    loop {
        let known = there.iter().map(|(place, bytes)| (*place, &bytes[..])).collect();
        match bundle::catalog(&directory.bundle, &known).context("read the bundle")? {
            Catalog::Whole(bytes) => return Ok(bytes),
            Catalog::Lacks(places) => {
                let lacking = places.filter(|place| !there.contains_key(place));
                let fetched = source.fetch(lacking).await?;
                ensure!(!fetched.is_empty(), "the bundle has fewer segments than it needs");
                there.extend(fetched);
            }
        }
    }
}

/// Who gives the segments of a bundle.
struct Source<'a> {
    peers: &'a PeerClient,
    bundle: &'a [SegmentEntry],
    members: Vec<AgentId>,
    /// Not everybody asks the same client first.
    shift: usize,
}

impl<'a> Source<'a> {
    fn of(peers: &'a PeerClient, directory: &'a Directory) -> Result<Self> {
        ensure!(
            !directory.bundle.is_empty(),
            "the directory names no boot files and manifests: no client had room for them while the server was there \
             (one must lend four times their size), so nothing can be built on them"
        );
        let all = directory.members.iter().map(|member| member.agent);
        let members = all.filter(|agent| directory.is_member(agent)).collect();
        let shift = usize::from(random::array::<1>()?[0]);
        Ok(Self { peers, bundle: &directory.bundle, members, shift })
    }

    async fn fetch(&self, places: impl Iterator<Item = usize>) -> Result<Vec<(usize, Bytes)>> {
        let places = places.filter_map(|place| Some((place, self.bundle.get(place)?)));
        let asks: Vec<_> = places
            .map(|(place, segment)| async move {
                let bytes = one(self.peers, &self.members, self.shift + place, segment).await?;
                anyhow::Ok((place, bytes))
            })
            .collect();
        stream::iter(asks).buffered(AT_ONCE).try_collect().await
    }
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
        match peers.fetch(peer::Source::Peer(*member), segment.id, segment.bytes, None).await {
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
