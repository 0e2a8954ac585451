//! `cairn-server token …`

use clap::Subcommand;

use super::{
    client::Remote,
    output::{self, json, line, or_dash, table},
};
use crate::{
    api::token::{NewTokenReply, Token, TokenRequest},
    db::{account::Role, token::TokenKind},
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
    /// Make a token; it is shown once
    Create {
        /// What it is good for
        #[arg(long, value_enum, default_value_t = Kind::Join)]
        kind: Kind,
        /// Whoever joins with it is approved at once
        #[arg(long)]
        auto_approve: bool,
        /// What an API token may do: admin, operator or viewer
        #[arg(long, value_parser = super::user::role)]
        role: Option<Role>,
        /// Limit an operator's token to the machines of this group (repeatable)
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// How long it is good, like 30m, 12h or 7d (default: a day for a join token, no end for an API token)
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        expires: Option<u64>,
        /// What it is for, shown in the list
        #[arg(long, default_value = "")]
        note: String,
        #[arg(long)]
        json: bool,
    },
    /// List tokens
    List {
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token
    Revoke { id: i64 },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    /// Lets one agent join
    Join,
    /// Lets a program use the API
    Api,
}

/// `90`, `90s`, `30m`, `12h` or `7d` in seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) =
        text.split_at(text.trim_end_matches(|sign: char| sign.is_ascii_alphabetic()).len());
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("a number with s, m, h or d behind it".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "a number with s, m, h or d behind it".to_owned())
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        match self.verb {
            Verb::Create { kind, auto_approve, role, groups, expires, note, json: as_json } => {
                let kind = match kind {
                    Kind::Join => TokenKind::Join,
                    Kind::Api => TokenKind::Api,
                };
                let request =
                    TokenRequest { kind, auto_approve, role, groups, expires_in: expires, note };
                let made: NewTokenReply = client.post_json("/api/v1/tokens", &request).await?;
                if as_json {
                    return json(&made);
                }
                line(made.command.as_ref().unwrap_or(&made.token))?;
                match &made.install_command {
                    Some(install) => output::note(&format!(
                        "On a Debian machine without the agent, as root:\n{install}"
                    )),
                    None => Ok(()),
                }
            }
            Verb::List { json: as_json } => {
                let tokens: Vec<Token> = client.get("/api/v1/tokens").await?;
                if as_json {
                    return json(&tokens);
                }
                let rows = tokens.into_iter().map(row).collect();
                table(
                    &["ID", "KIND", "ROLE", "STATE", "EXPIRES", "CREATED", "NOTE"],
                    rows,
                    "no tokens",
                )
            }
            Verb::Revoke { id } => client.delete(&format!("/api/v1/tokens/{id}")).await,
        }
    }
}

fn row(token: Token) -> Vec<String> {
    let state = if token.revoked.is_some() {
        "revoked"
    } else if token.used.is_some() {
        "used"
    } else {
        "open"
    };
    vec![
        token.id.to_string(),
        token.kind.to_string(),
        or_dash(token.role.map(|role| role.to_string())),
        state.to_owned(),
        or_dash(token.expires),
        token.created,
        or_dash(Some(token.note)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("30m"), Ok(1800));
        assert_eq!(seconds("7d"), Ok(604_800));
        for text in ["", "d", "-1s", "1y", "1.5h", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
