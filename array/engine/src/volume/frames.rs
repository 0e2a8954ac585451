//! Frames of sealed segments, opened, and the last ones kept.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;
use cairn_core::{
    id::SegmentId,
    seal::SealKey,
    segment::{FrameOpener, FrameTable, SEGMENT_HEAD_BYTES},
    units::FrameIndex,
};
use quick_cache::{Weighter, sync::Cache};
use zstd::bulk::Decompressor;

use super::{ReadError, SegmentReader, Wait};
use crate::frame::FrameError;

/// Opened segments that are kept: a table of 1024 frames takes 24 KiB.
const SEGMENTS: usize = 1024;
/// Bytes of opened frames that are kept.
const FRAME_BYTES: u64 = 64 << 20;
/// What the cache sizes itself for.
const FRAMES: usize = 4096;
/// The same where nothing comes twice but what is in one frame.
const FRAME_BYTES_ONCE: u64 = 2 << 20;
const FRAMES_ONCE: usize = 64;

/// A segment as a reader needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed<'a> {
    pub(super) id: SegmentId,
    pub(super) bytes: u32,
    pub(super) key: &'a SealKey,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(SegmentId, FrameIndex), Bytes> for ByBytes {
    fn weight(&self, _: &(SegmentId, FrameIndex), frame: &Bytes) -> u64 {
        frame.len() as u64
    }
}

struct Opened {
    table: FrameTable,
    opener: FrameOpener,
}

/// See the module.
pub(super) struct Frames {
    opened: Cache<SegmentId, Arc<Opened>>,
    frames: Cache<(SegmentId, FrameIndex), Bytes, ByBytes>,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Frames(..)")
    }
}

/// What a thread that reads needs again and again.
#[derive(Default)]
struct Scratch {
    /// Making it costs more than a frame.
    zstd: Option<Decompressor<'static>>,
    /// A sealed frame. It only grows: to clear it costs as much as to open a frame.
    sealed: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Frames {
    pub(super) fn new() -> Self {
        Self::keeping(FRAMES, FRAME_BYTES)
    }

    /// For who goes through everything once, in order.
    pub(super) fn for_once() -> Self {
        Self::keeping(FRAMES_ONCE, FRAME_BYTES_ONCE)
    }

    fn keeping(frames: usize, bytes: u64) -> Self {
        Self { opened: Cache::new(SEGMENTS), frames: Cache::with_weighter(frames, bytes, ByBytes) }
    }

    /// The plain bytes of a frame; none when that would have to wait. A damaged segment is renewed, if it can be.
    pub(super) fn get<S: SegmentReader>(
        &self,
        segments: &S,
        segment: Sealed<'_>,
        frame: FrameIndex,
        wait: Wait,
    ) -> Result<Option<Bytes>, ReadError> {
        match self.read(segments, segment, frame, wait) {
            Err(ReadError::Frame(_)) if wait == Wait::Never => Ok(None),
            Err(ReadError::Frame(error)) => {
                self.opened.remove(&segment.id);
                if !segments.renew(segment.id)? {
                    return Err(error.into());
                }
                self.read(segments, segment, frame, wait)
            }
            read => read,
        }
    }

    fn read<S: SegmentReader>(
        &self,
        segments: &S,
        segment: Sealed<'_>,
        frame: FrameIndex,
        wait: Wait,
    ) -> Result<Option<Bytes>, ReadError> {
        if let Some(bytes) = self.frames.get(&(segment.id, frame)) {
            return Ok(Some(bytes));
        }
        let Some(opened) = self.opened(segments, segment, wait)? else { return Ok(None) };
        let place = opened.table.place(frame).ok_or(FrameError::Missing(frame))?;
        let plain = SCRATCH.with_borrow_mut(|scratch| -> Result<Option<Vec<u8>>, ReadError> {
            let length = place.sealed_bytes;
            if scratch.sealed.len() < length {
                scratch.sealed.resize(length, 0);
            }
            let sealed = scratch.sealed.get_mut(..length).unwrap_or_default();
            if !segments.read_segment(segment.id, place.offset as u64, sealed, wait)? {
                return Ok(None);
            }
            let opened = opened.opener.open(frame, place.plain_bytes, sealed);
            let compressed = opened.map_err(FrameError::Segment)?;
            let plain = decompressed(&mut scratch.zstd, frame, compressed, place.plain_bytes);
            Ok(Some(plain?))
        })?;
        let Some(plain) = plain else { return Ok(None) };
        let bytes = Bytes::from(plain);
        self.frames.insert((segment.id, frame), bytes.clone());
        Ok(Some(bytes))
    }

    fn opened<S: SegmentReader>(
        &self,
        segments: &S,
        segment: Sealed<'_>,
        wait: Wait,
    ) -> Result<Option<Arc<Opened>>, ReadError> {
        if let Some(opened) = self.opened.get(&segment.id) {
            return Ok(Some(opened));
        }
        let length = segment.bytes as usize;
        let mut head = vec![0; length.min(SEGMENT_HEAD_BYTES)];
        if !segments.read_segment(segment.id, 0, &mut head, wait)? {
            return Ok(None);
        }
        let table = FrameTable::parse_head(&head, length).map_err(FrameError::Segment)?;
        let opened = Arc::new(Opened { table, opener: FrameOpener::new(segment.key) });
        self.opened.insert(segment.id, Arc::clone(&opened));
        Ok(Some(opened))
    }
}

fn decompressed(
    kept: &mut Option<Decompressor<'static>>,
    frame: FrameIndex,
    compressed: &[u8],
    length: u32,
) -> Result<Vec<u8>, FrameError> {
    if kept.is_none() {
        *kept = Decompressor::new().ok();
    }
    let length = length as usize;
    let plain = kept.as_mut().and_then(|zstd| zstd.decompress(compressed, length).ok());
    plain.filter(|plain| plain.len() == length).ok_or(FrameError::Compression(frame))
}
