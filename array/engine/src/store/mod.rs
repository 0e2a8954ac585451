//! The store: the controller's mass storage device (claims 1 and 12), one or more of them.
//!
//! ```text
//! DEVICE/                     0700, locked while a server uses it
//! ├ cairn-store               marks the folder, so that an unmounted disk is not taken for an empty one
//! ├ segments/00 … ff/<hex>    sealed segments, by the first byte of their id
//! └ blobs/<name>              manifests and roots of volumes, the same on every device
//! ```
//!
//! Everything goes through `object_store`: a device is a local folder, or the same objects in an S3 bucket. What only a local
//! disk has (free space, lock, a sync of everything) is in `device`, what stands for the lock in a bucket in `lease`.
//!
//! Invariants:
//! - Bytes that do not hash to their id are neither stored nor returned.
//! - An object is under its name whole or not at all, as long as the machine runs; after a power cut that
//!   holds for what [`Store::flush`] has covered. So metadata that names a segment is committed after a flush.
//! - A segment is written to one device, of those with most free space the one that took least; it is looked for on all.
//! - A blob is on every device: it is small, and nothing else says what it says.
//! - A missing device is never taken for an empty one: what could be on it is "lost", not "not found".
//! - A device whose sync failed is not synced again: what it dropped cannot be known.

mod address;
mod balance;
mod blob;
mod device;
mod lease;
mod object;

use std::{
    collections::HashSet,
    fs::File,
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use bytes::Bytes;
use cairn_core::{
    id::SegmentId,
    units::{ByteCount, SEGMENT_MAX_BYTES},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use object_store::path::Path as ObjectPath;

pub use address::{BucketAddress, DeviceAddress, ParseAddressError};
pub use balance::{Shift, shift};
pub use blob::{BLOB_MAX_BYTES, BlobName, ParseBlobNameError};
pub use device::{Device, DeviceFault, OpenDeviceError};
pub use object::StoreError;

use crate::dsf::CheckedSegment;

/// Deletions under way at once while unreferenced segments go.
const DELETIONS_AT_ONCE: usize = 8;

/// Devices count as equal whose room is less than the most by at most one in so many.
const EQUAL_WITHIN: u64 = 10;

/// A segment in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSegment {
    pub id: SegmentId,
    pub length: ByteCount,
    pub written: SystemTime,
}

/// What [`Store::delete_unreferenced`] deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub segments: u64,
    pub bytes: ByteCount,
}

/// One device's room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpace {
    pub device: String,
    /// `None` where there is no such limit.
    pub free: Option<ByteCount>,
}

/// The devices, as one.
#[derive(Debug)]
pub struct Store {
    devices: Vec<Device>,
    /// Segments that left a device for another since it was opened.
    moved: AtomicU64,
}

impl Store {
    /// A store over these devices.
    ///
    /// # Errors
    /// [`StoreError::NoDevice`] when there is none.
    pub fn new(devices: Vec<Device>) -> Result<Self, StoreError> {
        if devices.is_empty() {
            Err(StoreError::NoDevice)
        } else {
            Ok(Self { devices, moved: AtomicU64::new(0) })
        }
    }

    /// Stores a segment after checking it; what was under its id is replaced. Durable after [`Self::flush`].
    ///
    /// # Errors
    /// [`StoreError::Check`] for other bytes than the id's, [`StoreError::Full`] when no device has room.
    pub async fn put_segment(&self, id: SegmentId, bytes: Bytes) -> Result<(), StoreError> {
        let checked = object::blocking(move || CheckedSegment::check(id, bytes)).await??;
        self.put_checked(&checked).await
    }

    /// As [`Self::put_segment`], for bytes that were checked (or made) before.
    ///
    /// # Errors
    /// As [`Self::put_segment`].
    pub async fn put_checked(&self, segment: &CheckedSegment) -> Result<(), StoreError> {
        let device = self.put(&segment_path(segment.id()), segment.bytes()).await?;
        device.took(segment.bytes().len() as u64);
        Ok(())
    }

    /// As [`Self::put_checked`], for what leaves soon: it does not count for which device takes the next.
    ///
    /// # Errors
    /// As [`Self::put_segment`].
    pub async fn put_for_now(&self, segment: &CheckedSegment) -> Result<(), StoreError> {
        self.put(&segment_path(segment.id()), segment.bytes()).await.map(drop)
    }

