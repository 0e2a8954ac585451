//! What machines ask while they are installed: the server's paths (see [`cairn_array::wire`]), answered from memory.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use cairn_array::{
    pace::Pace,
    peer::{self, Found, SegmentSource, Source},
    tidy::tidy,
    tls::{Member, Peer, public_key_of_csr},
    wire::{
        Complaint, HelloReply, InstallProgress, ProgressReply, SYNC_HOLD, StripeMaps, SwarmReply,
        SwarmRequest, TargetHello, TicketReply,
    },
};
use cairn_core::id::SegmentId;
use serde_json::json;
use tokio::time::Instant as Deadline;

use super::{
    console,
    targets::{Refused, Targets},
};

/// The largest body that a machine sends; a hello with every disk is a few KiB.
const MAX_BODY: usize = 256 << 10;

type Shared = Arc<Targets>;

/// All paths of the stand-in.
pub(super) fn router(targets: Shared) -> Router {
    let holds_nothing = peer::routes(
        Nothing,
        Arc::new(|member| matches!(member, Member::Target(_))),
        Pace::default(),
    );
    Router::new()
        .route("/healthz", get(async || Json(json!({ "status": "standing in" }))))
        .route("/agent/v1/directory", get(directory))
        .route("/target/v1/hello", post(hello))
        .route("/target/v1/ticket", get(ticket))
        .route("/target/v1/manifest", get(manifest))
        .route("/target/v1/stripe-maps", get(stripe_maps))
        .route("/target/v1/progress", post(progress))
        .route("/target/v1/complaint", post(complaint))
        .route("/target/v1/swarm", post(swarm))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(targets)
        .merge(holds_nothing)
}

/// A refusal as a problem document (RFC 9457), as the server would write it.
#[derive(Debug)]
struct Problem(StatusCode, &'static str, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, code, detail) = self;
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let text = json!({ "status": status.as_u16(), "code": code, "title": detail }).to_string();
        (status, kind, text).into_response()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let (status, code, detail) = match refused {
            Refused::TooMany => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_machines", "too many machines wait here")
            }
            Refused::Unknown => (
                StatusCode::UNAUTHORIZED,
                "session_unknown",
                "this run is not known: start the installer again, it says hello anew",
            ),
            Refused::NoTicket => (
                StatusCode::FORBIDDEN,
                "no_ticket",
                "this machine has no ticket: its code is approved first",
            ),
        };
        Self(status, code, detail.to_owned())
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!(error = format!("{error:#}"), "answer a machine");
        let detail = "the stand-in could not answer: its terminal says why".to_owned();
        Self(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }
}

/// The bearer of a machine's run.
struct Bearer(String);

impl<S: Sync> FromRequestParts<S> for Bearer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = value.and_then(|value| value.strip_prefix("Bearer "));
        bearer.map(|bearer| Self(bearer.to_owned())).ok_or_else(|| Refused::Unknown.into())
    }
}

/// The stand-in holds no segments: machines have the peers.
#[derive(Clone, Copy, Debug)]
struct Nothing;

impl SegmentSource for Nothing {
    async fn segment(&self, _: SegmentId, _: Member) -> anyhow::Result<Found> {
        Ok(Found::NotHere)
    }
}

async fn directory(
    State(targets): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Result<Bytes, Problem> {
    if !matches!(peer.member, Some(Member::Target(_))) {
        let detail = "this needs the certificate of a ticket".to_owned();
        return Err(Problem(StatusCode::UNAUTHORIZED, "certificate_required", detail));
    }
    Ok(targets.site.signed_directory.clone())
}

async fn hello(
    State(targets): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(mut hello): Json<TargetHello>,
) -> Result<Json<HelloReply>, Problem> {
    tidy(&mut hello);
    let csr = hello.csr_pem.clone();
    let key = tokio::task::spawn_blocking(move || public_key_of_csr(&csr)).await;
    let key = key.map_err(anyhow::Error::from)?.map_err(|error| {
        let detail = format!("the certificate request is no good: {error:#}");
        Problem(StatusCode::BAD_REQUEST, "bad_csr", detail)
    })?;
    let (session, machine, code) = targets.hello(&hello, key, peer.addr)??;
    Ok(Json(HelloReply { session, machine, code }))
}

async fn ticket(
    State(targets): State<Shared>,
    Bearer(bearer): Bearer,
) -> Result<Json<TicketReply>, Problem> {
    let deadline = Deadline::now() + SYNC_HOLD;
    let mut changes = targets.watch();
    loop {
        let reply = targets.ticket(&bearer)??;
        if !matches!(reply, TicketReply::AwaitingApproval) {
            return Ok(Json(reply));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(Json(reply)) },
            () = tokio::time::sleep_until(deadline) => return Ok(Json(reply)),
        }
    }
}

async fn manifest(State(targets): State<Shared>, Bearer(bearer): Bearer) -> Result<Bytes, Problem> {
    targets.install_of(&bearer)?;
    Ok(targets.image().manifest.clone())
}

async fn stripe_maps(
    State(targets): State<Shared>,
    Bearer(bearer): Bearer,
) -> Result<Json<StripeMaps>, Problem> {
    targets.install_of(&bearer)?;
    let maps =
        targets.site.catalog.stripe_maps.iter().map(|map| STANDARD.encode(&map.signed)).collect();
    Ok(Json(StripeMaps { maps }))
}

async fn progress(
    State(targets): State<Shared>,
    Bearer(bearer): Bearer,
    Json(progress): Json<InstallProgress>,
) -> Result<Json<ProgressReply>, Problem> {
    targets.progress(&bearer, &progress)?;
    Ok(Json(ProgressReply { cancel: false, limits: targets.limits }))
}

async fn complaint(
    State(targets): State<Shared>,
    Bearer(bearer): Bearer,
    Json(Complaint { segment, source, fault }): Json<Complaint>,
) -> Result<StatusCode, Problem> {
    let install = targets.install_of(&bearer)?;
    match source {
        Source::Target(other) => targets.swarms.complain(other, install),
        // Nobody moves segments now: the server hears of rot from the client itself when it is back.
        Source::Peer(_) | Source::Server => {
            console::say(&format!("{source} served segment {segment} wrong: {fault:?}"));
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn swarm(
    State(targets): State<Shared>,
    Extension(peer): Extension<Peer>,
    Bearer(bearer): Bearer,
    Json(request): Json<SwarmRequest>,
) -> Result<Json<SwarmReply>, Problem> {
    let install = targets.install_of(&bearer)?;
    let addr = SocketAddr::new(peer.addr.ip(), request.port);
    targets.swarms.join(
        install,
        targets.image().version,
        addr,
        &request.unreachable,
        Instant::now(),
    );
    Ok(Json(targets.swarms.wait(install, request.generation).await))
}
