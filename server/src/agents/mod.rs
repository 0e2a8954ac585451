//! What agents ask (`/agent/v1/*`).
//!
//! A certificate says which agent speaks; where that agent stands is looked up at every request, so a revocation counts at
//! once, on open connections too.

use std::time::Duration;

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts},
    http::request::Parts,
    routing::{get, post},
};
use cairn_array::{
    tls::{Member, Peer},
    wire::{BadSegment, MAX_BODY_BYTES, MemberState},
};
use cairn_core::id::{AgentId, SegmentId};

pub(crate) mod complaint;
pub(crate) mod condition;
pub(crate) mod directory;
pub(crate) mod holdings;
mod join;
mod sync;

use crate::{
    api::{self, error::ApiError},
    app::App,
    db::agent::AgentRow,
    events::Event,
    jobs::Kind,
};

/// A join request is a few KiB.
const MAX_SMALL_BODY: usize = 128 << 10;
/// Agents come and go in groups (a classroom is switched on): the new placement waits for the group.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// The routes for agents.
pub(crate) fn routes() -> Router<App> {
    let small = Router::new()
        .route("/agent/v1/join", post(join::join))
        .route("/agent/v1/sync", post(sync::sync))
        .route("/agent/v1/directory", get(directory::directory))
        .route("/agent/v1/assignment", get(holdings::assignment))
        .route("/agent/v1/images", get(holdings::images))
        .route("/agent/v1/renew", post(join::renew))
        .route("/agent/v1/leave", post(join::leave))
        .layer(DefaultBodyLimit::max(MAX_SMALL_BODY));
    let large = Router::new()
        .route("/agent/v1/holdings", post(holdings::holdings))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    small.merge(large)
}

/// A member's agent that is pending or approved.
#[derive(Debug)]
struct Joined(AgentRow);

/// A member's agent that is approved.
#[derive(Debug)]
struct Approved(AgentRow);

/// The agent whose certificate this connection showed, when it still counts.
pub(crate) async fn agent_of(app: &App, peer: Option<&Peer>) -> Result<AgentRow, ApiError> {
    let Some(Member::Agent(id)) = peer.and_then(|peer| peer.member) else {
        return Err(ApiError::unauthorized(
            "certificate_required",
            "this needs an agent's certificate: join first (cairn-agent join URL TOKEN)",
        ));
    };
    let row = app.db.agent(id).await?.ok_or_else(|| {
        ApiError::forbidden(
            "agent_unknown",
            "this agent was forgotten: let it join again with a new token",
        )
    })?;
    match row.state {
        MemberState::Pending | MemberState::Approved => Ok(row),
        MemberState::Revoked => Err(ApiError::forbidden(
            "agent_revoked",
            "an administrator revoked this agent: let it join again with a new token",
        )),
        MemberState::Left => Err(ApiError::forbidden(
            "agent_left",
            "this agent has left: let it join again with a new token",
        )),
    }
}

impl FromRequestParts<App> for Joined {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        agent_of(app, parts.extensions.get::<Peer>()).await.map(Self)
    }
}

impl FromRequestParts<App> for Approved {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let row = agent_of(app, parts.extensions.get::<Peer>()).await?;
        if row.state == MemberState::Approved {
            return Ok(Self(row));
        }
        Err(ApiError::forbidden(
            "agent_pending",
            "this agent is not approved yet: an administrator runs `cairn-server agent approve`",
        ))
    }
}

/// After an agent was approved, revoked or left: a new directory, a new placement, and everybody looks again.
pub(crate) async fn membership_changed(app: &App, agent: AgentId) -> Result<(), ApiError> {
    directory::rebuild(app).await?;
    app.db.raise_assignment(agent).await?;
    app.queue_scatter_of_all(SETTLE).await?;
    app.agents_changed.notify();
    if let Some(row) = app.db.agent(agent).await? {
        tracing::info!(agent = %agent, state = crate::db::agent::word(row.state), "membership changed");
        let view = api::agent::view(app, &row).await?;
        app.events.emit(Event::AgentChanged(Box::new(view))).await;
    }
    Ok(())
}

/// A holder did not give a segment. When it is not known to have dropped it, it looks again.
pub(crate) async fn note_missing_segment(
    app: &App,
    segment: SegmentId,
    holder: Option<AgentId>,
) -> Result<(), ApiError> {
    let Some(holder) = holder else { return Ok(()) };
    let holders = match app.db.set_of_segment(segment).await? {
        Some(set) => app.db.holders_of_set(set).await?,
        None => return Ok(()),
    };
    if holders.get(&segment).is_some_and(|all| all.contains(&holder))
        && app.db.doubt_holdings(&[(holder, segment)]).await? > 0
    {
        app.agents_changed.notify();
    }
    Ok(())
}

/// Somebody got bytes that did not match their id: the holder looks again, and its set is brought in order.
pub(crate) async fn note_bad_segment(
    app: &App,
    bad: BadSegment,
    told_by: String,
) -> Result<(), ApiError> {
    tracing::warn!(segment = %bad.segment, holder = ?bad.holder, told_by, "a bad segment was reported");
    if let Some(holder) = bad.holder
        && app.db.doubt_holdings(&[(holder, bad.segment)]).await? > 0
    {
        app.agents_changed.notify();
    }
    if let Some(set) = app.db.set_of_segment(bad.segment).await? {
        app.queue_after(Kind::Scatter { set }, SETTLE).await?;
    }
    app.events
        .emit(Event::SegmentBad {
            segment: bad.segment.to_string(),
            holder: bad.holder.map(|holder| holder.to_string()),
            told_by,
        })
        .await;
    Ok(())
}
