//! Deployments and installs. Every change of an install's state goes through `crate::deployments::next`.

use std::collections::{HashMap, HashSet};

use cairn_array::{
    pace::Rate,
    wire::{AfterInstall, DiskSelector, InstallProgress},
};
use cairn_core::{
    id::{InstallId, MachineId, VersionId},
    units::ByteCount,
};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Result, Transaction, integer, json, violates, words};
use crate::{
    deployments::{InstallEvent, next},
    moment::Moment,
};

words! {
    /// Where an install stands.
    InstallState {
        /// Waits for its machine, or for the approval of its machine.
        Scheduled = "scheduled",
        /// The target has what it needs.
        Ticketed = "ticketed",
        Running = "running",
        Done = "done",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

/// What an administrator wants.
#[derive(Clone, Debug)]
pub(crate) struct DeploymentRow {
    pub(crate) id: i64,
    pub(crate) image: String,
    pub(crate) number: u32,
    pub(crate) disk: DiskSelector,
    pub(crate) after: AfterInstall,
    pub(crate) preapproved: bool,
    /// Its machines do not wait until other clients hold what theirs take with them.
    pub(crate) at_once: bool,
    /// Disks without a storage partition get one of so many bytes.
    pub(crate) storage: Option<ByteCount>,
    /// Its machines that did not begin wait.
    pub(crate) paused: bool,
    /// What each of its machines receives at most.
    pub(crate) rate_limit: Option<Rate>,
    pub(crate) created: Moment,
}

/// One machine's share.
#[derive(Clone, Debug)]
pub(crate) struct InstallRow {
    pub(crate) id: InstallId,
    pub(crate) deployment: i64,
    /// Its deployment is: it waits if it did not begin.
    pub(crate) paused: bool,
    pub(crate) machine: MachineId,
    pub(crate) version: VersionId,
    pub(crate) image: String,
    pub(crate) number: u32,
    pub(crate) disk: DiskSelector,
    pub(crate) after: AfterInstall,
    pub(crate) preapproved: bool,
    pub(crate) at_once: bool,
    pub(crate) storage: Option<ByteCount>,
    /// What its machine receives at most, as its deployment says.
    pub(crate) rate_limit: Option<Rate>,
    pub(crate) state: InstallState,
    pub(crate) progress: Option<InstallProgress>,
    pub(crate) error: Option<String>,
    pub(crate) created: Moment,
    pub(crate) started: Option<Moment>,
    pub(crate) ended: Option<Moment>,
    /// When its target last said anything; absent when it never began, or so long ago that the target is forgotten.
    pub(crate) heard: Option<Moment>,
}

/// A deployment to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewDeployment<'a> {
    pub(crate) version: VersionId,
    pub(crate) disk: &'a DiskSelector,
    pub(crate) after: AfterInstall,
    pub(crate) preapproved: bool,
    pub(crate) at_once: bool,
    pub(crate) storage: Option<ByteCount>,
    pub(crate) rate_limit: Option<Rate>,
    /// Not empty, nobody twice.
    pub(crate) installs: &'a [(InstallId, MachineId)],
}

/// Why a deployment is not made.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error("machine {machine} has an install that is not over")]
    Busy { machine: MachineId },
    #[error("the version is not ready any more")]
    Gone,
    #[error(transparent)]
    Db(#[from] DbError),
}

const INSTALLS: &str = "SELECT install.*, deployment.version, deployment.disk, deployment.after,
      deployment.preapproved, deployment.at_once, deployment.storage, deployment.paused, deployment.rate_limit, version.number, image.name AS image,
      (SELECT max(target.seen) FROM target WHERE target.install = install.id) AS heard
    FROM install JOIN deployment ON deployment.id = install.deployment
    JOIN version ON version.id = deployment.version JOIN image ON image.id = version.image";

fn rate(row: &AnyRow) -> Result<Option<Rate>> {
    let kept = row.maybe_size("rate_limit")?;
    let rate = kept.map(|bytes| Rate::from_bytes(bytes.0)).transpose();
    rate.map_err(|_| DbError::Unreadable { column: "rate_limit" })
}

fn install(row: &AnyRow) -> Result<InstallRow> {
    let progress = match row.maybe_text("progress")? {
        Some(_) => Some(row.json("progress")?),
        None => None,
    };
    Ok(InstallRow {
        id: InstallId(row.id("id")?),
        deployment: sqlx::Row::try_get(row, "deployment")?,
        paused: row.flag("paused")?,
        machine: MachineId(row.id("machine")?),
        version: VersionId(row.id("version")?),
        image: row.text("image")?,
        number: row.small("number")?,
        disk: row.json("disk")?,
        after: row.json("after")?,
        preapproved: row.flag("preapproved")?,
        at_once: row.flag("at_once")?,
        storage: row.maybe_size("storage")?,
        rate_limit: rate(row)?,
        state: row.word("state")?,
        progress,
        error: row.maybe_text("error")?,
        created: row.moment("created")?,
        started: row.maybe_moment("started")?,
        ended: row.maybe_moment("ended")?,
        heard: row.maybe_moment("heard")?,
    })
}

fn deployment(row: &AnyRow) -> Result<DeploymentRow> {
    Ok(DeploymentRow {
        id: sqlx::Row::try_get(row, "id")?,
        image: row.text("image")?,
        number: row.small("number")?,
        disk: row.json("disk")?,
        after: row.json("after")?,
        preapproved: row.flag("preapproved")?,
        at_once: row.flag("at_once")?,
        storage: row.maybe_size("storage")?,
        paused: row.flag("paused")?,
        rate_limit: rate(row)?,
        created: row.moment("created")?,
    })
}

async fn advance(
    transaction: &mut Transaction,
    id: InstallId,
    event: InstallEvent,
    now: Moment,
) -> Result<Option<InstallState>> {
    let row = sqlx::query("SELECT state FROM install WHERE id = $1")
        .bind(id.as_bytes().as_slice())
        .fetch_optional(&mut **transaction)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let Some(state) = next(row.word("state")?, event) else { return Ok(None) };
    let (started, ended) = match state {
        InstallState::Ticketed | InstallState::Running => (Some(now.0), None),
        InstallState::Done | InstallState::Failed | InstallState::Cancelled => (None, Some(now.0)),
        InstallState::Scheduled => (None, None),
    };
    sqlx::query(
        "UPDATE install SET state = $2, started = coalesce(started, $3), ended = $4 WHERE id = $1",
    )
    .bind(id.as_bytes().as_slice())
    .bind(state.word())
    .bind(started)
    .bind(ended)
    .execute(&mut **transaction)
    .await?;
    // From the first write on the disk is not what it was; at the end it is what was installed.
    let installed = match state {
        InstallState::Running => "UPDATE machine SET installed = NULL WHERE id = (SELECT machine FROM install WHERE id = $1)",
        InstallState::Done => {
            "UPDATE machine SET installed = (SELECT version FROM deployment JOIN install ON install.deployment = deployment.id
               WHERE install.id = $1) WHERE id = (SELECT machine FROM install WHERE id = $1)"
        }
        _ => return Ok(Some(state)),
    };
    sqlx::query(installed).bind(id.as_bytes().as_slice()).execute(&mut **transaction).await?;
    Ok(Some(state))
}

