//! Who is there: looked at once a minute, counted by the hour of the week.
//!
//! Plans follow from it ([`cairn_core::availability`]), but only once an hour: one minute decides nothing. While the
//! server itself is down nothing is counted, so its own nights do not look like those of its clients.

use std::time::Duration;

use anyhow::Context as _;
use cairn_core::availability::HourOfWeek;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{app::App, moment::Moment, scatter::is_asleep, wake};

const LOOK_EVERY: Duration = Duration::from_secs(60);
const PLAN_EVERY: Duration = Duration::from_secs(3600);

/// Looks until the server stops.
pub(crate) async fn watch(app: App) {
    // Agents that were there before this server's start need a moment to say so.
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut planned: Option<Instant> = None;
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let mut done = look(&app).await;
        if done.is_ok() {
            done = wake::note_links(&app).await;
        }
        if done.is_ok() && planned.is_none_or(|at| at.elapsed() >= PLAN_EVERY) {
            planned = Some(Instant::now());
            let queued = app.queue_scatter_of_all(Duration::ZERO).await;
            tracing::info!("the fleet was planned for anew, by what was measured");
            done = queued.context("plan anew by what was measured");
        }
        if let Err(error) = done {
            tracing::error!(error = format!("{error:#}"), "count who is there");
        }
    }
}

/// One look at all approved agents.
pub(crate) async fn look(app: &App) -> anyhow::Result<()> {
    let seconds = u64::try_from(Moment::now().0 / 1000).context("read the clock")?;
    let agents = app.db.approved_agents().await.context("list agents")?;
    let there = |agent: &crate::db::agent::AgentRow| !is_asleep(agent);
    let seen: Vec<_> = agents.iter().map(|agent| (agent.id, there(agent))).collect();
    app.db.note_presence(HourOfWeek::at(seconds), &seen).await.context("note who is there")
}
