//! Evening out the room of devices: after one was added, segments move to it from those that are fuller.
//!
//! Invariant: a segment that moves is on one of the two devices at every moment, and durable on the new one before it leaves
//! the old one. A move that is cut short leaves it on both, which does no harm.

use std::sync::atomic::Ordering;

use cairn_core::{
    id::SegmentId,
    units::{ByteCount, SEGMENT_MAX_BYTES},
};
use futures::{TryStreamExt as _, stream::BoxStream};
use object_store::path::Path as ObjectPath;

use super::{Device, EQUAL_WITHIN, Store, StoreError, StoredSegment, object, segment_path, stored};
use crate::dsf::CheckedSegment;

/// Bytes that should move from one device to another, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    pub from: usize,
    pub to: usize,
    pub bytes: ByteCount,
}

/// What to move first so that devices have about equal room: half of the difference between the one that has least and the one
/// that has most. None when they have, within the tenth that new segments do not look at either. Devices without a limit,
/// such as buckets, neither give nor take.
#[must_use]
pub fn shift(free: &[Option<ByteCount>]) -> Option<Shift> {
    let known = || free.iter().enumerate().filter_map(|(number, free)| Some(((*free)?.0, number)));
    let ((least, from), (most, to)) = (known().min()?, known().max()?);
    let apart = most - least;
    (apart > most / EQUAL_WITHIN).then_some(Shift { from, to, bytes: ByteCount(apart / 2) })
}

impl Store {
    /// What to move first; see [`shift`].
    ///
    /// # Errors
    /// [`StoreError::Lost`] when a device is missing.
    pub async fn shift(&self) -> Result<Option<Shift>, StoreError> {
        let mut free = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            free.push(device.free().await?);
        }
        Ok(shift(&free))
    }

    /// The segments on a device, in no order.
    pub fn segments_on(&self, device: usize) -> BoxStream<'_, Result<StoredSegment, StoreError>> {
        match self.devices.get(device) {
            Some(device) => Box::pin(
                object::list(device, &ObjectPath::from("segments"))
                    .try_filter_map(|meta| async move { Ok(stored(&meta)) }),
            ),
            None => Box::pin(futures::stream::empty()),
        }
    }

    /// Moves segments from one device to another. Those that are gone, or are not what they should be, stay as they are.
    /// Returns those that moved.
    ///
    /// # Errors
    /// [`StoreError::Full`], or another when a device does not do its part; then all are where they were, or on both.
    pub async fn move_segments(
        &self,
        ids: &[SegmentId],
        from: usize,
        to: usize,
    ) -> Result<Vec<SegmentId>, StoreError> {
        let (Some(from), Some(to)) = (self.devices.get(from), self.devices.get(to)) else {
            return Ok(Vec::new());
        };
        let mut moved = Vec::with_capacity(ids.len());
        for id in ids {
            if copy(*id, from, to).await? {
                moved.push(*id);
            }
        }
        to.flush().await?;
        for id in &moved {
            object::delete(from, &segment_path(*id)).await?;
            // Who looked for it on the new one before, and on the old one now, looks again.
            self.moved.fetch_add(1, Ordering::Release);
        }
        Ok(moved)
    }
}

/// Whether the segment is on both now.
async fn copy(id: SegmentId, from: &Device, to: &Device) -> Result<bool, StoreError> {
    let path = segment_path(id);
    let bytes = match object::get(from, &path, SEGMENT_MAX_BYTES as u64).await {
        Ok(bytes) => bytes,
        // It was deleted just now, or is the scrub's to mend.
        Err(StoreError::NotFound { .. } | StoreError::TooLarge { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let checked = object::blocking(move || CheckedSegment::check(id, bytes)).await?;
    let Ok(segment) = checked else { return Ok(false) };
    object::put(to, &path, segment.bytes()).await?;
    to.took(segment.bytes().len() as u64);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_fullest_gives_to_the_emptiest() {
        let free =
            |sizes: &[u64]| sizes.iter().map(|size| Some(ByteCount(*size))).collect::<Vec<_>>();
        let wanted = Some(Shift { from: 1, to: 2, bytes: ByteCount(45) });
        assert_eq!(shift(&free(&[50, 10, 100])), wanted);
        assert_eq!(shift(&free(&[91, 100])), None);
        assert_eq!(shift(&free(&[7])), None);
        assert_eq!(shift(&[]), None);
        assert_eq!(shift(&[None, Some(ByteCount(5))]), None);
    }

    proptest! {
        #[test]
        fn it_comes_to_an_end_with_about_equal_room(
            mut free in proptest::collection::vec(0_u64..1 << 44, 2..8),
        ) {
            let all: u64 = free.iter().sum();
            for _ in 0..200 {
                let known: Vec<_> = free.iter().map(|free| Some(ByteCount(*free))).collect();
                let Some(Shift { from, to, bytes }) = shift(&known) else { break };
                prop_assert!(bytes.0 <= free[to]);
                free[from] += bytes.0;
                free[to] -= bytes.0;
            }
            let (least, most) = (free.iter().min().unwrap(), free.iter().max().unwrap());
            prop_assert!(most - least <= most / EQUAL_WITHIN, "{free:?}");
            prop_assert_eq!(free.iter().sum::<u64>(), all);
        }
    }
}
