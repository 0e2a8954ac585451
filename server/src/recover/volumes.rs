//! The volumes of a site that is recovered, as of the last checkpoints that its clients know; those whose journal clients mirror
//! as of the last flush that was answered.
//!
//! What else was written since was on the lost server only. Snapshots are not recovered: clients know no roots of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
    sync::Arc,
};

use super::{
    fleet::Fleet,
    images::{Found as Images, Map, Row as VersionRow, fetch_all, parts},
};
use crate::{
    db::volume::VolumeLayout,
    site::Site,
    volumes::{home::gather, journal_path, make_journal},
};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use cairn_array::{
    authority::SiteKeys,
    store::Store,
    volume::{RootName, StoreSegments, root_name, segments_of_root},
    wrap::Identity,
};
use cairn_core::{
    bundle::Item,
    id::{AgentId, SegmentId, StripeSetId, VersionId, VolumeId},
    manifest::SegmentEntry,
    seal::SealKey,
    sign::VerifyingKey,
    stripe_map::{Shard, StripeMap},
    units::{BLOCK_BYTES, ByteCount, Generation},
    volume::{Durability, checkpoint::Root},
};

/// A volume with its secrets.
pub(super) struct Volume {
    root: Root,
    name: String,
    size: ByteCount,
    durability: Durability,
    content_key: SealKey,
    /// As the lost server signed it.
    signed: Bytes,
    /// What the root names.
    segments: Vec<SegmentEntry>,
}

/// A volume to be written down.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    pub(crate) size: ByteCount,
    pub(crate) layout: VolumeLayout,
    /// The version whose segments it shares.
    pub(crate) origin: Option<VersionId>,
    /// Wrapped for the new server and the recovery key.
    pub(crate) content_key: Vec<u8>,
    pub(crate) durability: Durability,
    key: SealKey,
    /// Of the last controller that clients heard of.
    pub(crate) generation: Generation,
    pub(crate) data: Vec<SegmentEntry>,
    pub(crate) parity: Vec<SegmentEntry>,
    pub(crate) holders: Vec<(AgentId, SegmentId)>,
    /// Its map, unless the parity that it names was lost with the server.
    pub(crate) map: Option<(Generation, Bytes)>,
    /// As the lost server signed it.
    pub(crate) root: Bytes,
}

