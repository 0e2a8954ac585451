//! The volumes of this server: all of them open, each served by NBD under its name.
//!
//! ```text
//!   row "creating" ─► journal, root ─► row "ready" ─► open, served
//!   row "removing" ─► closed ─► root, segments, journal gone ─► no row
//! ```
//!
//! Invariants: a volume that is used by somebody is not removed; what a kill leaves of one that was being made or removed
//! is removed at the next start; one that cannot be opened hinders nobody else.

mod clone;
mod create;
pub(crate) mod home;
pub(crate) mod mirror;
mod open;
pub(crate) mod scatter;
mod served;
mod shared;
pub(crate) mod snapshots;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use bytes::Bytes;
use cairn_array::volume::{
    DiskMedium, Elsewhere, RootName, RunningVolume, StoreSegments, TailFeed, Usage, VolumeKeys,
    VolumeName, VolumeState, root_name,
};
use cairn_core::{
    id::{MachineId, SegmentId, SnapshotId, VolumeId},
    units::{ByteCount, Generation},
    volume::Durability,
};

pub(crate) use clone::base;
pub use create::{Beginning, CreateError, NewVolume};
pub(crate) use create::{create, make_journal};
pub use home::ServerId;
pub(crate) use open::{open_again, open_all};
pub use served::Served;

use crate::{
    app::App,
    db::{
        machine::{RootError, RootVolume},
        volume::{VolumeLayout, VolumeRow, VolumeStage},
    },
    finder::Finder,
};

type Open = Arc<RunningVolume<DiskMedium>>;

/// A volume as the server has it.
#[derive(Debug)]
struct Entry {
    id: VolumeId,
    layout: VolumeLayout,
    /// Or why it cannot be opened.
    open: Result<Open, String>,
    snapshots: BTreeMap<String, snapshots::Kept>,
}

/// See the module.
#[derive(Debug)]
pub struct Volumes {
    generation: Generation,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Held while it is decided what volumes share: by who adds or removes a snapshot, or a volume that began as one.
    changing: tokio::sync::Mutex<()>,
}

/// How a volume does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    pub(crate) size: ByteCount,
    pub(crate) state: VolumeState,
    pub(crate) usage: Usage,
    /// The number of its last one.
    pub(crate) checkpoint: u64,
    pub(crate) durability: Durability,
    /// Clients that have all that was flushed, when some are to.
    pub(crate) tail_holders: Option<usize>,
    /// Connections to it.
    pub(crate) users: usize,
}

