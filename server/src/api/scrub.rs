//! Scrubbing the store.

use axum::{Json, extract::State, http::StatusCode};

use super::error::ApiError;
use crate::{
    app::App,
    jobs::Kind,
    scrub::{self, Scrubbed},
};

/// Show what the last scrub of the store found
#[utoipa::path(get, path = "/api/v1/scrub", tag = "jobs", responses((status = 200, body = Scrubbed)))]
pub(crate) async fn show(State(app): State<App>) -> Result<Json<Scrubbed>, ApiError> {
    Ok(Json(scrub::last(&app).await?.unwrap_or_default()))
}

/// Read and check every segment of the store now; a job tells how far it is
#[utoipa::path(post, path = "/api/v1/scrub", tag = "jobs", responses((status = 202, body = Scrubbed)))]
pub(crate) async fn begin(
    State(app): State<App>,
) -> Result<(StatusCode, Json<Scrubbed>), ApiError> {
    let last = scrub::last(&app).await?.unwrap_or_default();
    app.queue(Kind::Scrub).await?;
    Ok((StatusCode::ACCEPTED, Json(last)))
}
