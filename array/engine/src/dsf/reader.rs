//! Reading the DSF beside its owner: lookups, checked reads and the scrub.
//!
//! Readers share the table and the file with the owner and never wait for its syncs: serving a segment
//! to a neighbour must not stand behind a batch of puts. Hence a lock (held for a lookup only, never
//! over I/O) and not a message. A slot may be refilled while it is read; then the bytes do not have the
//! id that was looked up, and a second lookup, which compares stamps, tells that from rot.

use std::{
    io,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use cairn_core::id::SegmentId;

use super::{
    disk::DiskFile,
    layout::{PAYLOAD_BYTES, SLOT_HEADER_BYTES, SlotIndex},
    slot::{SegmentClass, SlotHeader},
    table::{Entry, Held, SlotTable, Stats},
};

/// How a payload differs from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadFault {
    #[error("the bytes changed since they were written")]
    Checksum,
    #[error("the bytes are those of another segment")]
    Identity,
}

/// What is wrong with a slot.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SlotFault {
    /// The payload is good. The owner writes the header anew from memory.
    #[error("its header on disk is damaged")]
    Header,
    #[error("its payload is damaged")]
    Payload(#[source] PayloadFault),
    #[error("it cannot be read")]
    Unreadable(#[source] Arc<io::Error>),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum GetError {
    #[error("segment {0} is not held")]
    NotHeld(SegmentId),
    /// Worth reporting, and then removing: a rotten copy is of no use.
    #[error("segment {id} in slot {slot} is lost")]
    Rotten { id: SegmentId, slot: SlotIndex, source: SlotFault },
    #[error("the storage file is closed")]
    Closed,
}

/// A slot that a scrub found bad.
#[derive(Clone, Debug)]
pub struct BadSlot {
    pub slot: SlotIndex,
    pub id: SegmentId,
    pub class: SegmentClass,
    pub fault: SlotFault,
}

/// What one step of a scrub did.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// Slots read.
    pub checked: u32,
    pub bad: Vec<BadSlot>,
    /// The step reached the end of the file; the next one starts over.
    pub round_complete: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: DiskFile,
    table: RwLock<SlotTable>,
    scrub_from: AtomicU32,
}

impl Shared {
    pub(super) const fn new(disk: DiskFile, table: SlotTable) -> Self {
        Self { disk, table: RwLock::new(table), scrub_from: AtomicU32::new(0) }
    }

    // The table's transitions do not panic half-way, so a poisoned lock still guards a sound table.
    pub(super) fn table(&self) -> RwLockReadGuard<'_, SlotTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the owner alone.
    pub(super) fn table_mut(&self) -> RwLockWriteGuard<'_, SlotTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The payload of a slot, checked.
    pub(super) fn read(&self, header: &SlotHeader) -> Result<Bytes, SlotFault> {
        let mut bytes = vec![0; header.length as usize];
        self.disk
            .read_at(&mut bytes, header.slot.payload_at())
            .map_err(|error| SlotFault::Unreadable(Arc::new(error)))?;
        if crc_fast::crc32_iscsi(&bytes) != header.checksum {
            return Err(SlotFault::Payload(PayloadFault::Checksum));
        }
        if SegmentId::of(&bytes) != header.id {
            return Err(SlotFault::Payload(PayloadFault::Identity));
        }
        Ok(bytes.into())
    }

    /// Reads payload and header from the disk and not from the cache.
    fn inspect(&self, header: &SlotHeader) -> Result<(), SlotFault> {
        self.disk.drop_cache(header.slot.payload_at(), PAYLOAD_BYTES);
        let payload = self.read(header);
        self.disk.drop_cache(header.slot.payload_at(), PAYLOAD_BYTES);
        payload?;

        self.disk.drop_cache(header.slot.header_at(), SLOT_HEADER_BYTES as u64);
        let mut page = [0; SLOT_HEADER_BYTES];
        self.disk
            .read_at(&mut page, header.slot.header_at())
            .map_err(|error| SlotFault::Unreadable(Arc::new(error)))?;
        match SlotHeader::decode(&page) {
            // The class may be changing just now.
            Ok(found) if (SlotHeader { class: header.class, ..found }) == *header => Ok(()),
            Ok(_) | Err(_) => Err(SlotFault::Header),
        }
    }
}

/// Reads from a DSF that somebody else owns. Blocks on the disk: not for async tasks.
#[derive(Clone, Debug)]
pub struct DsfReader {
    shared: Arc<Shared>,
}

impl DsfReader {
    pub(super) const fn over(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A segment's bytes, which have been checked against its id.
    ///
    /// # Errors
    /// [`GetError::NotHeld`]; [`GetError::Rotten`] when what is in the slot is not the segment.
    pub fn get(&self, id: SegmentId) -> Result<Bytes, GetError> {
        // Repeats only when the slot was refilled or moved since the lookup, so somebody made progress.
        loop {
            let entry = self.shared.table().get(id).ok_or(GetError::NotHeld(id))?;
            match self.shared.read(&entry.header) {
                Ok(bytes) => return Ok(bytes),
                Err(source) if self.is_current(&entry) => {
                    return Err(GetError::Rotten { id, slot: entry.header.slot, source });
                }
                Err(_) => {}
            }
        }
    }

    #[must_use]
    pub fn contains(&self, id: SegmentId) -> bool {
        self.shared.table().get(id).is_some()
    }

    /// Everything held, in file order.
    #[must_use]
    pub fn list(&self) -> Vec<Held> {
        self.shared.table().entries().map(|entry| Held::from(&entry)).collect()
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.table().stats()
    }

    /// Checks the next `count` used slots. The pace is the caller's.
    #[must_use]
    pub fn scrub_step(&self, count: u32) -> Scrubbed {
        let from = SlotIndex(self.shared.scrub_from.load(Ordering::Relaxed));
        let (entries, next) = self.shared.table().used_from(from, count);
        self.shared.scrub_from.store(next.0, Ordering::Relaxed);

        let mut scrubbed = Scrubbed { round_complete: next == SlotIndex(0), ..Scrubbed::default() };
        for entry in entries {
            scrubbed.checked += 1;
            let SlotHeader { slot, id, class, .. } = entry.header;
            match self.shared.inspect(&entry.header) {
                Err(fault) if self.is_current(&entry) => {
                    scrubbed.bad.push(BadSlot { slot, id, class, fault });
                }
                Ok(()) | Err(_) => {}
            }
        }
        scrubbed
    }

    /// Whether the slot still holds what it held at the lookup.
    fn is_current(&self, entry: &Entry) -> bool {
        let now = self.shared.table().get(entry.header.id);
        now.is_some_and(|now| now.stamp == entry.stamp)
    }
}