/// Why a volume is not removed, or not resized.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    #[error("there is no such volume")]
    Unknown,
    #[error("somebody uses it")]
    InUse,
    #[error("it cannot be opened: {0}")]
    Unavailable(String),
    #[error("it has snapshots: {}", .0.join(", "))]
    HasSnapshots(Vec<String>),
    #[error("machine {0} comes up from it")]
    IsRootOf(String),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Volumes {
    /// None yet.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self { generation, entries: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Looks at a volume without using it.
    fn look<T>(&self, name: &str, look: impl FnOnce(&Entry) -> T) -> Result<T, UseError> {
        self.entries().get(name).map(look).ok_or(UseError::Unknown)
    }

    /// How a volume does, or why it cannot be used.
    pub(crate) fn condition(&self, name: &str) -> Result<Condition, UseError> {
        let of = |open: &Open| Condition {
            size: open.size(),
            state: open.state(),
            usage: open.usage(),
            checkpoint: open.checkpoints(),
            durability: open.durability(),
            tail_holders: open.tail_holders(),
            // Beside the table.
            users: Arc::strong_count(open) - 1,
        };
        self.look(name, |entry| entry.open.as_ref().map(of).map_err(Clone::clone))?
            .map_err(UseError::Unavailable)
    }

    /// A volume, or why it cannot be used.
    pub(crate) fn get(&self, name: &str) -> Result<Open, UseError> {
        let entries = self.entries();
        let entry = entries.get(name).ok_or(UseError::Unknown)?;
        entry.open.clone().map_err(UseError::Unavailable)
    }

    /// The volume of this id, when it is open.
    fn by_id(&self, id: VolumeId) -> Option<Open> {
        let entries = self.entries();
        entries.values().find(|entry| entry.id == id)?.open.clone().ok()
    }

    /// The volume of this id, when it is open, with its snapshots.
    fn with_snapshots(&self, id: VolumeId) -> Option<(Open, Vec<SnapshotId>)> {
        let entries = self.entries();
        let entry = entries.values().find(|entry| entry.id == id)?;
        let snapshots = entry.snapshots.values().map(|kept| kept.id).collect();
        Some((entry.open.clone().ok()?, snapshots))
    }

    /// The volumes that clients hold a part of, with the number of their last root, and when flushes of them are answered.
    fn roots_to_scatter(&self) -> BTreeMap<VolumeId, (u64, Durability)> {
        let entries = self.entries();
        let scattered = entries.values().filter(|entry| entry.layout != VolumeLayout::Server);
        let root = |entry: &Entry| {
            let open = entry.open.as_ref().ok()?;
            Some((entry.id, (open.checkpoints(), open.durability())))
        };
        scattered.filter_map(root).collect()
    }

    /// What clients are to keep of the journals of volumes, but for those of which `is_served` says that they are.
    fn tail_feeds(
        &self,
        is_served: impl Fn(VolumeId) -> bool,
    ) -> Vec<(VolumeId, TailFeed<DiskMedium>)> {
        let entries = self.entries();
        let feed = |entry: &Entry| Some((entry.id, entry.open.as_ref().ok()?.tail_feed()?));
        entries.values().filter(|entry| !is_served(entry.id)).filter_map(feed).collect()
    }

    /// Closes all: what the journals have is sealed. Blocks.
    pub(crate) fn close(&self) {
        let entries = std::mem::take(&mut *self.entries());
        for open in entries.into_values().filter_map(|entry| entry.open.ok()) {
            open.close();
        }
    }
}

/// Whether nobody but the table of volumes has it.
fn is_idle(open: &Open) -> bool {
    Arc::strong_count(open) == 1
}

/// Reads segments from the store, or from clients when the store lacks one.
pub(crate) fn segment_reader(app: &App) -> StoreSegments {
    let elsewhere: Arc<dyn Elsewhere> = Arc::<Finder>::clone(&app.finder);
    StoreSegments::new(Arc::clone(&app.store), Some(elsewhere), app.finder.runtime().clone())
}

pub(super) fn journal_file(app: &App, id: VolumeId) -> PathBuf {
    journal_path(&app.data_dir, id)
}

/// Where a volume's journal is.
pub(crate) fn journal_path(data_dir: &Path, id: VolumeId) -> PathBuf {
    data_dir.join("volumes").join(format!("{id}.journal"))
}

pub(super) fn keys(app: &App, row: &VolumeRow) -> anyhow::Result<VolumeKeys> {
    Ok(VolumeKeys {
        content_key: app.site.open_content_key(&row.content_key)?,
        wrapped_key: row.content_key.clone(),
        signer: app.site.shared_signer(),
    })
}

pub(super) async fn name(app: &App, row: &VolumeRow) -> anyhow::Result<VolumeName> {
    let known = app.db.known_root(row.id).await.context("look for the root that clients know")?;
    let known = known.map(Bytes::from);
    Ok(VolumeName { id: row.id, name: row.name.clone(), generation: app.volumes.generation, known })
}

/// Does what may block on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("wait for a thread")?
}

/// Every segment that a volume refers to. None when one of them cannot say.
pub(crate) fn segments(app: &App) -> Option<Vec<SegmentId>> {
    let mut all = Vec::new();
    for entry in app.volumes.entries().values() {
        all.extend(entry.open.as_ref().ok()?.segments());
    }
    Some(all)
}

