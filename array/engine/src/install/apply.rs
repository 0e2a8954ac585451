//! Writing what a segment holds to where the plan wants it.

use std::collections::BTreeMap;

use cairn_core::{
    seal::SealKey,
    units::{BLOCK_BYTES, BlockIndex, ByteCount, SegmentIndex},
};

use super::{
    disk::{DiskError, TargetDisk},
    plan::{BootBlocks, Need},
};
use crate::frame::{FrameError, FrameReader, OpenSegment};

/// Blocks kept back until everything else is verified.
pub(super) type Held = BTreeMap<BlockIndex, Vec<u8>>;

/// A segment whose content could not be put on the disk.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("segment {index} of the image cannot be opened")]
    Content { index: SegmentIndex, source: FrameError },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Writes the needs of one segment, sorted by frame; boot blocks are returned instead of written. Plain bytes written.
pub(super) fn apply(
    segment: &[u8],
    key: &SealKey,
    needs: &[Need],
    disk: &TargetDisk,
    size: ByteCount,
) -> Result<(u64, Held), ApplyError> {
    let Some(first) = needs.first() else { return Ok((0, Held::new())) };
    let content = |source| ApplyError::Content { index: first.segment, source };
    let opened = OpenSegment::new(segment, key).map_err(|error| content(error.into()))?;
    let mut frames =
        FrameReader::new().map_err(|_| content(FrameError::Compression(first.frame)))?;
    let boot = BootBlocks::of(size);
    let (mut written, mut held) = (0, Held::new());
    for needs in needs.chunk_by(|a, b| a.frame == b.frame) {
        let Some(frame) = needs.first().map(|need| need.frame) else { continue };
        let plain = frames.read(&opened, frame).map_err(content)?;
        for need in needs {
            let from = usize::from(need.block) * BLOCK_BYTES;
            let bytes = plain
                .get(from..from + usize::from(need.blocks) * BLOCK_BYTES)
                .ok_or_else(|| content(FrameError::Missing(frame)))?;
            written += bytes.len() as u64;
            write(need.to, bytes, disk, size, boot, &mut held)?;
        }
    }
    Ok((written, held))
}

fn write(
    to: BlockIndex,
    bytes: &[u8],
    disk: &TargetDisk,
    size: ByteCount,
    boot: BootBlocks,
    held: &mut Held,
) -> Result<(), DiskError> {
    let last = BlockIndex(to.0 + (bytes.len() / BLOCK_BYTES) as u64 - 1);
    if !boot.contains(to) && !boot.contains(last) {
        return write_within(to.byte_offset(), bytes, disk, size);
    }
    for (block, bytes) in (to.0..).map(BlockIndex).zip(bytes.chunks_exact(BLOCK_BYTES)) {
        if boot.contains(block) {
            held.insert(block, bytes.to_vec());
        } else {
            write_within(block.byte_offset(), bytes, disk, size)?;
        }
    }
    Ok(())
}

/// The image's last block may be short: nothing is written behind the image's end.
pub(super) fn write_within(
    offset: u64,
    bytes: &[u8],
    disk: &TargetDisk,
    size: ByteCount,
) -> Result<(), DiskError> {
    let left = usize::try_from(size.0.saturating_sub(offset)).unwrap_or(bytes.len());
    disk.write(offset, &bytes[..bytes.len().min(left)])
}
