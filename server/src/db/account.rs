//! Accounts, what they may do, and their dashboard sessions.

use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Flag, Result, json, pool::Transaction, violates, words};
use crate::moment::Moment;

words! {
    /// What somebody may do; each may what those before may.
    Role {
        /// Look.
        Viewer = "viewer",
        /// Look after images, machines, deployments and volumes.
        Operator = "operator",
        /// Everything: members, users, tokens, backups.
        Admin = "admin",
    }
}

impl Role {
    /// Whether this one may what `least` may.
    #[must_use]
    pub const fn is_at_least(self, least: Self) -> bool {
        self as u8 >= least as u8
    }
}

/// The groups of machines that an operator's work is limited to; none: all machines, and the site.
///
/// A group that is removed stays in it: who worked for that group only must not work for all then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Scope(pub(crate) Vec<String>);

impl Scope {
    /// Whether it limits nothing.
    pub(crate) const fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, group: &str) -> bool {
        self.0.iter().any(|own| own == group)
    }
}

/// Somebody who may sign in.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// PHC string.
    pub(crate) password: String,
    pub(crate) role: Role,
    pub(crate) scope: Scope,
    pub(crate) created: Moment,
}

/// Why an account is not added or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("there is a user of this name: choose another")]
    NameTaken,
    #[error("there is no such user")]
    Unknown,
    #[error("this is the last administrator: make another one first")]
    LastAdmin,
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

fn account(row: &AnyRow) -> Result<Account> {
    Ok(Account {
        id: i64::from(row.small("id")?),
        name: row.text("name")?,
        password: row.text("password")?,
        role: row.word("role")?,
        scope: row.json("scope")?,
        created: row.moment("created")?,
    })
}

impl Db {
    /// Whether anybody can sign in.
    pub(crate) async fn has_an_account(&self) -> Result<bool> {
        let Flag(has) = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM account)")
            .fetch_one(&self.pool)
            .await?;
        Ok(has)
    }

    pub(crate) async fn add_account(
        &self,
        name: &str,
        password: &str,
        role: Role,
        scope: &Scope,
        now: Moment,
    ) -> Result<(), AccountError> {
        let added = self
            .run(
                sqlx::query(
                    "INSERT INTO account (name, password, role, scope, created) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(name)
                .bind(password)
                .bind(role.word())
                .bind(json("scope", scope)?)
                .bind(now.0),
            )
            .await;
        match added {
            Ok(_) => Ok(()),
            Err(error) if violates(&error, "account", "name") => Err(AccountError::NameTaken),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn accounts(&self) -> Result<Vec<Account>> {
        let rows = sqlx::query("SELECT * FROM account ORDER BY name").fetch_all(&self.pool).await?;
        rows.iter().map(account).collect()
    }

    pub(crate) async fn account_named(&self, name: &str) -> Result<Option<Account>> {
        let row = sqlx::query("SELECT * FROM account WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(account).transpose()
    }

    /// Gives an account another role, scope or password, and ends its sessions.
    pub(crate) async fn change_account(
        &self,
        name: &str,
        role: Option<Role>,
        scope: Option<&Scope>,
        password: Option<&str>,
    ) -> Result<(), AccountError> {
        let mut transaction = self.write().await?;
        let changed = sqlx::query(
            "UPDATE account SET role = coalesce($2, role), password = coalesce($3, password),
               scope = coalesce($4, scope) WHERE name = $1",
        )
        .bind(name)
        .bind(role.map(Role::word))
        .bind(password)
        .bind(scope.map(|scope| json("scope", scope)).transpose()?)
        .execute(&mut *transaction)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(AccountError::Unknown);
        }
        sqlx::query("DELETE FROM session WHERE account = (SELECT id FROM account WHERE name = $1)")
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        require_admin(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Gives an account another password, and ends its sessions but one.
    pub(crate) async fn change_password(
        &self,
        name: &str,
        password: &str,
        but: Option<[u8; 32]>,
    ) -> Result<()> {
        let mut transaction = self.write().await?;
        sqlx::query("UPDATE account SET password = $2 WHERE name = $1")
            .bind(name)
            .bind(password)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "DELETE FROM session WHERE account = (SELECT id FROM account WHERE name = $1) AND hash <> $2",
        )
        .bind(name)
        .bind(but.unwrap_or_default().as_slice())
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Removes an account with its sessions.
    pub(crate) async fn remove_account(&self, name: &str) -> Result<(), AccountError> {
        let mut transaction = self.write().await?;
        let removed = sqlx::query("DELETE FROM account WHERE name = $1")
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        if removed.rows_affected() == 0 {
            return Err(AccountError::Unknown);
        }
        require_admin(&mut transaction).await?;
        Ok(transaction.commit().await?)
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

    /// Whose session this is, if it has begun and not ended.
    pub(crate) async fn account_of_session(
        &self,
        hash: [u8; 32],
        now: Moment,
    ) -> Result<Option<Account>> {
        let row = sqlx::query(
            "SELECT account.* FROM account JOIN session ON session.account = account.id
             WHERE session.hash = $1 AND session.expires > $2",
        )
        .bind(hash.as_slice())
        .bind(now.0)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(account).transpose()
    }

    pub(crate) async fn end_session(&self, hash: [u8; 32]) -> Result<()> {
        self.run(sqlx::query("DELETE FROM session WHERE hash = $1").bind(hash.as_slice())).await?;
        Ok(())
    }
}

/// Somebody must be left who can undo everything.
async fn require_admin(transaction: &mut Transaction) -> Result<(), AccountError> {
    let Flag(has) =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM account WHERE role = 'admin')")
            .fetch_one(&mut **transaction)
            .await?;
    if has { Ok(()) } else { Err(AccountError::LastAdmin) }
}
