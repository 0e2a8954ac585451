//! Has the agent's certificate renewed long before it ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use cairn_array::{
    tls::{AGENT_LIFE, LivePapers, csr_of, valid_until},
    wire::{RenewReply, RenewRequest},
};
use tokio_util::sync::CancellationToken;

use crate::{
    home::Home,
    link::{Patience, ServerLink},
};

/// How often it is looked whether it is time.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// When less than half of a certificate's life is left, so that a client may sleep for a year and be a member still.
fn is_due(until: i64, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let left = until.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
    left < i64::try_from(AGENT_LIFE.as_secs() / 2).unwrap_or(i64::MAX)
}

/// Looks again and again, until `stop`.
pub(super) async fn run(
    home: Home,
    link: ServerLink,
    shown: LivePapers,
    stop: CancellationToken,
) -> Result<()> {
    loop {
        // Without the server there is time: it is tried again.
        if let Err(error) = look(&home, &link, &shown).await {
            tracing::warn!("the certificate of this agent is not renewed yet: {error:#}");
        }
        if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return Ok(());
        }
    }
}

async fn look(home: &Home, link: &ServerLink, shown: &LivePapers) -> Result<()> {
    let mut papers = home.papers()?;
    if !is_due(valid_until(&papers.certificate_pem)?, SystemTime::now()) {
        return Ok(());
    }
    let request = RenewRequest { csr_pem: csr_of(&papers.key_pem)? };
    let reply: RenewReply = link
        .post("/agent/v1/renew", &request, Patience::Prompt)
        .await
        .context("ask the server for another certificate")?;
    papers.certificate_pem = reply.certificate_pem;
    // Shown first: what cannot be used is not kept.
    shown.replace(&papers)?;
    home.keep_certificate(&papers).context("keep the new certificate")?;
    tracing::info!("the certificate of this agent was renewed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_time_when_half_of_the_life_is_left() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let until = |left: u64| 1_800_000_000 + i64::try_from(left).unwrap();
        let half = AGENT_LIFE.as_secs() / 2;
        assert!(!is_due(until(half), now));
        assert!(is_due(until(half - 1), now) && is_due(until(0), now) && is_due(0, now));
    }
}
