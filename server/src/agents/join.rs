//! Joining and leaving.

use axum::{Extension, Json, extract::State, http::StatusCode};
use cairn_array::{
    tidy::tidy_text,
    tls::{Certified, Member, Peer, public_key_of_csr},
    wire::{JoinReply, JoinRequest, MemberState, RenewReply, RenewRequest},
};
use cairn_core::id::AgentId;

use super::{Joined, membership_changed};
use crate::{
    api::{error::ApiError, extract::Body},
    app::App,
    db::{agent::NewAgent, token::SpendError},
    moment::Moment,
    secret,
};

pub(super) async fn join(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(request): Body<JoinRequest>,
) -> Result<Json<JoinReply>, ApiError> {
    let now = Moment::now();
    // Before the costly part: a stranger without a token gets no signature checked.
    app.db.join_token(&request.secret, now).await.map_err(refuse)?;
    let agent = AgentId(secret::random()?);
    let certified = certify(&app, agent, request.csr_pem).await?;
    let name = tidy_text(&request.hostname).unwrap_or_else(|| peer.addr.ip().to_string());
    let new = NewAgent {
        id: agent,
        name: &name,
        serial: &certified.serial,
        lend: request.lend,
        peer_port: request.peer_port,
    };
    let state = app.db.add_agent_with_token(&request.secret, new, now).await.map_err(refuse)?;
    tracing::info!(agent = %agent, name, from = %peer.addr, "an agent joined");
    membership_changed(&app, agent).await?;
    Ok(Json(JoinReply {
        agent,
        site: app.site.id(),
        certificate_pem: certified.certificate_pem,
        ca_pem: app.site.authority().ca_pem().to_owned(),
        signing_key: app.site.verifying_key(),
        state,
    }))
}

async fn certify(app: &App, agent: AgentId, csr_pem: String) -> Result<Certified, ApiError> {
    // Elliptic curves cost: off the threads that serve others.
    let public_key = tokio::task::spawn_blocking(move || public_key_of_csr(&csr_pem))
        .await
        .map_err(anyhow::Error::from)?
        .map_err(|error| {
            ApiError::bad_request(
                "bad_csr",
                format!("the certificate request is no good: {error:#}"),
            )
        })?;
    app.site.authority().certify(&Member::Agent(agent), &public_key).map_err(|error| {
        ApiError::bad_request("bad_csr", format!("the key cannot be certified: {error:#}"))
    })
}

/// Another certificate for an agent that has one.
pub(super) async fn renew(
    State(app): State<App>,
    Joined(agent): Joined,
    Body(request): Body<RenewRequest>,
) -> Result<Json<RenewReply>, ApiError> {
    let certified = certify(&app, agent.id, request.csr_pem).await?;
    app.db.set_serial(agent.id, &certified.serial).await?;
    tracing::info!(agent = %agent.id, name = agent.name, "an agent's certificate was renewed");
    Ok(Json(RenewReply { certificate_pem: certified.certificate_pem }))
}

fn refuse(error: SpendError) -> ApiError {
    let (code, reason) = match error {
        SpendError::Unknown => ("token_unknown", "this join token is unknown here"),
        SpendError::Used => {
            ("token_used", "this join token was used already: each lets one agent join")
        }
        SpendError::Expired => ("token_expired", "this join token has expired"),
        SpendError::Revoked => ("token_revoked", "this join token was revoked"),
        SpendError::Db(error) => return error.into(),
    };
    ApiError::forbidden(code, format!("{reason}; make another with `cairn-server token create`"))
}

pub(super) async fn leave(
    State(app): State<App>,
    Joined(agent): Joined,
) -> Result<StatusCode, ApiError> {
    let from = [MemberState::Pending, MemberState::Approved];
    if app.db.move_agent(agent.id, &from, MemberState::Left).await? {
        membership_changed(&app, agent.id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
