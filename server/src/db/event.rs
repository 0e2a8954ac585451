//! The log of what happened.

use super::{Columns as _, Db, Result, integer};

/// The most events that are kept.
const KEPT: i64 = 100_000;

/// An event as it was recorded.
#[derive(Clone, Debug)]
pub(crate) struct EventRow {
    pub(crate) id: u64,
    pub(crate) kind: String,
    /// JSON.
    pub(crate) payload: String,
}

impl Db {
    pub(crate) async fn record_event(&self, id: u64, kind: &str, payload: &str) -> Result<()> {
        let insert = "INSERT INTO event (id, kind, payload) VALUES ($1, $2, $3)";
        self.run(sqlx::query(insert).bind(integer(id)).bind(kind).bind(payload)).await?;
        Ok(())
    }

    /// Forgets the oldest events beyond [`KEPT`], which takes a look at all the others.
    pub(crate) async fn forget_old_events(&self) -> Result<()> {
        let delete = "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET $1)";
        self.run(sqlx::query(delete).bind(KEPT)).await?;
        Ok(())
    }

    /// Up to `limit` events after `id`, oldest first.
    pub(crate) async fn events_after(&self, id: u64, limit: u32) -> Result<Vec<EventRow>> {
        sqlx::query("SELECT id, kind, payload FROM event WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(integer(id))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| {
                Ok(EventRow {
                    id: row.number("id")?,
                    kind: row.text("kind")?,
                    payload: row.text("payload")?,
                })
            })
            .collect()
    }
}
