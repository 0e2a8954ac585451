//! Reading the DSF slowly, over and over: rot is found while the stripe can still repair it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cairn_array::dsf::{DsfHandle, SlotFault};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Event,
    guest::{GuestStatus, is_paused},
};

pub(super) struct Scrub {
    dsf: DsfHandle,
    events: mpsc::Sender<Event>,
    guest: watch::Receiver<GuestStatus>,
    /// After each segment: one at a time, and the owner of the disk notices nothing.
    pause: Duration,
}

impl Scrub {
    pub(super) fn new(
        dsf: DsfHandle,
        events: mpsc::Sender<Event>,
        guest: watch::Receiver<GuestStatus>,
    ) -> Self {
        let pause = guest.borrow().medium.class.scrub_pause();
        Self { dsf, events, guest, pause }
    }

    /// Scrubs until the stop; rot goes to the worker.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.pause) => {}
            }
            if is_paused(&self.guest) {
                continue;
            }
            let scrubbed = self.dsf.scrub_step(1).await.context("scrub the storage file")?;
            for bad in scrubbed.bad {
                match bad.fault {
                    // Written anew by the step itself.
                    SlotFault::Header => {
                        tracing::warn!(segment = %bad.id, slot = bad.slot.0, "header repaired")
                    }
                    SlotFault::Payload(_) | SlotFault::Unreadable(_) => {
                        if self.events.send(Event::Rotten(bad.id)).await.is_err() {
                            return Ok(()); // The worker is gone, so is everything soon.
                        }
                    }
                }
            }
        }
    }
}
