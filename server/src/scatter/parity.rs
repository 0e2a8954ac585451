//! Computing parity from the data segments in the store.

use std::collections::HashMap;

use anyhow::Context as _;
use bytes::Bytes;
use cairn_array::{dsf::CheckedSegment, wire::SegmentClass};
use cairn_core::{
    erasure::Recipe,
    id::{ImageId, SegmentId},
    layout::{Layout, PlannedParity, PlannedStripe},
    stripe_map::{ShardPlace, StripeIndex},
};

use crate::{app::App, db::segment::SegmentRow};

/// Computes and stores every row that the layout lacks, a stripe at a time: k + m segments are in memory.
pub(super) async fn compute(
    app: &App,
    image: ImageId,
    layout: &Layout,
) -> anyhow::Result<HashMap<(StripeIndex, u8), SegmentId>> {
    let mut computed = HashMap::new();
    for (index, stripe) in (0..).map(StripeIndex).zip(&layout.stripes) {
        let rows = missing_rows(stripe);
        if rows.is_empty() {
            continue;
        }
        let ids: Vec<_> = stripe.data.iter().map(|shard| shard.id).collect();
        let shards = rows_of(app, stripe.k, &ids, &rows).await?;
        let mut segments = Vec::new();
        for ((row, _), shard) in rows.iter().zip(shards) {
            computed.insert((index, *row), shard.id());
            segments.push(SegmentRow {
                id: shard.id(),
                bytes: shard.length(),
                class: SegmentClass::Parity,
            });
            app.store.put_checked(&shard).await.context("store parity")?;
        }
        app.db.add_segments_of_image(image, &segments).await.context("write down parity")?;
    }
    Ok(computed)
}

fn missing_rows(stripe: &PlannedStripe) -> Vec<(u8, usize)> {
    let rows = (0..).zip(&stripe.parity);
    rows.filter_map(|(row, parity)| match parity {
        PlannedParity::Keep(_) => None,
        PlannedParity::Compute { bytes, .. } => Some((row, *bytes as usize)),
    })
    .collect()
}

/// Rows of a stripe (number, bytes) from its data segments.
async fn rows_of(
    app: &App,
    k: u8,
    data: &[SegmentId],
    rows: &[(u8, usize)],
) -> anyhow::Result<Vec<CheckedSegment>> {
    let mut sources = Vec::with_capacity(data.len());
    for id in data {
        sources.push(
            app.store.get_segment(*id).await.with_context(|| format!("read data segment {id}"))?,
        );
    }
    let places: Vec<_> = rows.iter().map(|(row, _)| ShardPlace(k.saturating_add(*row))).collect();
    let lengths: Vec<_> = rows.iter().map(|(_, bytes)| *bytes).collect();
    tokio::task::spawn_blocking(move || {
        let recipe = Recipe::encode(k, u8::try_from(sources.len())?, &places)?;
        let slices: Vec<&[u8]> = sources.iter().map(|bytes| &bytes[..]).collect();
        let shards = recipe.whole(&slices, &lengths)?;
        shards.into_iter().map(|shard| Ok(CheckedSegment::of(shard.into())?)).collect()
    })
    .await
    .context("wait for parity")?
}

/// A parity segment that the store does not keep, made again from its stripe: how a client that lost it gets it back.
///
/// # Errors
/// When the store or the database fails.
pub(crate) async fn compute_on_demand(app: &App, id: SegmentId) -> anyhow::Result<Option<Bytes>> {
    let Some(image) = app.db.image_of_segment(id).await? else { return Ok(None) };
    let Some(map) = super::present_map(app, image).await? else { return Ok(None) };
    let found = map.stripes.iter().find_map(|stripe| {
        let row = stripe.parity.iter().position(|shard| shard.id == id)?;
        Some((stripe, u8::try_from(row).ok()?))
    });
    let Some((stripe, row)) = found else { return Ok(None) };
    let ids: Vec<_> = stripe.data.iter().map(|shard| shard.id).collect();
    let shards = rows_of(app, stripe.k, &ids, &[(row, stripe.parity_bytes() as usize)]).await?;
    Ok(shards.into_iter().find(|shard| shard.id() == id).map(|shard| shard.bytes().clone()))
}
