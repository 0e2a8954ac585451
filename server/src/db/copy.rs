//! A database as a copy of another, of either kind: for backups, and to move a site.
//!
//! The schemas are one but for the words of their types, so rows go over as they are: a truth becomes a number or a number a
//! truth, as the target's column says.

use futures::TryStreamExt as _;
use sqlx::{
    Any, Column as _, Executor as _, Row as _, Statement as _,
    any::{AnyArguments, AnyRow, AnyTypeInfoKind},
    query::Query,
};

use super::{
    BATCH, Columns as _, Db, DbError, Flag, Result, places,
    pool::{Kind, Transaction},
    sql,
};

/// All tables; each after those that it refers to, but for volumes and snapshots, which refer to each other.
pub(super) const TABLES: [&str; 39] = [
    "setting",
    "account",
    "session",
    "token",
    "event",
    "audit",
    "once",
    "webhook",
    "job",
    "image",
    "version",
    "promotion",
    "machine_group",
    "volume",
    "snapshot",
    "known_root",
    "journal_home",
    "stripe_set",
    "segment",
    "version_segment",
    "stripe_map",
    "agent",
    "tail_holder",
    "assignment",
    "holding",
    "recheck",
    "availability",
    "churn",
    "link",
    "machine",
    "machine_mac",
    "group_member",
    "deployment",
    "install",
    "install_log",
    "target",
    "bundle",
    "bundle_segment",
    "bundle_holding",
];
/// Tables whose rows are numbered by the database. A number is not given twice, whatever was deleted.
const NUMBERED: [&str; 7] = ["account", "token", "audit", "webhook", "job", "deployment", "bundle"];
/// The setting that says where a database was moved to.
const MOVED: &str = "moved";

/// Why a database is not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("it has a site already: give a database that is empty")]
    NotEmpty,
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for CopyError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Db {
    /// Copies everything as it is at one moment into a database that is empty, or was moved away; others read and write
    /// meanwhile. All of it or nothing. Returns the number of rows.
    pub(crate) async fn copy_to(&self, to: &Self) -> Result<u64, CopyError> {
        let mut reading = self.pool.begin().await?;
        let mut writing = to.write().await?;
        to.make_room(&mut writing).await?;
        let mut rows = 0;
        for table in TABLES {
            rows += copy_table(table, &mut reading, &mut writing).await?;
        }
        for table in NUMBERED {
            let last = last_number(self.kind, table, &mut reading).await?;
            go_on_after(to.kind, table, last, &mut writing).await?;
        }
        writing.commit().await?;
        Ok(rows)
    }

    /// Where this database was moved to, if it was.
    pub(crate) async fn moved(&self) -> Result<Option<String>> {
        let kept = self.setting(MOVED).await?;
        Ok(kept.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    /// Notes that the site is in another database now.
    pub(crate) async fn note_moved(&self, to: &super::DatabaseAddress) -> Result<()> {
        self.keep_setting(MOVED, to.to_string().as_bytes()).await
    }

    /// Takes what is in a database that was moved away out of it.
    async fn make_room(&self, writing: &mut Transaction) -> Result<(), CopyError> {
        writing
            .execute(match self.kind {
                Kind::Sqlite => "PRAGMA defer_foreign_keys = ON",
                Kind::Postgres => "SET CONSTRAINTS ALL DEFERRED",
            })
            .await?;
        let Flag(was_moved) =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM setting WHERE key = $1)")
                .bind(MOVED)
                .fetch_one(&mut **writing)
                .await?;
        for table in TABLES.iter().rev() {
            if was_moved {
                writing.execute(sql(format!("DELETE FROM {table}"))).await?;
            } else {
                let any = sql(format!("SELECT 1 FROM {table} LIMIT 1"));
                if writing.fetch_optional(any).await?.is_some() {
                    return Err(CopyError::NotEmpty);
                }
            }
        }
        Ok(())
    }
}

async fn copy_table(
    table: &str,
    reading: &mut Transaction,
    writing: &mut Transaction,
) -> Result<u64> {
    let columns = columns(table, writing).await?;
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(", ");
    let mut batch = Vec::with_capacity(BATCH);
    let mut copied = 0;
    let mut rows = sqlx::query(sql(format!("SELECT {names} FROM {table}"))).fetch(&mut **reading);
    loop {
        let row = rows.try_next().await?;
        let is_end = row.is_none();
        batch.extend(row);
        if batch.len() == BATCH || is_end && !batch.is_empty() {
            let places = places(0, batch.len(), columns.len());
            let text = format!("INSERT INTO {table} ({names}) VALUES {places}");
            let mut statement = sqlx::query(sql(text)).persistent(false);
            for row in &batch {
                for (index, (_, kind)) in columns.iter().enumerate() {
                    statement = bind(statement, row, index, *kind)?;
                }
            }
            copied += statement.execute(&mut **writing).await?.rows_affected();
            batch.clear();
        }
        if is_end {
            return Ok(copied);
        }
    }
}

/// The columns of a table, and what the database that is written keeps in them.
async fn columns(table: &str, writing: &mut Transaction) -> Result<Vec<(String, AnyTypeInfoKind)>> {
    let all = writing.prepare(sql(format!("SELECT * FROM {table}"))).await?;
    let columns = all.columns().iter();
    Ok(columns.map(|column| (column.name().to_owned(), column.type_info().kind())).collect())
}

fn bind<'q>(
    statement: Query<'q, Any, AnyArguments>,
    row: &AnyRow,
    index: usize,
    kind: AnyTypeInfoKind,
) -> Result<Query<'q, Any, AnyArguments>> {
    Ok(match kind {
        AnyTypeInfoKind::Bool => {
            statement.bind(row.try_get::<Option<Flag>, _>(index)?.map(|Flag(value)| value))
        }
        AnyTypeInfoKind::Text => statement.bind(row.try_get::<Option<String>, _>(index)?),
        AnyTypeInfoKind::Blob => statement.bind(row.try_get::<Option<Vec<u8>>, _>(index)?),
        _ => match row.try_get::<Option<bool>, _>(index) {
            Ok(truth) => statement.bind(truth.map(i64::from)),
            Err(_) => statement.bind(row.try_get::<Option<i64>, _>(index)?),
        },
    })
}

/// The last number that a row of this table was given.
async fn last_number(kind: Kind, table: &str, reading: &mut Transaction) -> Result<u64> {
    let text = match kind {
        Kind::Sqlite => format!(
            "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{table}'),
               (SELECT max(id) FROM {table}), 0) AS last"
        ),
        Kind::Postgres => format!(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM {table}_id_seq"
        ),
    };
    sqlx::query(sql(text)).fetch_one(&mut **reading).await?.number("last")
}

async fn go_on_after(kind: Kind, table: &str, last: u64, writing: &mut Transaction) -> Result<()> {
    if last == 0 {
        return Ok(());
    }
    let texts = match kind {
        Kind::Sqlite => vec![
            format!("DELETE FROM sqlite_sequence WHERE name = '{table}'"),
            format!("INSERT INTO sqlite_sequence (name, seq) VALUES ('{table}', {last})"),
        ],
        Kind::Postgres => vec![format!("SELECT setval('{table}_id_seq', {last})")],
    };
    for text in texts {
        writing.execute(sql(text)).await?;
    }
    Ok(())
}
