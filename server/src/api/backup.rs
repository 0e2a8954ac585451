//! A backup of the site.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};

use super::error::{ApiError, Problem};
use crate::{app::App, backup};

/// Make a backup of the site, now: an age file that the recovery key alone opens
#[utoipa::path(get, path = "/api/v1/backup", tag = "site",
    responses((status = 200, description = "What `cairn-server restore` takes", content_type = "application/octet-stream"),
    (status = 503, description = "The store does not answer", body = Problem)))]
pub(crate) async fn make(State(app): State<App>) -> Result<Response, ApiError> {
    let body = backup::make::make(&app).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"cairn.backup\""),
    ];
    Ok((headers, body).into_response())
}
