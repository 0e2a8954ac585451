//! `cairn-server user …`

use std::io::Read as _;

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::Method;

use super::{
    client::{Remote, part},
    output::{json, line, note, or_dash, table},
};
use crate::{
    api::{
        audit::AuditEntry,
        user::{ChangedUser, User, UserChange, UserRequest},
    },
    db::account::Role,
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
    /// Add a user; a password is made and shown once
    Add {
        name: String,
        /// admin, operator or viewer
        #[arg(long, default_value = "viewer", value_parser = role)]
        role: Role,
        /// Limit an operator to the machines of this group (repeatable)
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        #[command(flatten)]
        given: Given,
    },
    /// List users
    List {
        #[arg(long)]
        json: bool,
    },
    /// Give a user another role; his sessions end
    Role {
        name: String,
        #[arg(value_parser = role)]
        role: Role,
        /// Limit an operator to the machines of this group (repeatable); without it a limit that is there stays
        #[arg(long = "group", value_name = "GROUP", conflicts_with = "all_machines")]
        groups: Vec<String>,
        /// Limit an operator to no groups any more
        #[arg(long)]
        all_machines: bool,
    },
    /// Give a user another password, which is made and shown once; his sessions end
    Password {
        name: String,
        #[command(flatten)]
        given: Given,
    },
    /// Remove a user
    Remove { name: String },
    /// Show who asked for which change, the newest first
    Audit {
        /// So many entries
        #[arg(long, default_value_t = 50)]
        limit: u32,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Given {
    /// Read the password from standard input instead of making one
    #[arg(long)]
    password_stdin: bool,
}

impl Given {
    fn read(self) -> anyhow::Result<Option<String>> {
        if !self.password_stdin {
            return Ok(None);
        }
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read the password")?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

pub(super) fn role(word: &str) -> Result<Role, &'static str> {
    word.parse().map_err(|_| "say admin, operator or viewer")
}

fn path(name: &str) -> String {
    format!("/api/v1/users/{}", part(name))
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let change = async |name: &str, change: UserChange| {
            let request = client.request(Method::PATCH, &path(name)).json(&change);
            let answer = client.send(request).await?;
            answer.json::<ChangedUser>().await.context("read the server's answer")
        };
        match self.verb {
            Verb::Add { name, role, groups, given } => {
                let request = UserRequest { name, role, groups, password: given.read()? };
                show(&client.post_json("/api/v1/users", &request).await?)
            }
            Verb::List { json: as_json } => {
                let users: Vec<User> = client.get("/api/v1/users").await?;
                if as_json {
                    return json(&users);
                }
                let rows = users.into_iter();
                let rows = rows.map(|user| {
                    let groups = Some(user.groups.join(", ")).filter(|groups| !groups.is_empty());
                    vec![user.name, user.role.to_string(), or_dash(groups), user.created]
                });
                table(&["NAME", "ROLE", "GROUPS", "ADDED"], rows.collect(), "no users")
            }
            Verb::Role { name, role, groups, all_machines } => {
                let groups = (all_machines || !groups.is_empty()).then_some(groups);
                let wish = UserChange { role: Some(role), groups, ..UserChange::default() };
                show(&change(&name, wish).await?)
            }
            Verb::Password { name, given } => {
                let password = given.read()?;
                let new_password = password.is_none();
                show(
                    &change(&name, UserChange { password, new_password, ..UserChange::default() })
                        .await?,
                )
            }
            Verb::Remove { name } => {
                client.delete(&path(&name)).await?;
                note(&format!("{name} is gone"))
            }
            Verb::Audit { limit, json: as_json } => {
                let entries: Vec<AuditEntry> =
                    client.get(&format!("/api/v1/audit?limit={limit}")).await?;
                if as_json {
                    return json(&entries);
                }
                let row = |entry: AuditEntry| {
                    let what = format!("{} {}", entry.method, entry.path);
                    vec![entry.at, entry.actor, what, entry.status.to_string()]
                };
                let rows = entries.into_iter().map(row).collect();
                table(&["WHEN", "WHO", "WHAT", "STATUS"], rows, "nothing was asked for yet")
            }
        }
    }
}

fn show(user: &ChangedUser) -> anyhow::Result<()> {
    let groups = match user.groups.as_slice() {
        [] => String::new(),
        groups => format!(" of {}", groups.join(", ")),
    };
    note(&format!("{} is {}{groups}", user.name, user.role))?;
    match &user.password {
        Some(password) => line(password),
        None => Ok(()),
    }
}
