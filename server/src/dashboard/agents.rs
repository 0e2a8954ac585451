//! Fills the page of agents.

use axum::{extract::State, response::Response};
use cairn_web::{
    agents::{Agent, AgentState, Agents, JoinCommand},
    shell::Place,
    text::Bytes,
};

use super::{agents_with, ago, answer, at};
use crate::{
    api::{self, error::ApiError, extract, token::TokenRequest},
    app::App,
    db::{target::LIVE, token::TokenKind},
    moment::Moment,
};

pub(super) async fn view(app: &App) -> Result<Agents, ApiError> {
    let now = Moment::now();
    let all = api::agent::all(app).await?;
    Ok(Agents { agents: all.into_iter().map(|agent| fill(agent, now)).collect() })
}

/// Where an agent stands, for people: one that was not heard of for a minute is away.
pub(super) fn state(agent: &api::agent::Agent, now: Moment) -> AgentState {
    let heard = agent.seen.as_deref().and_then(at).is_some_and(|seen| now.since(seen) < LIVE);
    match agent.state.as_str() {
        "pending" => AgentState::Pending,
        "approved" if heard => AgentState::Here,
        "approved" => AgentState::Away,
        "left" => AgentState::Left,
        _ => AgentState::Revoked,
    }
}

fn fill(agent: api::agent::Agent, now: Moment) -> Agent {
    Agent {
        state: state(&agent, now),
        notes: agent.notes(),
        lend: Bytes(agent.lend),
        used: Bytes(agent.used),
        segments: agent.segments,
        settled: agent.in_place,
        joined: ago(&agent.joined, now),
        seen: agent.seen.as_deref().map(|seen| ago(seen, now)),
        id: agent.id,
        name: agent.name,
        address: agent.address,
    }
}

pub(super) async fn approve(
    State(app): State<App>,
    id: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::agent::approve(State(app.clone()), id).await;
    answer(&app, Place::Agents, done).await
}

pub(super) async fn revoke(
    State(app): State<App>,
    id: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::agent::revoke(State(app.clone()), id).await;
    answer(&app, Place::Agents, done).await
}

pub(super) async fn forget(
    State(app): State<App>,
    id: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::agent::forget(State(app.clone()), id).await;
    answer(&app, Place::Agents, done).await
}

/// Makes a join token and shows its command, this once.
pub(super) async fn join(State(app): State<App>) -> Result<Response, ApiError> {
    let wish = TokenRequest {
        kind: TokenKind::Join,
        auto_approve: false,
        role: None,
        expires_in: None,
        note: "made in the dashboard".to_owned(),
    };
    let made = api::token::make(&app, &wish).await?;
    let join = made.command.map(|command| JoinCommand {
        command,
        expires: made.expires,
        auto_approve: false,
    });
    agents_with(&app, None, join).await
}
