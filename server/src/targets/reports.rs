//! Reports of installs that go on: kept for a moment, then written and told together.
//!
//! A room of machines says several times a second how far it is; each report alone would be a transaction of its own. Only the last
//! one of each install counts, and only what changes no state waits here: that an install failed is written at once.
//!
//! Invariants: what waits is of an install that runs, and is dropped when it runs no more; nothing waits for longer than
//! [`PAUSE`] and the write before it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cairn_core::id::InstallId;
use tokio::sync::Notify;

use crate::{
    api,
    app::App,
    db::{self, deployment::InstallRow},
    events::Event,
};

/// The least time between two writes.
const PAUSE: Duration = Duration::from_millis(200);

/// What waits to be written.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    waiting: Mutex<HashMap<InstallId, InstallRow>>,
    came: Notify,
}

impl Reports {
    /// Keeps how far an install is, in place of what it said before.
    pub(super) fn put(&self, install: InstallRow) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(install.id, install);
        self.came.notify_one();
    }

    fn take(&self) -> Vec<InstallRow> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_values().collect()
    }
}

/// Writes reports as they come, until the server stops.
pub(crate) async fn write(app: App) {
    while app.stop.run_until_cancelled(app.reports.came.notified()).await.is_some() {
        // The first of a quiet time is written at once, those that come meanwhile after the pause.
        flush(&app).await;
        if app.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            break;
        }
    }
    flush(&app).await;
}

async fn flush(app: &App) {
    if let Err(error) = write_and_tell(app).await {
        tracing::error!(error = &error as &dyn std::error::Error, "keep how far installs are");
    }
}

async fn write_and_tell(app: &App) -> db::Result<()> {
    let installs = app.reports.take();
    if installs.is_empty() {
        return Ok(());
    }
    let running = app.db.note_progress_of(&installs).await?;
    let machine = match installs.as_slice() {
        [one] => Some(one.machine),
        _ => None,
    };
    let labels = app.db.machine_labels(machine).await?;
    for install in installs.into_iter().filter(|install| running.contains(&install.id)) {
        let view = api::deployment::view_of(app, install, &labels);
        app.events.emit(Event::InstallProgress(Box::new(view))).await;
    }
    Ok(())
}
