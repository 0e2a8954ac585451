//! Who asked for which change.

use super::{Columns as _, Db, Result};
use crate::moment::Moment;

/// The most entries that are kept.
const KEPT: i64 = 100_000;

/// A change that was asked for, done or not.
#[derive(Clone, Debug)]
pub(crate) struct AuditRow {
    pub(crate) id: i64,
    pub(crate) at: Moment,
    pub(crate) actor: String,
    pub(crate) method: String,
    pub(crate) path: String,
    /// Of HTTP.
    pub(crate) status: u32,
}

/// An entry to be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewAudit<'a> {
    pub(crate) at: Moment,
    pub(crate) actor: &'a str,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
}

impl Db {
    /// Keeps an entry, and forgets the oldest beyond [`KEPT`].
    pub(crate) async fn keep_audit(&self, new: NewAudit<'_>) -> Result<()> {
        let mut transaction = self.write().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO audit (at, actor, method, path, status) VALUES ($1, $2, $3, $4, $5) RETURNING id",
        )
        .bind(new.at.0)
        .bind(new.actor)
        .bind(new.method)
        .bind(new.path)
        .bind(i64::from(new.status))
        .fetch_one(&mut *transaction)
        .await?;
        // Numbers have few gaps, and finding the one that is so far back takes long.
        sqlx::query("DELETE FROM audit WHERE id <= $1")
            .bind(id - KEPT)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Up to `limit` entries before `id`, the newest first.
    pub(crate) async fn audit_before(&self, id: Option<i64>, limit: u32) -> Result<Vec<AuditRow>> {
        sqlx::query("SELECT * FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2")
            .bind(id.unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| {
                Ok(AuditRow {
                    id: i64::try_from(row.number("id")?).unwrap_or(i64::MAX),
                    at: row.moment("at")?,
                    actor: row.text("actor")?,
                    method: row.text("method")?,
                    path: row.text("path")?,
                    status: row.small("status")?,
                })
            })
            .collect()
    }
}
