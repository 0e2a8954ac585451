//! Growing and shrinking, and giving up what is worth least.
//!
//! Growing: the headers of the new slots are zeroed and synced *before* the file is long enough for them
//! to count, so that what an earlier, larger life left there never comes back. Shrinking: first what must
//! go is removed, which gives the space back at once; then what lies in the tail moves, and the headers
//! it leaves are cleared; the file is cut last. Killed anywhere in between, it is a DSF of the old size
//! with some segments fewer, or some twice, which opening resolves.

use cairn_core::id::SegmentId;

use super::{
    disk::is_full,
    engine::{Dsf, Fault, PutError, ResizeError, clear_headers, drop_headers},
    layout::{MAX_SLOTS, SlotCount},
    slot::{SegmentClass, SlotHeader},
    table::{Entry, Held},
};

/// Segments moved between two syncs.
const MOVES_PER_SYNC: usize = 8;

/// What a resize did. Evicted and rotten segments are gone; the controller has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resized {
    pub capacity: SlotCount,
    pub moved: u32,
    /// Given up for lack of room, least valuable first.
    pub evicted: Vec<Held>,
    /// Found damaged when they were to be moved, and removed.
    pub rotten: Vec<Held>,
}

enum Moved {
    Staged(SlotHeader),
    Rotten,
    Full,
}

impl Dsf {
    /// Makes the DSF larger or smaller. When it is interrupted or fails, calling it again goes on.
    ///
    /// # Errors
    /// [`ResizeError::Full`] when there is no room for the headers of a larger one (nothing changed);
    /// [`ResizeError::Faulted`] when the disk fails.
    pub fn resize(&mut self, capacity: SlotCount) -> Result<Resized, ResizeError> {
        self.check()?;
        if capacity.0 > MAX_SLOTS {
            return Err(ResizeError::TooMany { wanted: capacity });
        }
        let before = self.shared.table().capacity();
        if capacity > before {
            self.grow(before, capacity)?;
            return Ok(Resized { capacity, ..Resized::default() });
        }
        Ok(self.shrink(capacity)?)
    }

    /// Removes up to `count` segments worth less than `below`, least valuable first, and says which.
    ///
    /// # Errors
    /// [`Fault`] when the disk fails.
    pub fn evict(&mut self, count: SlotCount, below: SegmentClass) -> Result<Vec<Held>, Fault> {
        let ids = self.shared.table().least_valuable(count.0, Some(below));
        self.evict_these(&ids)
    }

    fn grow(&mut self, before: SlotCount, capacity: SlotCount) -> Result<(), ResizeError> {
        let disk = &self.shared.disk;
        let cleared = clear_headers(disk, before, capacity);
        if let Err(error) = &cleared
            && is_full(error)
        {
            let undone = drop_headers(disk, before, capacity);
            self.must("cut the file back", undone)?;
            return Err(ResizeError::Full);
        }
        self.must("clear new headers", cleared)?;
        self.sync("make new headers durable")?;
        self.set_capacity(capacity)?;
        self.shared.table_mut().grow(capacity);
        Ok(())
    }

    fn shrink(&mut self, capacity: SlotCount) -> Result<Resized, Fault> {
        let evict = self.shared.table().excess(capacity);
        let mut resized = Resized { capacity, ..Resized::default() };
        resized.evicted = self.evict_these(&evict)?;
        self.empty_tail(capacity, &mut resized)?;
        self.set_capacity(capacity)?;
        self.shared.table_mut().truncate(capacity);
        Ok(resized)
    }

    /// Moves segments out of the tail until nothing is in it. A copy needs room on the disk for a moment;
    /// where there is none, the least valuable segment of all gives up its own. Each round moves, evicts
    /// or drops at least one.
    fn empty_tail(&mut self, capacity: SlotCount, resized: &mut Resized) -> Result<(), Fault> {
        loop {
            let tail = self.shared.table().tail(capacity, MOVES_PER_SYNC);
            if tail.is_empty() {
                return Ok(());
            }
            let mut staged = Vec::new();
            let rotten = resized.rotten.len();
            for entry in tail {
                match self.stage_move(&entry)? {
                    Moved::Staged(header) => staged.push(header),
                    Moved::Rotten => {
                        resized.rotten.push(Held::from(&entry));
                        self.remove(&[entry.header.id])?;
                    }
                    Moved::Full => break,
                }
            }
            let moved = self.commit_moves(&staged)?;
            resized.moved += moved;
            if moved == 0 && resized.rotten.len() == rotten {
                let victim = self.shared.table().least_valuable(1, None);
                resized.evicted.extend(self.evict_these(&victim)?);
            }
        }
    }

    /// Copies one segment to a free slot, which is an earlier one: as many are free in front as there
    /// are used in the tail, and the first free slot is taken.
    fn stage_move(&mut self, entry: &Entry) -> Result<Moved, Fault> {
        let Ok(bytes) = self.shared.read(&entry.header) else { return Ok(Moved::Rotten) };
        let Some(slot) = self.shared.table_mut().reserve() else { return Ok(Moved::Full) };
        let header = SlotHeader { slot, ..entry.header };
        match self.write_payload(&header, &bytes) {
            Ok(()) => Ok(Moved::Staged(header)),
            Err(PutError::Faulted(fault)) => Err(fault),
            Err(_) => Ok(Moved::Full),
        }
    }

    /// Answers how many have moved; the others found the disk full and stay where they are.
    fn commit_moves(&mut self, staged: &[SlotHeader]) -> Result<u32, Fault> {
        if staged.is_empty() {
            return Ok(0);
        }
        self.sync("make moved segments durable")?;
        let mut done = Vec::with_capacity(staged.len());
        for header in staged {
            if self.write_header(header)? {
                done.push(*header);
            } else {
                self.free(&[header.slot])?;
            }
        }
        self.sync("make moved headers durable")?;
        let left: Vec<_> = {
            let mut table = self.shared.table_mut();
            done.into_iter().filter_map(|header| table.relocate(header)).collect()
        };
        self.free(&left)?;
        Ok(u32::try_from(left.len()).unwrap_or(u32::MAX))
    }

    fn evict_these(&mut self, ids: &[SegmentId]) -> Result<Vec<Held>, Fault> {
        let held = {
            let table = self.shared.table();
            ids.iter().filter_map(|id| table.get(*id)).map(|entry| Held::from(&entry)).collect()
        };
        self.remove(ids)?;
        Ok(held)
    }

    fn set_capacity(&mut self, capacity: SlotCount) -> Result<(), Fault> {
        let set = self.shared.disk.set_length(capacity.file_bytes());
        self.must("change the file's length", set)?;
        self.sync("make the file's length durable")
    }
}