    /// A segment's bytes, checked against its id. A device with a bad copy is passed over if another has
    /// a good one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`], [`StoreError::Lost`] when it may be on a missing device.
    pub async fn get_segment(&self, id: SegmentId) -> Result<Bytes, StoreError> {
        loop {
            let moved = self.moved.load(Ordering::Acquire);
            match self.look_for_segment(id).await {
                Err(StoreError::NotFound { .. }) if self.has_moved_since(moved) => {}
                found => return found,
            }
        }
    }

    /// Whether what was looked for on one device after the other may have gone from one to another meanwhile.
    fn has_moved_since(&self, moved: u64) -> bool {
        self.moved.load(Ordering::Acquire) != moved
    }

    async fn look_for_segment(&self, id: SegmentId) -> Result<Bytes, StoreError> {
        let path = segment_path(id);
        let mut worst = None;
        for device in &self.devices {
            match object::get(device, &path, SEGMENT_MAX_BYTES as u64).await {
                Ok(bytes) => {
                    match object::blocking(move || CheckedSegment::check(id, bytes)).await? {
                        Ok(segment) => return Ok(segment.bytes().clone()),
                        Err(_) => worst = Some(corrupt(device, &path)),
                    }
                }
                // No segment is as large as that.
                Err(StoreError::TooLarge { .. }) => worst = Some(corrupt(device, &path)),
                Err(error) => worst = object::worse(worst, error),
            }
        }
        Err(worst.unwrap_or(StoreError::NotFound { object: path.to_string() }))
    }

    /// A segment's file, to read parts of it: the first on a local device. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when no local device has it.
    pub fn open_segment(&self, id: SegmentId) -> io::Result<File> {
        loop {
            let moved = self.moved.load(Ordering::Acquire);
            match self.look_for_file(id) {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && self.has_moved_since(moved) => {}
                found => return found,
            }
        }
    }

