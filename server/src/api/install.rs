//! What a machine gets before it is a client: the agent's package.

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio_util::io::ReaderStream;

use super::error::{ApiError, Problem};
use crate::app::App;

/// Get the agent's Debian package; the printed join command has its SHA-256
#[utoipa::path(get, path = "/install/agent.deb", tag = "clients",
    responses((status = 200, description = "The package; its `ETag` is its SHA-256", content_type = "application/vnd.debian.binary-package"),
    (status = 404, description = "This server has none", body = Problem)))]
pub(crate) async fn agent_package(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let none = || {
        ApiError::not_found(
            "no_agent_package",
            "this server has no package of the agent: install the package cairn-boot on it, or name a file with --agent-package",
        )
    };
    let package = app.agent_package.open().await?.ok_or_else(none)?;
    let etag = HeaderValue::from_str(&format!("\"{}\"", package.sha256))
        .map_err(|error| ApiError::from(anyhow::Error::from(error)))?;
    let about = [
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    if headers.get(header::IF_NONE_MATCH) == Some(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, about).into_response());
    }
    let kind = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.debian.binary-package")),
        (header::CONTENT_LENGTH, HeaderValue::from(package.bytes)),
    ];
    let body = Body::from_stream(ReaderStream::new(tokio::fs::File::from_std(package.file)));
    Ok((about, kind, body).into_response())
}
