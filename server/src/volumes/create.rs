//! Making a volume: empty, or as a clone of an image's version or of a snapshot.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::Context as _;
use cairn_array::{
    random,
    store::Store,
    volume::{
        Base, DiskMedium, MediumError, OpenError, StoreSegments, Volume, journal_blocks, restore,
    },
};
use cairn_core::{
    id::{StripeSetId, VolumeId},
    planner::Refusal,
    seal::SealKey,
    units::ByteCount,
    volume::{Durability, SizeError, blocks_of},
};
use tokio::runtime::Handle;

use super::{
    Entry, blocking, clone, journal_file, journal_path, keys, name, open::start, segment_reader,
};
use crate::{
    app::App,
    bundle,
    db::{
        image::VersionRow,
        snapshot::SnapshotRow,
        volume::{AddVolumeError, Origin, VolumeLayout, VolumeRow, VolumeStage},
    },
    moment::Moment,
    scatter,
};

/// A journal takes this part of its volume, within [`JOURNAL_BYTES`]: its space is the server's from the first day.
const JOURNAL_ONE_OF: u64 = 8;
/// The most has room for the writes of a second or two at a disk's pace.
const JOURNAL_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=512 << 20;
/// What clients mirror stays in the journal until they know a checkpoint that covers it, which takes seconds.
const MIRRORED_BYTES: u64 = 64 << 20;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    pub name: String,
    /// None: as large as what it begins as.
    pub size: Option<ByteCount>,
    /// What it begins as; zeros without.
    pub beginning: Option<Beginning>,
    pub layout: VolumeLayout,
    pub durability: Durability,
}

/// What a volume begins as.
#[derive(Clone, Debug)]
pub enum Beginning {
    Version(Box<VersionRow>),
    /// Volume and snapshot, by name.
    Snapshot(String, String),
}

/// Why a volume is not made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("there is a volume of this name: choose another")]
    NameTaken,
    #[error("a volume needs a size, or an image to begin as")]
    NoSize,
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("what it begins as has {0} bytes: the volume cannot be smaller")]
    SmallerThanOrigin(u64),
    #[error("{0} does not hold: {1}")]
    Layout(VolumeLayout, Refusal),
    #[error(
        "of a volume on the server only clients know nothing, so a mirrored journal would be of no use to them: choose another layout"
    )]
    NothingToMirror,
    #[error(
        "no client lends enough to hold roots, manifests and boot files beside its share (one must lend four times their size): a mirrored journal would be of no use, and fill up. Lend more, or create it without --durability mirrored"
    )]
    NobodyCarries,
    #[error("there is no such snapshot: `cairn-server volume snapshots` shows them")]
    UnknownSnapshot,
    #[error(
        "the server's disk has no room for its journal, which takes {} MiB: free some in the data directory, or create a smaller volume",
        .0.0 >> 20
    )]
    NoRoomForJournal(ByteCount),
    #[error("the store has no room for it: add a device, or delete what is not needed")]
    StoreFull,
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// What a volume begins as, found.
enum Found {
    Version(Box<VersionRow>),
    Snapshot(SnapshotRow),
}

impl Found {
    async fn find(app: &App, beginning: Beginning) -> Result<Self, CreateError> {
        let (volume, snapshot) = match beginning {
            Beginning::Version(version) => return Ok(Self::Version(version)),
            Beginning::Snapshot(volume, snapshot) => (volume, snapshot),
        };
        let of = app.volumes.look(&volume, |entry| entry.id);
        let of = of.map_err(|_| CreateError::UnknownSnapshot)?;
        let rows = app.db.snapshots().await.context("list snapshots")?;
        let ready = |row: &SnapshotRow| row.stage == VolumeStage::Ready;
        let is_it = |row: &SnapshotRow| row.volume == of && row.name == snapshot && ready(row);
        let found = rows.into_iter().find(is_it);
        found.map(Self::Snapshot).ok_or(CreateError::UnknownSnapshot)
    }

    const fn size(&self) -> ByteCount {
        match self {
            Self::Version(version) => version.size,
            Self::Snapshot(snapshot) => snapshot.size,
        }
    }

    const fn origin(&self) -> Origin {
        match self {
            Self::Version(version) => Origin::Version(version.id),
            Self::Snapshot(snapshot) => Origin::Snapshot(snapshot.id),
        }
    }

    async fn base(&self, app: &App, blocks: u64) -> anyhow::Result<Base> {
        let snapshot = match self {
            Self::Version(version) => return clone::base(app, version, blocks).await,
            Self::Snapshot(snapshot) => snapshot,
        };
        let of = app.volumes.by_id(snapshot.volume).context("its volume cannot be opened")?;
        let (id, segments) = (snapshot.id, segment_reader(app));
        let base = blocking(move || Ok(of.open_snapshot(segments, id)?.into_base()));
        Ok(Base { blocks, ..base.await? })
    }
}

/// The size that a new volume gets.
fn size_of(new: &NewVolume, found: Option<&Found>) -> Result<ByteCount, CreateError> {
    let least = found.map(Found::size);
    let size = new.size.or(least).ok_or(CreateError::NoSize)?;
    match least {
        Some(least) if size < least => Err(CreateError::SmallerThanOrigin(least.0)),
        // Images end where they end; disks end with a block.
        Some(_) if new.size.is_none() => Ok(ByteCount(size.0.next_multiple_of(4096))),
        _ => Ok(size),
    }
}

