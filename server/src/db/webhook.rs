//! Programs that are told of events.

use sqlx::{Row as _, any::AnyRow};

use super::{Columns as _, Db, Result, integer};
use crate::moment::Moment;

/// Who is told.
#[derive(Clone)]
pub(crate) struct WebhookRow {
    pub(crate) id: i64,
    pub(crate) url: String,
    pub(crate) secret: Vec<u8>,
    /// Empty: all.
    pub(crate) events: Vec<String>,
    pub(crate) created: Moment,
    pub(crate) delivered: u64,
    pub(crate) problem: Option<String>,
}

impl std::fmt::Debug for WebhookRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookRow")
            .field("id", &self.id)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Who is to be told, from the next event on.
#[derive(Clone, Copy)]
pub(crate) struct NewWebhook<'a> {
    pub(crate) url: &'a str,
    pub(crate) secret: &'a [u8],
    pub(crate) events: &'a str,
    pub(crate) now: Moment,
}

fn webhook(row: &AnyRow) -> Result<WebhookRow> {
    Ok(WebhookRow {
        id: i64::from(row.small("id")?),
        url: row.text("url")?,
        secret: row.try_get("secret")?,
        events: row.text("events")?.split_whitespace().map(str::to_owned).collect(),
        created: row.moment("created")?,
        delivered: row.number("delivered")?,
        problem: row.maybe_text("problem")?,
    })
}

impl Db {
    pub(crate) async fn add_webhook(&self, new: NewWebhook<'_>) -> Result<i64> {
        let mut transaction = self.write().await?;
        let id = sqlx::query_scalar(
            "INSERT INTO webhook (url, secret, events, created, delivered)
             VALUES ($1, $2, $3, $4, (SELECT coalesce(max(id), 0) FROM event)) RETURNING id",
        )
        .bind(new.url)
        .bind(new.secret)
        .bind(new.events)
        .bind(new.now.0)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(id)
    }

    pub(crate) async fn webhooks(&self) -> Result<Vec<WebhookRow>> {
        let rows = sqlx::query("SELECT * FROM webhook ORDER BY id").fetch_all(&self.pool).await?;
        rows.iter().map(webhook).collect()
    }

    pub(crate) async fn webhook(&self, id: i64) -> Result<Option<WebhookRow>> {
        let row = sqlx::query("SELECT * FROM webhook WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(webhook).transpose()
    }

    /// Notes that everything up to this event was delivered, or was not for it.
    pub(crate) async fn note_delivered(&self, id: i64, event: u64) -> Result<()> {
        let update = "UPDATE webhook SET delivered = $2, problem = NULL WHERE id = $1";
        self.run(sqlx::query(update).bind(id).bind(integer(event))).await?;
        Ok(())
    }

    /// Notes why the next event was not delivered yet.
    pub(crate) async fn note_undelivered(&self, id: i64, problem: &str) -> Result<()> {
        let update = "UPDATE webhook SET problem = $2 WHERE id = $1";
        self.run(sqlx::query(update).bind(id).bind(problem)).await?;
        Ok(())
    }

    /// Whether there was such a one.
    pub(crate) async fn remove_webhook(&self, id: i64) -> Result<bool> {
        let removed = self.run(sqlx::query("DELETE FROM webhook WHERE id = $1").bind(id)).await?;
        Ok(removed.rows_affected() > 0)
    }
}
