//! `cairn-agent leave`: a client ends its membership and gives its disk space back.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use cairn_array::tls::{self, NameTable, Trust};

use crate::{
    home::{Home, Lock, Membership},
    link::ServerLink,
};

/// A running agent ends by itself once the server has noted the leave.
const END_PATIENCE: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A link to the server with this member's papers.
///
/// # Errors
/// When the papers cannot be read.
pub fn member_link(home: &Home, membership: &Membership) -> Result<ServerLink> {
    let papers = home.papers()?;
    let names = Arc::new(NameTable::default());
    membership.server.announce(&names);
    let client = tls::client(&Trust::Ca(papers.ca_pem.clone()), Some(&papers), names)?;
    Ok(ServerLink::new(client))
}

/// Tells the server, waits for a running agent to end, removes everything. With `force` the server need not know:
/// it will take the client for lost.
///
/// # Errors
/// When the server cannot be told, or the running agent does not end.
pub async fn leave(home: &Home, force: bool) -> Result<()> {
    let told = tell(home).await;
    if let Err(error) = told {
        if !force {
            return Err(error.context(
                "leave the site; when the server is gone for good, `cairn-agent leave --force` leaves without it",
            ));
        }
        tracing::warn!(error = format!("{error:#}"), "leaving without the server's knowledge");
    }
    let Some(_lock) = wait_for_lock(home).await? else {
        bail!("the running cairn-agent did not end; stop it, then run `cairn-agent leave --force`");
    };
    home.clear().context("remove the agent's state")
}

async fn tell(home: &Home) -> Result<()> {
    let membership = home.membership()?;
    let link = member_link(home, &membership)?;
    match link.tell("/agent/v1/leave", &()).await {
        // Dismissed before: nothing is left to tell.
        Err(error) if error.dismissal().is_some() => Ok(()),
        told => Ok(told?),
    }
}

async fn wait_for_lock(home: &Home) -> Result<Option<Lock>> {
    let deadline = tokio::time::Instant::now() + END_PATIENCE;
    loop {
        if let Some(lock) = home.lock()? {
            return Ok(Some(lock));
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
