//! Reading the DSF slowly, over and over: rot is found while the stripe can still repair it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cairn_array::dsf::{DsfHandle, SlotFault};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Event;

/// One segment at a time, 2 MiB/s at most: 20 GiB in under three hours, and the owner of the disk notices nothing.
const PAUSE: Duration = Duration::from_secs(2);

/// Scrubs until the stop; rot goes to the worker.
pub(super) async fn run(
    dsf: DsfHandle,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) -> Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
        let scrubbed = dsf.scrub_step(1).await.context("scrub the storage file")?;
        for bad in scrubbed.bad {
            match bad.fault {
                // Written anew by the step itself.
                SlotFault::Header => {
                    tracing::warn!(segment = %bad.id, slot = bad.slot.0, "header repaired")
                }
                SlotFault::Payload(_) | SlotFault::Unreadable(_) => {
                    if events.send(Event::Rotten(bad.id)).await.is_err() {
                        return Ok(()); // The worker is gone, so is everything soon.
                    }
                }
            }
        }
    }
}
