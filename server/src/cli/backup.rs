//! `cairn-server backup` and `cairn-server restore`

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use futures::StreamExt as _;
use reqwest::Method;
use tokio::io::AsyncWriteExt as _;

use super::{
    client::Remote,
    output::{line, note},
};
use crate::{
    backup::restore::{self, Options, Outcome},
    moment::Moment,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it is written; a file that is there is replaced once the new one is whole
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let response = client.send(client.request(Method::GET, "/api/v1/backup")).await?;
        let mut beside = self.file.as_os_str().to_owned();
        beside.push(".partial");
        let beside = PathBuf::from(beside);
        let written = match write(response, &beside).await {
            Ok(written) => written,
            Err(error) => {
                // What is there is of no use; that it cannot be removed is not the error to report.
                drop(tokio::fs::remove_file(&beside).await);
                return Err(error);
            }
        };
        put_in_place(&beside, &self.file)
            .with_context(|| format!("put {} in place", self.file.display()))?;
        note(&format!(
            "{}: {written} bytes, which the recovery key alone opens (`cairn-server restore`)",
            self.file.display()
        ))
    }
}

async fn write(response: reqwest::Response, path: &Path) -> anyhow::Result<u64> {
    let what = || format!("write {}", path.display());
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).await.with_context(what)?;
    let mut body = response.bytes_stream();
    let mut written = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("the backup broke off: the server's log says why")?;
        file.write_all(&chunk).await.with_context(what)?;
        written += chunk.len() as u64;
    }
    file.flush().await.with_context(what)?;
    file.sync_all().await.with_context(what)?;
    Ok(written)
}

fn put_in_place(beside: &Path, file: &Path) -> std::io::Result<()> {
    std::fs::rename(beside, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// `cairn-server restore`
pub(super) async fn restore(options: Options) -> anyhow::Result<()> {
    let Outcome { header, missing, segments, unusable } = restore::run(options).await?;
    for reason in &unusable {
        line(&format!("not usable:  {reason}"))?;
    }
    line(&format!(
        "This site is as it was at {}: start `cairn-server serve` with the same folder and store. Its clients find it. \
         Who joined since then must join again; who was revoked since then is a member: look at `cairn-server agent list`.",
        Moment(header.made).to_text()
    ))?;
    if missing > 0 {
        line(&format!(
            "{missing} of {segments} segments are not in the store: run `cairn-server store scrub` once clients are there, \
             which have them or their parity."
        ))?;
    }
    anyhow::ensure!(unusable.is_empty(), "{} volumes are not usable", unusable.len());
    Ok(())
}
