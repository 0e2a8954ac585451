//! The only place with SQL.
//!
//! Each file is one noun; each function says as a sentence what it does, in one transaction. Constraint names
//! become domain errors here. Identifiers are kept in their binary form, times as milliseconds.
//!
//! One text of each statement serves SQLite and PostgreSQL; what they do differently is in `pool`, `hold` and `copy`.

use cairn_core::units::{ByteCount, Generation};
use sqlx::{
    Any, AssertSqlSafe, Decode, Row as _, SqlSafeStr as _, SqlStr, Type, ValueRef as _,
    any::{AnyRow, AnyTypeInfo, AnyValueRef},
    error::BoxDynError,
};

use crate::moment::Moment;

pub mod account;
pub mod address;
pub mod agent;
pub(crate) mod audit;
pub(crate) mod availability;
pub(crate) mod bundle;
pub(crate) mod copy;
pub mod deployment;
pub mod event;
pub(crate) mod group;
mod hold;
pub mod holding;
pub mod image;
mod install_log;
pub mod job;
pub(crate) mod link;
pub mod machine;
mod migrations;
pub(crate) mod once;
mod pool;
mod promotion;
pub(crate) mod recovered;
pub(crate) mod restored;
pub mod segment;
pub mod setting;
pub mod snapshot;
pub mod stripe_set;
pub mod target;
pub mod token;
mod upgrade;
pub mod volume;
pub(crate) mod webhook;

use pool::Transaction;
pub use {address::DatabaseAddress, pool::Db};

/// The database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("query the database")]
    Sql(#[from] sqlx::Error),
    #[error("bring the database up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error(
        "the database has schema {schema}, this program knows {known}: start the newer cairn-server that it was used \
         with, or put the copy from before the upgrade in its place (OPERATIONS, \"Upgrades\")"
    )]
    Newer { schema: i64, known: i64 },
    #[error("migration {file} is not UTF-8 text in a file called NNNN_verb_noun.sql")]
    MigrationName { file: String },
    #[error("the database holds something unreadable in column {column}")]
    Unreadable { column: &'static str },
    #[error("draw an id")]
    Random(#[source] anyhow::Error),
    #[error("another server uses this database: stop it first")]
    InUse,
}

impl DbError {
    /// Whether the database, or the way to it, is what failed.
    #[must_use]
    pub fn is_no_answer(&self) -> bool {
        match self {
            Self::Sql(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => true,
            // Connections that broke (class 08), a server that goes down or comes up (57P).
            Self::Sql(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code.starts_with("08") || code.starts_with("57P"))
            }
            _ => false,
        }
    }
}

/// What every function here returns.
pub type Result<T, E = DbError> = std::result::Result<T, E>;

/// A truth. SQLite has numbers for it.
struct Flag(bool);

impl Type<Any> for Flag {
    fn type_info() -> AnyTypeInfo {
        <bool as Type<Any>>::type_info()
    }

    fn compatible(kind: &AnyTypeInfo) -> bool {
        <bool as Type<Any>>::compatible(kind) || <i64 as Type<Any>>::compatible(kind)
    }
}

impl<'r> Decode<'r, Any> for Flag {
    fn decode(value: AnyValueRef<'r>) -> Result<Self, BoxDynError> {
        if <bool as Type<Any>>::compatible(&value.type_info()) {
            return <bool as Decode<'r, Any>>::decode(value).map(Self);
        }
        <i64 as Decode<'r, Any>>::decode(value).map(|number| Self(number != 0))
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

impl Columns for AnyRow {
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
        let Flag(value) = self.try_get(column)?;
        Ok(value)
    }
}

/// A size or counter as a signed integer. Nothing here gets near 2^63; what did would be kept as that.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A statement that was put together of texts in this folder.
fn sql(text: String) -> SqlStr {
    AssertSqlSafe(text).into_sql_str()
}

/// The most rows in one statement: a row each would cost a way to the database and back each. SQLite takes 32,766 values at
/// most, PostgreSQL 65,535.
const BATCH: usize = 500;

/// Places for so many rows of so many values, numbered on after `taken`: `($1, $2), ($3, $4)`.
fn places(taken: usize, rows: usize, values: usize) -> String {
    let row = |row: usize| {
        let first = taken + row * values + 1;
        let places = (first..first + values).map(|place| format!("${place}"));
        format!("({})", places.collect::<Vec<_>>().join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

fn json<T: serde::Serialize>(column: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|_| DbError::Unreadable { column })
}

/// Whether `error` is a violated uniqueness of this column of a table, or of an index or a constraint that begins with it.
/// SQLite names the columns, PostgreSQL the constraint, which it calls `TABLE_COLUMN_…` unless the schema does.
fn violates(error: &sqlx::Error, table: &str, column: &str) -> bool {
    let Some(error) = error.as_database_error().filter(|error| error.is_unique_violation()) else {
        return false;
    };
    match error.constraint() {
        Some(constraint) => {
            constraint.strip_prefix(table).is_some_and(|rest| rest.contains(&format!("_{column}")))
        }
        None => error.message().contains(&format!("{table}.{column}")),
    }
}

/// Declares an enum that is kept as a word in the database and shown as the same word by the API.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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

        // The derive does not see through the macro which words there are.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some([$($word),+]))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed(stringify!($name))
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
