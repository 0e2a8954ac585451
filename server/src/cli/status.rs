//! `cairn-server status`

use super::{
    client::Remote,
    output::{bytes, json, line, table},
};
use crate::api::status::Status;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let status: Status = self.remote.connect()?.get("/api/v1/status").await?;
        if self.json { json(&status) } else { show(&status) }
    }
}

fn show(status: &Status) -> anyhow::Result<()> {
    let agents = status.agents;
    line(&format!("server    {} (cairn {})", status.url, status.version))?;
    line(&format!(
        "agents    {} approved, {} of them online; {} pending",
        agents.approved, agents.online, agents.pending
    ))?;
    line(&format!("space     {} lent, {} used", bytes(status.lent), bytes(status.used)))?;
    line(&format!("stored    {} of segments", bytes(status.stored)))?;
    line(&format!(
        "installs  {} running, {} scheduled; {} machines wait for approval",
        status.installs_running, status.installs_scheduled, status.machines_waiting
    ))?;
    let jobs = status.jobs;
    line(&format!(
        "jobs      {} running, {} queued, {} failed",
        jobs.running, jobs.queued, jobs.failed
    ))?;
    let bundle = status.bundle;
    let dark = match (bundle.clients, bundle.published) {
        (0, _) => "no client could: none holds boot files and manifests yet".to_owned(),
        (clients, true) => format!(
            "{clients} clients could (`cairn-agent stand-in`), {} of boot files and manifests",
            bytes(bundle.bytes)
        ),
        (_, false) => "clients are fetching new boot files and manifests".to_owned(),
    };
    line(&format!("stand in  {dark}"))?;
    let kernel = status.boot_kernel.as_deref().unwrap_or("no payload yet: run `boot build`");
    line(&format!("boot      {kernel}"))?;
    let row = |image: &crate::api::image::Image| {
        let scatter = image.scatter;
        vec![
            image.name.clone(),
            image.versions.len().to_string(),
            format!("{} of {}", scatter.held, scatter.wanted),
            image.redundancy.clone().unwrap_or_else(|| "not placed yet".to_owned()),
        ]
    };
    let rows = status.images.iter().map(row).collect();
    table(
        &["IMAGE", "VERSIONS", "IN PLACE", "SURVIVES THE LOSS OF"],
        rows,
        "no images: `image add FILE --name NAME`",
    )
}
