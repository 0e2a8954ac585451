//! A journal put together again from the pieces that clients keep.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt as _};

use cairn_core::{
    bytes::DecodeError,
    id::VolumeId,
    seal::SealKey,
    units::{BLOCK_BYTES, Generation},
    volume::{
        journal::{Cursor, Record, Ring},
        tail::Head,
    },
};

use super::{MediumError, open};

/// Why a piece is not put in.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("a piece is not readable")]
    Piece(#[from] DecodeError),
    #[error("a piece is of another journal")]
    Foreign,
    #[error("cannot write the journal")]
    Io(#[from] io::Error),
}

/// A journal's file with what clients keep of it, in whatever order their pieces come.
///
/// Of two blocks for one place the one of the newer controller stays, and of two of one controller the later.
#[derive(Debug)]
pub struct TailRing {
    volume: VolumeId,
    /// As the first piece told it.
    ring: Option<Ring>,
    file: File,
    /// Whose block is in which place.
    blocks: HashMap<u64, (Generation, u64)>,
}

impl TailRing {
    /// One of `volume` without a block, in an empty file.
    #[must_use]
    pub fn new(volume: VolumeId, file: File) -> Self {
        Self { volume, ring: None, file, blocks: HashMap::new() }
    }

    /// Of the newest controller whose blocks it has.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.blocks.values().map(|(generation, _)| *generation).max()
    }

    /// Whether no piece was put in: the file is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ring.is_none()
    }

    /// Puts in a piece, which is opened in place.
    ///
    /// # Errors
    /// [`TailError`].
    pub fn add(
        &mut self,
        content_key: &SealKey,
        head: &Head,
        piece: &mut [u8],
    ) -> Result<(), TailError> {
        // Before anything that its head says is believed.
        let plain = head.open(content_key, piece)?;
        let said = Ring { volume: head.volume, capacity: head.capacity };
        if said.volume != self.volume || self.ring.is_some_and(|ring| ring != said) {
            return Err(TailError::Foreign);
        }
        if self.ring.is_none() {
            self.file.set_len((said.capacity + 1) * BLOCK_BYTES as u64)?;
            self.file.write_all_at(&said.encode(), 0)?;
            self.ring = Some(said);
        }
        for (position, block) in (head.first..).zip(plain.chunks_exact(BLOCK_BYTES)) {
            let claim = (head.attempt.generation, position);
            let place = position % said.capacity;
            if self.blocks.get(&place).is_none_or(|there| *there < claim) {
                self.file.write_all_at(block, said.offset(position))?;
                self.blocks.insert(place, claim);
            }
        }
        Ok(())
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// When the disk does not do it.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    pub(super) fn replay(
        &self,
        from: Cursor,
        show: impl FnMut(&Record),
    ) -> Result<Cursor, MediumError> {
        let Some(ring) = &self.ring else { return Ok(from) };
        open::replay(ring, from, |offset, into| self.read_at(offset, into), show)
    }

    /// The blocks from a position on.
    pub(super) fn read(&self, position: u64, into: &mut [u8]) -> Result<(), MediumError> {
        let offset = self.ring.map(|ring| ring.offset(position));
        let none =
            || MediumError::Journal { operation: "read", source: io::ErrorKind::NotFound.into() };
        self.read_at(offset.ok_or_else(none)?, into)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), MediumError> {
        let read = self.file.read_exact_at(into, offset);
        read.map_err(|source| MediumError::Journal { operation: "read", source })
    }
}
