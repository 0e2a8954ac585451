//! Join and API tokens.

use sqlx::any::AnyRow;

use super::{
    Columns as _, Db, DbError, Result,
    account::{Role, Scope},
    json, words,
};
use crate::moment::Moment;

words! {
    /// What a token is good for.
    TokenKind {
        /// Lets one agent join.
        Join = "join",
        /// Lets a program use the API.
        Api = "api",
    }
}

/// A token as it is listed; its secret is not kept.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    pub(crate) id: i64,
    pub(crate) kind: TokenKind,
    pub(crate) note: String,
    pub(crate) auto_approve: bool,
    /// Of an API token.
    pub(crate) role: Role,
    pub(crate) scope: Scope,
    pub(crate) created: Moment,
    pub(crate) expires: Option<Moment>,
    pub(crate) used: Option<Moment>,
    pub(crate) revoked: Option<Moment>,
}

/// A token to be kept.
#[derive(Clone, Debug)]
pub(crate) struct NewToken<'a> {
    pub(crate) kind: TokenKind,
    pub(crate) secret: &'a str,
    pub(crate) note: &'a str,
    pub(crate) auto_approve: bool,
    pub(crate) role: Role,
    pub(crate) scope: &'a Scope,
    pub(crate) now: Moment,
    pub(crate) expires: Option<Moment>,
}

/// Why a join token lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum SpendError {
    #[error("the join token is unknown")]
    Unknown,
    #[error("the join token was used already")]
    Used,
    #[error("the join token has expired")]
    Expired,
    #[error("the join token was revoked")]
    Revoked,
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Decides whether a join token may be spent now.
pub(crate) fn check(token: &TokenRow, now: Moment) -> Result<(), SpendError> {
    if token.revoked.is_some() {
        Err(SpendError::Revoked)
    } else if token.used.is_some() {
        Err(SpendError::Used)
    } else if token.expires.is_some_and(|expires| expires <= now) {
        Err(SpendError::Expired)
    } else {
        Ok(())
    }
}

fn token(row: &AnyRow) -> Result<TokenRow> {
    Ok(TokenRow {
        id: i64::from(row.small("id")?),
        kind: row.word("kind")?,
        note: row.text("note")?,
        auto_approve: row.flag("auto_approve")?,
        role: row.word("role")?,
        scope: row.json("scope")?,
        created: row.moment("created")?,
        expires: row.maybe_moment("expires")?,
        used: row.maybe_moment("used")?,
        revoked: row.maybe_moment("revoked")?,
    })
}

impl Db {
    pub(crate) async fn keep_token(&self, new: NewToken<'_>) -> Result<i64> {
        let mut transaction = self.write().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO token (kind, hash, note, auto_approve, role, created, expires, scope)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
        )
        .bind(new.kind.word())
        .bind(crate::secret::hash(new.secret).as_slice())
        .bind(new.note)
        .bind(new.auto_approve)
        .bind(new.role.word())
        .bind(new.now.0)
        .bind(new.expires.map(|expires| expires.0))
        .bind(json("scope", new.scope)?)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(id)
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRow>> {
        sqlx::query("SELECT * FROM token ORDER BY id")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(token)
            .collect()
    }

    /// Whether there was such a token. A revoked token stays revoked from when it first was.
    pub(crate) async fn revoke_token(&self, id: i64, now: Moment) -> Result<bool> {
        let done = self
            .run(
                sqlx::query("UPDATE token SET revoked = coalesce(revoked, $2) WHERE id = $1")
                    .bind(id)
                    .bind(now.0),
            )
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The API token of this secret, if it is good now.
    pub(crate) async fn api_token(&self, secret: &str, now: Moment) -> Result<Option<TokenRow>> {
        let row = sqlx::query(
            "SELECT * FROM token WHERE hash = $1 AND kind = 'api'
               AND revoked IS NULL AND (expires IS NULL OR expires > $2)",
        )
        .bind(crate::secret::hash(secret).as_slice())
        .bind(now.0)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(token).transpose()
    }

    /// Looks at a join token without spending it.
    pub(crate) async fn join_token(
        &self,
        secret: &str,
        now: Moment,
    ) -> Result<TokenRow, SpendError> {
        let found = sqlx::query("SELECT * FROM token WHERE hash = $1 AND kind = 'join'")
            .bind(crate::secret::hash(secret).as_slice())
            .fetch_optional(&self.pool)
            .await
            .map_err(DbError::from)?
            .ok_or(SpendError::Unknown)?;
        let found = token(&found)?;
        check(&found, now)?;
        Ok(found)
    }
}
