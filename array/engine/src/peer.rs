//! Segments between members: one route, one client. Server and agents serve the same path.
//!
//! Invariants: a segment is checked against its id before anybody gets it; nothing is read beyond its declared
//! length; a peer that sends nothing for `STALL` is given up.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::{Bytes, BytesMut};
pub use cairn_core::fetch::Source;
use cairn_core::id::SegmentId;

use crate::tls::{self, Member, Peer};

/// How long a peer may be silent in the middle of a segment.
const STALL: Duration = Duration::from_secs(8);

/// Where segments are: a DSF or a store.
pub trait SegmentSource: Clone + Send + Sync + 'static {
    /// The sealed bytes; none when it does not hold the segment.
    fn segment(&self, id: SegmentId) -> impl Future<Output = anyhow::Result<Option<Bytes>>> + Send;
}

/// Decides whether a member is served.
pub type Admission = Arc<dyn Fn(&Member) -> bool + Send + Sync>;

/// `GET /peer/v1/segment/{id}`: 403 to whoever `admits` refuses, 404 for a segment that is not here.
pub fn routes<S: SegmentSource>(source: S, admits: Admission) -> Router {
    Router::new().route("/peer/v1/segment/{id}", get(segment::<S>)).with_state((source, admits))
}

async fn segment<S: SegmentSource>(
    State((source, admits)): State<(S, Admission)>,
    peer: Option<Extension<Peer>>,
    Path(id): Path<String>,
) -> Response {
    let member = peer.and_then(|Extension(peer)| peer.member);
    if !member.is_some_and(|member| admits(&member)) {
        return (StatusCode::FORBIDDEN, "only members of this site are served\n").into_response();
    }
    let Ok(id) = id.parse() else {
        return (StatusCode::BAD_REQUEST, "a segment id is 64 hex digits\n").into_response();
    };
    match source.segment(id).await {
        Ok(Some(bytes)) => {
            let kind = HeaderValue::from_static("application/octet-stream");
            ([(header::CONTENT_TYPE, kind)], bytes).into_response()
        }
        Ok(None) => (StatusCode::NOT_FOUND, "this segment is not here\n").into_response(),
        Err(error) => {
            tracing::error!(segment = %id, error = format!("{error:#}"), "serve a segment");
            (StatusCode::INTERNAL_SERVER_ERROR, "this segment cannot be read\n").into_response()
        }
    }
}

/// The member behind a source.
const fn member(source: Source) -> Member {
    match source {
        Source::Peer(agent) => Member::Agent(agent),
        Source::Server => Member::Server,
    }
}

/// Why a segment did not come from a source.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("sent nothing for {} seconds", STALL.as_secs())]
    Stalled,
    #[error("does not hold the segment")]
    Missing,
    #[error("refuses with status {0}")]
    Refused(StatusCode),
    #[error("broke off")]
    Broken(#[source] reqwest::Error),
    #[error("sent other bytes than the segment's id names")]
    Bad,
}

/// Fetches segments from members.
#[derive(Clone, Debug)]
pub struct PeerClient {
    client: reqwest::Client,
}

impl PeerClient {
    /// Asks through `client`, which knows the site's CA, the own papers and the members' addresses.
    #[must_use]
    pub const fn new(client: reqwest::Client) -> Self {
        Self { client }
    }

    /// The segment's bytes, checked against its id and length.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(
        &self,
        from: Source,
        id: SegmentId,
        bytes: u32,
    ) -> Result<Bytes, FetchError> {
        let url = tls::url(&member(from), &format!("/peer/v1/segment/{id}"));
        let answer = within(self.client.get(url).send()).await?.map_err(FetchError::Unreachable)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(FetchError::Missing),
            status => return Err(FetchError::Refused(status)),
        }
        let length = bytes as usize;
        if answer.content_length().is_some_and(|told| told != u64::from(bytes)) {
            return Err(FetchError::Bad);
        }
        let body = collect(answer, length).await?;
        // Hashing 4 MiB takes milliseconds: off the threads that move other bodies.
        let checked =
            tokio::task::spawn_blocking(move || (SegmentId::of(&body) == id).then_some(body)).await;
        checked.ok().flatten().ok_or(FetchError::Bad)
    }
}

async fn collect(mut answer: reqwest::Response, length: usize) -> Result<Bytes, FetchError> {
    let mut body = BytesMut::with_capacity(length);
    while let Some(chunk) = within(answer.chunk()).await?.map_err(FetchError::Broken)? {
        if body.len() + chunk.len() > length {
            return Err(FetchError::Bad);
        }
        body.extend_from_slice(&chunk);
    }
    if body.len() == length { Ok(body.freeze()) } else { Err(FetchError::Bad) }
}

async fn within<T>(step: impl Future<Output = T>) -> Result<T, FetchError> {
    tokio::time::timeout(STALL, step).await.map_err(|_| FetchError::Stalled)
}