    fn look_for_file(&self, id: SegmentId) -> io::Result<File> {
        let path = segment_path(id);
        let mut worst = io::Error::from(io::ErrorKind::NotFound);
        for device in &self.devices {
            match device.open_file(&path) {
                Ok(file) => return Ok(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }

    /// Whether any device has an object under this id. Does not read it.
    ///
    /// # Errors
    /// [`StoreError::Lost`] when it may be on a missing device.
    pub async fn has_segment(&self, id: SegmentId) -> Result<bool, StoreError> {
        Ok(self.device_of_segment(id).await?.is_some())
    }

    /// Whether there is a device whose segments are no files.
    #[must_use]
    pub fn has_remote(&self) -> bool {
        self.devices.iter().any(Device::is_remote)
    }

    /// How many devices there are.
    #[must_use]
    pub const fn devices(&self) -> usize {
        self.devices.len()
    }

    /// The device that a segment is on, by its number; the first, when there are several.
    ///
    /// # Errors
    /// [`StoreError::Lost`] when it may be on a missing device.
    pub async fn device_of_segment(&self, id: SegmentId) -> Result<Option<usize>, StoreError> {
        loop {
            let moved = self.moved.load(Ordering::Acquire);
            match self.look_for_device(id).await {
                Ok(None) if self.has_moved_since(moved) => {}
                found => return found,
            }
        }
    }

    async fn look_for_device(&self, id: SegmentId) -> Result<Option<usize>, StoreError> {
        let path = segment_path(id);
        let mut lost = None;
        for (number, device) in self.devices.iter().enumerate() {
            match object::exists(device, &path).await {
                Ok(true) => return Ok(Some(number)),
                Ok(false) => {}
                Err(error) => lost = Some(error),
            }
        }
        lost.map_or(Ok(None), Err)
    }

    /// Deletes a segment wherever it is; true when it was somewhere.
    ///
    /// # Errors
    /// [`StoreError`] of the device that did not do it.
    pub async fn delete_segment(&self, id: SegmentId) -> Result<bool, StoreError> {
        self.delete(&segment_path(id)).await
    }

    /// Every segment on every device, in no order. One that is on two devices comes twice. Files that are
    /// not segments are passed over.
    pub fn segments(&self) -> impl Stream<Item = Result<StoredSegment, StoreError>> + Send {
        stream::iter(&self.devices).flat_map(|device| {
            object::list(device, &ObjectPath::from("segments"))
                .try_filter_map(|meta| async move { Ok(stored(&meta)) })
        })
    }

    /// Deletes the segments that are not among `referenced` and were written before `written_before`: a
    /// registration that runs now refers to its segments only when it is complete.
    ///
    /// # Errors
    /// [`StoreError`]; what was deleted by then stays deleted.
    pub async fn delete_unreferenced(
        &self,
        referenced: impl IntoIterator<Item = SegmentId>,
        written_before: SystemTime,
    ) -> Result<Deleted, StoreError> {
        let referenced: HashSet<SegmentId> = referenced.into_iter().collect();
        self.segments()
            .try_filter(|segment| {
                let goes = !referenced.contains(&segment.id) && segment.written < written_before;
                async move { goes }
            })
            .map_ok(|segment| async move {
                let found = self.delete_segment(segment.id).await?;
                Ok(Deleted {
                    segments: u64::from(found),
                    bytes: if found { segment.length } else { ByteCount(0) },
                })
            })
            .try_buffer_unordered(DELETIONS_AT_ONCE)
            .try_fold(Deleted::default(), |sum, one| async move {
                Ok(Deleted {
                    segments: sum.segments + one.segments,
                    bytes: ByteCount(sum.bytes.0 + one.bytes.0),
                })
            })
            .await
    }

    /// Stores a blob under its name, on every device; what was there is replaced, in one step on each. Durable after
    /// [`Self::flush`].
    ///
    /// # Errors
    /// [`StoreError::Full`]; [`StoreError::TooLarge`] above [`BLOB_MAX_BYTES`]. Then some devices may have what was there.
    pub async fn put_blob(&self, name: &BlobName, bytes: Bytes) -> Result<(), StoreError> {
        let path = name.path();
        if bytes.len() as u64 > BLOB_MAX_BYTES {
            return Err(StoreError::TooLarge { object: path.to_string(), limit: BLOB_MAX_BYTES });
        }
        // In this order, so that the first that has it has the newest.
        for device in &self.devices {
            object::put(device, &path, &bytes).await?;
        }
        Ok(())
    }

    /// Brings to every device the blobs that it lacks, or has as they were before: it was added, or a write was cut short.
    ///
    /// # Errors
    /// [`StoreError`] of a device that cannot be read or written.
    pub async fn even_out_blobs(&self) -> Result<(), StoreError> {
        if self.devices.len() < 2 {
            return Ok(());
        }
        for name in self.blobs().await? {
            let (path, newest) = (name.path(), self.get_blob(&name).await?);
            for device in &self.devices {
                match object::get(device, &path, BLOB_MAX_BYTES).await {
                    Ok(bytes) if bytes == newest => {}
                    Ok(_) | Err(StoreError::NotFound { .. }) => {
                        object::put(device, &path, &newest).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.flush().await
    }

    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Lost`].
    pub async fn get_blob(&self, name: &BlobName) -> Result<Bytes, StoreError> {
        let path = name.path();
        let mut worst = None;
        for device in &self.devices {
            match object::get(device, &path, BLOB_MAX_BYTES).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => worst = object::worse(worst, error),
            }
        }
        Err(worst.unwrap_or(StoreError::NotFound { object: path.to_string() }))
    }

    /// True when it was there.
    ///
    /// # Errors
    /// [`StoreError`] of the device that did not do it.
    pub async fn delete_blob(&self, name: &BlobName) -> Result<bool, StoreError> {
        self.delete(&name.path()).await
    }

    /// All blobs, by name.
    ///
    /// # Errors
    /// [`StoreError::Lost`] when a device is missing.
    pub async fn blobs(&self) -> Result<Vec<BlobName>, StoreError> {
        let mut names: Vec<BlobName> = stream::iter(&self.devices)
            .flat_map(|device| object::list(device, &ObjectPath::from("blobs")))
            .try_filter_map(|meta| async move { Ok(BlobName::of(&meta.location)) })
            .try_collect()
            .await?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Makes everything that was stored or deleted so far durable.
    ///
    /// # Errors
    /// [`StoreError::Unsynced`]: the device is faulty, and what was written since the last flush is in doubt.
    pub async fn flush(&self) -> Result<(), StoreError> {
        for device in &self.devices {
            device.flush().await?;
        }
        Ok(())
    }

    /// Lets the next program have the devices at once: at the end, when nothing uses them any more.
    pub async fn release(&self) {
        for device in &self.devices {
            device.release().await;
        }
    }

    /// The room on each device.
    ///
    /// # Errors
    /// [`StoreError::Lost`] when a device is missing.
    pub async fn space(&self) -> Result<Vec<DeviceSpace>, StoreError> {
        let mut spaces = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let free = device.free().await?;
            spaces.push(DeviceSpace { device: device.name().to_owned(), free });
        }
        Ok(spaces)
    }

    /// Onto the device that has the object already, so that there are never two versions of it; else onto
    /// the one with most room that takes it.
    async fn put(&self, path: &ObjectPath, bytes: &Bytes) -> Result<&Device, StoreError> {
        let mut failed = None;
        for device in self.candidates(path).await? {
            match object::put(device, path, bytes).await {
                Ok(()) => return Ok(device),
                Err(error @ StoreError::Full { .. }) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or(StoreError::NoDevice))
    }

    async fn candidates(&self, path: &ObjectPath) -> Result<Vec<&Device>, StoreError> {
        if self.devices.len() > 1 {
            let holders = self.holders(path).await?;
            if !holders.is_empty() {
                return Ok(holders);
            }
        }
        let mut with_room = Vec::with_capacity(self.devices.len());
        for (number, device) in self.devices.iter().enumerate() {
            let free = device.free().await?.map_or(u64::MAX, |free| free.0);
            with_room.push((std::cmp::Reverse(free), number, device));
        }
        with_room.sort_by_key(|(free, ..)| *free);
        // Of those that have about as much room as the first, the one that took least: data is striped over them.
        let most = with_room.first().map_or(0, |(free, ..)| free.0);
        let equal = with_room.partition_point(|(free, ..)| free.0 >= most - most / EQUAL_WITHIN);
        if let Some(equals) = with_room.get_mut(..equal) {
            equals.sort_by_key(|(_, number, device)| (device.taken(), *number));
        }
        Ok(with_room.into_iter().map(|(.., device)| device).collect())
    }

    async fn holders(&self, path: &ObjectPath) -> Result<Vec<&Device>, StoreError> {
        let mut holders = Vec::new();
        let mut lost = None;
        for device in &self.devices {
            match object::exists(device, path).await {
                Ok(true) => holders.push(device),
                Ok(false) => {}
                Err(error) => lost = Some(error),
            }
        }
        match lost {
            Some(error) if holders.is_empty() => Err(error),
            _ => Ok(holders),
        }
    }

    async fn delete(&self, path: &ObjectPath) -> Result<bool, StoreError> {
        let mut found = false;
        let mut failed = None;
        for device in &self.devices {
            match object::delete(device, path).await {
                Ok(deleted) => found |= deleted,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(found), Err)
    }
}

fn corrupt(device: &Device, path: &ObjectPath) -> StoreError {
    StoreError::Corrupt { device: device.name().to_owned(), object: path.to_string() }
}

/// `segments/ab/abcd…`: 256 folders keep each of them small.
fn segment_path(id: SegmentId) -> ObjectPath {
    let hex = id.to_string();
    let folder = hex.get(..2).unwrap_or_default();
    ObjectPath::from_iter(["segments", folder, &hex])
}

/// What is stored under an object's name; none when that is no segment's.
fn stored(meta: &object_store::ObjectMeta) -> Option<StoredSegment> {
    let id = segment_of(&meta.location)?;
    let length = ByteCount(meta.size);
    Some(StoredSegment { id, length, written: meta.last_modified.into() })
}

fn segment_of(path: &ObjectPath) -> Option<SegmentId> {
    let id = path.filename()?.parse().ok()?;
    (segment_path(id) == *path).then_some(id)
}

#[cfg(test)]
mod tests;
