//! The bundle: what the site needs without this server, held whole by its clients (see [`cairn_core::bundle`]).
//!
//! ```text
//!   collect ─► same as the newest? ─► keep in the store ─► agents hold it beside the old one
//!                     │ yes                                         │
//!                     └────────────► wait for those who are there ◄─┘ ─► directory names it ─► the old one goes
//! ```
//!
//! Invariants: the directory names a bundle only when every client that is there and carries it holds all of it; what an
//! earlier directory named goes only after that; a client with little room carries none.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use cairn_array::{
    dsf::SlotCount,
    wire::{AssignedSegment, SegmentClass},
};
use cairn_core::{
    bundle::{self, Item, MAX_SEGMENTS},
    id::{AgentId, SegmentId},
    manifest::SegmentEntry,
    units::ByteCount,
};

use crate::{
    agents::directory,
    app::App,
    boot_build::{self, INITRD_FILE, KERNEL_FILE, RECORD_FILE},
    db::{agent::AgentRow, bundle::BundleRow},
    jobs::{JobHandle, Kind},
    register::manifest,
    scatter::is_asleep,
    volumes::mirror,
};

/// The part of a client's slots that bundles may take: one in so many.
pub(crate) const SHARE: u64 = 4;
const LOOK_EVERY: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How often the boot payload is looked at: it is built by another process.
const WATCH_EVERY: Duration = Duration::from_secs(15);

/// Whether a client has room for what the site needs without its server.
pub(crate) async fn is_carried(app: &App) -> anyhow::Result<bool> {
    let kept = segments_of(&app.db.bundles().await?).len().max(1);
    let fleet = app.db.approved_agents().await.context("list agents")?;
    Ok(fleet.iter().any(|agent| slots_taken(agent.lend, kept) > 0))
}

/// What agents are to hold of all bundles that are kept: each segment once.
pub(crate) fn segments_of(bundles: &[BundleRow]) -> Vec<SegmentEntry> {
    let mut seen = BTreeSet::new();
    let all = bundles.iter().flat_map(|bundle| &bundle.segments);
    all.filter(|segment| seen.insert(segment.id)).copied().collect()
}

/// Slots that bundles of so many segments take of a client that lends this: none when that would be too large a part.
pub(crate) fn slots_taken(lend: ByteCount, segments: usize) -> u64 {
    let wanted = segments as u64;
    if wanted.saturating_mul(SHARE) <= u64::from(SlotCount::fitting(lend).0) { wanted } else { 0 }
}

/// What an agent is to hold of the bundles, with who else holds it.
pub(crate) async fn assignment(
    app: &App,
    agent: &AgentRow,
) -> crate::db::Result<Vec<AssignedSegment>> {
    let segments = segments_of(&app.db.bundles().await?);
    if slots_taken(agent.lend, segments.len()) == 0 {
        return Ok(Vec::new());
    }
    let mut holders = app.db.bundle_holders().await?;
    let assigned = segments.into_iter().map(|segment| {
        let mut sources = holders.remove(&segment.id).unwrap_or_default();
        sources.retain(|other| *other != agent.id);
        let class = SegmentClass::Data;
        AssignedSegment { id: segment.id, bytes: segment.bytes, class, sources }
    });
    Ok(assigned.collect())
}

/// Makes the bundle of what there is now, has clients hold it and publishes it. Doing it again does no harm. False when
/// clients that are to hold it are not there: it is queued for later then.
pub(crate) async fn refresh(app: &App, job: &JobHandle) -> anyhow::Result<bool> {
    let _alone = app.bundling.lock().await;
    let bytes = Bytes::from(collect(app).await.context("collect the bundle")?);
    let cuts: Vec<(SegmentEntry, Bytes)> =
        bundle::cut(&bytes).map(|(entry, part)| (entry, bytes.slice_ref(part))).collect();
    ensure!(
        cuts.len() <= MAX_SEGMENTS,
        "manifests, stripe maps and boot files take {} bytes, more than a bundle holds: clients keep the last one",
        bytes.len()
    );
    let segments: Vec<_> = cuts.iter().map(|(entry, _)| *entry).collect();
    let newest = app.db.bundles().await?.pop();
    let id = match newest {
        Some(newest) if newest.segments == segments => {
            keep(app, cuts).await?;
            newest.id
        }
        _ => {
            keep(app, cuts).await?;
            let id = app.db.add_bundle(&segments).await?;
            app.agents_changed.notify();
            id
        }
    };
    match wait_for_holders(app, job, &segments).await? {
        Wait::AllHeld => {
            publish(app, id).await?;
            mirror::note_known(app, &bytes).await?;
            Ok(true)
        }
        Wait::NobodyThere => {
            let queued = app.queue_after(Kind::Bundle, AGAIN_AFTER).await;
            queued.context("queue the bundle again").map(|()| false)
        }
        // Whoever joins or lends more queues it.
        Wait::NobodyCarries => Ok(true),
    }
}

/// Puts the segments that the store lacks.
async fn keep(app: &App, cuts: Vec<(SegmentEntry, Bytes)>) -> anyhow::Result<()> {
    for (entry, part) in cuts {
        if !app.store.has_segment(entry.id).await.context("look for the bundle")? {
            app.store.put_segment(entry.id, part).await.context("keep the bundle")?;
        }
    }
    Ok(())
}

/// Why waiting for the holders ended.
enum Wait {
    AllHeld,
    /// Those who could carry the bundle sleep, or their disks are full.
    NobodyThere,
    NobodyCarries,
}

