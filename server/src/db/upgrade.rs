//! Brings a database up to date, after a copy of it was kept.
//!
//! | database | copy before the first missing migration |
//! |---|---|
//! | SQLite | `backups/NAME-schema-NNNN.db` beside the file, 0600, written by `VACUUM INTO` and renamed when it is durable |
//! | PostgreSQL | the schema `cairn_schema_NNNN` of the same database, with every table, in one transaction |
//!
//! `NNNN` is the last migration that the copy has. A start that was cut short makes the copy again: until the first
//! migration is applied the database is still what it was.
//!
//! Invariant: a database of a newer program is never written to.

use std::{
    cmp::Ordering,
    fs::{self, DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use sqlx::{
    AnyConnection, AssertSqlSafe, Executor as _, Row as _,
    any::AnyConnectOptions,
    migrate::{Migrate as _, Migrator},
};

use super::{
    DatabaseAddress, DbError, Result, migrations,
    pool::{Kind, SQLITE_SESSION, connect},
};

const TABLE: &str = "_sqlx_migrations";

/// Applies the migrations that the database lacks.
///
/// # Errors
/// [`DbError::Newer`] when it has one that this program does not know; when the copy or a migration fails.
pub(super) async fn run(
    address: &DatabaseAddress,
    kind: Kind,
    options: &AnyConnectOptions,
) -> Result<()> {
    let mut connection = connect(options).await?;
    if kind == Kind::Sqlite {
        connection.execute(SQLITE_SESSION).await?;
    }
    let migrator = migrations::of(kind)?;
    let known = latest(&migrator);
    connection.ensure_migrations_table(TABLE).await?;
    let applied = connection.list_applied_migrations(TABLE).await?;
    if let Some(schema) = applied.iter().map(|migration| migration.version).max() {
        match schema.cmp(&known) {
            Ordering::Greater => return Err(DbError::Newer { schema, known }),
            Ordering::Equal => {}
            Ordering::Less => {
                let copy = keep_copy(address, schema, &mut connection).await?;
                tracing::info!(
                    "schema {schema} becomes {known}; the database as it was is in {copy}"
                );
            }
        }
    }
    migrator.run_direct(None, &mut connection, false).await?;
    sqlx::Connection::close(connection).await?;
    Ok(())
}

fn latest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Copies the database and returns the name of the copy, for people.
async fn keep_copy(
    address: &DatabaseAddress,
    schema: i64,
    connection: &mut AnyConnection,
) -> Result<String> {
    match address {
        DatabaseAddress::Sqlite(file) => {
            let copy = copy_path(file, schema);
            copy_file(&copy, connection).await?;
            Ok(copy.display().to_string())
        }
        DatabaseAddress::Postgres(_) => {
            let copy = format!("cairn_schema_{schema:04}");
            copy_tables(&copy, connection).await?;
            Ok(format!("the PostgreSQL schema {copy}"))
        }
    }
}

/// `backups/cairn-schema-0023.db` beside `cairn.db`.
fn copy_path(database: &Path, schema: i64) -> PathBuf {
    let stem = database.file_stem().unwrap_or_default().to_string_lossy();
    database.with_file_name("backups").join(format!("{stem}-schema-{schema:04}.db"))
}

async fn copy_file(copy: &Path, connection: &mut AnyConnection) -> Result<()> {
    let unfinished = copy.with_extension("new");
    prepare(&unfinished).map_err(sqlx::Error::Io)?;
    sqlx::query("VACUUM INTO $1")
        .bind(unfinished.to_string_lossy().into_owned())
        .execute(&mut *connection)
        .await?;
    publish(&unfinished, copy).map_err(sqlx::Error::Io)?;
    Ok(())
}

/// The folder, for the server's user alone, without what an earlier start left.
fn prepare(unfinished: &Path) -> std::io::Result<()> {
    let folder = unfinished.parent().unwrap_or(unfinished);
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn publish(unfinished: &Path, copy: &Path) -> std::io::Result<()> {
    fs::set_permissions(unfinished, Permissions::from_mode(0o600))?;
    File::open(unfinished)?.sync_all()?;
    fs::rename(unfinished, copy)?;
    File::open(copy.parent().unwrap_or(copy))?.sync_all()
}

async fn copy_tables(copy: &str, connection: &mut AnyConnection) -> Result<()> {
    let tables = sqlx::query(
        "SELECT tablename::text AS name FROM pg_tables WHERE schemaname = current_schema()",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut script = format!("BEGIN; DROP SCHEMA IF EXISTS {copy} CASCADE; CREATE SCHEMA {copy};");
    for table in tables {
        let table: String = table.try_get("name")?;
        let table = table.replace('"', "\"\"");
        script.push_str(&format!("CREATE TABLE {copy}.\"{table}\" AS TABLE \"{table}\";"));
    }
    script.push_str("COMMIT");
    connection.execute(AssertSqlSafe(script)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On SQLite, or beside a PostgreSQL server on that.
    #[tokio::test]
    async fn copy_has_every_row_and_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cairn.db");
        let address = match cairn_tests::postgres::fresh_database().unwrap() {
            Some(url) => url.parse().unwrap(),
            None => DatabaseAddress::Sqlite(file.clone()),
        };
        let db = super::super::Db::open(&address).await.unwrap();
        for name in ["office", "lab"] {
            db.begin_version(name, crate::db::image::ImageFormat::Raw, crate::moment::Moment(1))
                .await
                .unwrap();
            let mut connection = connect(&address.options().unwrap()).await.unwrap();
            keep_copy(&address, 7, &mut connection).await.unwrap();
        }
        let (copy, table) = match &address {
            DatabaseAddress::Sqlite(_) => (DatabaseAddress::Sqlite(copy_path(&file, 7)), "image"),
            DatabaseAddress::Postgres(_) => (address.clone(), "cairn_schema_0007.image"),
        };
        let mut connection = connect(&copy.options().unwrap()).await.unwrap();
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let images: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(images, 2);
    }

    #[test]
    fn copies_lie_beside_the_database() {
        let copy = copy_path(Path::new("/var/lib/cairn/cairn.db"), 23);
        assert_eq!(copy, Path::new("/var/lib/cairn/backups/cairn-schema-0023.db"));
    }
}
