//! A version's map as the beginning of a volume: it shares the version's segments, and copies nothing of them.

use anyhow::Context as _;
use cairn_array::{map_reader::pages_of, volume::Base};
use cairn_core::{
    map::{Origin, PAGE_BLOCKS},
    volume::{
        Place,
        extent_map::{Entry, ExtentMap},
        table::{SegmentTable, Slot},
    },
};

use crate::{app::App, db::image::VersionRow, register};

/// What a volume of `blocks` blocks begins as, as a clone of a version.
pub(crate) async fn base(app: &App, version: &VersionRow, blocks: u64) -> anyhow::Result<Base> {
    let (public, secret) = register::opened_parts(app, version).await?;
    let mut table = SegmentTable::default();
    for (entry, key) in public.data.iter().zip(&secret.data_keys) {
        let slot = Slot {
            id: entry.id,
            bytes: entry.bytes,
            key: key.clone(),
            // They are not this volume's to clean.
            blocks: 0,
            live: 0,
        };
        table.add(slot).context("take in the image's segments")?;
    }
    let mut map = ExtentMap::default();
    for (entry, key) in public.map.iter().zip(&secret.map_keys) {
        let bytes = app.finder.find(entry.id).await.context("read a map segment")?;
        for page in pages_of(&bytes, &key.key, public.data.len())? {
            let mut runs = Vec::with_capacity(page.extents.len());
            for extent in &page.extents {
                let Origin::Segment { segment, frame, block } = extent.origin else { continue };
                table.gain(segment, extent.blocks.into());
                let first = u16::try_from(extent.first.0 - page.first.0)?;
                let place = Place { segment, frame, block };
                runs.push(Entry { first, blocks: extent.blocks, place });
            }
            map.put_page(page.first.0 / PAGE_BLOCKS, runs);
        }
    }
    Ok(Base { blocks, table, map })
}
