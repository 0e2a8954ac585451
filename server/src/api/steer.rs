//! Deployments under way: paused, resumed, slowed down.

use axum::{Json, extract::State};
use cairn_array::pace::Rate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    deployment::{Deployment, one, unknown},
    error::{ApiError, Problem},
    extract::{Body, Place},
};
use crate::{app::App, events::Event};

/// How fast the machines of a deployment are installed at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes a second that each machine receives at most, at least 125,000; null: as the site's limits say.
    #[schema(example = 6_250_000)]
    pub rate_limit: Option<u64>,
}

/// A rate that somebody asked for.
pub(super) fn rate(bytes: Option<u64>) -> Result<Option<Rate>, ApiError> {
    let rate = bytes.map(Rate::from_bytes).transpose();
    rate.map_err(|error| ApiError::bad_request("bad_rate", error.to_string()))
}

/// Pause a deployment: machines that did not begin wait, those that write go on
#[utoipa::path(post, path = "/api/v1/deployments/{deployment}/pause", tag = "deployments",
    params(("deployment" = i64, Path)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub(crate) async fn pause(
    State(app): State<App>,
    Place(deployment): Place<i64>,
) -> Result<Json<Deployment>, ApiError> {
    set_paused(&app, deployment, true).await
}

/// Let a deployment that was paused go on
#[utoipa::path(post, path = "/api/v1/deployments/{deployment}/resume", tag = "deployments",
    params(("deployment" = i64, Path)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub(crate) async fn resume(
    State(app): State<App>,
    Place(deployment): Place<i64>,
) -> Result<Json<Deployment>, ApiError> {
    set_paused(&app, deployment, false).await
}

/// Limit how fast each machine of a deployment is installed; machines at work follow within seconds
#[utoipa::path(put, path = "/api/v1/deployments/{deployment}/rate-limit", tag = "deployments",
    params(("deployment" = i64, Path)), request_body = RateLimit,
    responses((status = 200, body = Deployment), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn limit(
    State(app): State<App>,
    Place(deployment): Place<i64>,
    Body(limit): Body<RateLimit>,
) -> Result<Json<Deployment>, ApiError> {
    let rate = rate(limit.rate_limit)?;
    app.db.deployment(deployment).await?.ok_or_else(unknown)?;
    app.db.limit_deployment(deployment, rate).await?;
    app.events.emit(Event::DeploymentChanged { id: deployment }).await;
    Ok(Json(one(&app, deployment).await?))
}

async fn set_paused(app: &App, id: i64, paused: bool) -> Result<Json<Deployment>, ApiError> {
    app.db.deployment(id).await?.ok_or_else(unknown)?;
    app.db.pause_deployment(id, paused).await?;
    app.targets_changed.notify();
    app.events.emit(Event::DeploymentChanged { id }).await;
    Ok(Json(one(app, id).await?))
}
