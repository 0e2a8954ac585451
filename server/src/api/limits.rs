//! How fast the machines of the site move segments at most.

use axum::{Json, extract::State};
use cairn_array::pace::{BadRate, Rate, Rates};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::Body,
};
use crate::app::App;

/// Limits of every machine of the site, this server among them. A machine's own limits count where they are lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes a second that a machine sends, at least 125,000; null: as fast as it can.
    #[schema(example = 6_250_000)]
    pub upload: Option<u64>,
    /// Bytes a second that a machine receives, at least 125,000; null: as fast as it can.
    pub download: Option<u64>,
}

impl From<Rates> for Limits {
    fn from(rates: Rates) -> Self {
        Self { upload: rates.upload.map(Rate::bytes), download: rates.download.map(Rate::bytes) }
    }
}

impl TryFrom<Limits> for Rates {
    type Error = BadRate;

    fn try_from(limits: Limits) -> Result<Self, BadRate> {
        let rate = |bytes: Option<u64>| bytes.map(Rate::from_bytes).transpose();
        Ok(Self { upload: rate(limits.upload)?, download: rate(limits.download)? })
    }
}

/// Show the rate limits
#[utoipa::path(get, path = "/api/v1/limits", tag = "limits", responses((status = 200, body = Limits)))]
pub(crate) async fn show(State(app): State<App>) -> Json<Limits> {
    Json(app.limits.rates().into())
}

/// Set the rate limits; running machines follow within seconds
#[utoipa::path(
    put, path = "/api/v1/limits", tag = "limits", request_body = Limits,
    responses((status = 200, body = Limits), (status = 400, body = Problem))
)]
pub(crate) async fn set(
    State(app): State<App>,
    Body(limits): Body<Limits>,
) -> Result<Json<Limits>, ApiError> {
    let rates = Rates::try_from(limits)
        .map_err(|error| ApiError::bad_request("bad_rate", error.to_string()))?;
    app.limits.set(&app.db, rates).await?;
    app.agents_changed.notify();
    Ok(Json(rates.into()))
}
