//! What happened in an install, in words.

use axum::{Json, extract::State};
use cairn_core::id::InstallId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    deployment::unknown_install,
    error::{ApiError, Problem},
    extract::{Place, id},
};
use crate::app::App;

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    pub at: String,
    /// For people.
    #[schema(example = "reads back what was written")]
    pub text: String,
}

/// Show what happened in an install, in order; at most 200 lines
#[utoipa::path(get, path = "/api/v1/installs/{install}/log", tag = "deployments", params(("install" = String, Path)),
    responses((status = 200, body = Vec<LogLine>), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(install): Place<String>,
) -> Result<Json<Vec<LogLine>>, ApiError> {
    let install: InstallId = id("install", &install)?;
    app.db.install(install).await?.ok_or_else(unknown_install)?;
    let lines = app.db.install_log(install).await?.into_iter();
    Ok(Json(lines.map(|line| LogLine { at: line.at.to_text(), text: line.text }).collect()))
}
