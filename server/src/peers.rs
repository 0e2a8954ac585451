//! The server as a peer: `GET /peer/v1/segment/{id}` from its store, for members, and for targets their own image only.

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use cairn_array::{
    peer,
    tls::{Member, Peer},
    wire::MemberState,
};
use cairn_core::id::{InstallId, SegmentId};

use crate::{
    agents::{agent_of, directory::require_target},
    api::error::ApiError,
    app::App,
    register::StoreSource,
};

/// The peer routes, behind [`admit`].
pub(crate) fn routes(app: &App) -> Router<App> {
    // Admission needs the database, so it is decided before the route, not by its closure.
    let members = Arc::new(|member: &Member| !matches!(member, Member::Server));
    peer::routes(StoreSource(app.clone()), members, app.limits.upload())
        .layer(middleware::from_fn_with_state(app.clone(), admit))
        .with_state(())
}

/// Lets approved agents in, and targets for the segments of the version that they install.
async fn admit(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let peer = peer.map(|Extension(peer)| peer);
    match peer.and_then(|peer| peer.member) {
        Some(Member::Target(install)) => {
            require_target(&app, install).await?;
            if let Some(id) = request.uri().path().strip_prefix("/peer/v1/segment/") {
                require_own(&app, install, id).await?;
            }
        }
        _ => {
            let agent = agent_of(&app, peer.as_ref()).await?;
            if agent.state != MemberState::Approved {
                return Err(ApiError::forbidden("agent_pending", "this agent is not approved yet"));
            }
        }
    }
    Ok(next.run(request).await)
}

/// Refuses segments that do not belong to the version which the install is of.
async fn require_own(app: &App, install: InstallId, id: &str) -> Result<(), ApiError> {
    let bad = || ApiError::bad_request("bad_id", "a segment id is 64 hex digits");
    let id: SegmentId = id.parse().map_err(|_| bad())?;
    let version = app.db.install(install).await?.map(|install| install.version);
    let own = match version {
        Some(version) => app.db.segment_serves_version(id, version).await?,
        None => false,
    };
    if own {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "not_your_segment",
        "this segment does not belong to the image of this install",
    ))
}
