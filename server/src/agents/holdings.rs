//! What an agent is to hold, and what it says it holds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use axum::{Json, extract::State, http::StatusCode};
use cairn_array::wire::{Assignment, BadSegment, Holdings, ImageLine, MAX_SEGMENTS};
use cairn_core::{id::AgentId, units::Generation};

use super::{Approved, SETTLE, note_bad_segment};
use crate::{
    api::{self, error::ApiError, extract::Body},
    app::App,
    bundle,
    db::agent::AgentRow,
    events::Event,
    jobs::Kind,
};

/// Which assignment each agent had no room for. Forgotten by a restart: agents try again, and say it again.
#[derive(Debug, Default)]
pub(crate) struct FullDisks(Mutex<HashMap<AgentId, Generation>>);

impl FullDisks {
    fn note(&self, agent: AgentId, number: Generation) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(agent, number);
    }

    /// Whether it has no room for what it is to hold now.
    pub(crate) fn is_full(&self, agent: &AgentRow) -> bool {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.get(&agent.id) == Some(&agent.assignment)
    }
}

pub(super) async fn assignment(
    State(app): State<App>,
    Approved(agent): Approved,
) -> Result<Json<Assignment>, ApiError> {
    let (number, mut segments, recheck) = app.db.assignment_of_agent(agent.id).await?;
    segments.extend(bundle::assignment(&app, &agent).await?);
    Ok(Json(Assignment { number, segments, recheck }))
}

pub(super) async fn holdings(
    State(app): State<App>,
    Approved(agent): Approved,
    Body(holdings): Body<Holdings>,
) -> Result<StatusCode, ApiError> {
    let count = holdings.stored.len() + holdings.dropped.len() + holdings.bad.len();
    if count > MAX_SEGMENTS {
        return Err(ApiError::bad_request(
            "too_many_segments",
            format!("one message names at most {MAX_SEGMENTS} segments: send several"),
        ));
    }
    // What it says about itself; what it says about others follows.
    let mut own = holdings;
    let (mine, others): (Vec<BadSegment>, Vec<BadSegment>) =
        own.bad.iter().partition(|bad| bad.holder == Some(agent.id));
    for bad in &mine {
        tracing::warn!(agent = agent.name, segment = %bad.segment, "an agent found a bad segment on its disk");
        app.events
            .emit(Event::SegmentBad {
                segment: bad.segment.to_string(),
                holder: Some(agent.id.to_string()),
                told_by: format!("agent {}", agent.name),
            })
            .await;
    }
    own.bad = mine;
    if let Some(number) = own.no_room {
        app.full_disks.note(agent.id, number);
    }
    for set in app.db.note_holdings(agent.id, &own).await? {
        app.queue_after(Kind::Scatter { set }, SETTLE).await?;
    }
    for bad in others {
        note_bad_segment(&app, bad, format!("agent {}", agent.name)).await?;
    }
    if let Some(row) = app.db.agent(agent.id).await? {
        let view = api::agent::view(&app, &row).await?;
        app.events.emit(Event::AgentChanged(Box::new(view))).await;
    }
    app.holdings_changed.notify();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn images(
    State(app): State<App>,
    Approved(_): Approved,
) -> Result<Json<Vec<ImageLine>>, ApiError> {
    let versions = app.db.versions().await?;
    let line = |version: crate::db::image::VersionRow| ImageLine {
        name: version.name,
        number: version.number,
        size: version.size,
        stored: version.stored,
    };
    Ok(Json(versions.into_iter().map(line).collect()))
}
