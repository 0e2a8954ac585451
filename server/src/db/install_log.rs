//! What happened in installs, in words.

use cairn_core::id::{InstallId, MachineId};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, Result};
use crate::moment::Moment;

/// Of one install: what comes after is not kept.
const MOST: i64 = 200;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    pub(crate) install: InstallId,
    pub(crate) at: Moment,
    pub(crate) text: String,
}

fn line(row: &AnyRow) -> Result<LogLine> {
    Ok(LogLine {
        install: InstallId(row.id("install")?),
        at: row.moment("at")?,
        text: row.text("text")?,
    })
}

impl Db {
    /// Adds a line, unless the last one says the same.
    pub(crate) async fn log_install(
        &self,
        install: InstallId,
        at: Moment,
        text: &str,
    ) -> Result<()> {
        let add = sqlx::query(
            "INSERT INTO install_log (install, line, at, text)
             SELECT id, (SELECT coalesce(max(install_log.line), 0) + 1 FROM install_log WHERE install_log.install = install.id), $2, $3
             FROM install WHERE id = $1
               AND (SELECT count(*) FROM install_log WHERE install_log.install = install.id) < $4
               AND coalesce((SELECT install_log.text FROM install_log WHERE install_log.install = install.id
                 ORDER BY line DESC LIMIT 1), '') <> $3",
        );
        self.run(add.bind(install.as_bytes().to_vec()).bind(at.0).bind(text).bind(MOST)).await?;
        Ok(())
    }

    /// The lines of an install, in order.
    pub(crate) async fn install_log(&self, install: InstallId) -> Result<Vec<LogLine>> {
        let rows = sqlx::query("SELECT * FROM install_log WHERE install = $1 ORDER BY line")
            .bind(install.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(line).collect()
    }

    /// Those of all installs of a machine.
    pub(crate) async fn install_logs_of(&self, machine: MachineId) -> Result<Vec<LogLine>> {
        let rows = sqlx::query(
            "SELECT install_log.* FROM install_log JOIN install ON install.id = install_log.install
             WHERE install.machine = $1 ORDER BY install_log.install, line",
        )
        .bind(machine.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(line).collect()
    }
}
