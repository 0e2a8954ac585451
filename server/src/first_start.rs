//! What a new site needs before anybody uses it: an administrator's account and a first join token.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    agent_package::AgentPackage,
    api::{self, token::TokenRequest},
    db::{
        Db,
        account::{Role, Scope},
        token::TokenKind,
    },
    join_command::JoinCommands,
    moment::Moment,
    secret,
    site::{Site, secrets},
};

/// What the first start shows once.
#[derive(Clone, Debug)]
pub struct FirstStart {
    pub password: String,
    /// What to run on the first client.
    pub join: JoinCommands,
    pub recovery_file: PathBuf,
}

impl FirstStart {
    /// Shows it to people. Scripts read these lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn show(&self, url: &str, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "dashboard: {url}")?;
        writeln!(out, "sign in:   {} with password {}", api::session::ADMIN, self.password)?;
        writeln!(out, "join:      {}", self.join.fullest())?;
        writeln!(out, "recovery:  {}", self.recovery_file.display())?;
        writeln!(out, "           {}", secrets::RECOVERY_ADVICE)?;
        writeln!(out, "This is shown once.")
    }
}

/// Makes the administrator's account and the first join token when there is no account yet; `address` is where clients
/// reach the server.
pub(crate) async fn greet(
    (db, site, data_dir): (&Db, &Site, &Path),
    address: SocketAddr,
    package: &AgentPackage,
) -> anyhow::Result<Option<FirstStart>> {
    if db.has_an_account().await? {
        return Ok(None);
    }
    let password = secret::random_password()?;
    let kept = api::session::hash_password(&password)?;
    let request = TokenRequest {
        kind: TokenKind::Join,
        auto_approve: false,
        role: None,
        groups: Vec::new(),
        expires_in: None,
        note: "first start".to_owned(),
    };
    let issued = api::token::issue(db, site.fingerprint(), &request, &Scope::default()).await;
    let issued = issued.context("make a join token")?;
    let sha256 = package.sha256().await;
    db.add_account(api::session::ADMIN, &kept, Role::Admin, &Scope::default(), Moment::now())
        .await?;
    Ok(Some(FirstStart {
        password,
        join: JoinCommands::new(address, &issued.token, sha256.as_deref()),
        recovery_file: data_dir.join(secrets::RECOVERY_FILE),
    }))
}
