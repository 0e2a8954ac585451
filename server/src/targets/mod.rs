//! What targets ask (`/target/v1/*`): from a blank machine's hello to the end of its install.
//!
//! Invariants: what a machine says selects it and never authorises; a target gets the manifest, key and stripe maps of the
//! one version that it was given, and nothing of any other.

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};

pub(crate) mod approval;
mod document;
mod hello;
pub(crate) mod log;
mod progress;
pub(crate) mod reports;
mod session;
mod swarm;
pub(crate) mod ticket;

use crate::app::App;

/// The largest body that a target sends; a hello with every disk is a few KiB.
const MAX_BODY: usize = 256 << 10;

/// The routes for targets.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/target/v1/hello", post(hello::hello))
        .route("/target/v1/ticket", get(ticket::ticket))
        .route("/target/v1/manifest", get(document::manifest))
        .route("/target/v1/stripe-maps", get(document::stripe_maps))
        .route("/target/v1/progress", post(progress::progress))
        .route("/target/v1/complaint", post(progress::complaint))
        .route("/target/v1/swarm", post(swarm::swarm))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}
