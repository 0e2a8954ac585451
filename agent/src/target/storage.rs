//! The storage partition of the disk that is installed to: kept when it is there, made when it is wanted.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cairn_array::install::{StoragePartition, TargetDisk};
use cairn_core::units::ByteCount;

use super::Screen;
use crate::size;

/// Opens a disk for an image of `needed` bytes, with the partition that it has or is to have at its end.
///
/// # Errors
/// When it cannot be opened, or is too small for what is wanted; nothing was written then.
pub(super) async fn open<S: Screen>(
    path: PathBuf,
    needed: ByteCount,
    wanted: Option<ByteCount>,
    screen: &S,
) -> Result<(TargetDisk, Option<StoragePartition>)> {
    let opened = tokio::task::spawn_blocking(move || TargetDisk::open(&path, needed));
    let disk = opened.await.context("open the target disk")??;
    let storage = match (disk.found_storage(), wanted) {
        (Some(there), _) => {
            screen.say(&format!("storage partition: {} are kept", size::show(there.size())));
            Some(there)
        }
        (None, Some(wanted)) => {
            let made = StoragePartition::new(wanted, disk.size())?;
            let room = made.filter(|made| made.start() >= needed).with_context(|| {
                format!(
                    "the disk has {}: too little for the image ({}) and a storage partition of {}; deploy with a smaller one",
                    size::show(disk.size()),
                    size::show(needed),
                    size::show(wanted)
                )
            });
            Some(room?)
        }
        (None, None) => None,
    };
    Ok((disk.keeping(storage.clone()), storage))
}

/// Names the partition in the table of the system that was installed.
///
/// # Errors
/// When the disk fails.
pub(super) async fn enter<S: Screen>(
    path: PathBuf,
    image: ByteCount,
    storage: Option<StoragePartition>,
    screen: &S,
) -> Result<()> {
    let Some(storage) = storage else { return Ok(()) };
    let size = size::show(storage.size());
    let added = tokio::task::spawn_blocking(move || -> Result<bool> {
        Ok(storage.add(&TargetDisk::open(&path, image)?)?)
    });
    if added.await.context("name the storage partition")?? {
        screen.say(&format!("storage partition: {size} at the end of the disk, cairn-storage"));
    } else {
        screen.say("no storage partition: the image has no GPT with a free entry, so its system will not see one");
    }
    Ok(())
}
