//! Opening the volumes when the server starts: first all of them, then what they share, and only then their threads start,
//! which delete what nobody shares.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use cairn_array::volume::{DiskMedium, RunningVolume, Volume};
use cairn_core::{
    id::{SnapshotId, VolumeId},
    manifest::SegmentEntry,
};

use super::{
    Entry, Open, blocking, home, journal_file, keys, name, remove_parts, scatter, segment_reader,
    shared::Shared, snapshots::delete_root,
};
use crate::{
    app::App,
    db::{
        snapshot::SnapshotRow,
        volume::{VolumeRow, VolumeStage},
    },
};

/// How long until volumes that could not be opened are tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A volume without threads.
pub(super) type Closed = Volume<DiskMedium>;

/// Opens all volumes, and removes what a kill left of some. Whether there was such.
pub(crate) async fn open_all(app: &App) -> anyhow::Result<bool> {
    let (snapshots, mut cut_short) = settle_snapshots(app).await?;
    let mut opened: BTreeMap<VolumeId, (VolumeRow, anyhow::Result<(Closed, Shared)>)> =
        BTreeMap::new();
    for row in app.db.volumes().await.context("list volumes")? {
        if row.stage != VolumeStage::Ready {
            let stage = row.stage.word();
            tracing::info!(volume = row.name, stage, "a volume that was cut short is removed");
            remove_parts(app, row.id, None).await?;
            cut_short = true;
            continue;
        }
        let found = open(app, &row, &snapshots).await;
        opened.insert(row.id, (row, found));
    }
    let started = blocking(move || Ok(start_all(opened))).await?;
    for (row, open) in started {
        let of_it = snapshots.iter().filter(|snapshot| snapshot.volume == row.id);
        let entry = Entry {
            id: row.id,
            open: open.map_err(|error| {
                let why = format!("{error:#}");
                tracing::error!(volume = row.name, error = why, "a volume cannot be opened");
                why
            }),
            layout: row.layout,
            snapshots: of_it.map(Entry::snapshot).collect(),
        };
        app.volumes.entries().insert(row.name, entry);
    }
    Ok(cut_short)
}

/// Deletes snapshots that a kill left half taken or half deleted; the others.
async fn settle_snapshots(app: &App) -> anyhow::Result<(Vec<SnapshotRow>, bool)> {
    let all = app.db.snapshots().await.context("list snapshots")?;
    let (ready, cut_short): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|row| row.stage == VolumeStage::Ready);
    for row in &cut_short {
        let stage = row.stage.word();
        tracing::info!(snapshot = row.name, stage, "a snapshot that was cut short is deleted");
        delete_root(app, row).await?;
        app.db.forget_snapshot(row.id).await.context("forget a snapshot")?;
    }
    Ok((ready, !cut_short.is_empty()))
}

/// A volume, and what it shares.
async fn open(
    app: &App,
    row: &VolumeRow,
    snapshots: &[SnapshotRow],
) -> anyhow::Result<(Closed, Shared)> {
    let shared = Shared::of(app, row, snapshots).await?;
    Ok((closed(app, row).await?, shared))
}

/// Opens a volume, without threads and without knowledge of what it shares.
pub(super) async fn closed(app: &App, row: &VolumeRow) -> anyhow::Result<Closed> {
    let scattered = scatter::data_of(app, row.id).await?;
    let (keys, name) = (keys(app, row)?, name(app, row).await?);
    home::bring(app, row, &keys.content_key).await?;
    let (file, id, segments) = (journal_file(app, row.id), row.id, segment_reader(app));
    blocking(move || {
        let medium = DiskMedium::open(&file, id, segments)?;
        let volume = Volume::open(medium, name, keys)?;
        volume.retain(scattered);
        Ok(volume)
    })
    .await
}

/// Starts the threads of a volume.
pub(super) fn start(volume: Closed) -> anyhow::Result<Open> {
    Ok(Arc::new(RunningVolume::start(volume).context("start threads for a volume")?))
}

/// Tells every volume what it shares, and starts its threads.
fn start_all(
    opened: BTreeMap<VolumeId, (VolumeRow, anyhow::Result<(Closed, Shared)>)>,
) -> Vec<(VolumeRow, anyhow::Result<Open>)> {
    let of_snapshot = |volume: VolumeId, id: SnapshotId| -> anyhow::Result<Vec<SegmentEntry>> {
        match opened.get(&volume) {
            Some((_, Ok((volume, _)))) => Ok(volume.segments_of_snapshot(id)?),
            _ => anyhow::bail!("the volume it was taken of cannot be opened"),
        }
    };
    let pinned: Vec<_> = opened
        .values()
        .map(|(_, found)| found.as_ref().ok().map(|(_, shared)| shared.segments(of_snapshot)))
        .collect();
    let started = opened.into_values().zip(pinned).map(|((row, found), pinned)| {
        let started = found.and_then(|(volume, _)| {
            volume.pin(pinned.transpose()?.unwrap_or_default());
            start(volume)
        });
        (row, started)
    });
    started.collect()
}

/// Tries again to open volumes that could not be opened, until the server stops: what they lacked may be with clients that
/// were asleep.
pub(crate) async fn open_again(app: App) {
    loop {
        if app.stop.run_until_cancelled(tokio::time::sleep(AGAIN_AFTER)).await.is_none() {
            return;
        }
        let closed = |entry: &Entry| entry.open.is_err().then_some(entry.id);
        let closed: Vec<VolumeId> = app.volumes.entries().values().filter_map(closed).collect();
        for id in closed {
            match try_again(&app, id).await {
                Ok(()) => tracing::info!(volume = %id, "a volume could be opened after all"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(volume = %id, error, "a volume still cannot be opened");
                }
            }
        }
    }
}

async fn try_again(app: &App, id: VolumeId) -> anyhow::Result<()> {
    let _alone = app.volumes.changing.lock().await;
    let row = app.db.volume(id).await.context("look for the volume")?;
    let row = row.context("it is gone")?;
    // It may have been removed, or opened, since it was looked up.
    let is_closed = |entry: &Entry| entry.id == id && entry.open.is_err();
    if !app.volumes.look(&row.name, is_closed).unwrap_or(false) {
        return Ok(());
    }
    let mut snapshots = app.db.snapshots().await.context("list snapshots")?;
    snapshots.retain(|snapshot| snapshot.stage == VolumeStage::Ready);
    let (volume, shared) = open(app, &row, &snapshots).await?;
    let worker = app.clone();
    let started = blocking(move || {
        let pinned = shared.segments(|of, snapshot| {
            if of == id {
                return Ok(volume.segments_of_snapshot(snapshot)?);
            }
            let other = worker.volumes.by_id(of);
            let other = other.context("the volume it was taken of cannot be opened")?;
            Ok(other.segments_of_snapshot(snapshot)?)
        })?;
        volume.pin(pinned);
        start(volume)
    });
    let started = started.await?;
    if let Some(entry) = app.volumes.entries().get_mut(&row.name) {
        entry.open = Ok(started);
    }
    Ok(())
}
