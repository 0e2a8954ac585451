//! Reads: where each block is, and its bytes from there.

use std::sync::atomic::Ordering;

use cairn_core::{
    id::SegmentId,
    seal::SealKey,
    units::{BLOCK_BYTES, BlockIndex, ByteCount},
    volume::{Fresh, Place},
};

use super::{
    Maps, Medium, ReadError, SegmentReader, Volume, Wait, covering,
    frames::{Frames, Sealed},
    lock,
};

/// How often a range is looked up anew because it moved while it was read. Each time a whole checkpoint was made
/// meanwhile.
const ATTEMPTS: usize = 100;

/// Blocks in a row, and where they are.
pub(super) struct Found {
    pub(super) blocks: u64,
    pub(super) source: Source,
}

pub(super) enum Source {
    Zero,
    Journal(u64),
    Sealed(SealedBlocks),
}

/// Blocks of one frame.
pub(super) struct SealedBlocks {
    place: Place,
    id: SegmentId,
    bytes: u32,
    key: SealKey,
}

impl SealedBlocks {
    /// Fills `into` with so many of them; false when it would have to wait.
    pub(super) fn read<S: SegmentReader>(
        &self,
        frames: &Frames,
        segments: &S,
        into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, ReadError> {
        let segment = Sealed { id: self.id, bytes: self.bytes, key: &self.key };
        let Some(frame) = frames.get(segments, segment, self.place.frame, wait)? else {
            return Ok(false);
        };
        let from = usize::from(self.place.block) * BLOCK_BYTES;
        let plain = frame.get(from..from + into.len()).ok_or(ReadError::Map)?;
        into.copy_from_slice(plain);
        Ok(true)
    }
}

/// What came of reading.
enum Outcome {
    Done,
    WouldWait,
    /// It is somewhere else by now.
    Moved,
}

/// Blocks in a row that are stored, or are not and so are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub blocks: u64,
    pub stored: bool,
}

impl Maps {
    pub(super) fn find(&self, first: BlockIndex, blocks: u64) -> Result<Vec<Found>, ReadError> {
        let mut found = Vec::new();
        let mut lacking = false;
        self.show(first, blocks, |blocks, fresh, place| {
            let source = match (fresh, place) {
                (Some(Fresh::Journal(at)), _) => Source::Journal(at),
                (Some(Fresh::Zero), _) | (None, None) => Source::Zero,
                (None, Some(place)) => match self.table.get(place.segment) {
                    Some(slot) => Source::Sealed(SealedBlocks {
                        place,
                        id: slot.id,
                        bytes: slot.bytes,
                        key: slot.key.clone(),
                    }),
                    None => {
                        lacking = true;
                        Source::Zero
                    }
                },
            };
            found.push(Found { blocks, source });
        });
        if lacking { Err(ReadError::Map) } else { Ok(found) }
    }

    /// Which parts of a range are stored, in order, the first `limit` of them.
    pub(super) fn stretches(&self, first: BlockIndex, blocks: u64, limit: usize) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        self.show(first, blocks, |blocks, fresh, place| {
            let stored = matches!(fresh, Some(Fresh::Journal(_))) || place.is_some();
            match stretches.last_mut() {
                Some(last) if last.stored == stored => last.blocks += blocks,
                _ => stretches.push(Stretch { blocks, stored }),
            }
        });
        stretches.truncate(limit);
        stretches
    }

    /// Shows a range in order: what the newest map that knows something of it says.
    fn show(
        &self,
        first: BlockIndex,
        blocks: u64,
        mut show: impl FnMut(u64, Option<Fresh>, Option<Place>),
    ) {
        self.fresh.look(first, blocks, |first, blocks, fresh| {
            if fresh.is_some() {
                show(blocks, fresh, None);
                return;
            }
            self.sealing.look(first, blocks, |first, blocks, fresh| {
                if fresh.is_some() {
                    show(blocks, fresh, None);
                    return;
                }
                self.sealed.look(first, blocks, |_, blocks, place| show(blocks, None, place));
            });
        });
    }
}

/// Takes the room of so many blocks off the front.
pub(super) fn take<'a>(into: &mut &'a mut [u8], blocks: u64) -> &'a mut [u8] {
    let length = usize::try_from(blocks).unwrap_or(0) * BLOCK_BYTES;
    let (part, rest) = std::mem::take(into).split_at_mut(length);
    *into = rest;
    part
}

/// Reads any range by one that reads blocks.
pub(super) fn read(
    size: ByteCount,
    offset: u64,
    into: &mut [u8],
    read_blocks: impl FnOnce(BlockIndex, &mut [u8]) -> Result<bool, ReadError>,
) -> Result<bool, ReadError> {
    let length = into.len() as u64;
    if offset.checked_add(length).is_none_or(|end| end > size.0) {
        return Err(ReadError::Range);
    }
    let block = BLOCK_BYTES as u64;
    if offset.is_multiple_of(block) && length.is_multiple_of(block) {
        return read_blocks(BlockIndex(offset / block), into);
    }
    let (first, blocks) = covering(offset, length);
    let mut whole = vec![0; usize::try_from(blocks * block).unwrap_or(0)];
    let done = read_blocks(first, &mut whole)?;
    let start = usize::try_from(offset - first.byte_offset()).unwrap_or(0);
    into.copy_from_slice(&whole[start..start + into.len()]);
    Ok(done)
}

impl<M: Medium> Volume<M> {
    /// Fills `into` from `offset` on; false when it would have to wait.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, offset: u64, into: &mut [u8], wait: Wait) -> Result<bool, ReadError> {
        read(self.size(), offset, into, |first, into| self.read_blocks(first, into, wait))
    }

    /// Tells which parts of a range are stored, in order, the first `limit` of them.
    #[must_use]
    pub fn stretches(&self, first: BlockIndex, blocks: u64, limit: usize) -> Vec<Stretch> {
        lock(&self.maps).stretches(first, blocks, limit)
    }

    fn read_blocks(
        &self,
        first: BlockIndex,
        into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, ReadError> {
        let blocks = (into.len() / BLOCK_BYTES) as u64;
        let mut attempts = 0;
        loop {
            let found = lock(&self.maps).find(first, blocks)?;
            match self.read_found(&found, into, wait) {
                Ok(Outcome::Done) => return Ok(true),
                Ok(Outcome::WouldWait) => return Ok(false),
                Ok(Outcome::Moved) => {}
                Err(ReadError::Medium(error)) if error.is_gone() && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
            attempts += 1;
        }
    }

    fn read_found(
        &self,
        found: &[Found],
        mut into: &mut [u8],
        wait: Wait,
    ) -> Result<Outcome, ReadError> {
        for Found { blocks, source } in found {
            let part = take(&mut into, *blocks);
            match source {
                Source::Zero => part.fill(0),
                Source::Journal(at) => {
                    if !self.medium.read_journal(self.ring.offset(*at), part, wait)? {
                        return Ok(Outcome::WouldWait);
                    }
                    // Space is written again only after this moved on.
                    if self.tail.load(Ordering::Acquire) > *at {
                        return Ok(Outcome::Moved);
                    }
                }
                Source::Sealed(sealed) => {
                    if !sealed.read(&self.frames, &self.medium, part, wait)? {
                        return Ok(Outcome::WouldWait);
                    }
                }
            }
        }
        Ok(Outcome::Done)
    }
}
