//! Serving segments to members.

use std::sync::Arc;

use cairn_array::{
    dsf::{DsfHandle, GetError},
    peer::{Admission, Found, SegmentSource},
    tls::Member,
};
use cairn_core::id::SegmentId;
use tokio::sync::{mpsc, watch};

use super::{
    Event,
    guest::{GuestStatus, is_paused},
    roster::Members,
};

/// The DSF as others see it.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dsf: DsfHandle,
    events: mpsc::Sender<Event>,
    guest: watch::Receiver<GuestStatus>,
}

impl Shelf {
    pub(super) const fn new(
        dsf: DsfHandle,
        events: mpsc::Sender<Event>,
        guest: watch::Receiver<GuestStatus>,
    ) -> Self {
        Self { dsf, events, guest }
    }
}

impl SegmentSource for Shelf {
    /// A segment that is rotten is not here; the worker hears of it and fetches it again.
    async fn segment(&self, id: SegmentId, _: Member) -> anyhow::Result<Found> {
        if is_paused(&self.guest) {
            return Ok(Found::NotNow);
        }
        match self.dsf.get(id).await {
            Ok(bytes) => Ok(Found::Here(bytes)),
            Err(GetError::NotHeld(_)) => Ok(Found::NotHere),
            Err(rotten @ GetError::Rotten { .. }) => {
                // When the mailbox is full the scrub finds it again.
                if self.events.try_send(Event::Rotten(id)).is_err() {
                    tracing::warn!(error = %rotten, "not reported yet");
                }
                Ok(Found::NotHere)
            }
            Err(closed @ GetError::Closed) => Err(closed.into()),
        }
    }
}

/// Agents of the current directory, targets with a certificate that is still valid, and the server.
pub(super) fn admission(members: watch::Receiver<Arc<Members>>) -> Admission {
    Arc::new(move |member| match member {
        Member::Agent(agent) => members.borrow().is_member(agent),
        // TLS has checked the site's CA and the dates; a target's certificate ends within a day.
        Member::Target(_) | Member::Server => true,
        // A volume's papers open that volume, and nothing here.
        Member::Volume(_) => false,
    })
}
