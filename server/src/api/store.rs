//! The store's devices, for looking at.

use anyhow::Context as _;
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, Problem};
use crate::app::App;

/// A device of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct StoreDevice {
    /// The folder, or the URL.
    pub(crate) device: String,
    /// Bytes that it can still take; none of a bucket.
    pub(crate) free: Option<u64>,
}

/// List the devices of the store
#[utoipa::path(get, path = "/api/v1/store", tag = "jobs",
    responses((status = 200, body = Vec<StoreDevice>), (status = 503, description = "One is missing", body = Problem)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<StoreDevice>>, ApiError> {
    let spaces = app.store.space().await.context("look at the store")?.into_iter();
    let devices = spaces
        .map(|space| StoreDevice { device: space.device, free: space.free.map(|free| free.0) });
    Ok(Json(devices.collect()))
}
