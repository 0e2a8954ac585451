//! The static files. Their addresses name their content, so a browser asks for each once.

use axum::{
    extract::{Path, RawQuery},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use cairn_web::assets;

use crate::api::error::ApiError;

const FOR_EVER: &str = "public, max-age=31536000, immutable";

pub(super) async fn serve(
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::not_found("unknown_file", "there is no such file");
    let asset = assets::get(&path).ok_or_else(unknown)?;
    let etag = HeaderValue::from_str(&asset.etag)
        .map_err(|error| ApiError::from(anyhow::Error::from(error)))?;
    // Only the address that names this very content stays true for ever.
    let exact = query.as_deref() == Some(&format!("v={}", asset.etag.trim_matches('"')));
    let keep = HeaderValue::from_static(if exact { FOR_EVER } else { "no-cache" });
    let about = [(header::ETAG, etag.clone()), (header::CACHE_CONTROL, keep)];
    if headers.get(header::IF_NONE_MATCH) == Some(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, about).into_response());
    }
    Ok((about, [(header::CONTENT_TYPE, asset.content_type)], asset.bytes).into_response())
}
