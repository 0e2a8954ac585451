//! Agents: list, approve, revoke, forget.

use axum::{Json, extract::State, http::StatusCode};
use cairn_array::wire::MemberState;
use cairn_core::id::AgentId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Params, Place, id},
    part::{Listed, Part, Placed},
};
use crate::{
    agents,
    app::App,
    db::agent::{AgentRow, word},
    moment::Moment,
};

/// A client's agent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    pub id: String,
    /// What its machine calls itself.
    pub name: String,
    /// `pending`, `approved`, `revoked` or `left`
    pub state: String,
    /// Of its peer service, once it was seen.
    pub address: Option<String>,
    /// Bytes it lends.
    pub lend: u64,
    /// Bytes of that which hold segments, as it says.
    pub used: u64,
    /// Segments it says it holds, and their bytes.
    pub segments: u64,
    /// Those of them that are not parity.
    pub data_segments: u64,
    pub segment_bytes: u64,
    pub joined: String,
    /// When it last spoke to the server.
    pub seen: Option<String>,
    /// It has all that it is to hold.
    pub in_place: bool,
    /// When an install began that overwrites what it holds: others take over its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overwritten: Option<String>,
    /// It stores nothing for the time being: it is on battery, or was written enough for today.
    pub rests: bool,
    /// Bytes that were written to the space that it lends today (UTC), as it said last; none before it spoke to this server.
    #[serde(default)]
    pub written_today: Option<u64>,
    /// What machines that installed since yesterday complain of: `damaged`, `empty` or `slow`, and how many they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub complaints: Vec<String>,
    #[serde(default)]
    pub complaining_machines: u64,
    /// Its program is older than the server's. It works; update its package.
    #[serde(default)]
    pub old: bool,
    /// Seconds by which its clock is ahead of the server's, negative when behind; only when more than five minutes.
    pub clock_ahead: Option<i64>,
}

impl Agent {
    /// What is odd about it, for people.
    pub(crate) fn notes(&self) -> Vec<String> {
        let clock = self.clock_ahead.map(|ahead| {
            let by = match ahead.unsigned_abs() {
                seconds @ ..7200 => format!("{} minutes", seconds / 60),
                seconds @ 7200..172_800 => format!("{} hours", seconds / 3600),
                seconds => format!("{} days", seconds / 86_400),
            };
            format!("clock {by} {}", if ahead > 0 { "ahead" } else { "behind" })
        });
        let rests = self.rests.then(|| "rests".to_owned());
        let overwritten = self.overwritten.as_ref().map(|_| "is installed anew".to_owned());
        let complaints = (!self.complaints.is_empty()).then(|| {
            let machines = match self.complaining_machines {
                1 => "1 machine complains".to_owned(),
                many => format!("{many} machines complain"),
            };
            format!("{machines}: {}", self.complaints.join(", "))
        });
        let old = self.old.then(|| "old version".to_owned());
        rests.into_iter().chain(old).chain(overwritten).chain(complaints).chain(clock).collect()
    }
}

/// An agent as the API shows it.
pub(crate) async fn view(app: &App, row: &AgentRow) -> Result<Agent, ApiError> {
    let held = app.db.holding_count_of_agent(row.id).await?;
    let complaints = app.complaints.about(row.id, Moment::now());
    Ok(Agent {
        id: row.id.to_string(),
        name: row.name.clone(),
        state: word(row.state).to_owned(),
        address: row.address.map(|address| address.to_string()),
        lend: row.lend.0,
        used: row.used.0,
        segments: held.segments,
        data_segments: held.data,
        segment_bytes: held.bytes.0,
        joined: row.joined.to_text(),
        seen: row.seen.map(|seen| seen.to_text()),
        in_place: row.fulfilled >= row.assignment,
        overwritten: row.overwritten.map(|moment| moment.to_text()),
        rests: app.conditions.rests(row.id),
        written_today: app.conditions.written_today(row.id).map(|bytes| bytes.0),
        complaints: complaints.iter().flat_map(|tally| tally.faults()).map(str::to_owned).collect(),
        complaining_machines: complaints.map_or(0, |tally| tally.machines() as u64),
        old: app.conditions.is_old(row.id),
        clock_ahead: app.conditions.clock_fault(row.id),
    })
}

