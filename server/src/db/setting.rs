//! Values that the site has one of.

use super::{Columns as _, Db, Result, target::LIVE};
use crate::moment::Moment;

impl Db {
    /// The value kept under `key`.
    pub(crate) async fn setting(&self, key: &'static str) -> Result<Option<Vec<u8>>> {
        Ok(sqlx::query_scalar("SELECT value FROM setting WHERE key = $1")
            .bind(key)
            .fetch_optional(&self.pool)
            .await?)
    }

    /// Keeps `value` under `key` in place of what was there.
    pub(crate) async fn keep_setting(&self, key: &'static str, value: &[u8]) -> Result<()> {
        self.run(
            sqlx::query(
                "INSERT INTO setting (key, value) VALUES ($1, $2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )
            .bind(key)
            .bind(value),
        )
        .await?;
        Ok(())
    }

    /// Counts the rows of a fleet in one look, for the status page.
    pub(crate) async fn counts(&self) -> Result<Counts> {
        let row = sqlx::query(
            "SELECT
               (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM segment WHERE class = 'data') AS stored,
               (SELECT count(*) FROM job WHERE state = 'queued') AS jobs_queued,
               (SELECT count(*) FROM job WHERE state = 'running') AS jobs_running,
               (SELECT count(*) FROM job WHERE state = 'failed') AS jobs_failed,
               (SELECT count(*) FROM install WHERE state IN ('ticketed', 'running')) AS installs_running,
               (SELECT count(*) FROM install WHERE state = 'scheduled') AS installs_scheduled",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Counts {
            stored: row.number("stored")?,
            jobs_queued: row.number("jobs_queued")?,
            jobs_running: row.number("jobs_running")?,
            jobs_failed: row.number("jobs_failed")?,
            installs_running: row.number("installs_running")?,
            installs_scheduled: row.number("installs_scheduled")?,
        })
    }

    /// Counts what waits for somebody or is under way, for the navigation that every page has.
    pub(crate) async fn waiting(&self, now: Moment) -> Result<Waiting> {
        let row = sqlx::query(
            "SELECT
               (SELECT count(*) FROM agent WHERE state = 'pending') AS agents,
               (SELECT count(*) FROM install WHERE state IN ('ticketed', 'running')) AS installs,
               (SELECT count(*) FROM target JOIN machine ON machine.id = target.machine
                WHERE target.seen >= $1 AND (target.state = 'waiting'
                  OR (target.state = 'approved' AND target.install IS NULL AND machine.volume IS NULL
                    AND NOT EXISTS (SELECT 1 FROM install WHERE install.machine = machine.id
                      AND install.state IN ('scheduled', 'ticketed', 'running'))))) AS machines",
        )
        .bind(now.minus(LIVE).0)
        .fetch_one(&self.pool)
        .await?;
        Ok(Waiting {
            agents: row.number("agents")?,
            machines: row.number("machines")?,
            installs: row.number("installs")?,
        })
    }
}

/// What [`Db::waiting`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// To be approved.
    pub(crate) agents: u64,
    /// Runs of the installer that somebody has to say something to.
    pub(crate) machines: u64,
    /// Under way.
    pub(crate) installs: u64,
}

/// What [`Db::counts`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Sealed bytes of all data segments.
    pub(crate) stored: u64,
    pub(crate) jobs_queued: u64,
    pub(crate) jobs_running: u64,
    pub(crate) jobs_failed: u64,
    pub(crate) installs_running: u64,
    pub(crate) installs_scheduled: u64,
}
