//! What clients are to hold of volumes, and what may leave the store once they do.
//!
//! Invariants: what a durable root names, the volume's or a snapshot's, is retained in the store from the moment that it is
//! gathered until no published stripe map names it; clients are told to drop it only when they know a newer root.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use cairn_array::wire::SegmentClass;
use cairn_core::{
    id::{SegmentId, VolumeId},
    layout::DataSegment,
    volume::Durability,
};

use futures::{StreamExt as _, stream};

use super::{Open, blocking};
use crate::{
    app::App,
    db::{
        segment::SegmentRow,
        volume::{VolumeLayout, VolumeStage},
    },
    jobs::{JobHandle, Kind},
};

/// How often it is looked whether a volume has a new root.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Segments that are looked for, and brought back if need be, at once.
const AT_ONCE: usize = 4;
/// How long a new root waits: volumes that are written make one every few seconds.
const SETTLE: Duration = Duration::from_secs(2);

/// What is to be scattered of a set.
#[derive(Clone, Debug)]
pub(crate) struct Gathered {
    pub(crate) data: Vec<DataSegment>,
    /// Of a volume: the root that names the data.
    pub(crate) root: Option<Bytes>,
    pub(crate) layout: VolumeLayout,
    /// Of the server's store.
    pub(crate) devices: usize,
}

/// What is to be scattered of a volume; none when it is on the server only, or not in use.
pub(crate) async fn gather(
    app: &App,
    id: VolumeId,
    job: &JobHandle,
) -> anyhow::Result<Option<Gathered>> {
    let row = app.db.volume(id).await.context("look for the volume")?;
    let wanted = row.filter(|row| row.stage == VolumeStage::Ready);
    let Some(row) = wanted.filter(|row| row.layout != VolumeLayout::Server) else {
        return Ok(None);
    };
    let Some((open, snapshots)) = app.volumes.with_snapshots(id) else { return Ok(None) };
    let (root, entries) = blocking(move || {
        let checkpoint = open.checkpoint()?;
        let mut entries = checkpoint.segments;
        for snapshot in snapshots {
            let named = open.segments_of_snapshot(snapshot)?;
            open.retain(named.iter().map(|entry| entry.id));
            entries.extend(named);
        }
        let mut seen = HashSet::new();
        entries.retain(|entry| seen.insert(entry.id));
        Ok((checkpoint.root, entries))
    })
    .await
    .context("read what the volume names")?;
    let class = SegmentClass::Data;
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| SegmentRow { id: entry.id, bytes: entry.bytes, class })
        .collect();
    app.db.add_segments_of_set(id.into(), &rows).await.context("write down segments")?;
    // What it began as may be another set's.
    let own: HashSet<_> = data_of(app, id).await?.into_iter().collect();
    let own = entries.iter().filter(|entry| own.contains(&entry.id));
    let mut data: Vec<_> =
        own.map(|entry| DataSegment { id: entry.id, bytes: entry.bytes, device: 0 }).collect();
    if row.layout != VolumeLayout::ServerParity {
        bring_back_to(app, &mut data, job).await?;
    }
    let devices = app.store.devices();
    Ok(Some(Gathered { data, root: Some(root), layout: row.layout, devices }))
}

/// Brings the segments that the store lacks back to it.
pub(crate) async fn bring_back(
    app: &App,
    data: &[DataSegment],
    job: &JobHandle,
) -> anyhow::Result<()> {
    bring_back_to(app, &mut data.to_vec(), job).await
}

/// As [`bring_back`], and notes on which device each is.
async fn bring_back_to(app: &App, data: &mut [DataSegment], job: &JobHandle) -> anyhow::Result<()> {
    let total = data.len() as u64;
    let ids: Vec<SegmentId> = data.iter().map(|segment| segment.id).collect();
    let looks = ids.into_iter().map(|id| device_of(app, id));
    let mut found = stream::iter(looks).buffered(AT_ONCE);
    for (done, segment) in (0..).zip(data) {
        segment.device = found.next().await.context("look for a segment")??;
        job.progress(done, total, "segments looked for").await?;
    }
    Ok(())
}

