//! What happened, to whoever listens: server-sent events with ids.
//!
//! An event that matters later (somebody joined, an install failed) is recorded in the database, so that a listener that was
//! away gets it by its `Last-Event-ID`. Progress is only passed on: the next one replaces it.
//!
//! Ids grow, also over a restart: they are microseconds since 1970, or one more than the last.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Mutex, broadcast};

use crate::{
    api,
    db::{Db, DbError},
    moment::Moment,
};

/// A listener that is this far behind misses events and is told so.
const BACKLOG: usize = 1024;

/// Old events are forgotten whenever so many were recorded: it takes a look at all that are kept.
const FORGET_EVERY: u32 = 1000;

/// The kinds of events that are recorded.
pub(crate) const RECORDED: [&str; 11] = [
    "agent-changed",
    "agent-forgotten",
    "image-changed",
    "image-promised",
    "group-changed",
    "machine-changed",
    "machine-forgotten",
    "deployment-changed",
    "install-changed",
    "job-changed",
    "segment-bad",
];

/// What happened. The variant's name in kebab case is the event's name.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Event {
    AgentChanged(Box<api::agent::Agent>),
    AgentForgotten {
        id: String,
    },
    ImageChanged {
        name: String,
    },
    ImagePromised {
        name: String,
        promise: String,
    },
    Registering(Box<api::image::Registration>),
    /// A group was made or removed, or is to run something else.
    GroupChanged {
        name: String,
    },
    MachineChanged(Box<api::machine::Machine>),
    MachineForgotten {
        id: String,
    },
    DeploymentChanged {
        id: i64,
    },
    InstallChanged(Box<api::deployment::Install>),
    InstallProgress(Box<api::deployment::Install>),
    JobChanged {
        id: i64,
        state: String,
    },
    JobProgress {
        id: i64,
        progress: crate::db::job::JobProgress,
    },
    /// A segment did not have the bytes that its id stands for.
    SegmentBad {
        segment: String,
        holder: Option<String>,
        told_by: String,
    },
}

impl Event {
    const fn kind(&self) -> &'static str {
        match self {
            Self::AgentChanged(_) => "agent-changed",
            Self::AgentForgotten { .. } => "agent-forgotten",
            Self::ImageChanged { .. } => "image-changed",
            Self::ImagePromised { .. } => "image-promised",
            Self::Registering(_) => "registering",
            Self::GroupChanged { .. } => "group-changed",
            Self::MachineChanged(_) => "machine-changed",
            Self::MachineForgotten { .. } => "machine-forgotten",
            Self::DeploymentChanged { .. } => "deployment-changed",
            Self::InstallChanged(_) => "install-changed",
            Self::InstallProgress(_) => "install-progress",
            Self::JobChanged { .. } => "job-changed",
            Self::JobProgress { .. } => "job-progress",
            Self::SegmentBad { .. } => "segment-bad",
        }
    }

    const fn passes(&self) -> bool {
        matches!(self, Self::Registering(_) | Self::InstallProgress(_) | Self::JobProgress { .. })
    }
}

/// An event on its way to listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    pub id: u64,
    pub kind: String,
    /// JSON.
    pub payload: String,
}

/// Where events go in and come out.
#[derive(Debug)]
pub struct Events {
    db: Db,
    listeners: broadcast::Sender<Arc<Emitted>>,
    /// Held while an event is recorded and passed on, so that ids come out in order.
    last: Mutex<Last>,
}

/// The last id, and how many were recorded since old ones were forgotten.
#[derive(Debug, Default)]
struct Last {
    id: u64,
    recorded: u32,
}

impl Events {
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self { db, listeners: broadcast::channel(BACKLOG).0, last: Mutex::default() }
    }

    /// Tells everybody who listens.
    pub async fn emit(&self, event: Event) {
        let payload = match serde_json::to_string(&event) {
            Ok(payload) => payload,
            Err(error) => return tracing::error!(kind = event.kind(), %error, "write an event"),
        };
        let now = u64::try_from(Moment::now().0).unwrap_or(0).saturating_mul(1000);
        let mut last = self.last.lock().await;
        let id = now.max(last.id + 1);
        last.id = id;
        if !event.passes()
            && let Err(error) = self.record(&mut last, event.kind(), &payload).await
        {
            tracing::error!(
                kind = event.kind(),
                error = &error as &dyn std::error::Error,
                "record an event"
            );
        }
        // Nobody listening is no failure.
        drop(self.listeners.send(Arc::new(Emitted { id, kind: event.kind().to_owned(), payload })));
    }

    async fn record(&self, last: &mut Last, kind: &str, payload: &str) -> Result<(), DbError> {
        self.db.record_event(last.id, kind, payload).await?;
        last.recorded += 1;
        if last.recorded.is_multiple_of(FORGET_EVERY) {
            self.db.forget_old_events().await?;
        }
        Ok(())
    }

    /// All events from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Arc<Emitted>> {
        self.listeners.subscribe()
    }
}
