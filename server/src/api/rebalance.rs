//! Evening out the devices of the store.

use anyhow::Context as _;
use axum::{Json, extract::State, http::StatusCode};

use super::{error::ApiError, job::Job};
use crate::{app::App, db::job::JobState, jobs::Kind};

/// Move segments between devices of the store now until they have about equal room; the job tells how far that is
#[utoipa::path(post, path = "/api/v1/rebalance", tag = "jobs", responses((status = 202, body = Job)))]
pub(crate) async fn begin(State(app): State<App>) -> Result<(StatusCode, Json<Job>), ApiError> {
    app.queue(Kind::Rebalance).await?;
    let jobs = app.db.jobs(200).await?;
    let is_it = |kind, state| kind == Kind::Rebalance && state != JobState::Cancelled;
    let job = jobs.into_iter().find(|job| is_it(job.kind, job.state));
    Ok((StatusCode::ACCEPTED, Json(job.context("look for the job")?.into())))
}