/// All agents as the API shows them.
pub(crate) async fn all(app: &App) -> Result<Vec<Agent>, ApiError> {
    let mut agents = Vec::new();
    for row in app.db.agents().await? {
        agents.push(view(app, &row).await?);
    }
    Ok(agents)
}

pub(super) async fn find(app: &App, text: &str) -> Result<AgentRow, ApiError> {
    let id: AgentId = id("agent", text)?;
    app.db.agent(id).await?.ok_or_else(unknown)
}

fn unknown() -> ApiError {
    ApiError::not_found(
        "agent_unknown",
        "there is no such agent: `cairn-server agent list` shows them",
    )
}

impl Placed for Agent {
    fn place(&self) -> String {
        format!("{} {}", self.joined, self.id)
    }
}

/// List agents
#[utoipa::path(get, path = "/api/v1/agents", tag = "agents", params(Part),
    responses((status = 200, body = Vec<Agent>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Agent>, ApiError> {
    part.of(all(&app).await?)
}

/// Show an agent
#[utoipa::path(get, path = "/api/v1/agents/{agent}", tag = "agents", params(("agent" = String, Path)),
    responses((status = 200, body = Agent), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(agent): Place<String>,
) -> Result<Json<Agent>, ApiError> {
    let row = find(&app, &agent).await?;
    Ok(Json(view(&app, &row).await?))
}

/// Approve an agent: from now on it holds and serves segments
#[utoipa::path(post, path = "/api/v1/agents/{agent}/approve", tag = "agents", params(("agent" = String, Path)),
    responses((status = 200, body = Agent), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn approve(
    State(app): State<App>,
    Place(agent): Place<String>,
) -> Result<Json<Agent>, ApiError> {
    let row = find(&app, &agent).await?;
    let from = [MemberState::Pending, MemberState::Approved];
    if !app.db.move_agent(row.id, &from, MemberState::Approved).await? {
        return Err(ApiError::conflict(
            "agent_gone",
            "this agent was revoked or has left: let it join again with a new token",
        ));
    }
    agents::membership_changed(&app, row.id).await?;
    show(State(app), Place(agent)).await
}

/// Revoke an agent: its certificate is no longer accepted anywhere
#[utoipa::path(post, path = "/api/v1/agents/{agent}/revoke", tag = "agents", params(("agent" = String, Path)),
    responses((status = 200, body = Agent), (status = 404, body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    Place(agent): Place<String>,
) -> Result<Json<Agent>, ApiError> {
    let row = find(&app, &agent).await?;
    let from = [MemberState::Pending, MemberState::Approved, MemberState::Left];
    if app.db.move_agent(row.id, &from, MemberState::Revoked).await? {
        agents::membership_changed(&app, row.id).await?;
    }
    show(State(app), Place(agent)).await
}

/// Forget an agent that was revoked or has left
///
/// A forgotten agent is unknown, and an unknown one is not accepted either.
#[utoipa::path(delete, path = "/api/v1/agents/{agent}", tag = "agents", params(("agent" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn forget(
    State(app): State<App>,
    Place(agent): Place<String>,
) -> Result<StatusCode, ApiError> {
    let row = find(&app, &agent).await?;
    if !matches!(row.state, MemberState::Revoked | MemberState::Left) {
        return Err(ApiError::conflict("agent_active", "this agent is a member: revoke it first"));
    }
    if app.db.forget_agent(row.id).await? {
        app.events.emit(crate::events::Event::AgentForgotten { id: agent }).await;
    }
    Ok(StatusCode::NO_CONTENT)
}
