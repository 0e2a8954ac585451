//! The documents that a ticket opens: manifest and stripe maps of its version.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cairn_array::wire::StripeMaps;

use super::session::Ticketed;
use crate::{api::error::ApiError, app::App, register};

pub(super) async fn manifest(
    State(app): State<App>,
    Ticketed(install): Ticketed,
) -> Result<Response, ApiError> {
    let manifest = register::manifest(&app, install.version).await?;
    let manifest = manifest.ok_or_else(|| {
        anyhow::anyhow!("the manifest of {} is not in the store", install.version)
    })?;
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind)], manifest).into_response())
}

pub(super) async fn stripe_maps(
    State(app): State<App>,
    Ticketed(install): Ticketed,
) -> Result<Json<StripeMaps>, ApiError> {
    let maps = app.db.stripe_maps_of_version(install.version).await?;
    Ok(Json(StripeMaps { maps: maps.iter().map(|map| STANDARD.encode(map)).collect() }))
}
