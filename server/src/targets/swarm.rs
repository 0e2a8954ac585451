//! `POST /target/v1/swarm`: a target says where it serves, and hears who else installs what it installs.

use std::{net::SocketAddr, time::Instant};

use axum::{Extension, Json, extract::State};
use cairn_array::{
    tls::Peer,
    wire::{SwarmReply, SwarmRequest},
};

use super::session::Ticketed;
use crate::{
    api::{error::ApiError, extract::Body},
    app::App,
};

pub(super) async fn swarm(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Ticketed(install): Ticketed,
    Body(request): Body<SwarmRequest>,
) -> Result<Json<SwarmReply>, ApiError> {
    let addr = SocketAddr::new(peer.addr.ip(), request.port);
    app.swarms.join(install.id, install.version, addr, &request.unreachable, Instant::now());
    let hold = app.swarms.wait(install.id, request.generation);
    match app.stop.run_until_cancelled(hold).await {
        Some(reply) => Ok(Json(reply)),
        None => Ok(Json(app.swarms.now(install.id))),
    }
}
