//! `cairn-agent lend`: other terms from now on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{
    daemon,
    home::Home,
    lending::{Space, Terms},
    size,
};

/// A running agent looks at least once a second; what it gives up takes a moment more.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Keeps the terms and waits until a running agent has followed; what came of it, for people.
///
/// # Errors
/// When this agent has not joined, nothing could be lent by these terms, or the running agent does not follow.
pub async fn lend(home: &Home, terms: Terms) -> Result<String> {
    home.membership()?;
    let space = Space::of(home.folder()).context("look at the file system of the state folder")?;
    terms.check(space.total)?;
    home.keep_terms(&terms)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Some(status) = daemon::ask_status(&home.socket()).await? else {
            return Ok(format!(
                "lends {} from the next start on (`cairn-agent run`)\n",
                size::show(terms.lend.of(space.total))
            ));
        };
        if status.guest.terms == terms {
            return Ok(daemon::render_lending(&status));
        }
        if Instant::now() >= deadline {
            bail!("the terms are kept, but the running agent does not follow; see its log");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
