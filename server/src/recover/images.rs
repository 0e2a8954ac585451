//! The images of a site that is recovered: read from the bundle, fetched into the store, turned into rows.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use cairn_array::{authority::SiteKeys, install::Fetcher, random, store::Store, wrap::Identity};
use cairn_core::{
    bundle::Item,
    fetch::Limits,
    id::{AgentId, ImageId, SegmentId, StripeSetId, VersionId},
    manifest::{Public, Secret, SegmentEntry},
    seal::SealKey,
    stripe_map::StripeMap,
    units::{ByteCount, Generation},
};
use tokio::sync::mpsc;

use super::fleet::Fleet;
use crate::site::Site;

/// Segments on their way into the store.
const QUEUE: usize = 4;
/// Complaints that wait to be logged.
const COMPLAINTS: usize = 64;
/// Failures in a row after which a client counts as gone.
const GONE_AFTER: u32 = 3;
const TELL_EVERY_BYTES: u64 = 1 << 30;

/// A version with its secrets.
pub(super) struct Version {
    public: Public,
    secret: Secret,
    content_key: SealKey,
    /// As the lost server signed it.
    signed: Bytes,
}

/// A stripe map, as the lost server signed it.
pub(super) struct Map {
    pub(super) map: StripeMap,
    pub(super) signed: Bytes,
}

/// What the bundle holds of images.
pub(super) struct Found {
    /// By name and number.
    versions: Vec<Version>,
    pub(super) maps: BTreeMap<StripeSetId, Map>,
}

/// A version to be written down.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) image: ImageId,
    pub(crate) image_name: String,
    pub(crate) version: VersionId,
    pub(crate) number: u32,
    pub(crate) size: ByteCount,
    /// Sealed bytes of all its segments, and of those that no older version has.
    pub(crate) stored: ByteCount,
    pub(crate) added: ByteCount,
    /// Seconds since 1970.
    pub(crate) registered_at: u64,
    /// Wrapped for the new server and the recovery key.
    pub(crate) content_key: Vec<u8>,
    pub(crate) segments: Vec<SegmentEntry>,
    /// The map of its image, and what it says.
    pub(crate) map: Option<(Generation, Bytes)>,
    pub(crate) parity: Vec<SegmentEntry>,
    pub(crate) holders: Vec<(AgentId, SegmentId)>,
    /// For the store, under the version's name.
    pub(crate) manifest: Bytes,
}

impl Version {
    fn name(&self) -> String {
        format!("{}@{}", self.secret.name, self.secret.number)
    }
}

impl Row {
    /// `NAME@N`
    pub(crate) fn name(&self) -> String {
        format!("{}@{}", self.image_name, self.number)
    }
}

