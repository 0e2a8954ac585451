//! The audit log: who asked for which change.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::Params,
};
use crate::app::App;

const MOST: u32 = 1000;
const USUAL: u32 = 100;

/// A change that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub id: i64,
    pub at: String,
    /// `user NAME`, or `token ID`.
    pub actor: String,
    pub method: String,
    pub path: String,
    /// Of HTTP: from 200 to 399 when it was done.
    pub status: u32,
}

/// Which part of the log.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct AuditParams {
    /// Entries before this one.
    before: Option<i64>,
    /// At most so many: 100 if nothing is said, and never more than 1000.
    limit: Option<u32>,
}

/// List what was asked for, the newest first
#[utoipa::path(get, path = "/api/v1/audit", tag = "users", params(AuditParams),
    responses((status = 200, body = Vec<AuditEntry>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<AuditParams>,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    let limit = part.limit.unwrap_or(USUAL).clamp(1, MOST);
    let rows = app.db.audit_before(part.before, limit).await?.into_iter();
    let entry = |row: crate::db::audit::AuditRow| AuditEntry {
        id: row.id,
        at: row.at.to_text(),
        actor: row.actor,
        method: row.method,
        path: row.path,
        status: row.status,
    };
    Ok(Json(rows.map(entry).collect()))
}
