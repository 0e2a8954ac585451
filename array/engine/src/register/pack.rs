//! The packer: seals frames into segments and writes the map.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::Receiver},
};

use anyhow::Context as _;
use cairn_core::{
    id::{Hasher, SegmentId},
    manifest::{MAX_DATA_SEGMENTS, MAX_MAP_SEGMENTS, MapSegmentKey, SegmentEntry},
    map::{Extent, MapPage, Origin, PAGE_BLOCKS},
    seal::SealKey,
    segment::{CompressedFrame, SegmentBuilder},
    units::{BlockIndex, ByteCount, FrameIndex, SegmentIndex},
};

use super::{
    Counters, Place, Registered, SegmentSink,
    sequence::{DraftBlock, DraftPage, Step},
};
use crate::{dsf::CheckedSegment, frame::FrameCompressor, pool::Pool, random, workers::WorkerGone};

/// Buffers for sealed segments that are kept: as many as a sink writes and queues, and the one being sealed.
const SEGMENT_BUFFERS: usize = 10;

/// Runs until the sequencer ends. The size in the result is the reader's to fill in.
pub(super) fn run(
    steps: &Receiver<Step>,
    earlier: Vec<(SegmentEntry, SealKey)>,
    sink: &mut dyn SegmentSink,
    counters: &Arc<Counters>,
) -> anyhow::Result<Registered> {
    let buffers = Pool::new(SEGMENT_BUFFERS);
    let mut packer = Packer {
        sink,
        counters,
        earlier,
        earlier_used: HashMap::new(),
        data: Vec::new(),
        data_keys: Vec::new(),
        open: None,
        buffers: buffers.clone(),
        frames: Vec::new(),
        map: MapPacker {
            buffers,
            compressor: FrameCompressor::new()?,
            entries: Vec::new(),
            keys: Vec::new(),
            open: None,
        },
        data_blocks: 0,
        content: Hasher::default(),
    };
    while let Ok(step) = steps.recv() {
        match step {
            Step::Frame(frame) => {
                packer.frame(frame.recv().map_err(|_| WorkerGone)?.context("compress a frame")?)?
            }
            Step::Page(page) => packer.page(&page)?,
        }
    }
    packer.finish()
}

struct Packer<'a> {
    sink: &'a mut dyn SegmentSink,
    counters: &'a Arc<Counters>,
    earlier: Vec<(SegmentEntry, SealKey)>,
    /// Position among the earlier segments → in this version's table.
    earlier_used: HashMap<u32, SegmentIndex>,
    data: Vec<SegmentEntry>,
    data_keys: Vec<SealKey>,
    open: Option<(SegmentIndex, SegmentBuilder)>,
    buffers: Pool,
    /// Where each frame of this run went: 8 bytes for 256 KiB.
    frames: Vec<(SegmentIndex, FrameIndex)>,
    map: MapPacker,
    data_blocks: u64,
    content: Hasher,
}

