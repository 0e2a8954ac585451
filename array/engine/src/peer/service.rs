//! Serving segments to members.

use std::{future::Future, sync::Arc};

use axum::{
    Extension, Router,
    extract::{Path, Query, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{delete, get},
};
use bytes::Bytes;
use cairn_core::id::SegmentId;
use serde::Deserialize;

use super::turns::{Busy, Turns};
use crate::{
    pace::Pace,
    tls::{Member, Peer},
};

/// Where a segment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The sealed bytes.
    Here(Bytes),
    NotHere,
    /// The holder serves nobody for the time being.
    NotNow,
    /// The asker gets it from another target, which has just got it from here.
    Elsewhere,
}

/// Where segments are: a DSF, a store, or what a target has so far.
pub trait SegmentSource: Clone + Send + Sync + 'static {
    /// The segment, for this member.
    fn segment(
        &self,
        id: SegmentId,
        asker: Member,
    ) -> impl Future<Output = anyhow::Result<Found>> + Send;
}

/// Decides whether a member is served.
pub type Admission = Arc<dyn Fn(&Member) -> bool + Send + Sync>;

#[derive(Clone)]
struct Service<S> {
    source: S,
    admits: Admission,
    turns: Turns,
}

impl<S> Service<S> {
    fn member(&self, peer: Option<Extension<Peer>>) -> Result<Member, Refusal> {
        let member = peer.and_then(|Extension(peer)| peer.member);
        let refusal = (StatusCode::FORBIDDEN, "only members of this site are served\n");
        member.filter(|member| (self.admits)(member)).ok_or(refusal)
    }
}

type Refusal = (StatusCode, &'static str);

impl From<Busy> for Refusal {
    fn from(_: Busy) -> Self {
        (StatusCode::TOO_MANY_REQUESTS, "busy sending to others; ask again\n")
    }
}

/// The routes of a holder of segments, who sends at this pace; whoever `admits` refuses gets 403.
pub fn routes<S: SegmentSource>(source: S, admits: Admission, pace: Pace) -> Router {
    Router::new()
        .route("/peer/v1/turn", get(turn::<S>))
        .route("/peer/v1/turn/{number}", delete(pass::<S>))
        .route("/peer/v1/segment/{id}", get(segment::<S>))
        .with_state(Service { source, admits, turns: Turns::new(pace) })
}

async fn turn<S: SegmentSource>(
    State(service): State<Service<S>>,
    peer: Option<Extension<Peer>>,
) -> Result<String, Refusal> {
    let member = service.member(peer)?;
    Ok(service.turns.grant(member).await?.to_string())
}

async fn pass<S: SegmentSource>(
    State(service): State<Service<S>>,
    peer: Option<Extension<Peer>>,
    Path(number): Path<u64>,
) -> Result<StatusCode, Refusal> {
    let member = service.member(peer)?;
    drop(service.turns.take(number, member));
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Asked {
    turn: Option<u64>,
}

async fn segment<S: SegmentSource>(
    State(service): State<Service<S>>,
    peer: Option<Extension<Peer>>,
    Path(id): Path<String>,
    Query(Asked { turn }): Query<Asked>,
) -> Result<Response, Refusal> {
    let member = service.member(peer)?;
    let id =
        id.parse().map_err(|_| (StatusCode::BAD_REQUEST, "a segment id is 64 hex digits\n"))?;
    let slot = match (member, turn.and_then(|turn| service.turns.take(turn, member))) {
        (_, Some(slot)) => Some(slot),
        (Member::Target(_), None) => Some(service.turns.wait(member).await?),
        (Member::Agent(_) | Member::Server | Member::Volume(_), None) => None,
    };
    match service.source.segment(id, member).await {
        Ok(Found::Here(bytes)) => {
            let kind = HeaderValue::from_static("application/octet-stream");
            let length = HeaderValue::from(bytes.len());
            let body = service.turns.body(bytes, slot);
            Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, length)], body)
                .into_response())
        }
        Ok(Found::NotHere) => Err((StatusCode::NOT_FOUND, "this segment is not here\n")),
        // Not for as long as a turn lasts: whoever waited for it would wait for its owner.
        Ok(Found::NotNow) => Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "nothing is served for the time being: ask others\n",
        )),
        Ok(Found::Elsewhere) => {
            Err((StatusCode::CONFLICT, "another target gets this segment just now; ask it\n"))
        }
        Err(error) => {
            tracing::error!(segment = %id, error = format!("{error:#}"), "serve a segment");
            Err((StatusCode::INTERNAL_SERVER_ERROR, "this segment cannot be read\n"))
        }
    }
}
