//! Jobs, for looking at.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use crate::{
    app::App,
    db::job::{JobProgress, JobRow, JobState, Kind},
};

/// A job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    pub id: i64,
    /// `scatter`, `bundle`, `scrub`, `rebalance` or `remove-version`
    pub kind: String,
    /// The image, volume or version it is about.
    pub subject: String,
    pub state: JobState,
    /// Times it was begun.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub error: Option<String>,
    pub progress: Option<JobProgress>,
    /// Not before this.
    pub due: String,
    pub created: String,
    pub updated: String,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        let subject = match row.kind {
            Kind::Scatter { set } => set.to_string(),
            Kind::Bundle => "this site".to_owned(),
            Kind::Scrub | Kind::Rebalance => "the store".to_owned(),
            Kind::RemoveVersion { version } => version.to_string(),
        };
        Self {
            id: row.id,
            kind: row.kind.word().to_owned(),
            subject,
            state: row.state,
            attempts: row.attempts,
            error: row.error,
            progress: row.progress,
            due: row.due.to_text(),
            created: row.created.to_text(),
            updated: row.updated.to_text(),
        }
    }
}

/// List jobs, newest first
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", responses((status = 200, body = Vec<Job>)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<Job>>, ApiError> {
    Ok(Json(app.db.jobs(200).await?.into_iter().map(Job::from).collect()))
}
