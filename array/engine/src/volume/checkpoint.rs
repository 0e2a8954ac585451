//! Where the pages of map and table are, and the root that says so.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_core::{
    id::SegmentId,
    manifest::SegmentEntry,
    seal::SealKey,
    segment::SegmentBuilder,
    units::FrameIndex,
    volume::{
        checkpoint::{Draft, PagePlace, Secret, encode_page},
        journal::Cursor,
    },
};

use super::{Medium, RootName, SealError, Volume, lock};
use crate::{frame::FrameCompressor, random, workers::sealed};

/// Meta segments beyond one for each so many pages are merged: each checkpoint adds one, however small.
const PAGES_PER_META: usize = 256;
/// That many are always well.
const METAS: usize = 16;

/// A page of one of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Page {
    Table(u64),
    Map(u64),
}

/// A meta segment.
#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub(super) entry: SegmentEntry,
    pub(super) key: SealKey,
    pub(super) frames: usize,
    pub(super) live: usize,
}

/// Where each page is: in a meta segment of ours, by a number that is never used again while the volume is open.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) metas: BTreeMap<u32, Meta>,
    next_meta: u32,
    places: BTreeMap<Page, PagePlace>,
    changed: BTreeSet<Page>,
}

impl Pages {
    /// The pages as a root tells them.
    pub(super) fn read(metas: Vec<Meta>, secret: &Secret) -> Self {
        let next_meta = u32::try_from(metas.len()).unwrap_or(u32::MAX);
        let mut pages = Self { metas: (0..).zip(metas).collect(), next_meta, ..Self::default() };
        for (page, place) in (0..).zip(&secret.table) {
            pages.settle(Page::Table(page), Some(*place));
        }
        for (page, place) in &secret.map {
            pages.settle(Page::Map(*page), Some(*place));
        }
        pages
    }

    /// The segments that pages are in.
    pub(super) fn segments(&self) -> Vec<SegmentId> {
        self.metas.values().map(|meta| meta.entry.id).collect()
    }

    /// Notes that a page is not what is stored of it.
    pub(super) fn touch(&mut self, page: Page) {
        self.changed.insert(page);
    }

    /// Notes where a page is, or that there is none any more.
    fn settle(&mut self, page: Page, place: Option<PagePlace>) {
        let before = match place {
            Some(place) => self.places.insert(page, place),
            None => self.places.remove(&page),
        };
        for (place, change) in [(before, -1), (place, 1)] {
            if let Some(meta) = place.and_then(|place| self.metas.get_mut(&place.meta)) {
                meta.live = meta.live.saturating_add_signed(change);
            }
        }
        self.changed.remove(&page);
    }

    /// Touches the pages of meta segments that are mostly dead, or too many.
    fn clean(&mut self) {
        let mut by_live: Vec<_> =
            self.metas.iter().map(|(number, meta)| (meta.live, meta.frames, *number)).collect();
        by_live.sort_unstable();
        let surplus = by_live
            .len()
            .saturating_sub(METAS + self.places.len() / PAGES_PER_META)
            .saturating_mul(2);
        let goes = |(index, (live, frames, _)): &(usize, &(usize, usize, u32))| {
            live * 2 < *frames || *index < surplus
        };
        let metas: BTreeSet<u32> =
            by_live.iter().enumerate().filter(goes).map(|(_, (_, _, number))| *number).collect();
        let pages = self.places.iter().filter(|(_, place)| metas.contains(&place.meta));
        self.changed.extend(pages.map(|(page, _)| *page).collect::<Vec<_>>());
    }

    /// Takes out the meta segments that have no page any more.
    pub(super) fn take_dead(&mut self) -> Vec<SegmentId> {
        let mut dead = Vec::new();
        self.metas.retain(|_, meta| {
            if meta.live == 0 {
                dead.push(meta.entry.id);
            }
            meta.live > 0
        });
        dead
    }

    /// All of it, as a root tells it.
    fn told(&self) -> Told {
        let index: BTreeMap<u32, u32> = self.metas.keys().copied().zip(0..).collect();
        let place = |place: &PagePlace| PagePlace {
            meta: index.get(&place.meta).copied().unwrap_or(u32::MAX),
            frame: place.frame,
        };
        let mut told = Told {
            metas: self.metas.values().map(|meta| meta.entry).collect(),
            meta_keys: self.metas.values().map(|meta| meta.key.clone()).collect(),
            ..Told::default()
        };
        for (page, at) in &self.places {
            match page {
                Page::Table(_) => told.table.push(place(at)),
                Page::Map(number) => told.map.push((*number, place(at))),
            }
        }
        told
    }
}

