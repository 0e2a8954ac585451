//! Computing parity from the data segments.

use std::collections::HashMap;

use anyhow::Context as _;
use cairn_array::{dsf::CheckedSegment, wire::SegmentClass};
use cairn_core::{
    erasure::Recipe,
    id::{SegmentId, StripeSetId},
    layout::{Layout, PlannedParity, PlannedStripe},
    stripe_map::{ShardPlace, StripeIndex},
};

use crate::{app::App, db::segment::SegmentRow};

/// Computes and stores every row that the layout lacks, a stripe at a time: k + m segments are in memory.
pub(super) async fn compute(
    app: &App,
    set: StripeSetId,
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
            app.store.put_for_now(&shard).await.context("store parity")?;
        }
        app.db.add_segments_of_set(set, &segments).await.context("write down parity")?;
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
        sources
            .push(app.finder.find(*id).await.with_context(|| format!("read data segment {id}"))?);
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
