//! Changes into the journal.

use std::{
    io::IoSlice,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use cairn_core::{
    units::{BLOCK_BYTES, BlockIndex},
    volume::{
        Fresh,
        journal::{Cursor, Effect, Entry, MAX_ENTRIES, Record, crc32c},
    },
};

use super::{Change, ChangeError, Maps, Medium, StoreHealth, Volume, Wait, Writer, covering, lock};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// The journal is sealed once a third of it is used: the rest takes what comes meanwhile.
const SEAL_AT_ONE_OF: u64 = 3;

impl Maps {
    /// Shows a record to readers.
    pub(super) fn apply(&mut self, record: &Record) {
        let mut position = record.position + 1;
        for entry in &record.entries {
            let place = match entry.effect {
                Effect::Data { .. } => Fresh::Journal(position),
                Effect::Zero => Fresh::Zero,
            };
            position += u64::from(entry.payload());
            self.fresh.insert(entry.first, entry.blocks.into(), place, |_, _| {});
        }
    }
}

/// A record that is being gathered: entries, and the bytes of each that has some.
#[derive(Default)]
struct Gathered<'a> {
    entries: Vec<Entry>,
    payload: Vec<&'a [u8]>,
    payload_blocks: u32,
}

impl<M: Medium> Volume<M> {
    /// Takes changes, in this order: once it returns, reads see them, and they survive the end of this process. Whole
    /// blocks are changed at once or not at all by a crash.
    ///
    /// # Errors
    /// [`ChangeError`]; those before the one that failed may have been taken.
    pub fn change(&self, changes: &[Change<'_>]) -> Result<(), ChangeError> {
        let mut writer = lock(&self.writer);
        let size = self.size().0;
        let outside = |change: &Change<'_>| {
            let (offset, length) = change.range();
            offset.checked_add(length).is_none_or(|end| end > size)
        };
        if changes.iter().any(outside) {
            return Err(ChangeError::Range);
        }
        let mut gathered = Gathered::default();
        for change in changes {
            let (offset, length) = change.range();
            if length == 0 {
                continue;
            }
            if offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK) {
                writer = self.gather(writer, &mut gathered, change)?;
            } else {
                // What it leaves of a block may be in the record that is being gathered.
                writer = self.append(writer, &mut gathered)?;
                writer = self.change_ragged(writer, change)?;
            }
        }
        drop(self.append(writer, &mut gathered)?);
        Ok(())
    }

    /// Gives the volume `blocks` blocks. What was behind them up to `end` becomes zeros, at the same time for all others.
    pub(super) fn cut(&self, blocks: u64, end: u64) -> Result<(), ChangeError> {
        let mut writer = lock(&self.writer);
        lock(&self.maps).blocks = blocks;
        if end > blocks {
            let mut gathered = Gathered::default();
            let zero = Change::Zero { offset: blocks * BLOCK, length: (end - blocks) * BLOCK };
            writer = self.gather(writer, &mut gathered, &zero)?;
            writer = self.append(writer, &mut gathered)?;
        }
        drop(writer);
        Ok(())
    }

    /// A change of whole blocks.
    fn gather<'w, 'a>(
        &'w self,
        mut writer: MutexGuard<'w, Writer>,
        gathered: &mut Gathered<'a>,
        change: &Change<'a>,
    ) -> Result<MutexGuard<'w, Writer>, ChangeError> {
        match *change {
            Change::Zero { offset, length } => {
                // What is in the record that is being gathered counts as mapped: no need to look.
                let (first, blocks) = covering(offset, length);
                if gathered.entries.is_empty() && !self.is_mapped(first, blocks) {
                    return Ok(writer);
                }
                let mut at = first.0;
                while at < first.0 + blocks {
                    let count = u32::try_from(first.0 + blocks - at).unwrap_or(u32::MAX);
                    writer = self.make_room_for_entry(writer, gathered)?;
                    let entry =
                        Entry { first: BlockIndex(at), blocks: count, effect: Effect::Zero };
                    gathered.entries.push(entry);
                    at += u64::from(count);
                }
            }
            Change::Write { offset, bytes } => {
                let mut at = BlockIndex(offset / BLOCK);
                let mut rest = bytes;
                while !rest.is_empty() {
                    writer = self.make_room_for_entry(writer, gathered)?;
                    let room =
                        (self.ring.max_payload() - gathered.payload_blocks) as usize * BLOCK_BYTES;
                    let (part, after) = rest.split_at(room.min(rest.len()));
                    let blocks = u32::try_from(part.len() / BLOCK_BYTES).unwrap_or(u32::MAX);
                    let effect = Effect::Data { crc: crc32c(part) };
                    gathered.entries.push(Entry { first: at, blocks, effect });
                    gathered.payload.push(part);
                    gathered.payload_blocks += blocks;
                    at = BlockIndex(at.0 + u64::from(blocks));
                    rest = after;
                }
            }
        }
        Ok(writer)
    }

    /// Writes what was gathered when no further entry fits.
    fn make_room_for_entry<'w>(
        &'w self,
        writer: MutexGuard<'w, Writer>,
        gathered: &mut Gathered<'_>,
    ) -> Result<MutexGuard<'w, Writer>, ChangeError> {
        let full = gathered.entries.len() == MAX_ENTRIES
            || gathered.payload_blocks == self.ring.max_payload();
        if full { self.append(writer, gathered) } else { Ok(writer) }
    }

    /// A change that begins or ends within a block: what it leaves of that is read before.
    fn change_ragged<'w>(
        &'w self,
        mut writer: MutexGuard<'w, Writer>,
        change: &Change<'_>,
    ) -> Result<MutexGuard<'w, Writer>, ChangeError> {
        let (offset, length) = change.range();
        let (first, blocks) = covering(offset, length);
        let mut at = 0;
        while at < blocks {
            let count = (blocks - at).min(self.ring.max_payload().into());
            let start = (first.0 + at) * BLOCK;
            let mut whole = vec![0; usize::try_from(count * BLOCK).unwrap_or(0)];
            self.read(start, &mut whole, Wait::AsLongAsItTakes)?;
            let end = start + whole.len() as u64;
            let (from, to) = (offset.max(start), (offset + length).min(end));
            let inside = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(0);
            let target = &mut whole[inside(from, start)..inside(to, start)];
            match change {
                Change::Write { offset, bytes } => {
                    target.copy_from_slice(&bytes[inside(from, *offset)..inside(to, *offset)]);
                }
                Change::Zero { .. } => target.fill(0),
            }
            let mut gathered = Gathered::default();
            writer = self.gather(
                writer,
                &mut gathered,
                &Change::Write { offset: start, bytes: &whole },
            )?;
            writer = self.append(writer, &mut gathered)?;
            at += count;
        }
        Ok(writer)
    }

    /// Writes a record, when there is something for one.
    fn append<'w>(
        &'w self,
        writer: MutexGuard<'w, Writer>,
        gathered: &mut Gathered<'_>,
    ) -> Result<MutexGuard<'w, Writer>, ChangeError> {
        let Gathered { entries, payload, payload_blocks } = std::mem::take(gathered);
        if entries.is_empty() {
            return Ok(writer);
        }
        let (mut writer, position) = self.wait_for_room(writer, 1 + u64::from(payload_blocks))?;
        let record = Record {
            sequence: writer.cursor.sequence,
            position,
            life: writer.life,
            previous: writer.cursor.life,
            generation: self.generation,
            entries,
        };
        let head = record.encode();
        let mut parts = Vec::with_capacity(1 + payload.len());
        parts.push(IoSlice::new(&head));
        parts.extend(payload.iter().map(|part| IoSlice::new(part)));
        self.medium
            .write_journal(self.ring.offset(position), &parts)
            .map_err(|error| self.fail(error))?;
        writer.cursor = record.end();
        self.apply(&record);
        let used = writer.cursor.position - self.covered.load(Ordering::Acquire);
        if used * SEAL_AT_ONE_OF >= self.ring.capacity {
            self.ask_to_seal();
        }
        Ok(writer)
    }

    /// Where a record of so many blocks goes; waits until that is free when somebody frees it.
    fn wait_for_room<'w>(
        &'w self,
        mut writer: MutexGuard<'w, Writer>,
        blocks: u64,
    ) -> Result<(MutexGuard<'w, Writer>, u64), ChangeError> {
        loop {
            self.check_health()?;
            let Cursor { position, .. } = writer.cursor;
            let tail = self.tail.load(Ordering::Acquire);
            if let Some(at) = self.ring.place(position, tail, blocks) {
                return Ok((writer, at));
            }
            if writer.closing {
                return Err(ChangeError::Closing);
            }
            match writer.store {
                StoreHealth::Well => {}
                StoreHealth::Full => return Err(ChangeError::StoreFull),
                StoreHealth::Fails => return Err(ChangeError::StoreFails),
            }
            if !self.attended.load(Ordering::Acquire) {
                return Err(ChangeError::NoRoom);
            }
            // It was asked to seal before it came to this.
            writer = self.room.wait(writer).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Shows a record to readers.
    pub(super) fn apply(&self, record: &Record) {
        lock(&self.maps).apply(record);
    }

    /// Whether any block of a range may be something else than zeros.
    fn is_mapped(&self, first: BlockIndex, blocks: u64) -> bool {
        let maps = lock(&self.maps);
        let mut mapped = false;
        maps.fresh.look(first, blocks, |_, _, place| mapped |= place.is_some());
        maps.sealing.look(first, blocks, |_, _, place| mapped |= place.is_some());
        maps.sealed.look(first, blocks, |_, _, place| mapped |= place.is_some());
        mapped
    }
}
