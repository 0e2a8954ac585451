//! The only place with SQL.
//!
//! Each file is one noun; each function says as a sentence what it does, in one transaction. Constraint names
//! become domain errors here. Identifiers are kept in their binary form, times as milliseconds.
//!
//! Invariant: a transaction that writes begins `IMMEDIATE`, so that two of them wait for each other instead of failing.

use std::{path::Path, time::Duration};

use cairn_core::units::{ByteCount, Generation};
use sqlx::{
    Row as _, Sqlite, SqlitePool, Transaction,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

use crate::moment::Moment;

pub mod account;
pub mod agent;
mod availability;
pub(crate) mod bundle;
pub mod deployment;
pub mod event;
pub mod holding;
pub mod image;
pub mod job;
pub(crate) mod link;
pub mod machine;
pub(crate) mod recovered;
pub(crate) mod restored;
pub mod segment;
pub mod setting;
pub mod snapshot;
pub mod stripe_set;
pub mod target;
pub mod token;
pub mod volume;

/// The database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("query the database")]
    Sql(#[from] sqlx::Error),
    #[error("bring the database up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database holds something unreadable in column {column}")]
    Unreadable { column: &'static str },
}

/// What every function here returns.
pub type Result<T, E = DbError> = std::result::Result<T, E>;

/// The site's database.
#[derive(Clone, Debug)]
pub struct Db {
    pool: SqlitePool,
}

impl Db {
    /// Opens the database file, makes it when it is absent, and applies the migrations that it lacks.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open(file: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await?;
        sqlx::migrate!("../migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    /// Waits until nothing uses the database and closes it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Copies the database as it is at one moment to a file that is empty or absent. Others read and write meanwhile.
    pub(crate) async fn copy_to(&self, file: &Path) -> Result<()> {
        sqlx::query("VACUUM INTO $1").bind(file.to_string_lossy()).execute(&self.pool).await?;
        Ok(())
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn is_alive(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Reads columns into our types.
trait Columns {
    fn id<const N: usize>(&self, column: &'static str) -> Result<[u8; N]>;
    fn maybe_id<const N: usize>(&self, column: &'static str) -> Result<Option<[u8; N]>>;
    fn number(&self, column: &'static str) -> Result<u64>;
    fn small(&self, column: &'static str) -> Result<u32>;
    fn text(&self, column: &'static str) -> Result<String>;
    fn maybe_text(&self, column: &'static str) -> Result<Option<String>>;
    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T>;
    fn word<T: std::str::FromStr>(&self, column: &'static str) -> Result<T>;

    fn size(&self, column: &'static str) -> Result<ByteCount> {
        self.number(column).map(ByteCount)
    }
    fn maybe_size(&self, column: &'static str) -> Result<Option<ByteCount>>;
    fn generation(&self, column: &'static str) -> Result<Generation> {
        self.number(column).map(Generation)
    }
    fn moment(&self, column: &'static str) -> Result<Moment>;
    fn maybe_moment(&self, column: &'static str) -> Result<Option<Moment>>;
    fn flag(&self, column: &'static str) -> Result<bool>;
}

impl Columns for SqliteRow {
    fn id<const N: usize>(&self, column: &'static str) -> Result<[u8; N]> {
        let bytes: &[u8] = self.try_get(column)?;
        bytes.try_into().map_err(|_| DbError::Unreadable { column })
    }

    fn maybe_id<const N: usize>(&self, column: &'static str) -> Result<Option<[u8; N]>> {
        let bytes: Option<&[u8]> = self.try_get(column)?;
        bytes.map(|bytes| bytes.try_into().map_err(|_| DbError::Unreadable { column })).transpose()
    }

    fn number(&self, column: &'static str) -> Result<u64> {
        let value: i64 = self.try_get(column)?;
        u64::try_from(value).map_err(|_| DbError::Unreadable { column })
    }

    fn small(&self, column: &'static str) -> Result<u32> {
        let value: i64 = self.try_get(column)?;
        u32::try_from(value).map_err(|_| DbError::Unreadable { column })
    }

    fn text(&self, column: &'static str) -> Result<String> {
        Ok(self.try_get(column)?)
    }

    fn maybe_text(&self, column: &'static str) -> Result<Option<String>> {
        Ok(self.try_get(column)?)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        let text: &str = self.try_get(column)?;
        serde_json::from_str(text).map_err(|_| DbError::Unreadable { column })
    }

    fn word<T: std::str::FromStr>(&self, column: &'static str) -> Result<T> {
        let text: &str = self.try_get(column)?;
        text.parse().map_err(|_| DbError::Unreadable { column })
    }

    fn moment(&self, column: &'static str) -> Result<Moment> {
        Ok(Moment(self.try_get(column)?))
    }

    fn maybe_size(&self, column: &'static str) -> Result<Option<ByteCount>> {
        let value: Option<i64> = self.try_get(column)?;
        let size = value.map(u64::try_from).transpose();
        Ok(size.map_err(|_| DbError::Unreadable { column })?.map(ByteCount))
    }

    fn maybe_moment(&self, column: &'static str) -> Result<Option<Moment>> {
        let value: Option<i64> = self.try_get(column)?;
        Ok(value.map(Moment))
    }

    fn flag(&self, column: &'static str) -> Result<bool> {
        Ok(self.try_get(column)?)
    }
}

/// A size or counter as SQLite's signed integer. Nothing here gets near 2^63; what did would be kept as that.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn json<T: serde::Serialize>(column: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|_| DbError::Unreadable { column })
}

/// Whether `error` is a violated uniqueness of these columns or this index.
fn violates(error: &sqlx::Error, what: &str) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.is_unique_violation() && error.message().contains(what))
}

/// Declares an enum that is kept as a word in the database and shown as the same word by the API.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// The word it is kept and shown as.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::db::UnknownWord;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err($crate::db::UnknownWord) }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}
pub(crate) use words;

/// A word that none of the variants is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown word")]
pub struct UnknownWord;

#[cfg(test)]
mod tests;