/// Refuses a layout whose promise the present clients and devices cannot keep even for a volume without data.
async fn check_layout(app: &App, layout: VolumeLayout) -> Result<(), CreateError> {
    if layout == VolumeLayout::Server {
        return Ok(());
    }
    // No set has it yet.
    let id = StripeSetId(random::array()?);
    let candidates = scatter::candidates_for(app, id).await?;
    let devices = app.store.devices();
    match scatter::plan(layout, devices, &candidates, ByteCount(0), None) {
        Ok(_) => Ok(()),
        Err(refusal) => Err(CreateError::Layout(layout, refusal)),
    }
}

/// Makes a volume, and serves it.
///
/// # Errors
/// [`CreateError`].
pub(crate) async fn create(app: &App, new: NewVolume) -> Result<(), CreateError> {
    if new.durability == Durability::Mirrored && new.layout == VolumeLayout::Server {
        return Err(CreateError::NothingToMirror);
    }
    if new.durability == Durability::Mirrored && !bundle::is_carried(app).await? {
        return Err(CreateError::NobodyCarries);
    }
    let alone = app.volumes.changing.lock().await;
    let found = match &new.beginning {
        Some(beginning) => Some(Found::find(app, beginning.clone()).await?),
        None => None,
    };
    let size = size_of(&new, found.as_ref())?;
    let blocks = blocks_of(size)?;
    check_layout(app, new.layout).await?;
    let content_key = SealKey(random::array()?);
    let row = VolumeRow {
        id: VolumeId(random::array()?),
        name: new.name,
        size,
        stage: VolumeStage::Creating,
        content_key: app.site.wrap_content_key(&content_key)?,
        origin: found.as_ref().map(Found::origin),
        layout: new.layout,
        promise: None,
        created: Moment::now(),
    };
    app.db.add_volume(&row).await.map_err(|error| match error {
        AddVolumeError::NameTaken => CreateError::NameTaken,
        AddVolumeError::Db(error) => CreateError::Failed(error.into()),
    })?;
    // From here on it counts as a clone of what it begins as.
    drop(alone);
    if let Err(error) = make(app, &row, (blocks, new.durability), found.as_ref()).await {
        super::remove_parts(app, row.id, None).await.context("remove what there is of a volume")?;
        return Err(match why_full(&error) {
            Some(MediumError::Journal { .. }) => {
                CreateError::NoRoomForJournal(journal_bytes(size, new.durability))
            }
            Some(_) => CreateError::StoreFull,
            None => error.into(),
        });
    }
    Ok(())
}

fn why_full(error: &anyhow::Error) -> Option<&MediumError> {
    let found = error.chain().find_map(|error| {
        let opening = match error.downcast_ref::<OpenError>() {
            Some(OpenError::Medium(error)) => Some(error),
            _ => None,
        };
        opening.or_else(|| error.downcast_ref::<MediumError>())
    });
    found.filter(|error| error.is_full())
}

/// The ring of the journal of such a volume.
fn journal_bytes(size: ByteCount, durability: Durability) -> ByteCount {
    let least = match durability {
        Durability::Local => *JOURNAL_BYTES.start(),
        Durability::Mirrored => MIRRORED_BYTES,
    };
    ByteCount((size.0 / JOURNAL_ONE_OF).clamp(least, *JOURNAL_BYTES.end()))
}

fn journal_capacity(size: ByteCount, durability: Durability) -> u64 {
    journal_blocks(journal_bytes(size, durability))
}

async fn make(
    app: &App,
    row: &VolumeRow,
    (blocks, durability): (u64, Durability),
    found: Option<&Found>,
) -> anyhow::Result<()> {
    app.db.keep_journal_home(row.id, app.server_id).await.context("note where its journal is")?;
    let base = match found {
        Some(found) => Some(found.base(app, blocks).await.context("read what it begins as")?),
        None => None,
    };
    let (keys, name) = (keys(app, row)?, name(app, row).await?);
    let (file, id, segments) = (journal_file(app, row.id), row.id, segment_reader(app));
    let capacity = journal_capacity(row.size, durability);
    let volume = blocking(move || {
        let medium = DiskMedium::create(&file, capacity, id, segments)?;
        let volume = Volume::create(medium, name, keys, durability, (blocks, capacity))?;
        if let Some(base) = base {
            // All that it begins with is somebody else's.
            volume.pin(base.table.iter().map(|(_, slot)| slot.id));
            volume.become_base(base)?;
        }
        start(volume)
    })
    .await?;
    app.db.set_volume_stage(row.id, VolumeStage::Ready).await.context("note a volume")?;
    let entry =
        Entry { id: row.id, layout: row.layout, open: Ok(volume), snapshots: BTreeMap::new() };
    app.volumes.entries().insert(row.name.clone(), entry);
    Ok(())
}

/// Gives a volume whose root is in the store an empty journal.
///
/// # Errors
/// When there is no room for it, or the root cannot be read.
pub(crate) async fn make_journal(
    data_dir: &Path,
    store: &Arc<Store>,
    id: VolumeId,
    (size, durability): (ByteCount, Durability),
) -> anyhow::Result<()> {
    let (file, capacity) = (journal_path(data_dir, id), journal_capacity(size, durability));
    let segments = StoreSegments::new(Arc::clone(store), None, Handle::current());
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let medium = DiskMedium::create(&file, capacity, id, segments)?;
        Ok(restore(&medium, id, capacity)?)
    });
    made.await.context("wait for a thread")?
}
