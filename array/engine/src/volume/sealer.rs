//! Sealing: the journal becomes segments, the map is written, the root switches over, and only then journal space is free.
//!
//! ```text
//!   freeze ─► pack (frozen blocks, and what lives in segments that are cleaned) ─► pages ─► root ─► free
//! ```
//!
//! Whatever fails on the way can be tried again: what is stored by then stays true, the frozen map stays frozen.

use std::{collections::HashSet, io, sync::atomic::Ordering};

use cairn_core::{
    id::SegmentId,
    map::PAGE_BLOCKS,
    units::{BLOCK_BYTES, BlockIndex, SegmentIndex},
    volume::{
        Fresh, Place,
        clean::{self, Fill},
        extent_map::Mapped,
        journal::Cursor,
        table::Slot,
    },
};

use super::{
    Base, ChangeError, Maps, Medium, MediumError, Pages, ReadError, StoreHealth, Volume, Wait,
    Writer,
    checkpoint::Page,
    frames::Sealed,
    lock,
    pack::{Packed, Packer},
};
use crate::{dsf::CheckError, workers::WorkerGone};

/// The most live blocks that are moved while one journal is sealed: 128 MiB.
const CLEANING_BUDGET: u64 = 32 << 10;
/// Blocks read at once from the journal.
const READ_BLOCKS: u64 = 256;
/// Runs that are put into the map while readers wait.
const MAP_AT_ONCE: usize = 512;

