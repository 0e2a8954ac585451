//! The migrations that this program was built with, in the order of their numbers.
//!
//! `rust-embed` carries the files and not `sqlx::migrate!`: that macro compiles both database drivers, SQLite's C library
//! among them, a second time for the compiler's own use.

use rust_embed::RustEmbed;
use sqlx::{
    AssertSqlSafe, SqlSafeStr as _, SqlStr,
    migrate::{Migration, MigrationType, Migrator},
};

use super::{DbError, Result, pool::Kind};

#[derive(RustEmbed)]
#[folder = "../migrations/sqlite"]
struct Sqlite;

#[derive(RustEmbed)]
#[folder = "../migrations/postgres"]
struct Postgres;

/// All migrations of one kind of database.
///
/// # Errors
/// [`DbError::MigrationName`] when a file is not called `NNNN_verb_noun.sql`.
pub(super) fn of(kind: Kind) -> Result<Migrator> {
    let migrations: Result<_> = match kind {
        Kind::Sqlite => files::<Sqlite>(),
        Kind::Postgres => files::<Postgres>(),
    };
    migrations.map(Migrator::with_migrations)
}

fn files<Folder: RustEmbed>() -> Result<Vec<Migration>> {
    Folder::iter()
        .filter_map(|name| Folder::get(&name).map(|file| (name, file.data)))
        .map(|(name, text)| {
            let misnamed = || DbError::MigrationName { file: name.to_string() };
            let (version, description) = version_and_description(&name).ok_or_else(misnamed)?;
            let text = String::from_utf8(text.into_owned()).map_err(|_| misnamed())?;
            let sql: SqlStr = AssertSqlSafe(text).into_sql_str();
            let kind = MigrationType::Simple;
            Ok(Migration::new(version, description.into(), kind, sql, false))
        })
        .collect()
}

/// `(14, "add roles")` of `0014_add_roles.sql`.
fn version_and_description(file: &str) -> Option<(i64, String)> {
    let (version, words) = file.strip_suffix(".sql")?.split_once('_')?;
    Some((version.parse().ok()?, words.replace('_', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_give_version_and_description() {
        let found = version_and_description("0014_add_roles.sql");
        assert_eq!(found, Some((14, "add roles".to_owned())));
        assert_eq!(version_and_description("add_roles.sql"), None);
        assert_eq!(version_and_description("0014_add_roles"), None);
    }

    #[test]
    fn databases_end_at_the_same_version_without_gaps() {
        let versions = |kind| -> Vec<i64> {
            of(kind).unwrap().iter().map(|migration| migration.version).collect()
        };
        let sqlite = versions(Kind::Sqlite);
        let postgres = versions(Kind::Postgres);
        assert!(sqlite.len() >= 24, "{sqlite:?}");
        assert_eq!(sqlite, (1..=sqlite.len().try_into().unwrap()).collect::<Vec<_>>());
        // PostgreSQL came with version 12, whose file makes all tables at once.
        assert_eq!(postgres, sqlite[11..]);
    }
}
