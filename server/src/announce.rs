//! Tells clients where this server is when they do not find it by themselves: it has another address than the one they
//! joined, or was built anew.
//!
//! The signed directory says it, so a client needs to trust nothing else; it looks there when the server does not answer
//! where it used to.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use cairn_array::tls::{self, Member, Papers, Trust, url};
use cairn_core::id::AgentId;
use futures::{StreamExt as _, stream};

use crate::{app::App, moment::Moment};

/// Whoever finds the server by himself has done so by then.
const FIRST_PAUSE: Duration = Duration::from_secs(20);
const MOST_PAUSE: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients told at once.
const AT_ONCE: usize = 16;

/// Offers the directory to every client that has not spoken since the start, until all have or the server stops.
///
/// When this server has `moved`, nobody finds it by himself.
pub(crate) async fn run(app: App, papers: Papers, moved: bool) -> anyhow::Result<()> {
    let started = Moment::now();
    let trust = Trust::Ca(papers.ca_pem.clone());
    let client = tls::client(&trust, Some(&papers), Arc::clone(&app.names))?;
    let mut pause = if moved { Duration::ZERO } else { FIRST_PAUSE };
    loop {
        if app.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
        pause = (pause * 2).clamp(FIRST_PAUSE, MOST_PAUSE);
        let agents = app.db.approved_agents().await.context("list agents")?;
        let silent = agents.iter().filter(|agent| agent.address.is_some());
        let silent = silent.filter(|agent| agent.seen.is_none_or(|seen| seen < started));
        let silent: Vec<AgentId> = silent.map(|agent| agent.id).collect();
        if silent.is_empty() {
            return Ok(());
        }
        let signed = app.directory.signed();
        let offers = stream::iter(silent).map(|agent| {
            let call = client
                .post(url(&Member::Agent(agent), "/peer/v1/directory"))
                .timeout(PATIENCE)
                .body(signed.clone());
            async move { (agent, call.send().await.and_then(reqwest::Response::error_for_status)) }
        });
        let mut offers = offers.buffer_unordered(AT_ONCE);
        while let Some((agent, told)) = offers.next().await {
            match told {
                Ok(_) => tracing::info!(%agent, "a client was told where this server is"),
                Err(error) => tracing::debug!(%agent, %error, "a client was not told"),
            }
        }
    }
}
