//! Targets: one run of an installer each, from its hello on.

use std::{net::SocketAddr, time::Duration};

use cairn_core::id::{InstallId, MachineId};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Result, words};
use crate::moment::Moment;

/// A target that has not asked for its ticket for this long is not there any more.
pub(crate) const LIVE: Duration = Duration::from_secs(60);
/// That it was seen is written down no more often: it may ask many times a second.
const SEEN_EVERY: Duration = Duration::from_secs(5);
/// The most targets that wait for approval at once: what strangers can make us keep.
const MAX_WAITING: u64 = 2_000;
/// A target is forgotten when it was not heard of for this long.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

words! {
    /// Where a target stands.
    TargetState {
        /// Nobody has approved it yet.
        Waiting = "waiting",
        Approved = "approved",
        Refused = "refused",
        /// Another run on the same machine took over.
        Ended = "ended",
    }
}

/// One run of an installer.
#[derive(Clone, Debug)]
pub(crate) struct TargetRow {
    pub(crate) hash: [u8; 32],
    pub(crate) machine: MachineId,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) public_key: Vec<u8>,
    pub(crate) code: String,
    pub(crate) state: TargetState,
    /// The image asked for, `NAME` or `NAME@N`.
    pub(crate) image: Option<String>,
    pub(crate) address: SocketAddr,
    pub(crate) install: Option<InstallId>,
}

/// Why a hello is not taken.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("too many machines wait for approval")]
    TooMany,
    #[error(transparent)]
    Db(#[from] DbError),
}

fn target(row: &AnyRow) -> Result<TargetRow> {
    Ok(TargetRow {
        hash: row.id("hash")?,
        machine: MachineId(row.id("machine")?),
        public_key: sqlx::Row::try_get(row, "public_key")?,
        code: row.text("code")?,
        state: row.word("state")?,
        image: row.maybe_text("image")?,
        address: row.word("address")?,
        install: row.maybe_id("install")?.map(InstallId),
    })
}

impl Db {
    /// Begins a target's session. The same key saying hello again begins it anew with another bearer: the code stays,
    /// and so does what an administrator decided about it.
    pub(crate) async fn begin_target(
        &self,
        new: &TargetRow,
        now: Moment,
    ) -> Result<(), HelloError> {
        let mut transaction = self.write().await?;
        sqlx::query("DELETE FROM target WHERE (state = 'waiting' AND seen < $1) OR seen < $2")
            .bind(now.minus(LIVE * 10).0)
            .bind(now.minus(KEPT).0)
            .execute(&mut *transaction)
            .await
            .map_err(DbError::from)?;
        let waiting = sqlx::query("SELECT count(*) AS waiting FROM target WHERE state = 'waiting'")
            .fetch_one(&mut *transaction)
            .await
            .map_err(DbError::from)?
            .number("waiting")?;
        if waiting >= MAX_WAITING {
            return Err(HelloError::TooMany);
        }
        sqlx::query(
            "INSERT INTO target (hash, machine, public_key, code, state, image, address, created, seen)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
             ON CONFLICT (public_key) DO UPDATE SET hash = excluded.hash, machine = excluded.machine,
               image = excluded.image, address = excluded.address, seen = excluded.seen",
        )
        .bind(new.hash.as_slice())
        .bind(new.machine.as_bytes().as_slice())
        .bind(&new.public_key)
        .bind(&new.code)
        .bind(new.state.word())
        .bind(&new.image)
        .bind(new.address.to_string())
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok(())
    }

    /// The target with this bearer, noted as seen now.
    pub(crate) async fn target_seen(
        &self,
        hash: [u8; 32],
        now: Moment,
    ) -> Result<Option<TargetRow>> {
        let row = sqlx::query("SELECT * FROM target WHERE hash = $1")
            .bind(hash.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        if now.since(row.moment("seen")?) >= SEEN_EVERY {
            let seen = sqlx::query("UPDATE target SET seen = $2 WHERE hash = $1");
            self.run(seen.bind(hash.as_slice()).bind(now.0)).await?;
        }
        Some(target(&row)).transpose()
    }

    /// The targets that are there: seen within [`LIVE`] and not ended.
    pub(crate) async fn live_targets(&self, now: Moment) -> Result<Vec<TargetRow>> {
        sqlx::query("SELECT * FROM target WHERE seen >= $1 AND state <> 'ended' ORDER BY created")
            .bind(now.minus(LIVE).0)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(target)
            .collect()
    }

    /// Those of one machine.
    pub(crate) async fn live_targets_of(
        &self,
        machine: MachineId,
        now: Moment,
    ) -> Result<Vec<TargetRow>> {
        sqlx::query(
            "SELECT * FROM target WHERE machine = $1 AND seen >= $2 AND state <> 'ended' ORDER BY created",
        )
        .bind(machine.as_bytes().as_slice())
        .bind(now.minus(LIVE).0)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(target)
        .collect()
    }

    /// Moves a target to `to` when it is in one of `from`; says whether it moved.
    pub(crate) async fn move_target(
        &self,
        hash: [u8; 32],
        from: &[TargetState],
        to: TargetState,
    ) -> Result<bool> {
        let mut transaction = self.write().await?;
        let row = sqlx::query("SELECT * FROM target WHERE hash = $1")
            .bind(hash.as_slice())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(row) = row else { return Ok(false) };
        if !from.contains(&target(&row)?.state) {
            return Ok(false);
        }
        sqlx::query("UPDATE target SET state = $2 WHERE hash = $1")
            .bind(hash.as_slice())
            .bind(to.word())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }
}