/// Opens the roots.
///
/// # Errors
/// When one is not signed by this site, or does not open with its recovery key.
pub(super) fn read(
    keys: &SiteKeys,
    recovery: &Identity,
    items: &[Item<'_>],
) -> Result<Vec<Volume>> {
    let verifier = keys.signer()?.verifying_key();
    let roots = items.iter().filter_map(|item| match item {
        Item::VolumeRoot(signed) => Some(*signed),
        _ => None,
    });
    let volumes = roots.map(|signed| {
        let root = Root::open(&verifier, signed).context("open the root of a volume")?;
        let content_key = recovery.unwrap_key(&root.wrapped_key)?;
        let secret = root.open_secret(&content_key).context("open the root of a volume")?;
        let size = ByteCount(secret.blocks * BLOCK_BYTES as u64);
        let signed = Bytes::copy_from_slice(signed);
        let (name, durability) = (secret.name, secret.durability);
        Ok(Volume { root, name, size, durability, content_key, signed, segments: Vec::new() })
    });
    volumes.collect()
}

/// Brings every segment of every volume into the store. Returns the volumes that are whole, and in words those that are
/// not.
///
/// # Errors
/// When the store fails.
pub(super) async fn fetch(
    store: &Arc<Store>,
    fleet: &Fleet,
    images: &Images,
    volumes: Vec<Volume>,
    tell: &impl Fn(&str),
) -> Result<(Vec<Volume>, Vec<String>)> {
    let verifier = fleet.keys.signer()?.verifying_key();
    let (mut whole, mut lost) = (Vec::new(), Vec::new());
    for mut volume in volumes {
        let name = format!("volume {}", volume.name);
        let fetched = match bring(store, fleet, images, &volume.root.metas, &name, tell).await? {
            Err(reason) => Err(reason),
            Ok(()) => {
                volume.segments = named(store, &volume, verifier).await?;
                bring(store, fleet, images, &volume.segments, &name, tell).await?
            }
        };
        match fetched {
            Ok(()) => whole.push(volume),
            Err(reason) => lost.push(format!("{name} cannot be read: {reason}")),
        }
    }
    Ok((whole, lost))
}

/// The inner error is for people: some segments can be had from nobody now.
async fn bring(
    store: &Store,
    fleet: &Fleet,
    images: &Images,
    entries: &[SegmentEntry],
    name: &str,
    tell: &impl Fn(&str),
) -> Result<Result<(), String>> {
    let mut missing = Vec::new();
    for entry in entries {
        if !store.has_segment(entry.id).await.context("look into the store")? {
            missing.push(*entry);
        }
    }
    let bytes: u64 = missing.iter().map(|entry| u64::from(entry.bytes)).sum();
    tell(&format!("{name}: fetching {} segments, {} MB", missing.len(), bytes / 1_000_000));
    fetch_all(store, fleet, images, &missing, name, tell).await
}

async fn named(
    store: &Arc<Store>,
    volume: &Volume,
    verifier: VerifyingKey,
) -> Result<Vec<SegmentEntry>> {
    let segments = StoreSegments::new(Arc::clone(store), None, tokio::runtime::Handle::current());
    let (signed, id) = (volume.signed.clone(), volume.root.volume);
    let key = volume.content_key.clone();
    let read = tokio::task::spawn_blocking(move || {
        segments_of_root(&segments, &signed, id, &verifier, &key)
    });
    read.await.context("wait for a thread")?.with_context(|| format!("read volume {}", volume.name))
}

/// Who holds what, as the map says.
fn layout_of(map: &StripeMap) -> VolumeLayout {
    let Some(stripe) = map.stripes.first() else { return VolumeLayout::Swarm };
    let held = |shards: &[Shard]| shards.first().is_some_and(|shard| !shard.holders.is_empty());
    match (stripe.k, held(&stripe.data), held(&stripe.parity)) {
        (1, ..) => VolumeLayout::Mirror,
        (_, true, false) => VolumeLayout::ServerParity,
        (_, false, _) => VolumeLayout::ClientParity,
        (_, true, true) => VolumeLayout::Swarm,
    }
}

/// The rows of the volumes that are whole, and in words those that are lost after all.
///
/// # Errors
/// When a content key cannot be wrapped.
pub(super) fn rows(
    site: &Site,
    maps: &BTreeMap<StripeSetId, Map>,
    volumes: &[Volume],
    versions: &[VersionRow],
    directory: &cairn_core::directory::Directory,
) -> Result<(Vec<Row>, Vec<String>)> {
    let (mut rows, mut lost) = (Vec::new(), Vec::new());
    for volume in volumes {
        let map = maps.get(&volume.root.volume.into());
        let map = map.with_context(|| format!("volume {} has no stripe map", volume.name))?;
        let own = map.map.stripes.iter().flat_map(|stripe| &stripe.data);
        let data: Vec<_> =
            own.map(|shard| SegmentEntry { id: shard.id, bytes: shard.bytes }).collect();
        let Some(origin) = origin(volume, &data, versions) else {
            lost.push(format!("volume {} began as a snapshot, which is lost", volume.name));
            continue;
        };
        let (parity, holders) = parts(&map.map);
        let layout = layout_of(&map.map);
        let member = |(agent, _): &(AgentId, SegmentId)| directory.is_member(agent);
        let kept = (map.map.number, map.signed.clone());
        rows.push(Row {
            id: volume.root.volume,
            name: volume.name.clone(),
            size: volume.size,
            layout,
            origin,
            content_key: site.wrap_content_key(&volume.content_key)?,
            durability: volume.durability,
            key: volume.content_key.clone(),
            generation: volume.root.generation,
            data,
            parity,
            holders: holders.into_iter().filter(member).collect(),
            map: (layout != VolumeLayout::ServerParity).then_some(kept),
            root: volume.signed.clone(),
        });
    }
    Ok((rows, lost))
}

/// The version whose segments a volume names beside its own; none when it is unknown whose they are.
#[expect(clippy::option_option, reason = "a volume may have no origin, or one that is not found")]
fn origin(
    volume: &Volume,
    own: &[SegmentEntry],
    versions: &[VersionRow],
) -> Option<Option<VersionId>> {
    let own: HashSet<SegmentId> = own.iter().map(|entry| entry.id).collect();
    let foreign = volume.segments.iter().map(|entry| entry.id).filter(|id| !own.contains(id));
    let foreign: BTreeSet<SegmentId> = foreign.collect();
    if foreign.is_empty() {
        return Some(None);
    }
    let has_all = |row: &&VersionRow| {
        let has: HashSet<SegmentId> = row.segments.iter().map(|entry| entry.id).collect();
        foreign.iter().all(|id| has.contains(id))
    };
    versions.iter().find(has_all).map(|row| Some(row.version))
}

/// Gives a volume its root, and the journal that clients have of it, or an empty one.
///
/// # Errors
/// When there is no room for them.
pub(super) async fn keep(
    data_dir: &Path,
    store: &Arc<Store>,
    fleet: &Fleet,
    row: &mut Row,
) -> Result<()> {
    let file = journal_path(data_dir, row.id);
    super::forget(std::fs::remove_file(&file))?;
    let name = root_name(row.id, RootName::Live)?;
    store.put_blob(&name, row.root.clone()).await.context("keep the root of a volume")?;
    if row.durability == Durability::Mirrored
        && let Some(generation) = gather(&file, (&fleet.peers, &fleet.members), row.id, &row.key)
            .await
            .with_context(|| format!("put the journal of volume {} together", row.name))?
            .generation
    {
        row.generation = row.generation.max(generation);
        return Ok(());
    }
    make_journal(data_dir, store, row.id, (row.size, row.durability))
        .await
        .with_context(|| format!("make the journal of volume {}", row.name))
}
