//! Snapshots of volumes: taken, read, gone back to, deleted.
//!
//! Invariants: a snapshot that is read, or that a volume began as, is not deleted; what a kill leaves of one that was being
//! taken or deleted is deleted at the next start.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
};

use anyhow::Context as _;
use cairn_array::{
    random,
    volume::{RootName, SealError, Snapshot, StoreSegments, root_name},
};
use cairn_core::id::{SegmentId, SnapshotId};

use super::{
    Entry, Open, UseError, blocking, is_idle,
    open::{self, Closed, start},
    segment_reader,
    shared::Shared,
};
use crate::{
    app::App,
    db::{
        snapshot::{AddSnapshotError, SnapshotRow},
        volume::{VolumeLayout, VolumeRow, VolumeStage},
    },
    jobs::Kind,
    moment::Moment,
};

/// A snapshot that is open, for those who read it.
pub(crate) type OpenSnapshot = Arc<Snapshot<StoreSegments>>;

/// A snapshot as the server has it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) id: SnapshotId,
    open: Weak<Snapshot<StoreSegments>>,
}

/// Why something is not done with a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Volume(#[from] UseError),
    #[error("the volume has no such snapshot")]
    Unknown,
    #[error("the volume has a snapshot of this name")]
    NameTaken,
    #[error("somebody reads it")]
    InUse,
    #[error("volumes began as it: {}", .0.join(", "))]
    HasClones(Vec<String>),
    #[error("the store is full")]
    Full,
}

impl From<anyhow::Error> for SnapshotError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast_ref::<SealError>() {
            Some(sealing) if sealing.is_full() => Self::Full,
            _ => Self::Volume(UseError::Failed(error)),
        }
    }
}

impl Entry {
    pub(super) fn snapshot(row: &SnapshotRow) -> (String, Kept) {
        (row.name.clone(), Kept { id: row.id, open: Weak::new() })
    }
}

async fn row_of(app: &App, volume: &str) -> Result<VolumeRow, SnapshotError> {
    let rows = app.db.volumes().await.context("list volumes")?;
    let row = rows.into_iter().find(|row| row.name == volume);
    Ok(row.ok_or(UseError::Unknown)?)
}

async fn snapshot_of(app: &App, row: &VolumeRow, name: &str) -> Result<SnapshotRow, SnapshotError> {
    let mut of_it = ready(app).await?.into_iter().filter(|snapshot| snapshot.volume == row.id);
    of_it.find(|snapshot| snapshot.name == name).ok_or(SnapshotError::Unknown)
}

/// All snapshots but those that are being taken or deleted.
async fn ready(app: &App) -> anyhow::Result<Vec<SnapshotRow>> {
    let mut rows = app.db.snapshots().await.context("list snapshots")?;
    rows.retain(|row| row.stage == VolumeStage::Ready);
    Ok(rows)
}

/// Takes a snapshot of a volume as it is now.
pub(crate) async fn take(app: &App, volume: &str, name: String) -> Result<(), SnapshotError> {
    let _alone = app.volumes.changing.lock().await;
    let row = row_of(app, volume).await?;
    let open = app.volumes.get(volume)?;
    let new = SnapshotRow {
        id: SnapshotId(random::array()?),
        volume: row.id,
        name,
        size: open.size(),
        stage: VolumeStage::Creating,
        created: Moment::now(),
        clones: Vec::new(),
    };
    app.db.add_snapshot(&new).await.map_err(|error| match error {
        AddSnapshotError::NameTaken => SnapshotError::NameTaken,
        AddSnapshotError::Db(error) => anyhow::Error::from(error).into(),
    })?;
    let id = new.id;
    let taken = blocking(move || Ok(open.take_snapshot(id)?)).await;
    if let Err(error) = taken {
        delete_root(app, &new).await?;
        app.db.forget_snapshot(id).await.context("forget a snapshot")?;
        return Err(error.into());
    }
    let noted = app.db.set_snapshot_stage(id, VolumeStage::Ready).await;
    noted.context("note a snapshot")?;
    if let Some(entry) = app.volumes.entries().get_mut(volume) {
        let (name, kept) = Entry::snapshot(&new);
        entry.snapshots.insert(name, kept);
    }
    Ok(())
}

/// Opens a snapshot to be read. It is in use as long as this is kept. Blocks.
pub(crate) fn open(app: &App, volume: &str, name: &str) -> Result<OpenSnapshot, SnapshotError> {
    let (base, id) = {
        let entries = app.volumes.entries();
        let entry = entries.get(volume).ok_or(UseError::Unknown)?;
        let kept = entry.snapshots.get(name).ok_or(SnapshotError::Unknown)?;
        if let Some(open) = kept.open.upgrade() {
            return Ok(open);
        }
        (entry.open.clone().map_err(UseError::Unavailable)?, kept.id)
    };
    let opened = base.open_snapshot(segment_reader(app), id).context("open a snapshot")?;
    let opened = Arc::new(opened);
    let mut entries = app.volumes.entries();
    let kept = entries.get_mut(volume).and_then(|entry| entry.snapshots.get_mut(name));
    // It may have been deleted meanwhile.
    let kept = kept.filter(|kept| kept.id == id).ok_or(SnapshotError::Unknown)?;
    kept.open = Arc::downgrade(&opened);
    Ok(opened)
}

