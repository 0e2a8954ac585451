//! `cairn-server group …`

use clap::Subcommand;

use super::{
    client::{Remote, part},
    output::{json, line, or_dash, table},
};
use crate::api::{
    group::{Group, GroupImage, GroupMachines, GroupRequest},
    machine::Machine,
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
    /// Make a group of machines
    Create {
        name: String,
        /// What its machines are to run: machines that do not are shown as drifted
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// List groups
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a group with its machines
    Show {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Put machines into a group
    Add {
        name: String,
        /// By id, code, name, MAC or UUID
        #[arg(required = true)]
        machines: Vec<String>,
    },
    /// Take machines out of a group
    Remove {
        name: String,
        #[arg(required = true)]
        machines: Vec<String>,
    },
    /// Say what the machines of a group are to run
    Image {
        name: String,
        #[arg(required_unless_present = "none")]
        image: Option<String>,
        /// Nothing is said about that any more
        #[arg(long, conflicts_with = "image")]
        none: bool,
    },
    /// Delete a group; its machines stay
    Delete { name: String },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let path = |name: &str| format!("/api/v1/groups/{}", part(name));
        match self.verb {
            Verb::Create { name, image } => {
                let request = GroupRequest { name, image };
                let group: Group = client.post_json("/api/v1/groups", &request).await?;
                say(&group)
            }
            Verb::List { json: as_json } => {
                let groups: Vec<Group> = client.get("/api/v1/groups").await?;
                if as_json {
                    return json(&groups);
                }
                let rows = groups.into_iter().map(|group| {
                    vec![group.name, group.machines.to_string(), or_dash(group.wanted)]
                });
                let none = "no groups: `group create NAME`";
                table(&["NAME", "MACHINES", "IS TO RUN"], rows.collect(), none)
            }
            Verb::Show { name, json: as_json } => {
                let group: Group = client.get(&path(&name)).await?;
                if as_json {
                    return json(&group);
                }
                say(&group)?;
                let machines: Vec<Machine> = client.get("/api/v1/machines").await?;
                let members =
                    machines.into_iter().filter(|machine| machine.groups.contains(&group.name));
                let rows = members.map(|machine| {
                    let drift = machine.has_drifted().then(|| "drifted".to_owned());
                    let label = machine.name.or_else(|| machine.macs.into_iter().next());
                    let label = label.unwrap_or(machine.id);
                    vec![label, machine.state, or_dash(machine.installed), or_dash(drift)]
                });
                table(&["MACHINE", "STATE", "INSTALLED", ""], rows.collect(), "no machines")
            }
            Verb::Add { name, machines } => {
                let path = format!("{}/machines", path(&name));
                let group: Group = client.post_json(&path, &GroupMachines { machines }).await?;
                say(&group)
            }
            Verb::Remove { name, machines } => {
                for machine in &machines {
                    let path = format!("{}/machines/{}", path(&name), part(machine));
                    client.delete_for::<Group>(&path).await?;
                }
                say(&client.get(&path(&name)).await?)
            }
            Verb::Image { name, image, none: _ } => {
                let path = format!("{}/image", path(&name));
                let group: Group = client.put_json(&path, &GroupImage { image }).await?;
                say(&group)
            }
            Verb::Delete { name } => client.delete(&path(&name)).await,
        }
    }
}

fn say(group: &Group) -> anyhow::Result<()> {
    let machines = if group.machines == 1 { "machine" } else { "machines" };
    let wanted = match &group.wanted {
        Some(wanted) => format!(", to run {wanted}"),
        None => String::new(),
    };
    line(&format!("{}: {} {machines}{wanted}", group.name, group.machines))
}