#[derive(Default)]
struct Told {
    metas: Vec<SegmentEntry>,
    meta_keys: Vec<SealKey>,
    table: Vec<PagePlace>,
    map: Vec<(u64, PagePlace)>,
}

/// Packs pages into meta segments.
struct MetaPacker {
    compressor: FrameCompressor,
    open: Option<(SealKey, SegmentBuilder)>,
    placed: Vec<(Page, FrameIndex)>,
}

impl<M: Medium> Volume<M> {
    /// Stores the pages that changed. What is stored is true whether a root names it or not.
    pub(super) fn store_pages(&self, pages: &mut Pages) -> Result<(), SealError> {
        for page in lock(&self.maps).table.take_changed() {
            pages.touch(Page::Table(page));
        }
        pages.clean();
        let mut packer = MetaPacker {
            compressor: FrameCompressor::new().map_err(SealError::Compress)?,
            open: None,
            placed: Vec::new(),
        };
        for page in pages.changed.clone() {
            let bytes = {
                let maps = lock(&self.maps);
                match page {
                    Page::Table(number) => maps.table.encode_page(number),
                    Page::Map(number) => Some(maps.sealed.page(number))
                        .filter(|runs| !runs.is_empty())
                        .map(|runs| encode_page(number, runs)),
                }
            };
            match bytes {
                None => pages.settle(page, None),
                Some(bytes) => self.pack_page(pages, &mut packer, page, &bytes)?,
            }
        }
        self.close_meta(pages, &mut packer)
    }

    fn pack_page(
        &self,
        pages: &mut Pages,
        packer: &mut MetaPacker,
        page: Page,
        bytes: &[u8],
    ) -> Result<(), SealError> {
        let frame = packer.compressor.compress(bytes).map_err(SealError::Compress)?;
        if packer.open.as_ref().is_some_and(|(_, builder)| !builder.fits(&frame)) {
            self.close_meta(pages, packer)?;
        }
        let (_, builder) = match &mut packer.open {
            Some(open) => open,
            None => {
                let key = SealKey(random::array().map_err(SealError::Random)?);
                let builder = SegmentBuilder::new(&key);
                packer.open.insert((key, builder))
            }
        };
        packer.placed.push((page, builder.push(frame)));
        Ok(())
    }

    fn close_meta(&self, pages: &mut Pages, packer: &mut MetaPacker) -> Result<(), SealError> {
        let Some((key, builder)) = packer.open.take() else { return Ok(()) };
        let segment = sealed(builder).map_err(SealError::Segment)?;
        self.medium.put_segment(&segment)?;
        let bytes = u32::try_from(segment.bytes().len()).unwrap_or(u32::MAX);
        let entry = SegmentEntry { id: segment.id(), bytes };
        let number = pages.next_meta;
        pages.next_meta += 1;
        let frames = packer.placed.len();
        pages.metas.insert(number, Meta { entry, key, frames, live: 0 });
        for (page, frame) in packer.placed.drain(..) {
            pages.settle(page, Some(PagePlace { meta: number, frame }));
        }
        Ok(())
    }

    /// Makes what is stored the volume's state, durably.
    pub(super) fn switch_root(
        &self,
        pages: &Pages,
        number: u64,
        covers: Cursor,
    ) -> Result<(), SealError> {
        self.medium.sync_store()?;
        let told = pages.told();
        let draft = Draft {
            volume: self.id,
            generation: self.generation,
            number,
            salt: random::array().map_err(SealError::Random)?,
            metas: told.metas,
            wrapped_key: self.keys.wrapped_key.clone(),
            secret: Secret {
                name: self.name.clone(),
                durability: self.durability(),
                blocks: lock(&self.maps).blocks,
                cursor: covers,
                meta_keys: told.meta_keys,
                table: told.table,
                map: told.map,
            },
        };
        let root = draft.seal(&self.keys.content_key, &self.keys.signer);
        self.medium.put_root(RootName::Live, Bytes::from(root))?;
        Ok(self.medium.sync_store()?)
    }
}