/// Deletes a snapshot. Of a volume that cannot be opened, perhaps because of this snapshot, only the root goes; the rest goes
/// at the next start, which tries to open the volume again.
pub(crate) async fn delete(app: &App, volume: &str, name: &str) -> Result<(), SnapshotError> {
    let _alone = app.volumes.changing.lock().await;
    let row = row_of(app, volume).await?;
    let snapshot = snapshot_of(app, &row, name).await?;
    if !snapshot.clones.is_empty() {
        return Err(SnapshotError::HasClones(snapshot.clones));
    }
    let open = {
        let mut entries = app.volumes.entries();
        let entry = entries.get_mut(volume).ok_or(UseError::Unknown)?;
        let kept = entry.snapshots.get(name).ok_or(SnapshotError::Unknown)?;
        if kept.open.strong_count() > 0 {
            return Err(SnapshotError::InUse);
        }
        entry.snapshots.remove(name);
        entry.open.clone().ok()
    };
    // From here on it goes, if need be at the next start.
    let staged = app.db.set_snapshot_stage(snapshot.id, VolumeStage::Removing).await;
    staged.context("mark a snapshot as being deleted")?;
    match open {
        None => delete_root(app, &snapshot).await?,
        Some(open) => {
            let shared = Shared::of(app, &row, &ready(app).await?).await?;
            let worker = app.clone();
            blocking(move || {
                let pinned = segments_of(&worker, &shared)?;
                Ok(open.delete_snapshot(snapshot.id, pinned)?)
            })
            .await?;
        }
    }
    app.db.forget_snapshot(snapshot.id).await.context("forget a snapshot")?;
    if row.layout != VolumeLayout::Server {
        // No root of the volume says that clients need not hold it any more.
        let queued = app.queue(Kind::Scatter { set: row.id.into() }).await;
        queued.context("queue the scatter of a volume")?;
    }
    Ok(())
}

/// Deletes the root of a snapshot, for good.
pub(super) async fn delete_root(app: &App, row: &SnapshotRow) -> anyhow::Result<()> {
    let root = root_name(row.volume, RootName::Snapshot(row.id))?;
    app.store.delete_blob(&root).await.context("delete a snapshot's root")?;
    app.store.flush().await.context("make that durable")
}

/// The segments of what is shared. Blocks.
pub(super) fn segments_of(app: &App, shared: &Shared) -> anyhow::Result<HashSet<SegmentId>> {
    shared.segments(|volume, snapshot| {
        let open =
            app.volumes.by_id(volume).context("the volume it was taken of cannot be opened")?;
        Ok(open.segments_of_snapshot(snapshot)?)
    })
}

/// Makes a volume be what it was. Nobody may use it meanwhile; what was written since is lost.
pub(crate) async fn roll_back(app: &App, volume: &str, name: &str) -> Result<(), SnapshotError> {
    let _alone = app.volumes.changing.lock().await;
    let row = row_of(app, volume).await?;
    let snapshot = snapshot_of(app, &row, name).await?;
    app.volumes.get(volume)?;
    // Whatever the volume shares it goes on sharing.
    let shared = Shared::of(app, &row, &ready(app).await?).await?;
    let worker = app.clone();
    let pinned = blocking(move || segments_of(&worker, &shared)).await?;
    let open = take_out(app, volume)?;
    let done = match become_snapshot(app, &row, snapshot.id, open, pinned.clone()).await {
        Ok(volume) => (start(volume), Ok(())),
        // It is what it was.
        Err(error) => (reopen(app, &row, pinned).await.and_then(start), Err(error)),
    };
    let (open, result) = done;
    put_back(app, volume, open.map_err(|error| format!("{error:#}")));
    result?;
    let noted = app.db.set_volume_size(row.id, snapshot.size).await;
    Ok(noted.context("note a volume's size")?)
}

/// Takes a volume that nobody uses out of use.
fn take_out(app: &App, volume: &str) -> Result<Open, UseError> {
    let mut entries = app.volumes.entries();
    let entry = entries.get_mut(volume).ok_or(UseError::Unknown)?;
    let open = entry.open.as_ref().map_err(|why| UseError::Unavailable(why.clone()))?;
    if !is_idle(open) {
        return Err(UseError::InUse);
    }
    std::mem::replace(&mut entry.open, Err("it is being rolled back".to_owned()))
        .map_err(UseError::Unavailable)
}

fn put_back(app: &App, volume: &str, open: Result<Open, String>) {
    if let Some(entry) = app.volumes.entries().get_mut(volume) {
        entry.open = open;
    }
}

/// Ends the volume that is open, and opens it as what the snapshot says.
async fn become_snapshot(
    app: &App,
    row: &VolumeRow,
    id: SnapshotId,
    open: Open,
    pinned: HashSet<SegmentId>,
) -> anyhow::Result<Closed> {
    let ended = blocking(move || {
        open.abandon();
        Ok(())
    });
    ended.await?;
    let volume = reopen(app, row, pinned).await?;
    let segments = segment_reader(app);
    blocking(move || {
        let base = volume.open_snapshot(segments, id)?.into_base();
        volume.become_base(base)?;
        Ok(volume)
    })
    .await
}

/// Opens a volume, without threads.
async fn reopen(app: &App, row: &VolumeRow, pinned: HashSet<SegmentId>) -> anyhow::Result<Closed> {
    let volume = open::closed(app, row).await?;
    volume.pin(pinned);
    Ok(volume)
}
