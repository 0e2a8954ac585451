//! Fills the page of agents.

use axum::response::Response;
use cairn_web::{
    agents::{Agent, AgentState, Agents, JoinCommand},
    pool::{Churn, Client, Day, Left, Lost, Presence, WhatIf},
    shell::Place,
    text::Bytes,
};

use super::{agents_with, ago, answer, at, visit::Visit};
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
        written_today: agent.written_today.map(Bytes),
        segments: agent.segments,
        settled: agent.in_place,
        joined: ago(&agent.joined, now),
        seen: agent.seen.as_deref().map(|seen| ago(seen, now)),
        id: agent.id,
        name: agent.name,
        address: agent.address,
    }
}

/// When the clients are there, and how they come and go.
pub(super) async fn availability(app: &App) -> Result<(Option<Presence>, Churn), ApiError> {
    let known = api::availability::look(app).await?;
    let day = |day: &api::availability::Day| Day {
        came: day.came,
        went: day.went,
        joined: day.joined,
        gone: day.gone,
    };
    let days = known.days.iter().map(day).collect();
    Ok(((!known.hours.is_empty()).then_some(Presence(known.hours)), Churn(days)))
}

/// What would be left without those that were ticked.
pub(super) async fn what_if(app: &App, query: Option<&str>) -> Result<WhatIf, ApiError> {
    let asked: Vec<_> = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect();
    let gone: Vec<_> =
        asked.iter().filter(|(name, _)| name == "gone").map(|(_, id)| id.as_ref()).collect();
    let members = app.db.approved_agents().await?;
    let clients = members.into_iter().map(|agent| {
        let id = agent.id.to_string();
        Client { gone: gone.contains(&id.as_str()), name: agent.name, id }
    });
    let clients: Vec<_> = clients.collect();
    if asked.is_empty() || clients.is_empty() {
        return Ok(WhatIf { clients, left: None });
    }
    // One that was ticked may have left since.
    let there = clients.iter().filter(|client| client.gone).map(|client| client.id.as_str());
    let losses = api::loss::foresee(app, &there.collect::<Vec<_>>()).await?;
    let images = losses.images.into_iter().map(|loss| ("image", loss));
    let volumes = losses.volumes.into_iter().map(|loss| ("volume", loss));
    let mut left = Left { clients: losses.clients_left, ..Left::default() };
    for (kind, loss) in images.chain(volumes) {
        if loss.readable {
            left.readable += 1;
        } else {
            let api::loss::Loss { name, stripes, unreadable, .. } = loss;
            left.lost.push(Lost { name, kind, stripes, unreadable });
        }
    }
    Ok(WhatIf { clients, left: Some(left) })
}

pub(super) async fn approve(
    visit: Visit,
    id: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::agent::approve(visit.state(), id).await;
    answer(&visit, Place::Agents, done).await
}

pub(super) async fn revoke(visit: Visit, id: extract::Place<String>) -> Result<Response, ApiError> {
    let done = api::agent::revoke(visit.state(), id).await;
    answer(&visit, Place::Agents, done).await
}

pub(super) async fn forget(visit: Visit, id: extract::Place<String>) -> Result<Response, ApiError> {
    let done = api::agent::forget(visit.state(), id).await;
    answer(&visit, Place::Agents, done).await
}

/// Makes a join token and shows its command, this once.
pub(super) async fn join(visit: Visit) -> Result<Response, ApiError> {
    let wish = TokenRequest {
        kind: TokenKind::Join,
        auto_approve: false,
        role: None,
        groups: Vec::new(),
        expires_in: None,
        note: "made in the dashboard".to_owned(),
    };
    let made = api::token::make(&visit, &wish).await?;
    let join = made.command.map(|command| JoinCommand {
        command,
        install: made.install_command,
        expires: made.expires,
        auto_approve: false,
    });
    agents_with(&visit, None, join, None).await
}
