//! Serving segments to members.

use std::sync::Arc;

use bytes::Bytes;
use cairn_array::{
    dsf::{DsfHandle, GetError},
    peer::{Admission, SegmentSource},
    tls::Member,
};
use cairn_core::id::SegmentId;
use tokio::sync::{mpsc, watch};

use super::{Event, roster::Members};

/// The DSF as others see it.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dsf: DsfHandle,
    events: mpsc::Sender<Event>,
}

impl Shelf {
    pub(super) const fn new(dsf: DsfHandle, events: mpsc::Sender<Event>) -> Self {
        Self { dsf, events }
    }
}

impl SegmentSource for Shelf {
    /// A segment that is rotten is not here; the worker hears of it and fetches it again.
    async fn segment(&self, id: SegmentId) -> anyhow::Result<Option<Bytes>> {
        match self.dsf.get(id).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(GetError::NotHeld(_)) => Ok(None),
            Err(rotten @ GetError::Rotten { .. }) => {
                // When the mailbox is full the scrub finds it again.
                if self.events.try_send(Event::Rotten(id)).is_err() {
                    tracing::warn!(error = %rotten, "not reported yet");
                }
                Ok(None)
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
    })
}
