//! Jobs, for looking at.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::Params,
    part::{Listed, Part, Placed, newest_first},
};
use crate::{
    app::App,
    db::job::{JobProgress, JobRow, JobState, Kind},
};

/// Jobs that are listed when no part is asked for.
const NEWEST: u32 = 200;

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

impl Placed for Job {
    fn place(&self) -> String {
        newest_first(self.id)
    }
}

/// List jobs, newest first
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", params(Part),
    responses((status = 200, body = Vec<Job>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Job>, ApiError> {
    let most = if part.is_asked() { u32::MAX } else { NEWEST };
    part.of(app.db.jobs(most).await?.into_iter().map(Job::from).collect())
}
