//! `cairn-server agent …`

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::{
    client::{Client, Remote},
    output::{ago, bytes, json, line, or_dash, short, table},
    token::seconds,
};
use crate::api::{
    agent::Agent,
    availability::{Availability, Day},
    grant::{GrantReply, GrantRequest},
    loss::Losses,
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
    /// List agents
    List {
        #[arg(long)]
        json: bool,
    },
    /// Approve agents: from now on they hold and serve segments
    Approve {
        /// By name, or by the start of their id
        #[arg(required_unless_present = "all")]
        agents: Vec<String>,
        /// All that are pending
        #[arg(long, conflicts_with = "agents")]
        all: bool,
    },
    /// Show how agents came and went, day by day
    Churn {
        #[arg(long)]
        json: bool,
    },
    /// Revoke an agent: its certificate is no longer accepted anywhere
    Revoke { agent: String },
    /// Let the operator of an agent read images while the server is away: writes a grant, for `cairn-agent … --grant FILE`
    Grant {
        /// By name, or by the start of its id
        agent: String,
        /// Image versions: NAME (the newest) or NAME@N
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// A file that is not there yet; keep it as secret as the images
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// How long it is good, like 12h or 30d (default: 30 days; a year at most)
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        expires: Option<u64>,
    },
    /// Forget an agent that was revoked or has left
    Forget { agent: String },
    /// Say what could be read if the server and these clients were gone; nothing is tried
    WhatIf {
        /// By name or the start of an id
        agents: Vec<String>,
        #[arg(long)]
        json: bool,
    },
}

/// The agent with this name or start of an id, when there is only one.
fn pick<'a>(agents: &'a [Agent], text: &str) -> anyhow::Result<&'a Agent> {
    let mut matching =
        agents.iter().filter(|agent| agent.name == text || agent.id.starts_with(text));
    match (matching.next(), matching.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            bail!("no agent is called {text} or has an id that starts so: `agent list` shows them")
        }
        (Some(_), Some(_)) => bail!("several agents match {text}: use more of the id"),
    }
}

/// How agents came and went, day by day.
async fn churn(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let known: Availability = client.get("/api/v1/availability").await?;
    if as_json {
        return json(&known);
    }
    let row = |day: Day| {
        let counts = [day.came, day.went, day.joined, day.gone];
        std::iter::once(day.date).chain(counts.map(|count| count.to_string())).collect()
    };
    let rows = known.days.into_iter().map(row).collect();
    table(&["DAY", "CAME", "WENT", "JOINED", "LEFT"], rows, "nothing is known of it")
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let agents: Vec<Agent> = client.get("/api/v1/agents").await?;
        match self.verb {
            Verb::List { json: true } => json(&agents),
            Verb::List { json: false } => {
                let header =
                    ["ID", "NAME", "STATE", "LEND", "HOLDS", "SEGMENTS", "ADDRESS", "SEEN"];
                table(
                    &header,
                    agents.into_iter().map(row).collect(),
                    "no agents: `token create` makes a join command",
                )
            }
            Verb::Approve { agents: names, all } => {
                let chosen: Vec<&Agent> = if all {
                    agents.iter().filter(|agent| agent.state == "pending").collect()
                } else {
                    names.iter().map(|name| pick(&agents, name)).collect::<anyhow::Result<_>>()?
                };
                for agent in chosen {
                    act(&client, agent, "approve").await?;
                }
                Ok(())
            }
            Verb::Churn { json: as_json } => churn(&client, as_json).await,
            Verb::Revoke { agent } => act(&client, pick(&agents, &agent)?, "revoke").await,
            Verb::Grant { agent, images, file, expires } => {
                grant(&client, pick(&agents, &agent)?, images, &file, expires).await
            }
            Verb::Forget { agent } => {
                client.delete(&format!("/api/v1/agents/{}", pick(&agents, &agent)?.id)).await
            }
            Verb::WhatIf { agents: names, json: as_json } => {
                let gone = names.iter().map(|name| Ok(pick(&agents, name)?.id.clone()));
                let gone = gone.collect::<anyhow::Result<Vec<_>>>()?.join(",");
                let path = format!("/api/v1/losses?clients={gone}");
                let losses: Losses = client.get(&path).await?;
                if as_json { json(&losses) } else { foresee(losses) }
            }
        }
    }
}

fn foresee(losses: Losses) -> anyhow::Result<()> {
    let images = losses.images.into_iter().map(|loss| ("image", loss));
    let volumes = losses.volumes.into_iter().map(|loss| ("volume", loss));
    let rows = images.chain(volumes).map(|(kind, loss)| {
        let verdict = match (loss.readable, loss.stripes) {
            (true, _) => "can be read".to_owned(),
            (false, 0) => "lost: no client holds any of it".to_owned(),
            (false, stripes) => format!("lost: {} of {stripes} stripes", loss.unreadable),
        };
        vec![kind.to_owned(), loss.name, verdict]
    });
    table(&["WHAT", "NAME", "THEN"], rows.collect(), "there is nothing to lose")?;
    line(&format!("clients that would be left: {}", losses.clients_left))
}

async fn act(client: &Client, agent: &Agent, verb: &str) -> anyhow::Result<()> {
    let agent: Agent = client.post(&format!("/api/v1/agents/{}/{verb}", agent.id)).await?;
    line(&format!("{} {} is {}", short(&agent.id), agent.name, agent.state))
}

async fn grant(
    client: &Client,
    agent: &Agent,
    images: Vec<String>,
    file: &Path,
    expires_in: Option<u64>,
) -> anyhow::Result<()> {
    // First, so that no grant is given that is then nowhere.
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("make {}", file.display()))?;
    let request = GrantRequest { images, expires_in };
    let path = format!("/api/v1/agents/{}/grants", agent.id);
    let given: anyhow::Result<GrantReply> = client.post_json(&path, &request).await;
    let written = given.and_then(|given| {
        to.write_all(given.grant.as_bytes()).context("write the grant")?;
        to.sync_all().context("write the grant")?;
        Ok(given)
    });
    match written {
        Ok(given) => line(&format!(
            "{} may be read by client {} until {}: bring {} there, then `cairn-agent images --grant FILE`",
            given.images.join(", "),
            agent.name,
            given.expires,
            file.display()
        )),
        Err(error) => {
            drop(std::fs::remove_file(file));
            Err(error)
        }
    }
}

fn row(agent: Agent) -> Vec<String> {
    let notes = agent.notes();
    let state = [agent.state].into_iter().chain(notes).collect::<Vec<_>>().join(", ");
    vec![
        short(&agent.id),
        agent.name,
        state,
        bytes(agent.lend),
        bytes(agent.segment_bytes),
        agent.segments.to_string(),
        or_dash(agent.address),
        agent.seen.map_or_else(|| "never".to_owned(), |seen| ago(&seen)),
    ]
}
