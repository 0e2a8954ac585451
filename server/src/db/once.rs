//! Answers that are kept, so that what is asked for twice is done once.

use sqlx::Row as _;

use super::{Columns as _, Db, Result};
use crate::moment::Moment;

/// The most answers that are kept.
const KEPT: i64 = 10_000;

/// A request, by who made it and the key that it has.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) actor: String,
    pub(crate) key: String,
    /// SHA-256 of all of it.
    pub(crate) request: [u8; 32],
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Once {
    /// Nothing: it is under way from now on.
    First,
    UnderWay,
    Done {
        status: u16,
        kind: String,
        body: Vec<u8>,
    },
    /// Its key is another's.
    Other,
}

impl Db {
    /// Begins a request, unless its key is taken; forgets what is older than `oldest`, or beyond [`KEPT`].
    pub(crate) async fn begin_once(&self, key: &Key, now: Moment, oldest: Moment) -> Result<Once> {
        let mut transaction = self.write().await?;
        sqlx::query(
            "DELETE FROM once WHERE created < $1
             OR created < (SELECT created FROM once ORDER BY created DESC LIMIT 1 OFFSET $2)",
        )
        .bind(oldest.0)
        .bind(KEPT)
        .execute(&mut *transaction)
        .await?;
        let begun = sqlx::query(
            "INSERT INTO once (actor, word, request, created) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(&key.actor)
        .bind(&key.key)
        .bind(key.request.as_slice())
        .bind(now.0)
        .execute(&mut *transaction)
        .await?;
        if begun.rows_affected() > 0 {
            transaction.commit().await?;
            return Ok(Once::First);
        }
        let row = sqlx::query("SELECT * FROM once WHERE actor = $1 AND word = $2")
            .bind(&key.actor)
            .bind(&key.key)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        if row.id::<32>("request")? != key.request {
            return Ok(Once::Other);
        }
        let status: Option<i64> = row.try_get("status")?;
        Ok(match status.and_then(|status| u16::try_from(status).ok()) {
            None => Once::UnderWay,
            Some(status) => {
                Once::Done { status, kind: row.text("kind")?, body: row.try_get("body")? }
            }
        })
    }

    /// Keeps what was answered.
    pub(crate) async fn finish_once(
        &self,
        key: &Key,
        status: u16,
        kind: &str,
        body: &[u8],
    ) -> Result<()> {
        let update =
            "UPDATE once SET status = $3, kind = $4, body = $5 WHERE actor = $1 AND word = $2";
        let update = sqlx::query(update).bind(&key.actor).bind(&key.key).bind(i64::from(status));
        self.run(update.bind(kind).bind(body)).await?;
        Ok(())
    }

    /// Lets go of a key: nothing was made with it.
    pub(crate) async fn forget_once(&self, key: &Key) -> Result<()> {
        let delete = sqlx::query("DELETE FROM once WHERE actor = $1 AND word = $2");
        self.run(delete.bind(&key.actor).bind(&key.key)).await?;
        Ok(())
    }

    /// Lets go of the keys of requests that a stop cut short.
    pub(crate) async fn forget_unfinished(&self) -> Result<()> {
        self.run(sqlx::query("DELETE FROM once WHERE status IS NULL")).await?;
        Ok(())
    }
}
