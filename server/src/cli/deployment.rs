//! `cairn-server deployment …`

use anyhow::Context as _;
use cairn_array::pace::{Limit, Rate};
use clap::Subcommand;

use super::{
    client::{Client, Remote, part},
    output::{bytes, json, line, or_dash, table},
};
use crate::api::{
    deployment::{Deployment, Install},
    install_log::LogLine,
    machine::Machine,
    steer::RateLimit,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List deployments, newest first
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a deployment
    Show {
        id: i64,
        #[arg(long)]
        json: bool,
    },
    /// Cancel what is not over of a deployment
    Cancel {
        id: i64,
        /// Leave out this machine only, by name, MAC or id
        #[arg(long)]
        machine: Option<String>,
    },
    /// Have machines that did not begin wait; those that write go on
    Pause { id: i64 },
    /// Let a deployment that was paused go on
    Resume { id: i64 },
    /// Limit what each machine of a deployment receives; machines at work follow within seconds
    Limit {
        id: i64,
        /// Like 50Mbit/s or 10MB/s; `none`: as the site's limits say
        rate: Limit,
    },
    /// Show what happened on the machines of a deployment
    Log {
        id: i64,
        /// On this one only, by name, MAC or id
        #[arg(long)]
        machine: Option<String>,
    },
    /// Deploy anew to the machines on which it failed or was cancelled
    Retry { id: i64 },
}

/// What happened, machine by machine.
async fn log(client: &Client, id: i64, machine: Option<&str>) -> anyhow::Result<()> {
    let only = match machine {
        Some(name) => {
            let found: Machine = client.get(&format!("/api/v1/machines/{}", part(name))).await?;
            Some(found.id)
        }
        None => None,
    };
    let deployment: Deployment = client.get(&format!("/api/v1/deployments/{id}")).await?;
    let mut rows = Vec::new();
    for install in deployment.installs {
        if only.as_ref().is_some_and(|only| *only != install.machine) {
            continue;
        }
        let path = format!("/api/v1/installs/{}/log", install.id);
        for line in client.get::<Vec<LogLine>>(&path).await? {
            rows.push(vec![line.at, install.machine_label.clone(), line.text]);
        }
    }
    table(&["WHEN", "MACHINE", "WHAT"], rows, "nothing happened yet")
}

/// Cancels the install of one machine; the others of the deployment go on.
async fn leave_out(client: &Client, id: i64, machine: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/machines/{}", part(machine));
    let machine: Machine = client.get(&path).await?;
    let deployment: Deployment = client.get(&format!("/api/v1/deployments/{id}")).await?;
    let mut installs = deployment.installs.into_iter();
    let install = installs.find(|install| install.machine == machine.id);
    let install = install.context("this machine is not in this deployment")?;
    let path = format!("/api/v1/installs/{}/cancel", install.id);
    let install: Install = client.post(&path).await?;
    line(&format!("{} is left out", install.machine_label))
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        match self.verb {
            Verb::List { json: as_json } => {
                let deployments: Vec<Deployment> = client.get("/api/v1/deployments").await?;
                if as_json {
                    return json(&deployments);
                }
                let row = |deployment: Deployment| {
                    vec![
                        deployment.id.to_string(),
                        deployment.image,
                        deployment.state.to_string(),
                        deployment.installs.len().to_string(),
                        deployment.disk,
                        deployment.created,
                    ]
                };
                let rows = deployments.into_iter().map(row).collect();
                table(
                    &["ID", "IMAGE", "STATE", "MACHINES", "DISK", "CREATED"],
                    rows,
                    "no deployments",
                )
            }
            Verb::Show { id, json: as_json } => {
                let deployment: Deployment =
                    client.get(&format!("/api/v1/deployments/{id}")).await?;
                if as_json {
                    return json(&deployment);
                }
                let header =
                    ["MACHINE", "STATE", "PHASE", "PEERS", "SERVER", "REBUILT", "WRITTEN", "ERROR"];
                table(&header, deployment.installs.into_iter().map(row).collect(), "no installs")
            }
            Verb::Cancel { id, machine: Some(machine) } => leave_out(&client, id, &machine).await,
            Verb::Cancel { id, machine: None } => {
                let deployment: Deployment =
                    client.post(&format!("/api/v1/deployments/{id}/cancel")).await?;
                line(&format!("deployment {} is {}", deployment.id, deployment.state))
            }
            Verb::Pause { id } => {
                let _paused: Deployment =
                    client.post(&format!("/api/v1/deployments/{id}/pause")).await?;
                line(&format!("deployment {id} is paused: machines that did not begin wait"))
            }
            Verb::Resume { id } => {
                let _resumed: Deployment =
                    client.post(&format!("/api/v1/deployments/{id}/resume")).await?;
                line(&format!("deployment {id} goes on"))
            }
            Verb::Limit { id, rate: Limit(rate) } => {
                let path = format!("/api/v1/deployments/{id}/rate-limit");
                let limit = RateLimit { rate_limit: rate.map(Rate::bytes) };
                let _limited: Deployment = client.put_json(&path, &limit).await?;
                let rate = rate.map_or("no limit of its own".to_owned(), |rate| rate.to_string());
                line(&format!("deployment {id}: {rate}"))
            }
            Verb::Log { id, machine } => log(&client, id, machine.as_deref()).await,
            Verb::Retry { id } => {
                let made: Deployment =
                    client.post(&format!("/api/v1/deployments/{id}/retry")).await?;
                let machines = made.installs.len();
                line(&format!("deployment {} of {}, machines: {machines}", made.id, made.image))
            }
        }
    }
}

fn row(install: Install) -> Vec<String> {
    vec![
        install.machine_label,
        install.state.to_string(),
        or_dash(install.phase),
        bytes(install.from_peers),
        bytes(install.from_server),
        bytes(install.rebuilt),
        bytes(install.written),
        or_dash(install.error),
    ]
}
