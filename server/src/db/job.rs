//! The queue of work. A row is claimed by making it `running`; at start, what was running is queued again.

use cairn_core::id::{StripeSetId, VersionId};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, Flag, Result, json, words};
use crate::moment::Moment;

words! {
    /// Where a job stands.
    JobState {
        Queued = "queued",
        Running = "running",
        Done = "done",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

/// Work that is done once or more until it succeeds: every kind is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// Bring stripes, parity and assignments of an image or a volume to what the planner wants now.
    Scatter { set: StripeSetId },
    /// Have clients hold what the site needs without this server.
    Bundle,
    /// Read and check what the store has.
    Scrub,
    /// Move segments until the store's devices have about equal room.
    Rebalance,
    /// Take a version apart: its own segments leave the fleet and the store.
    RemoveVersion { version: VersionId },
}

impl Kind {
    /// The word it is listed as.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Scatter { .. } => "scatter",
            Self::Bundle => "bundle",
            Self::Scrub => "scrub",
            Self::Rebalance => "rebalance",
            Self::RemoveVersion { .. } => "remove-version",
        }
    }

    fn unique_key(self) -> String {
        match self {
            Self::Scatter { set } => format!("scatter/{set}"),
            Self::Bundle => "bundle".to_owned(),
            Self::Scrub => "scrub".to_owned(),
            Self::Rebalance => "rebalance".to_owned(),
            Self::RemoveVersion { version } => format!("remove-version/{version}"),
        }
    }
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobProgress {
    /// Units that are done, of `total`.
    pub done: u64,
    pub total: u64,
    /// What is counted, e.g. `segments`.
    pub unit: String,
    /// At the pace so far; none before that is known.
    #[serde(default)]
    pub seconds_left: Option<u64>,
}

/// A job as it is kept.
#[derive(Clone, Debug)]
pub struct JobRow {
    pub id: i64,
    pub kind: Kind,
    pub state: JobState,
    /// Times it was begun.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub error: Option<String>,
    pub progress: Option<JobProgress>,
    pub due: Moment,
    pub created: Moment,
    pub updated: Moment,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub(crate) enum Ended<'a> {
    Done,
    /// Again, not before this.
    Retry {
        error: &'a str,
        due: Moment,
    },
    Failed {
        error: &'a str,
    },
}

fn job(row: &AnyRow) -> Result<JobRow> {
    let progress = match row.maybe_text("progress")? {
        Some(_) => Some(row.json("progress")?),
        None => None,
    };
    Ok(JobRow {
        id: sqlx::Row::try_get(row, "id")?,
        kind: row.json("payload")?,
        state: row.word("state")?,
        attempts: row.small("attempts")?,
        error: row.maybe_text("error")?,
        progress,
        due: row.moment("due")?,
        created: row.moment("created")?,
        updated: row.moment("updated")?,
    })
}

impl Db {
    /// Queues work that is due at `due`, unless the same work waits already; then it is brought forward.
    pub(crate) async fn queue_job(&self, kind: Kind, due: Moment, now: Moment) -> Result<()> {
        self.run(
            sqlx::query(
                "INSERT INTO job (kind, payload, unique_key, state, due, created, updated)
             VALUES ($1, $2, $3, 'queued', $4, $5, $5)
             ON CONFLICT (unique_key) WHERE state = 'queued' DO UPDATE
             SET due = CASE WHEN excluded.due < job.due THEN excluded.due ELSE job.due END",
            )
            .bind(kind.word())
            .bind(json("payload", &kind)?)
            .bind(kind.unique_key())
            .bind(due.0)
            .bind(now.0),
        )
        .await?;
        Ok(())
    }

    /// Claims the job that has been due longest and whose like is not running.
    pub(crate) async fn claim_job(&self, now: Moment) -> Result<Option<JobRow>> {
        let mut transaction = self.write().await?;
        let row = sqlx::query(
            "UPDATE job SET state = 'running', attempts = attempts + 1, updated = $1 WHERE id = (
               SELECT id FROM job WHERE state = 'queued' AND due <= $1
                 AND NOT EXISTS (SELECT 1 FROM job AS other
                   WHERE other.unique_key = job.unique_key AND other.state = 'running')
               ORDER BY due, id LIMIT 1)
             RETURNING *",
        )
        .bind(now.0)
        .fetch_optional(&mut *transaction)
        .await?;
        transaction.commit().await?;
        row.as_ref().map(job).transpose()
    }

    /// When the next queued job is due.
    pub(crate) async fn next_job_due(&self) -> Result<Option<Moment>> {
        let due: Option<i64> =
            sqlx::query_scalar("SELECT min(due) FROM job WHERE state = 'queued'")
                .fetch_one(&self.pool)
                .await?;
        Ok(due.map(Moment))
    }

    /// Keeps how an attempt ended. A retry gives way to the same work when that was queued meanwhile.
    pub(crate) async fn end_job(&self, id: i64, ended: Ended<'_>, now: Moment) -> Result<()> {
        let (state, error, due) = match ended {
            Ended::Done => (JobState::Done, None, now),
            Ended::Retry { error, due } => (JobState::Queued, Some(error), due),
            Ended::Failed { error } => (JobState::Failed, Some(error), now),
        };
        let mut transaction = self.write().await?;
        let Flag(superseded) = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM job AS other JOIN job ON job.id = $1
               WHERE other.unique_key = job.unique_key AND other.state = 'queued')",
        )
        .bind(id)
        .fetch_one(&mut *transaction)
        .await?;
        let state =
            if superseded && state == JobState::Queued { JobState::Cancelled } else { state };
        sqlx::query("UPDATE job SET state = $2, error = $3, due = $4, updated = $5 WHERE id = $1")
            .bind(id)
            .bind(state.word())
            .bind(error)
            .bind(due.0)
            .bind(now.0)
            .execute(&mut *transaction)
            .await?;
        // Finished jobs are history; a thousand of them tell enough.
        sqlx::query(
            "DELETE FROM job WHERE state IN ('done', 'failed', 'cancelled') AND id <= (SELECT id FROM job
               WHERE state IN ('done', 'failed', 'cancelled') ORDER BY id DESC LIMIT 1 OFFSET 1000)",
        )
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Keeps how far a job is.
    pub(crate) async fn note_job_progress(
        &self,
        id: i64,
        progress: &JobProgress,
        now: Moment,
    ) -> Result<()> {
        self.run(
            sqlx::query("UPDATE job SET progress = $2, updated = $3 WHERE id = $1")
                .bind(id)
                .bind(json("progress", progress)?)
                .bind(now.0),
        )
        .await?;
        Ok(())
    }

    /// Queues again what was running when the server stopped. Returns how many.
    pub(crate) async fn resume_jobs(&self, now: Moment) -> Result<u64> {
        let mut transaction = self.write().await?;
        // The same work may have been queued a second time while it ran: one of the two is enough.
        sqlx::query(
            "UPDATE job SET state = 'cancelled', updated = $1 WHERE state = 'running'
             AND EXISTS (SELECT 1 FROM job AS other
               WHERE other.unique_key = job.unique_key AND other.state = 'queued')",
        )
        .bind(now.0)
        .execute(&mut *transaction)
        .await?;
        let done = sqlx::query(
            "UPDATE job SET state = 'queued', due = $1, updated = $1 WHERE state = 'running'",
        )
        .bind(now.0)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(done.rows_affected())
    }

    /// The newest jobs, newest first.
    pub(crate) async fn jobs(&self, limit: u32) -> Result<Vec<JobRow>> {
        sqlx::query("SELECT * FROM job ORDER BY id DESC LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(job)
            .collect()
    }
}
