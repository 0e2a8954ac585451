//! Making a volume: empty, or as a clone of an image's version.

use std::sync::Arc;

use anyhow::Context as _;
use cairn_array::{
    random,
    volume::{DiskMedium, RunningVolume, Volume, journal_blocks},
};
use cairn_core::{
    id::VolumeId,
    seal::SealKey,
    units::ByteCount,
    volume::{SizeError, blocks_of},
};

use super::{Entry, blocking, clone, journal_file, keys, name};
use crate::{
    app::App,
    db::{
        image::VersionRow,
        volume::{AddVolumeError, VolumeRow, VolumeStage},
    },
    moment::Moment,
};

/// A journal takes this part of its volume, within [`JOURNAL_BYTES`]: its space is the server's from the first day.
const JOURNAL_ONE_OF: u64 = 8;
/// The most has room for the writes of a second or two at a disk's pace.
const JOURNAL_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=512 << 20;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    pub name: String,
    /// None: as large as what it begins as.
    pub size: Option<ByteCount>,
    /// What it begins as; zeros without.
    pub origin: Option<VersionRow>,
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
    #[error("the image has {0} bytes: the volume cannot be smaller")]
    SmallerThanImage(u64),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// The size that a new volume gets.
fn size_of(new: &NewVolume) -> Result<ByteCount, CreateError> {
    let image = new.origin.as_ref().map(|origin| origin.size);
    let size = new.size.or(image).ok_or(CreateError::NoSize)?;
    match image {
        Some(image) if size < image => Err(CreateError::SmallerThanImage(image.0)),
        // Images end where they end; disks end with a block.
        Some(_) if new.size.is_none() => Ok(ByteCount(size.0.next_multiple_of(4096))),
        _ => Ok(size),
    }
}

/// Makes a volume, and serves it.
///
/// # Errors
/// [`CreateError`].
pub(crate) async fn create(app: &App, new: NewVolume) -> Result<(), CreateError> {
    let size = size_of(&new)?;
    let blocks = blocks_of(size)?;
    let content_key = SealKey(random::array()?);
    let row = VolumeRow {
        id: VolumeId(random::array()?),
        name: new.name,
        size,
        stage: VolumeStage::Creating,
        content_key: app.site.wrap_content_key(&content_key)?,
        origin: new.origin.as_ref().map(|origin| origin.id),
        created: Moment::now(),
    };
    app.db.add_volume(&row).await.map_err(|error| match error {
        AddVolumeError::NameTaken => CreateError::NameTaken,
        AddVolumeError::Db(error) => CreateError::Failed(error.into()),
    })?;
    if let Err(error) = make(app, &row, blocks, new.origin.as_ref()).await {
        super::remove_parts(app, row.id, None).await.context("remove what there is of a volume")?;
        return Err(error.into());
    }
    Ok(())
}

async fn make(
    app: &App,
    row: &VolumeRow,
    blocks: u64,
    origin: Option<&VersionRow>,
) -> anyhow::Result<()> {
    let base = match origin {
        Some(origin) => Some(clone::base(app, origin).await.context("read the image's map")?),
        None => None,
    };
    let (keys, name) = (keys(app, row)?, name(app, row));
    let (file, id, store) = (journal_file(app, row.id), row.id, Arc::clone(&app.store));
    let runtime = tokio::runtime::Handle::current();
    let journal = (row.size.0 / JOURNAL_ONE_OF).clamp(*JOURNAL_BYTES.start(), *JOURNAL_BYTES.end());
    let capacity = journal_blocks(ByteCount(journal));
    let volume = blocking(move || {
        let medium = DiskMedium::create(&file, capacity, id, store, runtime)?;
        let volume = Volume::create(medium, name, keys, blocks, capacity)?;
        if let Some((table, map)) = base {
            volume.begin_as(table, map);
            volume.seal()?;
        }
        RunningVolume::start(volume).context("start threads for a volume")
    })
    .await?;
    app.db.set_volume_stage(row.id, VolumeStage::Ready).await.context("note a volume")?;
    let entry = Entry { id: row.id, open: Ok(Arc::new(volume)) };
    app.volumes.entries().insert(row.name.clone(), entry);
    Ok(())
}