/// Opens manifests and stripe maps.
///
/// # Errors
/// When one is not signed by this site, or does not open with its recovery key.
pub(super) fn read(keys: &SiteKeys, recovery: &Identity, items: &[Item<'_>]) -> Result<Found> {
    let verifier = keys.signer()?.verifying_key();
    let (mut versions, mut maps) = (Vec::new(), BTreeMap::new());
    for item in items {
        match item {
            Item::BootFile { .. } | Item::VolumeRoot(_) => {}
            Item::Manifest(signed) => {
                let public = Public::open(&verifier, signed).context("open a manifest")?;
                let content_key = recovery.unwrap_key(&public.wrapped_key)?;
                let secret = public.open_secret(&content_key).context("open a manifest")?;
                let signed = Bytes::copy_from_slice(signed);
                versions.push(Version { public, secret, content_key, signed });
            }
            Item::StripeMap(signed) => {
                let map = StripeMap::open(&verifier, signed).context("open a stripe map")?;
                maps.insert(map.set, Map { map, signed: Bytes::copy_from_slice(signed) });
            }
        }
    }
    versions.sort_by(|a: &Version, b| {
        (&a.secret.name, a.secret.number).cmp(&(&b.secret.name, b.secret.number))
    });
    Ok(Found { versions, maps })
}

/// Brings every segment of every version into the store. Returns the versions that are whole, and in words those that are
/// not.
///
/// # Errors
/// When the store fails.
pub(super) async fn fetch(
    store: &Store,
    fleet: &Fleet,
    found: &Found,
    tell: &impl Fn(&str),
) -> Result<(BTreeSet<VersionId>, Vec<String>)> {
    let (mut whole, mut lost) = (BTreeSet::new(), Vec::new());
    for version in &found.versions {
        let mut missing = Vec::new();
        let mut seen = HashSet::new();
        for entry in version.public.segments().filter(|entry| seen.insert(entry.id)) {
            if !store.has_segment(entry.id).await.context("look into the store")? {
                missing.push(*entry);
            }
        }
        let bytes: u64 = missing.iter().map(|entry| u64::from(entry.bytes)).sum();
        let name = version.name();
        tell(&format!("{name}: fetching {} segments, {} MB", missing.len(), bytes / 1_000_000));
        match fetch_all(store, fleet, found, &missing, &name, tell).await? {
            Ok(()) => {
                whole.insert(version.public.version);
            }
            Err(reason) => lost.push(format!("{name} cannot be read: {reason}")),
        }
    }
    Ok((whole, lost))
}

/// The inner error is for people: some segments can be had from nobody now.
pub(super) async fn fetch_all(
    store: &Store,
    fleet: &Fleet,
    found: &Found,
    missing: &[SegmentEntry],
    name: &str,
    tell: &impl Fn(&str),
) -> Result<Result<(), String>> {
    let (complain, mut complaints) = mpsc::channel(COMPLAINTS);
    let maps = found.maps.values().map(|map| map.map.clone()).collect();
    let seed = u64::from_le_bytes(random::array()?);
    // Whoever is off now is asked again when the operator runs this again, not for minutes.
    let limits = Limits { gone_after: GONE_AFTER, ..Limits::default() };
    let fetcher = Fetcher::new(fleet.peers.clone(), maps, fleet.members.clone(), seed, complain)
        .with_limits(limits);
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let fetched = async {
        let outcome = fetcher.fetch_all(missing, sender).await;
        outcome.map_err(|error| error.stuck.to_string())
    };
    let stored = async {
        let (mut done, mut told) = (0_u64, 0_u64);
        while let Some((entry, bytes)) = receiver.recv().await {
            store.put_segment(entry.id, bytes).await.context("store a segment")?;
            done += u64::from(entry.bytes);
            if done >= told + TELL_EVERY_BYTES {
                told = done;
                tell(&format!("{name}: {} MB are here", done / 1_000_000));
            }
        }
        anyhow::Ok(())
    };
    let logged = async {
        while let Some(complaint) = complaints.recv().await {
            tracing::warn!(?complaint, "a client serves wrong");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        (outcome, stored) = futures::future::join(fetched, stored) => {
            stored?;
            Ok(outcome)
        }
        () = logged => bail!("the log ended"),
    }
}

/// The rows of the versions that are whole.
///
/// # Errors
/// When a content key cannot be wrapped.
pub(super) fn rows(
    site: &Site,
    found: &Found,
    whole: &BTreeSet<VersionId>,
    directory: &cairn_core::directory::Directory,
) -> Result<Vec<Row>> {
    let mut older: HashSet<SegmentId> = HashSet::new();
    let mut rows = Vec::new();
    for version in found.versions.iter().filter(|it| whole.contains(&it.public.version)) {
        let mut seen = HashSet::new();
        let segments: Vec<_> = version.public.segments().copied().collect();
        let once = || segments.iter().map(|entry| (entry.id, u64::from(entry.bytes)));
        let stored = once().filter(|(id, _)| seen.insert(*id)).map(|(_, bytes)| bytes).sum();
        let added = once().filter(|(id, _)| older.insert(*id)).map(|(_, bytes)| bytes).sum();
        let map = found.maps.get(&version.public.image.into());
        let (parity, holders) = map.map(|map| parts(&map.map)).unwrap_or_default();
        let member = |(agent, _): &(AgentId, SegmentId)| directory.is_member(agent);
        rows.push(Row {
            image: version.public.image,
            image_name: version.secret.name.clone(),
            version: version.public.version,
            number: version.secret.number,
            size: version.public.size,
            stored: ByteCount(stored),
            added: ByteCount(added),
            registered_at: version.secret.registered_at,
            content_key: site.wrap_content_key(&version.content_key)?,
            segments,
            map: map.map(|map| (map.map.number, map.signed.clone())),
            parity,
            holders: holders.into_iter().filter(member).collect(),
            manifest: version.signed.clone(),
        });
    }
    Ok(rows)
}

/// The parity segments of a map, and who holds what of it.
pub(super) fn parts(map: &StripeMap) -> (Vec<SegmentEntry>, Vec<(AgentId, SegmentId)>) {
    let (mut parity, mut holders) = (Vec::new(), Vec::new());
    for stripe in &map.stripes {
        let entry = |shard: &cairn_core::stripe_map::Shard| SegmentEntry {
            id: shard.id,
            bytes: shard.bytes,
        };
        parity.extend(stripe.parity.iter().map(entry));
        for (_, shard) in stripe.shards() {
            holders.extend(map.agents(shard).map(|agent| (agent, shard.id)));
        }
    }
    (parity, holders)
}