impl Db {
    /// Makes a deployment with one install per machine, all or none.
    pub(crate) async fn deploy(
        &self,
        new: &NewDeployment<'_>,
        now: Moment,
    ) -> Result<i64, DeployError> {
        let mut transaction = self.write().await?;
        let made: Option<i64> = sqlx::query_scalar(
            "INSERT INTO deployment (version, disk, after, preapproved, at_once, storage, created, rate_limit)
             SELECT id, $2, $3, $4, $5, $6, $7, $8 FROM version WHERE id = $1 AND state = 'ready' RETURNING id",
        )
        .bind(new.version.as_bytes().as_slice())
        .bind(json("disk", new.disk)?)
        .bind(json("after", &new.after)?)
        .bind(new.preapproved)
        .bind(new.at_once)
        .bind(new.storage.map(|size| integer(size.0)))
        .bind(now.0)
        .bind(new.rate_limit.map(|rate| integer(rate.bytes())))
        .fetch_optional(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        let Some(id) = made else { return Err(DeployError::Gone) };
        for (install, machine) in new.installs {
            sqlx::query(
                "INSERT INTO install (id, deployment, machine, state, created) VALUES ($1, $2, $3, 'scheduled', $4)",
            )
            .bind(install.as_bytes().as_slice())
            .bind(id)
            .bind(machine.as_bytes().as_slice())
            .bind(now.0)
            .execute(&mut *transaction)
            .await
            .map_err(|error| {
                if violates(&error, "install", "machine") {
                    DeployError::Busy { machine: *machine }
                } else {
                    DbError::Sql(error).into()
                }
            })?;
        }
        transaction.commit().await.map_err(DbError::from)?;
        Ok(id)
    }

    /// The installs that are not over, of this machine or of all, and whether each began.
    pub(crate) async fn open_installs(
        &self,
        machine: Option<MachineId>,
    ) -> Result<HashMap<MachineId, (InstallId, bool)>> {
        const OPEN: &str = "SELECT id, machine, started FROM install WHERE state IN ('scheduled', 'ticketed', 'running')";
        let rows = match machine {
            None => sqlx::query(OPEN).fetch_all(&self.pool).await?,
            Some(machine) => {
                let query = sqlx::AssertSqlSafe(format!("{OPEN} AND machine = $1"));
                let query = sqlx::query(query).bind(machine.as_bytes().to_vec());
                query.fetch_all(&self.pool).await?
            }
        };
        let open = rows.iter().map(|row| {
            let began = row.maybe_moment("started")?.is_some();
            Ok((MachineId(row.id("machine")?), (InstallId(row.id("id")?), began)))
        });
        open.collect()
    }

    /// The newest deployments, newest first.
    pub(crate) async fn deployments(&self, limit: u32) -> Result<Vec<DeploymentRow>> {
        sqlx::query(
            "SELECT deployment.*, version.number, image.name AS image FROM deployment
             JOIN version ON version.id = deployment.version JOIN image ON image.id = version.image
             ORDER BY deployment.id DESC LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(deployment)
        .collect()
    }

    pub(crate) async fn deployment(&self, id: i64) -> Result<Option<DeploymentRow>> {
        sqlx::query(
            "SELECT deployment.*, version.number, image.name AS image FROM deployment
             JOIN version ON version.id = deployment.version JOIN image ON image.id = version.image
             WHERE deployment.id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?
        .as_ref()
        .map(deployment)
        .transpose()
    }

    pub(crate) async fn installs_of_deployment(&self, id: i64) -> Result<Vec<InstallRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{INSTALLS} WHERE install.deployment = $1 ORDER BY install.id"
        )))
        .bind(id)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(install)
        .collect()
    }

    /// The installs of deployments of which one is not over, newest first.
    pub(crate) async fn installs_of_open_deployments(&self) -> Result<Vec<InstallRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{INSTALLS} WHERE install.deployment IN
               (SELECT deployment FROM install WHERE state IN ('scheduled', 'ticketed', 'running'))
             ORDER BY install.deployment DESC, install.id"
        )))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(install)
        .collect()
    }

    /// The newest installs, newest first.
    pub(crate) async fn installs(&self, limit: u32) -> Result<Vec<InstallRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{INSTALLS} ORDER BY install.deployment DESC, install.id LIMIT $1"
        )))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(install)
        .collect()
    }

    pub(crate) async fn install(&self, id: InstallId) -> Result<Option<InstallRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("{INSTALLS} WHERE install.id = $1")))
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(install)
            .transpose()
    }

    /// Installs that ended since then: how many hours after it (rounded down), how, and how many.
    pub(crate) async fn ended_by_the_hour(
        &self,
        since: Moment,
    ) -> Result<Vec<(u64, InstallState, u64)>> {
        let rows = sqlx::query(
            "SELECT hour, state, count(*) AS installs FROM
               (SELECT (ended - $1) / 3600000 AS hour, state FROM install WHERE ended >= $1) AS ended
             GROUP BY hour, state",
        )
        .bind(since.0)
        .fetch_all(&self.pool)
        .await?;
        let counted =
            |row: &AnyRow| Ok((row.number("hour")?, row.word("state")?, row.number("installs")?));
        rows.iter().map(counted).collect()
    }

    /// Has machines of a deployment that did not begin wait, or go on.
    pub(crate) async fn pause_deployment(&self, id: i64, paused: bool) -> Result<()> {
        let pause = sqlx::query("UPDATE deployment SET paused = $2 WHERE id = $1");
        self.run(pause.bind(id).bind(paused)).await?;
        Ok(())
    }

    /// Limits what each machine of a deployment receives.
    pub(crate) async fn limit_deployment(&self, id: i64, rate: Option<Rate>) -> Result<()> {
        let limit = sqlx::query("UPDATE deployment SET rate_limit = $2 WHERE id = $1");
        self.run(limit.bind(id).bind(rate.map(|rate| integer(rate.bytes())))).await?;
        Ok(())
    }

    /// The installs of a machine, newest first.
    pub(crate) async fn installs_of_machine(&self, machine: MachineId) -> Result<Vec<InstallRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{INSTALLS} WHERE install.machine = $1 ORDER BY install.deployment DESC"
        )))
        .bind(machine.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(install)
        .collect()
    }

    /// The install of a machine that is not over.
    pub(crate) async fn open_install_of_machine(
        &self,
        machine: MachineId,
    ) -> Result<Option<InstallRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{INSTALLS} WHERE install.machine = $1 AND install.state IN ('scheduled', 'ticketed', 'running')"
        )))
        .bind(machine.as_bytes().as_slice())
        .fetch_optional(&self.pool)
        .await?
        .as_ref()
        .map(install)
        .transpose()
    }

    /// Lets `event` happen to an install; returns its new state, or nothing when the event is rejected.
    pub(crate) async fn advance_install(
        &self,
        id: InstallId,
        event: InstallEvent,
        now: Moment,
    ) -> Result<Option<InstallState>> {
        let mut transaction = self.write().await?;
        let state = advance(&mut transaction, id, event, now).await?;
        transaction.commit().await?;
        Ok(state)
    }

    /// Keeps how far an install is; returns its new state, or nothing when it is over already.
    pub(crate) async fn note_install_progress(
        &self,
        id: InstallId,
        progress: &InstallProgress,
        now: Moment,
    ) -> Result<Option<InstallState>> {
        let mut transaction = self.write().await?;
        let state = advance(&mut transaction, id, progress.phase.into(), now).await?;
        if state.is_some() {
            sqlx::query("UPDATE install SET progress = $2, error = $3 WHERE id = $1")
                .bind(id.as_bytes().as_slice())
                .bind(json("progress", progress)?)
                .bind(&progress.error)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(state)
    }

    /// Keeps how far installs are that go on; returns those that do.
    pub(crate) async fn note_progress_of(
        &self,
        installs: &[InstallRow],
    ) -> Result<HashSet<InstallId>> {
        let mut transaction = self.write().await?;
        let mut running = HashSet::new();
        for install in installs {
            let done =
                sqlx::query("UPDATE install SET progress = $2 WHERE id = $1 AND state = 'running'")
                    .bind(install.id.as_bytes().as_slice())
                    .bind(json("progress", &install.progress)?)
                    .execute(&mut *transaction)
                    .await?;
            if done.rows_affected() > 0 {
                running.insert(install.id);
            }
        }
        transaction.commit().await?;
        Ok(running)
    }

    /// Hands an install to a target: the target counts as approved, every other run of the same machine that had the
    /// install has ended. Nothing when the install is over.
    pub(crate) async fn hand_install_to(
        &self,
        id: InstallId,
        target: [u8; 32],
        take_over: bool,
        now: Moment,
    ) -> Result<Option<InstallState>> {
        let mut transaction = self.write().await?;
        if take_over {
            advance(&mut transaction, id, InstallEvent::Restart, now).await?;
        }
        let state = advance(&mut transaction, id, InstallEvent::Ticket, now).await?;
        if state.is_some() {
            sqlx::query("UPDATE target SET state = 'ended' WHERE install = $1 AND hash <> $2")
                .bind(id.as_bytes().as_slice())
                .bind(target.as_slice())
                .execute(&mut *transaction)
                .await?;
            sqlx::query("UPDATE target SET state = 'approved', install = $1 WHERE hash = $2")
                .bind(id.as_bytes().as_slice())
                .bind(target.as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(state)
    }
}
