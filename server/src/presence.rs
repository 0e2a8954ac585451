//! Who is there: looked at once a minute, counted by the hour of the week.
//!
//! Plans follow from it ([`cairn_core::availability`]), but only once an hour: one minute decides nothing. While the
//! server itself is down nothing is counted, so its own nights do not look like those of its clients.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use cairn_core::{availability::HourOfWeek, id::AgentId};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{app::App, db::availability::Churn, moment::Moment, scatter::is_asleep, wake};

const LOOK_EVERY: Duration = Duration::from_secs(60);
const PLAN_EVERY: Duration = Duration::from_secs(3600);

/// Looks until the server stops.
pub(crate) async fn watch(app: App) {
    // Agents that were there before this server's start need a moment to say so.
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut planned: Option<Instant> = None;
    let mut before: Option<There> = None;
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let mut done = follow(&app, &mut before).await;
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

/// Approved agents, and whether each was there.
type There = BTreeMap<AgentId, bool>;

/// The day since 1970, UTC.
pub(crate) const fn day(now: Moment) -> i64 {
    now.0.div_euclid(24 * 60 * 60 * 1000)
}

/// What changed from one look to the next.
fn changes(before: &There, now: &There) -> Churn {
    let count = |found: usize| u64::try_from(found).unwrap_or(u64::MAX);
    let turned = |to: bool| {
        let same = now.iter().filter(|(agent, there)| {
            **there == to && before.get(agent).is_some_and(|was| *was != to)
        });
        count(same.count())
    };
    Churn {
        came: turned(true),
        went: turned(false),
        joined: count(now.keys().filter(|agent| !before.contains_key(agent)).count()),
        gone: count(before.keys().filter(|agent| !now.contains_key(agent)).count()),
    }
}

/// Looks, and keeps what changed since the look before. What changed while the server was down is not known.
async fn follow(app: &App, before: &mut Option<There>) -> anyhow::Result<()> {
    let now = look(app).await?;
    if let Some(before) = before {
        let changed = changes(before, &now);
        if changed != Churn::default() {
            let kept = app.db.note_churn(day(Moment::now()), changed).await;
            kept.context("note who came and went")?;
        }
    }
    *before = Some(now);
    Ok(())
}

/// One look at all approved agents.
async fn look(app: &App) -> anyhow::Result<There> {
    let seconds = u64::try_from(Moment::now().0 / 1000).context("read the clock")?;
    let agents = app.db.approved_agents().await.context("list agents")?;
    let there = |agent: &crate::db::agent::AgentRow| !is_asleep(agent);
    let seen: Vec<_> = agents.iter().map(|agent| (agent.id, there(agent))).collect();
    app.db.note_presence(HourOfWeek::at(seconds), &seen).await.context("note who is there")?;
    Ok(seen.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_who_came_went_joined_and_left() {
        let look = |agents: &[(u8, bool)]| {
            agents.iter().map(|(agent, there)| (AgentId([*agent; 16]), *there)).collect::<There>()
        };
        let before = look(&[(1, true), (2, false), (3, true), (4, true)]);
        let now = look(&[(1, false), (2, true), (3, true), (5, true), (6, false)]);
        assert_eq!(changes(&before, &now), Churn { came: 1, went: 1, joined: 2, gone: 1 });
        assert_eq!(changes(&now, &now), Churn::default());
        assert_eq!((day(Moment(86_399_999)), day(Moment(86_400_000))), (0, 1));
    }
}