/// Removes a volume with all it holds.
///
/// # Errors
/// [`UseError`]: in use, or unknown.
pub(crate) async fn remove(app: &App, name: &str) -> Result<(), UseError> {
    let (id, open) = {
        let _alone = app.volumes.changing.lock().await;
        let id = app.volumes.look(name, |entry| entry.id)?;
        let machine = app.db.machine_of_volume(id).await.context("look for its machine")?;
        if let Some(machine) = machine {
            let name = machine.name.unwrap_or_else(|| machine.id.to_string());
            return Err(UseError::IsRootOf(name));
        }
        let mut entries = app.volumes.entries();
        let entry = entries.get(name).ok_or(UseError::Unknown)?;
        let id = entry.id;
        if !entry.snapshots.is_empty() {
            return Err(UseError::HasSnapshots(entry.snapshots.keys().cloned().collect()));
        }
        if entry.open.as_ref().is_ok_and(|open| !is_idle(open)) {
            return Err(UseError::InUse);
        }
        (id, entries.remove(name).and_then(|entry| entry.open.ok()))
    };
    Ok(remove_parts(app, id, open).await?)
}

/// Has a machine come up from a volume.
///
/// # Errors
/// [`RootError::Taken`] when another one does; the outer ones when there is no such volume, or the database fails.
pub(crate) async fn give_to(
    app: &App,
    machine: MachineId,
    name: &str,
    unattended: bool,
) -> Result<Result<bool, RootError>, UseError> {
    let _alone = app.volumes.changing.lock().await;
    let volume = app.volumes.look(name, |entry| entry.id)?;
    Ok(app.db.set_root_volume(machine, Some(RootVolume { volume, unattended })).await)
}

/// Gives a volume another size. One that shrinks is used by nobody meanwhile.
///
/// # Errors
/// [`UseError`].
pub(crate) async fn resize(
    app: &App,
    name: &str,
    size: ByteCount,
    blocks: u64,
) -> Result<(), UseError> {
    let (id, open) = {
        let entries = app.volumes.entries();
        let entry = entries.get(name).ok_or(UseError::Unknown)?;
        let open = entry.open.as_ref().map_err(|why| UseError::Unavailable(why.clone()))?;
        if size < open.size() && !is_idle(open) {
            return Err(UseError::InUse);
        }
        (entry.id, Arc::clone(open))
    };
    blocking(move || Ok(open.resize(blocks)?)).await?;
    let noted = app.db.set_volume_size(id, size).await;
    Ok(noted.context("note a volume's size")?)
}

async fn remove_parts(app: &App, id: VolumeId, open: Option<Open>) -> anyhow::Result<()> {
    let root = root_name(id, RootName::Live)?;
    // From here on it goes, if need be at the next start.
    let staged = app.db.set_volume_stage(id, VolumeStage::Removing).await;
    staged.context("mark a volume as being removed")?;
    scatter::withdraw(app, id, open.as_ref()).await?;
    let mirrored = open.as_ref().is_some_and(|open| open.durability() == Durability::Mirrored);
    let segments = match open {
        Some(open) => {
            // Sealing what is thrown away would be in vain.
            blocking(move || {
                open.abandon();
                Ok(open.own_segments())
            })
            .await?
        }
        // What it had is cleared away with what nobody refers to.
        None => Vec::new(),
    };
    if mirrored {
        mirror::forget(app, id).await?;
    }
    app.store.delete_blob(&root).await.context("delete a volume's root")?;
    app.store.flush().await.context("make that durable")?;
    for segment in segments {
        app.store.delete_segment(segment).await.context("delete a volume's segment")?;
    }
    let file = journal_file(app, id);
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("delete {}", file.display()));
        }
        _ => {}
    }
    app.db.forget_volume(id).await.context("forget a volume")
}
