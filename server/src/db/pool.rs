//! Connections to the database, and what a transaction is on either kind.
//!
//! Invariant: whatever writes begins with [`Db::write`] or is a [`Db::run`]. One of them writes at a time, on SQLite because
//! of `BEGIN IMMEDIATE`, on PostgreSQL because of an advisory lock: no statement here is written for more. A PostgreSQL
//! connection is read-only otherwise, so that a write past this fails in a test. Readers see one moment in either.

use std::time::Duration;

use sqlx::{
    Any, AnyConnection, AnyPool, Connection as _, Executor as _,
    any::{AnyArguments, AnyConnectOptions, AnyPoolOptions, AnyQueryResult},
    query::Query,
};

use super::{DatabaseAddress, Result, hold::Hold, upgrade};

/// A transaction that may write.
pub(super) type Transaction = sqlx::Transaction<'static, Any>;

const CONNECTIONS: u32 = 8;
/// How long somebody waits for their turn to write.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a PostgreSQL server may take to answer somebody who connects.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) const SQLITE_SESSION: &str =
    "PRAGMA busy_timeout = 30000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
     PRAGMA foreign_keys = ON";
const POSTGRES_SESSION: &str = "SET lock_timeout = '30s';
     SET default_transaction_isolation = 'repeatable read'; SET default_transaction_read_only = on";
/// The number of the lock is that of no other program's in a database of our own.
const POSTGRES_WRITE: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock(1)";

/// The site's database.
#[derive(Clone, Debug)]
pub struct Db {
    pub(super) pool: AnyPool,
    pub(super) kind: Kind,
    /// That no other server has it.
    hold: Hold,
}

/// Which program keeps the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    const fn of(address: &DatabaseAddress) -> Self {
        match address {
            DatabaseAddress::Sqlite(_) => Self::Sqlite,
            DatabaseAddress::Postgres(_) => Self::Postgres,
        }
    }

    const fn session(self) -> &'static str {
        match self {
            Self::Sqlite => SQLITE_SESSION,
            Self::Postgres => POSTGRES_SESSION,
        }
    }
}

impl Db {
    /// Opens the database, makes the file of SQLite's when it is absent, and applies the migrations that it lacks.
    ///
    /// # Errors
    /// When it cannot be opened, a migration fails, or another server uses it.
    pub async fn open(address: &DatabaseAddress) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let kind = Kind::of(address);
        let options = address.options()?;
        let hold = match kind {
            // The lock of the data folder is that of its database.
            Kind::Sqlite => Hold::none(),
            Kind::Postgres => Hold::take(address).await?,
        };
        upgrade::run(address, kind, &options).await?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            // Nothing lies between us and SQLite, and asking costs as much as most statements do.
            .test_before_acquire(matches!(kind, Kind::Postgres))
            .acquire_timeout(match kind {
                Kind::Sqlite => PATIENCE,
                Kind::Postgres => ANSWER,
            })
            .after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(kind.session()).await.map(drop) })
            })
            .connect_with(options)
            .await?;
        Ok(Self { pool, kind, hold })
    }

    /// Waits until nothing uses the database and closes it.
    pub async fn close(&self) {
        self.pool.close().await;
        self.hold.release().await;
    }

    /// Watches that no other server takes the database over, until `stop`.
    ///
    /// # Errors
    /// [`DbError::InUse`] when one did.
    pub(crate) async fn watch(&self, stop: &tokio_util::sync::CancellationToken) -> Result<()> {
        self.hold.watch(stop).await
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn is_alive(&self) -> Result<()> {
        sqlx::query("SELECT 1").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Begins to write; waits for others who do.
    pub(super) async fn write(&self) -> Result<Transaction> {
        Ok(self.begin().await?)
    }

    async fn begin(&self) -> sqlx::Result<Transaction> {
        let begin = match self.kind {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => POSTGRES_WRITE,
        };
        self.pool.begin_with(begin).await
    }

    /// One statement that writes.
    pub(super) async fn run(
        &self,
        statement: Query<'_, Any, AnyArguments>,
    ) -> sqlx::Result<AnyQueryResult> {
        let mut transaction = self.begin().await?;
        let done = statement.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(done)
    }
}

/// One connection to a PostgreSQL server, for as long as it answers soon.
pub(super) async fn connect(options: &AnyConnectOptions) -> Result<AnyConnection> {
    let connected = tokio::time::timeout(ANSWER, AnyConnection::connect_with(options)).await;
    Ok(connected.unwrap_or(Err(sqlx::Error::PoolTimedOut))?)
}
