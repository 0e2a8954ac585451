//! Scrubbing: every segment of the store is read and checked now and then, and what is damaged or missing is brought back
//! from clients or from the rest of its stripe.
//!
//! Invariants: a pass reads half of the time at most; nothing is deleted; what cannot be brought back is said, with an event
//! for each segment.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cairn_array::store::StoreError;
use cairn_core::id::SegmentId;
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    app::App,
    bundle::segments_of,
    events::Event,
    jobs::{JobHandle, Kind},
    moment::Moment,
};

const SETTING: &str = "scrub";
/// A pass begins so long after the last one ended.
const EVERY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);

/// What came of the last pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scrubbed {
    /// Passes that ended since the site began.
    pub passes: u64,
    /// Milliseconds since 1970.
    pub ended: i64,
    /// Segments that were read.
    pub checked: u64,
    /// Those that were damaged or missing.
    pub damaged: u64,
    /// Those of them that are back.
    pub repaired: u64,
}

/// What came of the last pass; none when there was none yet.
pub(crate) async fn last(app: &App) -> anyhow::Result<Option<Scrubbed>> {
    let kept = app.db.setting(SETTING).await.context("read what the last scrub found")?;
    kept.map(|kept| serde_json::from_slice(&kept).context("read what the last scrub found"))
        .transpose()
}

async fn keep(app: &App, scrubbed: Scrubbed) -> anyhow::Result<()> {
    let text = serde_json::to_vec(&scrubbed).context("write down a scrub")?;
    app.db.keep_setting(SETTING, &text).await.context("write down a scrub")
}

/// Reads and checks all that the store has or should have, once.
pub(crate) async fn run(app: &App, job: &JobHandle) -> anyhow::Result<()> {
    let before = last(app).await?.unwrap_or_default();
    let stored: Vec<_> = app.store.segments().try_collect().await.context("list the store")?;
    let mut ids: BTreeSet<SegmentId> = stored.into_iter().map(|segment| segment.id).collect();
    ids.extend(app.db.segments_of_store().await.context("list segments")?);
    let bundles = segments_of(&app.db.bundles().await.context("list bundles")?);
    let bundles: BTreeSet<SegmentId> = bundles.into_iter().map(|entry| entry.id).collect();
    ids.extend(&bundles);
    let mut found = Scrubbed { passes: before.passes + 1, ..Scrubbed::default() };
    let total = ids.len() as u64;
    for (done, id) in (0..).zip(ids) {
        job.progress(done, total, "segments").await?;
        let started = Instant::now();
        check(app, id, bundles.contains(&id), &mut found).await?;
        // Others read, too.
        tokio::time::sleep(started.elapsed()).await;
    }
    job.progress(total, total, "segments").await?;
    app.store.flush().await.context("make repairs durable")?;
    found.ended = Moment::now().0;
    tracing::info!(?found, "the store was scrubbed");
    keep(app, found).await
}

async fn check(
    app: &App,
    id: SegmentId,
    of_bundle: bool,
    found: &mut Scrubbed,
) -> anyhow::Result<()> {
    let wrong = match app.store.get_segment(id).await {
        Ok(_) => {
            found.checked += 1;
            return Ok(());
        }
        Err(error @ (StoreError::Corrupt { .. } | StoreError::NotFound { .. })) => error,
        Err(error) => return Err(error).context("read the store"),
    };
    // It may have been let go of since it was listed.
    let known = of_bundle || app.db.set_of_segment(id).await.context("look for it")?.is_some();
    if matches!(wrong, StoreError::NotFound { .. }) && !known {
        return Ok(());
    }
    found.checked += 1;
    found.damaged += 1;
    let repaired = repair(app, id, of_bundle).await?;
    found.repaired += u64::from(repaired);
    tracing::warn!(segment = %id, %wrong, repaired, "the scrub found a segment that is not as it should be");
    app.events
        .emit(Event::SegmentBad {
            segment: id.to_string(),
            holder: None,
            told_by: "the scrub of the server's store".to_owned(),
        })
        .await;
    Ok(())
}

/// Brings a segment back; false when it is nowhere.
async fn repair(app: &App, id: SegmentId, of_bundle: bool) -> anyhow::Result<bool> {
    if of_bundle {
        // Who makes the bundle puts what is missing.
        app.store.delete_segment(id).await.context("delete a damaged segment")?;
        app.queue(Kind::Bundle).await.context("queue the bundle")?;
        return Ok(true);
    }
    match app.finder.elsewhere(id).await {
        Ok(Some(bytes)) => {
            app.store.put_segment(id, bytes).await.context("put a segment back")?;
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(segment = %id, error, "a segment cannot be brought back");
            Ok(false)
        }
    }
}

/// Queues a pass when the last is long ago, until the server stops.
pub(crate) async fn watch(app: App) {
    loop {
        if let Err(error) = queue_if_due(&app).await {
            tracing::error!(error = format!("{error:#}"), "look when to scrub");
        }
        if app.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

async fn queue_if_due(app: &App) -> anyhow::Result<()> {
    let now = Moment::now();
    match last(app).await? {
        // The first is due a week after the site began.
        None => keep(app, Scrubbed { ended: now.0, ..Scrubbed::default() }).await,
        Some(last) if now.since(Moment(last.ended)) >= EVERY => {
            app.queue(Kind::Scrub).await.context("queue a scrub")
        }
        Some(_) => Ok(()),
    }
}