/// What changes least comes first.
async fn collect(app: &App) -> anyhow::Result<Vec<u8>> {
    let files = boot_files(app).await?;
    let mut versions = app.db.versions().await?;
    versions.sort_by_key(|version| (version.created, version.id));
    let mut manifests = Vec::new();
    for version in versions {
        // One that was taken apart since it was listed has none.
        manifests.extend(manifest(app, version.id).await?);
    }
    let maps = app.db.stripe_maps().await?;
    let files = files.iter().map(|(name, content)| Item::BootFile { name, content });
    let manifests = manifests.iter().map(|signed| Item::Manifest(signed));
    let stripe_maps = maps.iter().map(|kept| Item::StripeMap(&kept.signed));
    let roots = maps.iter().filter_map(|kept| kept.root.as_deref()).map(Item::VolumeRoot);
    let items: Vec<_> = files.chain(manifests).chain(stripe_maps).chain(roots).collect();
    Ok(bundle::encode(&items))
}

/// Kernel and initramfs once they were built, and the loaders that the distribution gave, by the names machines ask for.
async fn boot_files(app: &App) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    if boot_build::built(&app.boot_folder)?.is_none() {
        return Ok(Vec::new());
    }
    let (folder, loaders) = (app.boot_folder.clone(), app.ipxe_dir.clone());
    let read = move || {
        let payload = [
            ("vmlinuz", folder.join(KERNEL_FILE)),
            ("initrd", folder.join(INITRD_FILE)),
            (RECORD_FILE, folder.join(RECORD_FILE)),
        ];
        let loaders = cairn_pxe::LOADERS.map(|name| (name, loaders.join(name)));
        let there = loaders.into_iter().filter(|(_, path)| path.is_file());
        there.chain(payload).map(|(name, path)| Ok((name, read(&path)?))).collect()
    };
    tokio::task::spawn_blocking(read).await.context("read the boot files")?
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Waits until every carrier that is there holds all of it.
async fn wait_for_holders(
    app: &App,
    job: &JobHandle,
    segments: &[SegmentEntry],
) -> anyhow::Result<Wait> {
    let ids: BTreeSet<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    let mut changes = app.holdings_changed.watch();
    loop {
        let kept = segments_of(&app.db.bundles().await?).len();
        let fleet = app.db.approved_agents().await.context("list agents")?;
        let mut carriers = fleet;
        carriers.retain(|agent| slots_taken(agent.lend, kept) > 0);
        if carriers.is_empty() {
            return Ok(Wait::NobodyCarries);
        }
        carriers.retain(|agent| {
            !is_asleep(agent) && !app.conditions.rests(agent.id) && !app.full_disks.is_full(agent)
        });
        let carriers: Vec<AgentId> = carriers.iter().map(|agent| agent.id).collect();
        if carriers.is_empty() {
            return Ok(Wait::NobodyThere);
        }
        let holders = app.db.bundle_holders().await.context("list holders of the bundle")?;
        let holds = |id: &SegmentId, agent| holders.get(id).is_some_and(|all| all.contains(agent));
        let pairs = ids.iter().flat_map(|id| carriers.iter().map(move |agent| (id, agent)));
        let missing = pairs.filter(|(id, agent)| !holds(id, agent)).count();
        let wanted = ids.len() * carriers.len();
        job.progress((wanted - missing) as u64, wanted as u64, "segments").await?;
        if missing == 0 {
            return Ok(Wait::AllHeld);
        }
        tokio::select! {
            changed = changes.changed() => changed.context("wait for holdings")?,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn publish(app: &App, id: i64) -> anyhow::Result<()> {
    let before = segments_of(&app.db.bundles().await?);
    app.db.publish_bundle(id).await?;
    directory::rebuild(app).await?;
    let kept = segments_of(&app.db.bundles().await?);
    for gone in before.iter().filter(|segment| !kept.contains(segment)) {
        app.store.delete_segment(gone.id).await.context("delete an old bundle")?;
    }
    app.agents_changed.notify();
    Ok(())
}

/// Queues a refresh whenever the boot payload was built anew, until the server stops.
pub(crate) async fn watch_payload(app: App) {
    let mut known = None;
    loop {
        match boot_build::built(&app.boot_folder) {
            Ok(now) => {
                if now != known
                    && let Err(error) = app.queue(Kind::Bundle).await
                {
                    tracing::error!(%error, "queue the bundle");
                }
                known = now;
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "look at the boot payload"),
        }
        if app.stop.run_until_cancelled(tokio::time::sleep(WATCH_EVERY)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_little_room_carries_no_bundle() {
        let slots = |slots: u64| ByteCount(slots * 4200 * 1024);
        assert_eq!(slots_taken(slots(40), 7), 7);
        assert_eq!(slots_taken(slots(20), 7), 0);
        assert_eq!(slots_taken(ByteCount(0), 1), 0);
    }

    #[test]
    fn a_segment_of_two_bundles_is_held_once() {
        let entry = |byte| SegmentEntry { id: SegmentId([byte; 32]), bytes: 1 };
        let bundle = |id, bytes: &[u8]| BundleRow {
            id,
            published: false,
            segments: bytes.iter().copied().map(entry).collect(),
        };
        let all = segments_of(&[bundle(1, &[1, 2]), bundle(2, &[1, 1, 3])]);
        assert_eq!(all, [entry(1), entry(2), entry(3)]);
    }
}