/// Why sealing ended early. It can be tried again, unless the volume is faulty.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Medium(#[from] MediumError),
    #[error("cannot read what is to be sealed")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("cannot compress")]
    Compress(#[source] io::Error),
    #[error("a segment came out wrong")]
    Segment(#[source] CheckError),
    #[error("the system gives no random bytes")]
    Random(#[source] anyhow::Error),
    #[error("the system gives no threads")]
    Threads(#[source] io::Error),
    #[error("a worker thread ended early")]
    Worker,
    #[error("its root is missing")]
    NoRoot,
    #[error("the volume has too many segments")]
    TooManySegments,
}

impl From<WorkerGone> for SealError {
    fn from(_: WorkerGone) -> Self {
        Self::Worker
    }
}

impl SealError {
    /// Whether the store has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Medium(error) if error.is_full())
    }
}

/// What is to be packed.
#[derive(Debug)]
struct Work {
    covers: Cursor,
    runs: Vec<Run>,
    /// Runs that are packed.
    done: usize,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    first: BlockIndex,
    blocks: u64,
    from: RunSource,
}

#[derive(Clone, Copy, Debug)]
enum RunSource {
    Frozen(Fresh),
    Cleaned(Place),
}

/// What a checkpoint is made of.
#[derive(Debug)]
pub(super) struct Sealer {
    pub(super) pages: Pages,
    /// Of the last root.
    pub(super) number: u64,
    work: Option<Work>,
    /// Segments that no map names any more, but perhaps the root on disk does. Pinned ones are among them.
    dead: Vec<SegmentId>,
}

impl Sealer {
    pub(super) const fn new(pages: Pages, number: u64) -> Self {
        Self { pages, number, work: None, dead: Vec::new() }
    }

    /// Segments of pages, and those that only the durable root may still name.
    pub(super) fn segments(&self) -> Vec<SegmentId> {
        let mut ids = self.pages.segments();
        ids.extend_from_slice(&self.dead);
        ids
    }

    /// Lets go of all that the maps say, before they say what `base` says.
    pub(super) fn forget(&mut self, maps: &Maps, base: &Base) {
        self.work = None;
        for page in maps.sealed.pages().chain(base.map.pages()) {
            self.pages.touch(Page::Map(page));
        }
        for page in 0..maps.table.pages().max(base.table.pages()) {
            self.pages.touch(Page::Table(page));
        }
        let kept: HashSet<SegmentId> = base.table.iter().map(|(_, slot)| slot.id).collect();
        let gone = maps.table.iter().map(|(_, slot)| slot.id).filter(|id| !kept.contains(id));
        self.dead.extend(gone);
    }
}

impl<M: Medium> Volume<M> {
    /// Seals what the journal has up to now, makes a checkpoint, and frees the journal.
    ///
    /// # Errors
    /// [`SealError`]; nothing is lost, and nothing is freed.
    pub fn seal(&self) -> Result<(), SealError> {
        self.seal_all(&mut lock(&self.sealer))
    }

    pub(super) fn seal_all(&self, sealer: &mut Sealer) -> Result<(), SealError> {
        // What was left over was frozen earlier: it covers less than what the journal has now.
        if sealer.work.is_some() {
            self.seal_frozen(sealer)?;
        }
        sealer.work = Some(self.freeze());
        self.seal_frozen(sealer)
    }

    fn seal_frozen(&self, sealer: &mut Sealer) -> Result<(), SealError> {
        self.check_health()?;
        self.pack(sealer)?;
        self.drop_dead(sealer);
        self.store_pages(&mut sealer.pages)?;
        let Some(covers) = sealer.work.as_ref().map(|work| work.covers) else { return Ok(()) };
        let number = sealer.number + 1;
        sealer.dead.extend(sealer.pages.take_dead());
        self.switch_root(&sealer.pages, number, covers)?;
        sealer.number = number;
        self.checkpoints.store(number, Ordering::Release);
        sealer.work = None;
        let frozen = std::mem::take(&mut lock(&self.maps).sealing);
        drop(frozen);
        {
            // With the lock, so that nobody who saw the old tail begins to wait after this.
            let mut writer = lock(&self.writer);
            writer.store = StoreHealth::Well;
            self.covered.store(covers.position, Ordering::Release);
            self.free_journal(&writer);
        }
        let mut failed = None;
        let dead = {
            let maps = lock(&self.maps);
            let dead = std::mem::take(&mut sealer.dead).into_iter();
            dead.filter(|id| !maps.keeps(id)).collect::<Vec<_>>()
        };
        for id in dead {
            if let Err(error) = self.medium.delete_segment(id) {
                // It is tried again after the next checkpoint.
                sealer.dead.push(id);
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Frees what neither the volume nor its clients need of the journal.
    pub(super) fn free_journal(&self, _writer: &Writer) {
        let covered = self.covered.load(Ordering::Acquire);
        let known = self.mirroring.as_ref().map_or(u64::MAX, |mirroring| mirroring.known());
        self.tail.store(covered.min(known), Ordering::Release);
        self.room.notify_all();
    }

    /// Freezes the fresh map and lists what is to be packed, by block.
    fn freeze(&self) -> Work {
        let writer = lock(&self.writer);
        let mut maps = lock(&self.maps);
        maps.sealing = std::mem::take(&mut maps.fresh);
        let covers = writer.cursor;
        drop(writer);
        let frozen = |run: Mapped<Fresh>| Run {
            first: run.first,
            blocks: run.blocks,
            from: RunSource::Frozen(run.place),
        };
        let mut runs: Vec<Run> = maps.sealing.iter().map(frozen).collect();
        let own = maps.table.iter().filter(|(_, slot)| !maps.pinned.contains(&slot.id));
        let fills =
            own.map(|(segment, slot)| Fill { segment, blocks: slot.blocks, live: slot.live });
        let mut cleaned = clean::choose(fills, CLEANING_BUDGET);
        cleaned.sort_unstable();
        if !cleaned.is_empty() {
            let moves = |run: &Mapped<Place>| cleaned.binary_search(&run.place.segment).is_ok();
            for run in maps.sealed.iter().filter(moves) {
                maps.sealing.look(run.first, run.blocks, |first, blocks, newer| {
                    if newer.is_none() {
                        let offset = u16::try_from(first.0 - run.first.0).unwrap_or(u16::MAX);
                        let place = Place { block: run.place.block + offset, ..run.place };
                        runs.push(Run { first, blocks, from: RunSource::Cleaned(place) });
                    }
                });
            }
            runs.sort_by_key(|run| run.first);
        }
        Work { covers, runs, done: 0 }
    }

    /// Packs what is left of the work.
    fn pack(&self, sealer: &mut Sealer) -> Result<(), SealError> {
        let Some(work) = &mut sealer.work else { return Ok(()) };
        let pages = &mut sealer.pages;
        let mut packer = Packer::new()?;
        let mut bytes = Vec::new();
        let mut zeros: Vec<(BlockIndex, u64)> = Vec::new();
        for index in work.done..work.runs.len() {
            let Some(run) = work.runs.get(index).copied() else { break };
            let mut at = 0;
            while at < run.blocks {
                let Some(count) = self.load(run, at, &mut bytes)? else {
                    zeros.push((run.first, run.blocks));
                    break;
                };
                let base = run.first.0 + at;
                for (block, plain) in (base..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
                    if is_zero(plain) {
                        zeros.push((BlockIndex(block), 1));
                    } else if let Some(packed) = packer.block(BlockIndex(block), plain)? {
                        let end = packed.end();
                        self.keep(pages, packed)?;
                        self.unmap(pages, &std::mem::take(&mut zeros));
                        // What is packed but not kept is packed again when something fails from here on.
                        let kept = |run: &Run| run.first.0 + run.blocks <= end.0;
                        work.done += work.runs[work.done..].partition_point(kept);
                    }
                }
                at += count;
            }
        }
        for packed in packer.finish()? {
            self.keep(pages, packed)?;
        }
        self.unmap(pages, &zeros);
        work.done = work.runs.len();
        Ok(())
    }

    /// Reads the next blocks of a run; none when they are zeros.
    fn load(&self, run: Run, at: u64, into: &mut Vec<u8>) -> Result<Option<u64>, SealError> {
        let count = (run.blocks - at).min(READ_BLOCKS);
        let length = usize::try_from(count).unwrap_or(0) * BLOCK_BYTES;
        match run.from {
            RunSource::Frozen(Fresh::Zero) => return Ok(None),
            RunSource::Frozen(Fresh::Journal(position)) => {
                into.resize(length, 0);
                let offset = self.ring.offset(position + at);
                self.medium.read_journal(offset, into, Wait::AsLongAsItTakes)?;
            }
            RunSource::Cleaned(place) => {
                let slot = lock(&self.maps).table.get(place.segment).cloned();
                let slot = slot.ok_or(ReadError::Map)?;
                let segment = Sealed { id: slot.id, bytes: slot.bytes, key: &slot.key };
                let wait = Wait::AsLongAsItTakes;
                let frame = self.frames.get(&self.medium, segment, place.frame, wait)?;
                let from = usize::from(place.block) * BLOCK_BYTES;
                let frame = frame.ok_or(ReadError::Map)?;
                into.clear();
                into.extend_from_slice(frame.get(from..from + length).ok_or(ReadError::Map)?);
            }
        }
        Ok(Some(count))
    }

    /// Stores a segment and names it in table and map.
    fn keep(&self, pages: &mut Pages, packed: Packed) -> Result<(), SealError> {
        self.medium.put_segment(&packed.segment)?;
        let blocks = packed.frames.iter().map(|contents| u32::from(contents.blocks)).sum();
        let slot = Slot {
            id: packed.segment.id(),
            bytes: u32::try_from(packed.segment.bytes().len()).unwrap_or(u32::MAX),
            key: packed.key,
            blocks,
            live: 0,
        };
        let segment = lock(&self.maps).table.add(slot).ok_or(SealError::TooManySegments)?;
        for chunk in packed.frames.chunks(MAP_AT_ONCE) {
            let mut maps = lock(&self.maps);
            let maps = &mut *maps;
            for contents in chunk {
                let place = Place { segment, frame: contents.frame, block: 0 };
                let table = &mut maps.table;
                table.gain(segment, contents.blocks.into());
                maps.sealed.insert(contents.first, contents.blocks.into(), place, |old, blocks| {
                    table.lose(old.segment, blocks.into());
                });
                touch(pages, contents.first, contents.blocks.into());
            }
        }
        Ok(())
    }

    fn unmap(&self, pages: &mut Pages, zeros: &[(BlockIndex, u64)]) {
        for chunk in zeros.chunks(MAP_AT_ONCE) {
            let mut maps = lock(&self.maps);
            let maps = &mut *maps;
            for (first, blocks) in chunk {
                let table = &mut maps.table;
                let mut had = false;
                maps.sealed.remove(*first, *blocks, |old, blocks| {
                    had = true;
                    table.lose(old.segment, blocks.into());
                });
                if had {
                    touch(pages, *first, *blocks);
                }
            }
        }
    }

    /// Takes segments without a live block out of the table.
    fn drop_dead(&self, sealer: &mut Sealer) {
        let mut maps = lock(&self.maps);
        let dead: Vec<SegmentIndex> =
            maps.table.iter().filter(|(_, slot)| slot.live == 0).map(|(index, _)| index).collect();
        for index in dead {
            sealer.dead.extend(maps.table.remove(index).map(|slot| slot.id));
        }
    }
}

fn touch(pages: &mut Pages, first: BlockIndex, blocks: u64) {
    for page in first.0 / PAGE_BLOCKS..(first.0 + blocks).div_ceil(PAGE_BLOCKS) {
        pages.touch(Page::Map(page));
    }
}

fn is_zero(block: &[u8]) -> bool {
    // A word at a time: the compiler makes vectors of it.
    let (before, words, after) = (block.get(..1), block.chunks_exact(8), block.last());
    before == Some(&[0]) && after == Some(&0) && words.into_iter().all(|word| word == [0; 8])
}
