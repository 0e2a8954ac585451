//! What a client gives to whoever acts for the server: the sealed keys of the site, and the directory; and a newer
//! directory, which it takes from any member, since the site signed it.
//!
//! | path on the peer service | who may call | answer |
//! |---|---|---|
//! | `GET /peer/v1/site` | anybody | [`SiteLine`]: of use only with the recovery key |
//! | `GET /peer/v1/directory?newer=N` | members | the signed directory, binary; 204 when its number is not above N; 404 before the first |
//! | `POST /peer/v1/directory` | members | a signed directory → 204; it counts when it is newer |

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use cairn_array::{peer::Admission, tls::Peer, wire::SiteLine};
use cairn_core::{directory::Directory, id::AgentId, sign::VerifyingKey};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::{roster::Members, sync::MAX_DIRECTORY_BYTES};
use crate::home::Membership;

/// Directories that wait to be looked at.
pub(super) const OFFERS: usize = 4;

#[derive(Clone)]
pub(super) struct Mirror {
    me: AgentId,
    members: watch::Receiver<Arc<Members>>,
    signing_key: VerifyingKey,
    admits: Admission,
    /// To whoever owns the directory.
    offers: mpsc::Sender<Bytes>,
}

type Refusal = (StatusCode, &'static str);

impl Mirror {
    pub(super) fn new(
        membership: &Membership,
        members: watch::Receiver<Arc<Members>>,
        admits: Admission,
        offers: mpsc::Sender<Bytes>,
    ) -> Self {
        let (me, signing_key) = (membership.agent, membership.signing_key);
        Self { me, members, signing_key, admits, offers }
    }

    pub(super) fn routes(self) -> Router {
        Router::new()
            .route("/peer/v1/site", get(site))
            .route("/peer/v1/directory", get(directory).post(offer))
            .layer(DefaultBodyLimit::max(MAX_DIRECTORY_BYTES))
            .with_state(self)
    }

    fn require_member(&self, peer: Peer) -> Result<(), Refusal> {
        let member = peer.member.filter(|member| (self.admits)(member));
        let refusal = (StatusCode::FORBIDDEN, "only members of this site are served\n");
        member.map(drop).ok_or(refusal)
    }

    /// The directory that is published now.
    fn members(&self) -> Result<Arc<Members>, Refusal> {
        let members = Arc::clone(&self.members.borrow());
        if members.signed.is_empty() { Err(NONE_YET) } else { Ok(members) }
    }
}

const NONE_YET: Refusal = (StatusCode::NOT_FOUND, "there is no directory here yet\n");

async fn site(State(mirror): State<Mirror>) -> Result<Json<SiteLine>, Refusal> {
    let authority = STANDARD.encode(&mirror.members()?.authority);
    Ok(Json(SiteLine { agent: mirror.me, authority }))
}

#[derive(Deserialize)]
struct Asked {
    /// What the asker has; nothing: whatever there is.
    newer: Option<u64>,
}

async fn directory(
    State(mirror): State<Mirror>,
    Extension(peer): Extension<Peer>,
    Query(Asked { newer }): Query<Asked>,
) -> Result<Response, Refusal> {
    mirror.require_member(peer)?;
    let members = mirror.members()?;
    if newer.is_some_and(|known| members.number.0 <= known) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(members.signed.clone().into_response())
}

async fn offer(
    State(mirror): State<Mirror>,
    Extension(peer): Extension<Peer>,
    signed: Bytes,
) -> Result<StatusCode, Refusal> {
    mirror.require_member(peer)?;
    // Told apart from what its owner would refuse: whoever offers it hears why.
    Directory::open(&mirror.signing_key, &signed)
        .map_err(|_| (StatusCode::BAD_REQUEST, "this site did not sign that directory\n"))?;
    mirror.offers.try_send(signed).map_err(|_| {
        (StatusCode::TOO_MANY_REQUESTS, "other directories are looked at; offer again\n")
    })?;
    Ok(StatusCode::NO_CONTENT)
}