impl Packer<'_> {
    fn frame(&mut self, frame: CompressedFrame) -> anyhow::Result<()> {
        if self.open.as_ref().is_some_and(|(_, builder)| !builder.fits(&frame)) {
            self.close()?;
        }
        let (segment, builder) = match &mut self.open {
            Some(open) => open,
            None => {
                let key = SealKey(random::array()?);
                let builder = SegmentBuilder::new(&key);
                // The id is known when the segment is full; the place in the table is taken now.
                let unnamed = SegmentEntry { id: SegmentId([0; 32]), bytes: 0 };
                let index = self.enter(unnamed, key)?;
                self.open.insert((index, builder))
            }
        };
        self.frames.push((*segment, builder.push(frame)));
        Ok(())
    }

    fn enter(&mut self, entry: SegmentEntry, key: SealKey) -> anyhow::Result<SegmentIndex> {
        anyhow::ensure!(
            self.data.len() < MAX_DATA_SEGMENTS,
            "the image needs more than {MAX_DATA_SEGMENTS} segments"
        );
        let index = SegmentIndex(u32::try_from(self.data.len())?);
        self.data.push(entry);
        self.data_keys.push(key);
        Ok(index)
    }

    fn close(&mut self) -> anyhow::Result<()> {
        let Some((index, builder)) = self.open.take() else { return Ok(()) };
        let entry = keep(self.sink, self.counters, &self.buffers, builder)?;
        *self.data.get_mut(index.0 as usize).context("close a segment of this run")? = entry;
        Ok(())
    }

    fn page(&mut self, draft: &DraftPage) -> anyhow::Result<()> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut hashes = Vec::with_capacity(draft.blocks.len());
        for DraftBlock { block, hash, place } in &draft.blocks {
            hashes.push(*hash);
            self.content.update(&block.0.to_le_bytes());
            self.content.update(hash.as_bytes());
            let origin = self.origin(*place)?;
            match extents.last_mut() {
                Some(last) if continues(last, *block, origin) => last.blocks += 1,
                _ => extents.push(Extent { first: *block, blocks: 1, origin }),
            }
        }
        self.data_blocks += hashes.len() as u64;
        let free = draft.free.iter().map(|(first, blocks)| Extent {
            first: *first,
            blocks: *blocks,
            origin: Origin::Free,
        });
        extents.extend(free);
        extents.sort_unstable_by_key(|extent| extent.first);
        self.map.page(&MapPage { first: draft.first, extents, hashes }, self.sink, self.counters)
    }

    fn origin(&mut self, place: Place) -> anyhow::Result<Origin> {
        match place {
            Place::New { frame, block } => {
                let (segment, frame) =
                    *self.frames.get(frame as usize).context("place a block of a packed frame")?;
                Ok(Origin::Segment { segment, frame, block: block.into() })
            }
            Place::Prior { segment, frame, block } => {
                let index = match self.earlier_used.get(&segment) {
                    Some(index) => *index,
                    None => {
                        let (entry, key) = self
                            .earlier
                            .get(segment as usize)
                            .context("place a block of an earlier segment")?
                            .clone();
                        let index = self.enter(entry, key)?;
                        self.earlier_used.insert(segment, index);
                        index
                    }
                };
                Ok(Origin::Segment {
                    segment: index,
                    frame: FrameIndex(frame),
                    block: block.into(),
                })
            }
        }
    }

    fn finish(mut self) -> anyhow::Result<Registered> {
        self.close()?;
        self.map.close(self.sink, self.counters)?;
        Ok(Registered {
            size: ByteCount(0),
            data: self.data,
            data_keys: self.data_keys,
            map: self.map.entries,
            map_keys: self.map.keys,
            data_blocks: self.data_blocks,
            content: self.content.finish(),
        })
    }
}

/// Whether `block` from `origin` goes on where `last` ends, in the image and in the frame.
fn continues(last: &Extent, block: BlockIndex, origin: Origin) -> bool {
    let (
        Origin::Segment { segment, frame, block: from },
        Origin::Segment { segment: s, frame: f, block: b },
    ) = (last.origin, origin)
    else {
        return false;
    };
    last.end() == block && (segment, frame) == (s, f) && from + last.blocks == b
}

struct MapPacker {
    buffers: Pool,
    compressor: FrameCompressor,
    entries: Vec<SegmentEntry>,
    keys: Vec<MapSegmentKey>,
    open: Option<SegmentBuilder>,
}

impl MapPacker {
    fn page(
        &mut self,
        page: &MapPage,
        sink: &mut dyn SegmentSink,
        counters: &Arc<Counters>,
    ) -> anyhow::Result<()> {
        let frame = self.compressor.compress(&page.encode()).context("compress a map page")?;
        if self.open.as_ref().is_some_and(|builder| !builder.fits(&frame)) {
            self.close(sink, counters)?;
        }
        let builder = match &mut self.open {
            Some(builder) => builder,
            None => {
                anyhow::ensure!(
                    self.keys.len() < MAX_MAP_SEGMENTS,
                    "the image's map needs more than {MAX_MAP_SEGMENTS} segments"
                );
                let key = SealKey(random::array()?);
                let builder = SegmentBuilder::new(&key);
                self.keys.push(MapSegmentKey { key, first_page: page.first.0 / PAGE_BLOCKS });
                self.open.insert(builder)
            }
        };
        builder.push(frame);
        Ok(())
    }

    fn close(
        &mut self,
        sink: &mut dyn SegmentSink,
        counters: &Arc<Counters>,
    ) -> anyhow::Result<()> {
        if let Some(builder) = self.open.take() {
            self.entries.push(keep(sink, counters, &self.buffers, builder)?);
        }
        Ok(())
    }
}

fn keep(
    sink: &mut dyn SegmentSink,
    counters: &Arc<Counters>,
    buffers: &Pool,
    builder: SegmentBuilder,
) -> anyhow::Result<SegmentEntry> {
    let mut sealed = buffers.take();
    builder.finish(&mut sealed);
    let segment = CheckedSegment::of(sealed.freeze()).context("name a segment")?;
    let entry = SegmentEntry { id: segment.id(), bytes: segment.length() };
    Counters::add(&counters.stored, segment.bytes().len());
    sink.put(segment).context("keep a segment")?;
    Ok(entry)
}
