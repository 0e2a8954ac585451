//! `cairn-server store …`

use std::time::Duration;

use cairn_array::store::{DeviceAddress, Store};
use clap::Subcommand;

use super::{
    client::{Client, Remote},
    job::{far, wait_for},
    output::{bytes, json, line, note, table},
};
use crate::{
    api::{job::Job, store::StoreDevice},
    db::job::JobState,
    scrub::Scrubbed,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a new or empty folder, or a bucket, a device of the store; from then on name it with `serve --store`, too
    AddDevice {
        /// A folder, or `s3://BUCKET/PREFIX`
        #[arg(value_name = "DIR-OR-URL")]
        device: DeviceAddress,
    },
    /// List the devices, and what they can still take
    List {
        #[command(flatten)]
        remote: Remote,
        #[arg(long)]
        json: bool,
    },
    /// Move segments between the devices now until they have about equal room; the server does it by itself within an hour
    Rebalance {
        #[command(flatten)]
        remote: Remote,
    },
    /// Read and check every segment of the store now, and bring back what is damaged
    Scrub {
        #[command(flatten)]
        remote: Remote,
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::AddDevice { device } => {
                Store::new(vec![device.create().await?])?.release().await;
                note(&format!(
                    "{device} is a device of a store: start the server with `--store {device}` beside those that it has"
                ))
            }
            Verb::List { remote, json: as_json } => {
                let devices: Vec<StoreDevice> = remote.connect()?.get("/api/v1/store").await?;
                if as_json {
                    return json(&devices);
                }
                let rows = devices.into_iter().map(|StoreDevice { device, free }| {
                    vec![device, free.map_or_else(|| "no limit known".to_owned(), bytes)]
                });
                table(&["DEVICE", "FREE"], rows.collect(), "the store has no device")
            }
            Verb::Rebalance { remote } => {
                let client = remote.connect()?;
                let job: Job = client.post_json("/api/v1/rebalance", &()).await?;
                wait_for(&client, job.id).await?;
                note("the devices have about equal room")
            }
            Verb::Scrub { remote, json: as_json } => {
                let client = remote.connect()?;
                let found = scrub(&client).await?;
                if as_json {
                    json(&found)?;
                } else {
                    line(&format!(
                        "{} segments are checked; {} were damaged or missing, {} of them are back",
                        found.checked, found.damaged, found.repaired
                    ))?;
                }
                anyhow::ensure!(
                    found.damaged == found.repaired,
                    "{} segments are lost: the server's log names them",
                    found.damaged - found.repaired
                );
                Ok(())
            }
        }
    }
}

/// Waits for a pass that began after this was called.
async fn scrub(client: &Client) -> anyhow::Result<Scrubbed> {
    let before: Scrubbed = client.post_json("/api/v1/scrub", &()).await?;
    let mut told = 0;
    loop {
        let now: Scrubbed = client.get("/api/v1/scrub").await?;
        if now.passes > before.passes {
            return Ok(now);
        }
        let jobs: Vec<Job> = client.get("/api/v1/jobs").await?;
        // The newest comes first.
        let job = jobs.into_iter().find(|job| job.kind == "scrub");
        if let Some(job) = &job
            && let (JobState::Failed, Some(error)) = (job.state, &job.error)
        {
            anyhow::bail!("the scrub failed: {error}");
        }
        let progress = job.and_then(|job| job.progress).unwrap_or_default();
        let percent = progress.done * 100 / progress.total.max(1);
        if percent >= told + 10 {
            told = percent;
            note(&far(&progress))?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
