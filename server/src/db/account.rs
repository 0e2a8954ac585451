//! Accounts and their dashboard sessions.

use super::{Columns as _, Db, Flag, Result};
use crate::moment::Moment;

/// Somebody who may sign in.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: i64,
    /// PHC string.
    pub(crate) password: String,
}

impl Db {
    /// Whether anybody can sign in.
    pub(crate) async fn has_an_account(&self) -> Result<bool> {
        let Flag(has) = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM account)")
            .fetch_one(&self.pool)
            .await?;
        Ok(has)
    }

    pub(crate) async fn add_account(&self, name: &str, password: &str, now: Moment) -> Result<()> {
        self.run(
            sqlx::query("INSERT INTO account (name, password, created) VALUES ($1, $2, $3)")
                .bind(name)
                .bind(password)
                .bind(now.0),
        )
        .await?;
        Ok(())
    }

    pub(crate) async fn account_named(&self, name: &str) -> Result<Option<Account>> {
        sqlx::query("SELECT id, password FROM account WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .map(|row| {
                Ok(Account { id: i64::from(row.small("id")?), password: row.text("password")? })
            })
            .transpose()
    }

    /// Begins a session and forgets those that have ended.
    pub(crate) async fn begin_session(
        &self,
        hash: [u8; 32],
        account: i64,
        now: Moment,
        expires: Moment,
    ) -> Result<()> {
        let mut transaction = self.write().await?;
        sqlx::query("DELETE FROM session WHERE expires <= $1")
            .bind(now.0)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO session (hash, account, created, expires) VALUES ($1, $2, $3, $4)",
        )
        .bind(hash.as_slice())
        .bind(account)
        .bind(now.0)
        .bind(expires.0)
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Whether this session has begun and not ended.
    pub(crate) async fn session_lives(&self, hash: [u8; 32], now: Moment) -> Result<bool> {
        let Flag(lives) = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM session WHERE hash = $1 AND expires > $2)",
        )
        .bind(hash.as_slice())
        .bind(now.0)
        .fetch_one(&self.pool)
        .await?;
        Ok(lives)
    }

    pub(crate) async fn end_session(&self, hash: [u8; 32]) -> Result<()> {
        self.run(sqlx::query("DELETE FROM session WHERE hash = $1").bind(hash.as_slice())).await?;
        Ok(())
    }
}
