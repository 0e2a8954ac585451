//! The blocks of a volume's snapshot.

use std::io;

use cairn_array::{
    register::{BlockSource, MAX_IMAGE_BYTES, Run, SourceError},
    volume::Wait,
};
use cairn_core::units::{BLOCK_BYTES, BlockIndex, ByteCount};

use crate::volumes::snapshots::OpenSnapshot;

const CHUNK_BLOCKS: u64 = 256;
/// Stretches that are looked up at once.
const STRETCHES: usize = 256;

/// Reads what is stored, in ascending order.
pub(super) struct SnapshotSource {
    snapshot: OpenSnapshot,
    position: u64,
}

impl SnapshotSource {
    pub(super) fn open(snapshot: OpenSnapshot) -> Result<Self, SourceError> {
        if snapshot.size().0 > MAX_IMAGE_BYTES {
            return Err(SourceError::TooLarge { limit: ByteCount(MAX_IMAGE_BYTES) });
        }
        Ok(Self { snapshot, position: 0 })
    }

    /// The next blocks that are stored, a chunk at most.
    fn next_stored(&mut self, end: u64) -> Option<u64> {
        while self.position < end {
            let left = end - self.position;
            for stretch in self.snapshot.stretches(BlockIndex(self.position), left, STRETCHES) {
                if stretch.stored {
                    return Some(stretch.blocks.min(CHUNK_BLOCKS));
                }
                self.position += stretch.blocks;
            }
        }
        None
    }
}

impl BlockSource for SnapshotSource {
    fn next_run(&mut self) -> Result<Option<Run>, SourceError> {
        let Some(blocks) = self.next_stored(self.snapshot.size().0 / BLOCK_BYTES as u64) else {
            return Ok(None);
        };
        let first = BlockIndex(self.position);
        let mut bytes = vec![0; usize::try_from(blocks).unwrap_or(0) * BLOCK_BYTES];
        self.snapshot
            .read(first.byte_offset(), &mut bytes, Wait::AsLongAsItTakes)
            .map_err(|error| SourceError::Read(io::Error::other(error)))?;
        self.position += blocks;
        Ok(Some(Run { first, bytes: bytes.into() }))
    }

    fn declared(&self) -> Option<ByteCount> {
        Some(self.snapshot.size())
    }

    fn size(&self) -> ByteCount {
        self.snapshot.size()
    }
}
