//! The one writer of a DSF: which write happens before which sync. Blocks on the disk.
//!
//! ```text
//! put     payloads ─ sync ─ headers ─ sync ─ table      (any number of segments, always two syncs)
//! remove  table ─ headers cleared ─ sync ─ punch ─ free
//! ```

use std::{
    collections::{HashMap, hash_map},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_core::{id::SegmentId, units::ByteCount};

use super::{
    checked::{CheckError, CheckedSegment},
    disk::{DiskFile, OpenFault, is_full},
    layout::{
        self, MAX_SLOTS, PAYLOAD_BYTES, SLOT_HEADER_BYTES, SUPERBLOCK_COPY_AT, SlotCount, SlotIndex,
    },
    reader::{DsfReader, Shared},
    slot::{self, SegmentClass, SlotHeader},
    superblock::{DsfId, SECTOR_BYTES, Superblock},
    table::{Entry, SlotTable},
};

#[derive(Debug, thiserror::Error)]
#[error("storage file {}", path.display())]
pub struct OpenError {
    pub path: PathBuf,
    #[source]
    pub fault: OpenFault,
}

/// The disk failed. From then on the DSF is read-only until it is opened again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("storage file is out of service: it could not {operation}")]
pub struct Fault {
    pub operation: &'static str,
    pub source: Arc<io::Error>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum PutError {
    #[error("refused")]
    Check(#[from] CheckError),
    #[error("all {capacity} slots are in use")]
    NoFreeSlot { capacity: SlotCount },
    /// The owner's disk (or quota) is full. Nothing was stored, and the rest is intact.
    #[error("the disk is full")]
    Full,
    #[error(transparent)]
    Faulted(#[from] Fault),
    #[error("the storage file is closed")]
    Closed,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ResizeError {
    #[error("{wanted} slots are more than the {MAX_SLOTS} that a storage file can have")]
    TooMany { wanted: SlotCount },
    #[error("the disk is full")]
    Full,
    #[error(transparent)]
    Faulted(#[from] Fault),
    #[error("the storage file is closed")]
    Closed,
}

/// A segment to store, and what it is worth.
#[derive(Clone, Debug)]
pub struct Put {
    pub segment: CheckedSegment,
    pub class: SegmentClass,
}

/// How a put ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    New,
    /// It was there and is intact. Its class is now the higher of the two.
    Already,
}

/// A distributed storage file, opened by its one writer.
#[derive(Debug)]
pub struct Dsf {
    id: DsfId,
    pub(super) shared: Arc<Shared>,
    pub(super) fault: Option<Fault>,
}

/// How far one put of a batch has come.
enum Step {
    Done(Result<Stored, PutError>),
    /// The payload is written; its header is to follow.
    Fresh(SlotHeader),
    /// The segment is held; only its class changes.
    Raise(SlotHeader),
    /// An earlier put of the batch has the same segment.
    SameAs(usize),
}

impl Dsf {
    /// Makes an empty DSF: file 0600, its folder 0700 (made when there is none).
    ///
    /// # Errors
    /// [`OpenFault::Exists`] when there is one; [`OpenFault`] for anything else in the way.
    pub fn create(path: &Path, id: DsfId, capacity: SlotCount) -> Result<Self, OpenError> {
        let in_path = |fault| OpenError { path: path.to_owned(), fault };
        let capacity = SlotCount(capacity.0.min(MAX_SLOTS));
        let disk = DiskFile::create(path, |disk| {
            let superblock = Superblock { id }.encode();
            disk.write_at(&superblock, 0)?;
            disk.write_at(&superblock, SUPERBLOCK_COPY_AT)?;
            clear_headers(disk, SlotCount(0), capacity)?;
            disk.set_length(capacity.file_bytes())
        })
        .map_err(in_path)?;
        let table = SlotTable::new(capacity);
        Ok(Self { id, shared: Arc::new(Shared::new(disk, table)), fault: None })
    }

    /// Opens a DSF by reading its headers: torn ones are free slots, duplicates are resolved, and what
    /// free slots still occupy is given back to the disk.
    ///
    /// # Errors
    /// [`OpenFault`]: missing, not private, in use, damaged beyond its superblock, or of a newer version.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let in_path = |fault| OpenError { path: path.to_owned(), fault };
        let disk = DiskFile::open(path).map_err(in_path)?;
        let id = read_superblock(&disk).map_err(in_path)?;
        let table = scan(&disk).map_err(in_path)?;
        Ok(Self { id, shared: Arc::new(Shared::new(disk, table)), fault: None })
    }

    #[must_use]
    pub const fn id(&self) -> DsfId {
        self.id
    }

    /// For reading beside this writer.
    #[must_use]
    pub fn reader(&self) -> DsfReader {
        DsfReader::over(Arc::clone(&self.shared))
    }

    /// Stores a batch. Each answer stands for the put at the same place, and is durable when given.
    pub fn put(&mut self, batch: &[Put]) -> Vec<Result<Stored, PutError>> {
        let mut steps: Vec<Step> = Vec::with_capacity(batch.len());
        let classes = highest_classes(batch);
        let mut first = HashMap::new();
        for (place, put) in batch.iter().enumerate() {
            let id = put.segment.id();
            steps.push(match first.entry(id) {
                hash_map::Entry::Occupied(earlier) => Step::SameAs(*earlier.get()),
                hash_map::Entry::Vacant(new) => {
                    new.insert(place);
                    let class = classes.get(&id).copied().unwrap_or(put.class);
                    self.stage(&put.segment, class)
                }
            });
        }
        let committed = self.commit(&mut steps);
        let mut answers: Vec<Result<Stored, PutError>> = Vec::with_capacity(steps.len());
        for step in steps {
            let answer = match (step, &committed) {
                (Step::Done(answer), _) => answer,
                (Step::Fresh(_) | Step::Raise(_), Err(fault)) => Err(fault.clone().into()),
                (Step::Fresh(_), Ok(())) => Ok(Stored::New),
                (Step::Raise(_), Ok(())) => Ok(Stored::Already),
                (Step::SameAs(earlier), _) => match answers.get(earlier) {
                    Some(Ok(_)) => Ok(Stored::Already),
                    Some(Err(error)) => Err(error.clone()),
                    None => Err(PutError::Closed),
                },
            };
            answers.push(answer);
        }
        answers
    }

    /// Removes segments; those that are not held are passed over. Durable when it returns.
    ///
    /// # Errors
    /// [`Fault`] when the disk fails; then some may still be there after the next opening.
    pub fn remove(&mut self, ids: &[SegmentId]) -> Result<SlotCount, Fault> {
        self.check()?;
        let slots: Vec<SlotIndex> = {
            let mut table = self.shared.table_mut();
            ids.iter().filter_map(|id| table.vacate(*id)).collect()
        };
        self.free(&slots)?;
        Ok(SlotCount(u32::try_from(slots.len()).unwrap_or(MAX_SLOTS)))
    }

    /// Says anew what segments are worth; those that are not held are passed over.
    ///
    /// # Errors
    /// [`Fault`] when the disk fails.
    pub fn set_class(&mut self, ids: &[SegmentId], class: SegmentClass) -> Result<(), Fault> {
        self.rewrite_headers(ids, Some(class))
    }

    /// Writes the headers of good payloads anew, after a scrub found them damaged.
    ///
    /// # Errors
    /// [`Fault`] when the disk fails.
    pub fn heal_headers(&mut self, ids: &[SegmentId]) -> Result<(), Fault> {
        self.rewrite_headers(ids, None)
    }

    fn rewrite_headers(
        &mut self,
        ids: &[SegmentId],
        class: Option<SegmentClass>,
    ) -> Result<(), Fault> {
        self.check()?;
        let entries: Vec<Entry> = {
            let table = self.shared.table();
            ids.iter().filter_map(|id| table.get(*id)).collect()
        };
        let mut steps: Vec<Step> = entries
            .into_iter()
            .map(|Entry { header, .. }| {
                Step::Raise(SlotHeader { class: class.unwrap_or(header.class), ..header })
            })
            .collect();
        self.commit(&mut steps)
    }

    /// Writes one payload into a free slot, or finds out why not.
    fn stage(&mut self, segment: &CheckedSegment, class: SegmentClass) -> Step {
        match self.try_stage(segment, class) {
            Ok(step) => step,
            Err(error) => Step::Done(Err(error)),
        }
    }

    fn try_stage(
        &mut self,
        segment: &CheckedSegment,
        class: SegmentClass,
    ) -> Result<Step, PutError> {
        self.check()?;
        let id = segment.id();
        let held = self.shared.table().get(id);
        if let Some(Entry { header, .. }) = held {
            if self.shared.read(&header).is_ok() {
                let raised = SlotHeader { class: header.class.max(class), ..header };
                let unchanged = raised.class == header.class;
                let done = Step::Done(Ok(Stored::Already));
                return Ok(if unchanged { done } else { Step::Raise(raised) });
            }
            // What is there has rotted; this put is its repair.
            self.remove(&[id])?;
        }
        let (slot, capacity) = {
            let mut table = self.shared.table_mut();
            (table.reserve(), table.capacity())
        };
        let slot = slot.ok_or(PutError::NoFreeSlot { capacity })?;
        let header = SlotHeader {
            slot,
            id,
            length: segment.length(),
            class,
            checksum: crc_fast::crc32_iscsi(segment.bytes()),
        };
        self.write_payload(&header, segment.bytes())?;
        Ok(Step::Fresh(header))
    }

    /// Fills a reserved slot. On a full disk the slot is free again and the error is [`PutError::Full`].
    pub(super) fn write_payload(
        &mut self,
        header: &SlotHeader,
        bytes: &[u8],
    ) -> Result<(), PutError> {
        let disk = &self.shared.disk;
        let written = disk
            .allocate(header.slot, header.length)
            .and_then(|()| disk.write_at(bytes, header.slot.payload_at()));
        match written {
            Ok(()) => Ok(()),
            Err(error) if is_full(&error) => {
                // No header was written, so there is nothing to clear first.
                self.give_back(header.slot)?;
                Err(PutError::Full)
            }
            Err(error) => Err(self.fail("write a segment", error).into()),
        }
    }

    /// Makes staged payloads durable, then their headers, then tells the table.
    fn commit(&mut self, steps: &mut [Step]) -> Result<(), Fault> {
        if steps.iter().any(|step| matches!(step, Step::Fresh(_))) {
            self.check()?;
            self.sync("make segments durable")?;
        }
        let mut written = false;
        for step in &mut *steps {
            let (Step::Fresh(header) | Step::Raise(header)) = *step else { continue };
            written = true;
            if !self.write_header(&header)? {
                if matches!(step, Step::Fresh(_)) {
                    self.free(&[header.slot])?;
                }
                *step = Step::Done(Err(PutError::Full));
            }
        }
        if written {
            self.sync("make headers durable")?;
        }
        let mut table = self.shared.table_mut();
        for step in steps {
            match step {
                Step::Fresh(header) => table.occupy(*header),
                Step::Raise(header) => table.reclassify(header.id, header.class),
                Step::Done(_) | Step::SameAs(_) => {}
            }
        }
        Ok(())
    }

    /// False when the disk is full, which happens only where writing in place takes new space.
    pub(super) fn write_header(&mut self, header: &SlotHeader) -> Result<bool, Fault> {
        match self.shared.disk.write_at(&header.encode(), header.slot.header_at()) {
            Err(error) if is_full(&error) => Ok(false),
            result => self.must("write a header", result).map(|()| true),
        }
    }

    /// Clears the headers of busy slots for good, then gives their space back.
    pub(super) fn free(&mut self, slots: &[SlotIndex]) -> Result<(), Fault> {
        self.clear(slots)?;
        for slot in slots {
            self.give_back(*slot)?;
        }
        Ok(())
    }

    /// Clears headers, durably.
    pub(super) fn clear(&mut self, slots: &[SlotIndex]) -> Result<(), Fault> {
        for slot in slots {
            let cleared = self.shared.disk.write_at(&[0; SLOT_HEADER_BYTES], slot.header_at());
            self.must("clear a header", cleared)?;
        }
        if slots.is_empty() { Ok(()) } else { self.sync("make removals durable") }
    }

    fn give_back(&mut self, slot: SlotIndex) -> Result<(), Fault> {
        let punched = self.shared.disk.punch(slot.payload_at(), PAYLOAD_BYTES);
        self.must("give space back", punched)?;
        self.shared.table_mut().release(slot);
        Ok(())
    }

    pub(super) fn sync(&mut self, operation: &'static str) -> Result<(), Fault> {
        let synced = self.shared.disk.sync();
        self.must(operation, synced)
    }

    /// The disk has to do this, or it is not trusted any more.
    pub(super) fn must<T>(
        &mut self,
        operation: &'static str,
        done: io::Result<T>,
    ) -> Result<T, Fault> {
        done.map_err(|source| self.fail(operation, source))
    }

    /// Takes the DSF out of service. The first fault is the one that is told.
    fn fail(&mut self, operation: &'static str, source: io::Error) -> Fault {
        self.fault.get_or_insert(Fault { operation, source: Arc::new(source) }).clone()
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        self.fault.clone().map_or(Ok(()), Err)
    }
}

/// A segment that is in a batch twice gets the higher of its classes.
fn highest_classes(batch: &[Put]) -> HashMap<SegmentId, SegmentClass> {
    let mut classes = HashMap::new();
    for Put { segment, class } in batch {
        classes
            .entry(segment.id())
            .and_modify(|highest: &mut SegmentClass| *highest = (*highest).max(*class))
            .or_insert(*class);
    }
    classes
}

/// Writes zeros over the headers of the slots from `from` up to `to`, which also takes their blocks from
/// the disk, so that writing a header later needs none.
pub(super) fn clear_headers(disk: &DiskFile, from: SlotCount, to: SlotCount) -> io::Result<()> {
    for run in layout::runs(from.0, to.0) {
        let zeros = vec![0; run.len() * SLOT_HEADER_BYTES];
        disk.write_at(&zeros, SlotIndex(run.start).header_at())?;
    }
    Ok(())
}

/// Undoes [`clear_headers`] where a full disk stopped it. What it appended to the file is cut off; what
/// lies between the headers in use and their payloads is given back.
pub(super) fn drop_headers(disk: &DiskFile, from: SlotCount, to: SlotCount) -> io::Result<()> {
    disk.set_length(from.file_bytes())?;
    // Only this run's group has payloads in the file, and so headers that are not at its end.
    match layout::runs(from.0, to.0).next() {
        Some(run) => {
            let bytes = run.len() as u64 * SLOT_HEADER_BYTES as u64;
            disk.punch(SlotIndex(run.start).header_at(), bytes)
        }
        None => Ok(()),
    }
}

const fn io_fault(operation: &'static str) -> impl FnOnce(io::Error) -> OpenFault {
    move |source| OpenFault::Io { operation, source }
}

fn read_superblock(disk: &DiskFile) -> Result<DsfId, OpenFault> {
    let read = |offset| -> Result<DsfId, OpenFault> {
        let mut bytes = [0; SECTOR_BYTES];
        disk.read_at(&mut bytes, offset).map_err(io_fault("read the superblock"))?;
        let superblock = Superblock::decode(&bytes).map_err(OpenFault::Superblock)?;
        Ok(superblock.id)
    };
    read(0).or_else(|first| read(SUPERBLOCK_COPY_AT).map_err(|_| first))
}

fn scan(disk: &DiskFile) -> Result<SlotTable, OpenFault> {
    let length = disk.length().map_err(io_fault("look at the file"))?;
    let capacity = SlotCount::fitting(ByteCount(length.0));
    let mut table = SlotTable::new(capacity);
    let mut duplicates = Vec::new();
    let mut pages = Vec::new();
    for run in layout::runs(0, capacity.0) {
        pages.resize(run.len() * SLOT_HEADER_BYTES, 0);
        let offset = SlotIndex(run.start).header_at();
        disk.read_at(&mut pages, offset).map_err(io_fault("read the headers"))?;
        for (slot, page) in run.map(SlotIndex).zip(pages.chunks_exact(SLOT_HEADER_BYTES)) {
            if let Some(header) = header_of(slot, page)? {
                duplicates.extend(table.adopt(header));
            }
        }
    }
    settle(disk, &mut table, &duplicates).map_err(io_fault("tidy the file"))?;
    Ok(table)
}

/// What a page says about its slot; `None` is a free one.
fn header_of(slot: SlotIndex, page: &[u8]) -> Result<Option<SlotHeader>, OpenFault> {
    if slot::is_cleared(page) {
        return Ok(None);
    }
    match SlotHeader::decode(page) {
        Ok(header) if header.slot == slot => Ok(Some(header)),
        Err(source @ cairn_core::bytes::DecodeError::Version { .. }) => {
            Err(OpenFault::Slot { slot, source })
        }
        Ok(_) | Err(_) => {
            tracing::warn!(%slot, "damaged header: the slot counts as free");
            Ok(None)
        }
    }
}

/// Clears the later of two slots with one segment, and punches what interrupted puts and removals left.
fn settle(disk: &DiskFile, table: &mut SlotTable, duplicates: &[SlotIndex]) -> io::Result<()> {
    for slot in duplicates {
        disk.write_at(&[0; SLOT_HEADER_BYTES], slot.header_at())?;
    }
    if !duplicates.is_empty() {
        disk.sync()?;
    }
    for slot in duplicates {
        table.release(*slot);
    }
    let mut free = table.free().iter().copied().peekable();
    while let Some(first) = free.next() {
        let mut count = 1;
        while free.next_if_eq(&SlotIndex(first.0 + count)).is_some() {
            count += 1;
            // The next slot's payload lies beyond the headers of another group.
            if (first.0 + count) % layout::SLOTS_PER_GROUP == 0 {
                break;
            }
        }
        disk.punch(first.payload_at(), u64::from(count) * PAYLOAD_BYTES)?;
    }
    Ok(())
}
