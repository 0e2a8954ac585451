//! `POST /agent/v1/sync`: an agent says how it is and waits for news.

use std::net::SocketAddr;

use axum::{Extension, Json, extract::State};
use cairn_array::{
    tls::{Member, Peer},
    wire::{MemberState, SYNC_HOLD, SyncReply, SyncRequest},
};
use tokio::time::Instant;

use super::{Joined, agent_of, condition::Condition, directory, membership_changed};
use crate::{
    api::{error::ApiError, extract::Body},
    app::App,
    db::agent::{AgentNews, AgentRow},
    moment::Moment,
    scatter::is_lost,
};

pub(super) async fn sync(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Joined(agent): Joined,
    Body(request): Body<SyncRequest>,
) -> Result<Json<SyncReply>, ApiError> {
    let deadline = Instant::now() + SYNC_HOLD;
    // Watch before the first look: a change in between is not missed.
    let mut changes = app.agents_changed.watch();
    note_news(&app, &agent, &request, peer).await?;
    let state = agent.state;
    loop {
        let agent = agent_of(&app, Some(&peer)).await?;
        let reply = SyncReply {
            state: agent.state,
            directory: app.directory.number(),
            assignment: agent.assignment,
            want_holdings: agent.want_holdings,
            limits: app.limits.rates(),
        };
        if agent.state != state || is_news(&reply, &request) {
            return Ok(Json(reply));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(Json(reply)) },
            () = tokio::time::sleep_until(deadline) => return Ok(Json(reply)),
            () = app.stop.cancelled() => return Ok(Json(reply)),
        }
    }
}

fn is_news(reply: &SyncReply, request: &SyncRequest) -> bool {
    reply.state == MemberState::Approved
        && (reply.directory > request.directory
            || reply.assignment != request.assignment
            || reply.limits != request.limits
            || reply.want_holdings)
}

async fn note_news(
    app: &App,
    agent: &AgentRow,
    request: &SyncRequest,
    peer: Peer,
) -> Result<(), ApiError> {
    // Where it speaks from is where its peers find it; only the port is its own word.
    let address = SocketAddr::new(peer.addr.ip().to_canonical(), request.peer_port);
    let news = AgentNews {
        lend: request.lend,
        used: request.used,
        peer_port: request.peer_port,
        address,
        mac: request.mac.as_deref().and_then(|mac| mac.parse().ok()),
    };
    app.db.note_agent_news(agent.id, news, Moment::now()).await?;
    let now = Moment::now();
    let clock_ahead = i64::try_from(request.clock).unwrap_or(i64::MAX).saturating_sub(now.0 / 1000);
    let condition = Condition {
        stores: request.stores,
        written_today: request.written_today,
        clock_ahead,
        directory: request.directory,
        wire: request.wire,
    };
    if app.conditions.note(agent.id, condition) {
        tracing::warn!(
            agent = agent.name,
            clock_ahead,
            "the clock of a client is wrong, in seconds"
        );
    }
    app.names.set(Member::Agent(agent.id), address);
    // A machine that was installed anew has joined again: what it was before does not come back.
    for gone in app.db.overwritten_by(agent.id).await? {
        app.db.move_agent(gone, &[MemberState::Approved], MemberState::Left).await?;
        membership_changed(app, gone).await?;
    }
    if agent.state != MemberState::Approved {
        return Ok(());
    }
    if agent.address != Some(address) {
        directory::rebuild(app).await?;
        app.agents_changed.notify();
    }
    if agent.lend != request.lend || is_lost(agent) {
        app.db.raise_assignment(agent.id).await?;
        app.queue_scatter_of_all(super::SETTLE).await?;
    }
    Ok(())
}
