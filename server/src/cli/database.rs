//! `cairn-server move`

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use super::output::line;
use crate::{
    config::default_database,
    db::{DatabaseAddress, Db, copy::CopyError},
    serve::{hand_back, lock},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is to be: an empty database, `postgres://USER@HOST/NAME` or `sqlite:PATH`, or one it was moved away from
    #[arg(long, value_name = "URL")]
    database: DatabaseAddress,
    /// Where it is now (default: SQLite in the data folder)
    #[arg(long, env = "CAIRN_DATABASE", hide_env_values = true, value_name = "URL")]
    from: Option<DatabaseAddress>,
    /// The site's folder; its server is stopped
    #[arg(long, env = "CAIRN_DATA_DIR", default_value = "./cairn-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { database: to, from, data_dir } = self;
        let from = from.unwrap_or_else(|| default_database(&data_dir));
        ensure!(from != to, "{to} is where the database is");
        if let DatabaseAddress::Sqlite(path) = &from {
            ensure!(path.exists(), "there is no database at {}: say --from", path.display());
        }
        let _lock = lock(&data_dir)?;
        let opening = |address: &DatabaseAddress| format!("open the database {address}");
        let old = Db::open(&from).await.with_context(|| opening(&from))?;
        if let Some(elsewhere) = old.moved().await.with_context(|| format!("read {from}"))? {
            bail!("{from} was moved to {elsewhere} before: say --from that");
        }
        let new = Db::open(&to).await.with_context(|| opening(&to))?;
        let rows = match old.copy_to(&new).await {
            Ok(rows) => rows,
            Err(CopyError::NotEmpty) => bail!("{to}: {}", CopyError::NotEmpty),
            Err(CopyError::Db(error)) => {
                return Err(error).with_context(|| format!("copy {from} to {to}"));
            }
        };
        new.close().await;
        // From here on there are two; the old one says so itself.
        old.note_moved(&to).await.with_context(|| format!("note in {from} that it was moved"))?;
        old.close().await;
        hand_back(&data_dir)?;
        line(&format!("{rows} rows are in {to}: start `cairn-server serve` with it as --database"))
    }
}
