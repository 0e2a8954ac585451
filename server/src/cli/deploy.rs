//! `cairn-server deploy`

use std::time::Duration;

use anyhow::bail;
use cairn_array::{pace::Rate, size};
use cairn_core::units::ByteCount;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    client::{Client, Remote},
    output::{age, ago, bytes, json, line, note, or_dash, table},
};
use crate::{
    api::deployment::{Deployment, DeploymentRequest, Install},
    db::deployment::InstallState,
    deployments::is_over,
};

/// A machine that is silent for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    /// The image: NAME (its promoted version, else the newest) or NAME@N
    image: String,
    /// A machine by id, code, name, MAC or UUID (repeatable); one that waits now is approved by this
    #[arg(long = "machine", value_name = "MACHINE", required_unless_present = "groups")]
    machines: Vec<String>,
    /// All machines of a group (repeatable)
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Of the machines of groups only those that were not installed with this version last
    #[arg(long, requires = "groups")]
    drifted: bool,
    /// The disk to install to: serial:…, wwn:… or size:BYTES (default: the only one)
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// What the machine does when it is installed
    #[arg(long, value_name = "WHAT", default_value = "reboot", value_parser = ["reboot", "power-off"])]
    then: String,
    /// Wait until it is installed, or was not heard of for ten minutes
    #[arg(long)]
    wait: bool,
    /// Approve now whoever shows up as these machines until they are installed; a MAC can be forged, so only in closed nets
    #[arg(long)]
    preapprove: bool,
    /// Do not wait until other clients hold what the clients on these machines hold; images may be with the server alone for a while
    #[arg(long)]
    at_once: bool,
    /// Give disks that have none a partition of this size, like 50GiB, in which a client keeps its storage across installs
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    storage: Option<ByteCount>,
    /// What each machine receives at most, like 50Mbit/s; it can be changed while they are installed (`deployment limit`)
    #[arg(long, value_name = "RATE")]
    limit: Option<Rate>,
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let request = DeploymentRequest {
            image: self.image,
            machines: self.machines,
            groups: self.groups,
            drifted: self.drifted,
            disk: self.disk,
            then: Some(self.then),
            preapprove: self.preapprove,
            at_once: self.at_once,
            storage: self.storage.map(|size| size.0),
            rate_limit: self.limit.map(Rate::bytes),
        };
        let mut made: Deployment = client.post_json("/api/v1/deployments", &request).await?;
        for code in &made.approved_codes {
            note(&format!("approved the machine that shows code {code}"))?;
        }
        if made.approved_codes.is_empty() && !self.preapprove {
            note(
                "no machine of this deployment waits now: boot it from the network, then `machine approve CODE`",
            )?;
        }
        if self.wait {
            made = wait(&client, made).await?;
        }
        if self.json {
            json(&made)?;
        } else {
            if self.wait && made.installs.len() > 1 {
                verdicts(&made.installs)?;
            }
            line(&format!("deployment {} of {} is {}", made.id, made.image, made.state))?;
        }
        if !self.wait || made.state == InstallState::Done {
            return Ok(());
        }
        let failures = made.installs.iter().filter(|install| install.state != InstallState::Done);
        let said: Vec<_> = failures.map(failure).collect();
        bail!("{}", said.join("; "))
    }
}

/// What became of each machine.
fn verdicts(installs: &[Install]) -> anyhow::Result<()> {
    let row = |install: &Install| {
        let took = Duration::from_millis(install.milliseconds).as_secs();
        let took = (install.state == InstallState::Done).then(|| format!("{took} s"));
        let label = install.machine_label.clone();
        vec![label, install.state.to_string(), or_dash(took), or_dash(reason(install))]
    };
    table(&["MACHINE", "STATE", "TOOK", "WHY"], installs.iter().map(row).collect(), "no machines")
}

fn reason(install: &Install) -> Option<String> {
    let silent = || {
        Some(format!(
            "was last heard of {}: look at its screen",
            ago(install.silent_since.as_deref()?)
        ))
    };
    install.error.clone().or_else(silent)
}

fn failure(install: &Install) -> String {
    let why = reason(install).map(|why| format!(": {why}")).unwrap_or_default();
    format!("{} is {}{why}", install.machine_label, install.state)
}

async fn wait(client: &Client, made: Deployment) -> anyhow::Result<Deployment> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let path = format!("/api/v1/deployments/{}", made.id);
    loop {
        let now: Deployment = client.get(&path).await?;
        let over = now.installs.iter().all(|install| {
            is_over(install.state)
                || install.silent_since.as_deref().is_some_and(|since| age(since) > PATIENCE)
        });
        show(&bar, &now.installs);
        if over {
            bar.finish_and_clear();
            return Ok(now);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn show(bar: &ProgressBar, installs: &[Install]) {
    let sum = |pick: fn(&Install) -> u64| installs.iter().map(pick).sum::<u64>();
    bar.set_length(sum(|_| 100));
    bar.set_position(sum(|install| install.percent.into()));
    let phase = match installs {
        [one] => match &one.waits_for {
            Some(reason) => format!("waits: {reason}"),
            None => one.phase.clone().unwrap_or_else(|| one.state.to_string()),
        },
        many => {
            let done = many.iter().filter(|install| install.state == InstallState::Done).count();
            format!("{done} of {} installed", many.len())
        }
    };
    let pace = bytes(sum(|install| install.bytes_per_second));
    bar.set_message(format!("{phase} {pace}/s"));
}
