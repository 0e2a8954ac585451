//! Evening out the store: after a device was added, segments move to it until all have about equal room.
//!
//! Invariants: a pass works half of the time at most; what it is cut short in is whole, and done by the next one.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use cairn_array::store::Shift;
use cairn_core::id::SegmentId;
use futures::TryStreamExt as _;

use crate::{
    app::App,
    db::volume::VolumeLayout,
    jobs::{JobHandle, Kind},
};

const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);
/// Below this nobody is asked to move anything unless an administrator wants it.
const WORTH: u64 = 1 << 30;
/// Segments that move before the device is made durable.
const AT_ONCE: usize = 16;
/// Every shift halves a difference; what does not even out after so many is not the store's to even out.
const SHIFTS: usize = 64;

/// Moves segments until devices have about equal room.
pub(crate) async fn run(app: &App, job: &JobHandle) -> anyhow::Result<()> {
    let mut moved = 0;
    for _ in 0..SHIFTS {
        let shift = app.store.shift().await.context("look at the devices' room")?;
        let Some(shift) = shift else { break };
        let done = run_shift(app, &shift, job).await?;
        if done == 0 {
            // What fills that device is not the store's.
            break;
        }
        moved += done;
    }
    tracing::info!(segments = moved, "the store's devices were evened out");
    if moved > 0 {
        // Their stripes go over devices: they are looked at again.
        for volume in app.db.volumes().await.context("list volumes")? {
            if volume.layout == VolumeLayout::ClientParity {
                app.queue(Kind::Scatter { set: volume.id.into() }).await?;
            }
        }
    }
    Ok(())
}

/// Returns how many segments moved.
async fn run_shift(app: &App, shift: &Shift, job: &JobHandle) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut ids: Vec<SegmentId> = Vec::new();
    let mut there = app.store.segments_on(shift.from);
    while bytes < shift.bytes.0 {
        let Some(segment) = there.try_next().await.context("list a device")? else { break };
        bytes += segment.length.0;
        ids.push(segment.id);
    }
    drop(there);
    let (mut moved, mut looked_at) = (0, 0);
    for some in ids.chunks(AT_ONCE) {
        job.progress(looked_at, ids.len() as u64, "segments moved").await?;
        let started = Instant::now();
        let done = app.store.move_segments(some, shift.from, shift.to).await;
        moved += done.context("move segments")?.len() as u64;
        looked_at += some.len() as u64;
        // Others read and write, too.
        tokio::time::sleep(started.elapsed()).await;
    }
    job.progress(looked_at, ids.len() as u64, "segments moved").await?;
    Ok(moved)
}

/// Begins when it is worth it, until the server stops.
pub(crate) async fn watch(app: App) {
    loop {
        match app.store.shift().await {
            Ok(Some(shift)) if shift.bytes.0 >= WORTH => {
                if let Err(error) = app.queue(Kind::Rebalance).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "queue the evening out of devices");
                }
            }
            Ok(_) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "look at the devices' room");
            }
        }
        if app.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}