/// The device that a segment is on. One that is lost is brought back first.
async fn device_of(app: &App, id: SegmentId) -> anyhow::Result<usize> {
    let found = match app.store.device_of_segment(id).await {
        Ok(None) => {
            let bytes = app.finder.find(id).await.context("bring back a segment")?;
            app.store.put_segment(id, bytes).await.context("bring back a segment")?;
            tracing::info!(segment = %id, "a segment that the store lacked is back");
            app.store.device_of_segment(id).await
        }
        found => found,
    };
    found.context("look for a segment")?.context("a segment vanished from the store")
}

/// The segments of a volume that the database knows, named or not.
pub(super) async fn data_of(app: &App, id: VolumeId) -> anyhow::Result<Vec<SegmentId>> {
    let rows = app.db.segments_of_set(id.into()).await.context("list segments")?;
    let data = rows.iter().filter(|row| row.class == SegmentClass::Data);
    Ok(data.map(|row| row.id).collect())
}

async fn dead(
    app: &App,
    id: VolumeId,
    named: &BTreeSet<SegmentId>,
) -> anyhow::Result<Vec<SegmentId>> {
    let mut dead = data_of(app, id).await?;
    dead.retain(|segment| !named.contains(segment));
    Ok(dead)
}

/// Lets segments go from the store that the published map does not name.
pub(crate) async fn release(
    app: &App,
    id: VolumeId,
    named: &BTreeSet<SegmentId>,
) -> anyhow::Result<()> {
    let dead = dead(app, id, named).await?;
    let Some(open) = app.volumes.by_id(id) else { return Ok(()) };
    blocking(move || Ok(open.release(&dead)?)).await.context("let segments go")
}

/// Forgets segments that the published map does not name.
pub(crate) async fn forget_dead(
    app: &App,
    id: VolumeId,
    named: &BTreeSet<SegmentId>,
) -> anyhow::Result<()> {
    let dead = dead(app, id, named).await?;
    app.db.forget_segments(&dead).await.context("forget segments")
}

/// Lets data go from the store that clients hold; the pages of map and table stay.
pub(crate) async fn offload(
    app: &App,
    id: VolumeId,
    held: &BTreeSet<SegmentId>,
) -> anyhow::Result<()> {
    let Some((open, snapshots)) = app.volumes.with_snapshots(id) else { return Ok(()) };
    let mut held = held.clone();
    let done = blocking(move || {
        for snapshot in snapshots {
            for page in open.pages_of_snapshot(snapshot)? {
                held.remove(&page);
            }
        }
        Ok(open.offload(&held)?)
    });
    done.await.context("let data go that clients hold")
}

/// Before a volume goes: clients hold nothing of it any more, and the store nothing that is not the volume's own.
pub(super) async fn withdraw(app: &App, id: VolumeId, open: Option<&Open>) -> anyhow::Result<()> {
    let rows = app.db.segments_of_set(id.into()).await.context("list segments")?;
    if rows.is_empty() {
        return Ok(());
    }
    app.db.assign_set(id.into(), &[]).await.context("withdraw segments")?;
    app.db.forget_stripe_map(id.into()).await.context("forget the stripe map")?;
    app.agents_changed.notify();
    app.queue(Kind::Bundle).await.context("queue the bundle")?;
    for parity in rows.iter().filter(|row| row.class == SegmentClass::Parity) {
        app.store.delete_segment(parity.id).await.context("delete parity")?;
    }
    if let Some(open) = open.cloned() {
        let data = rows.iter().filter(|row| row.class == SegmentClass::Data);
        let data: Vec<_> = data.map(|row| row.id).collect();
        blocking(move || Ok(open.release(&data)?)).await.context("let segments go")?;
    }
    Ok(())
}

/// Queues the scatter of every volume that has a new root, until the server stops.
pub(crate) async fn watch(app: App) {
    let mut known: HashMap<VolumeId, u64> = HashMap::new();
    loop {
        let now = app.volumes.roots_to_scatter();
        known.retain(|id, _| now.contains_key(id));
        for (id, (number, durability)) in now {
            if known.insert(id, number) == Some(number) {
                continue;
            }
            let delay = match durability {
                Durability::Local => SETTLE,
                // Its journal is not free before clients know the root.
                Durability::Mirrored => Duration::ZERO,
            };
            if let Err(error) = app.queue_after(Kind::Scatter { set: id.into() }, delay).await {
                tracing::error!(%error, volume = %id, "queue the scatter of a volume");
                known.remove(&id);
            }
        }
        if app.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}
