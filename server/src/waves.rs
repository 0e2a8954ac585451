//! Whose turn it is to be installed anew, when what its client holds goes with it.
//!
//! A machine that boots the installer runs no agent any more, and its disk is overwritten soon: from its ticket on, what the
//! client on it holds counts as lost, so that others take over its share. It gets the ticket when all images stay readable
//! from the clients without it ([`cairn_core::waves`]); the server's own copies are not counted, because the server may burn
//! in the meantime. A storage partition changes nothing of that: whether the agent keeps its state there is not known here. A
//! client that is heard of again after all is one that came back.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cairn_array::wire::SYNC_HOLD;
use cairn_core::{
    id::{AgentId, InstallId, SegmentId, StripeSetId},
    waves::unreadable_without,
};

use crate::{
    agents::SETTLE,
    api::{self, error::ApiError},
    app::App,
    db::{agent::AgentRow, deployment::InstallRow},
    events::Event,
    moment::Moment,
    scatter::{is_lost, present_map},
};

/// A target that has not asked for this long does not wait any more.
const SILENCE: Duration = Duration::from_secs(3 * SYNC_HOLD.as_secs());

/// Who waits for what. Forgotten by a restart: targets ask again.
#[derive(Debug, Default)]
pub(crate) struct Waves {
    /// One decision at a time: each must see that the one before has gone.
    deciding: tokio::sync::Mutex<()>,
    waiting: Mutex<HashMap<InstallId, (String, Instant)>>,
}

impl Waves {
    /// For what an install waits.
    pub(crate) fn reason(&self, install: InstallId) -> Option<String> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (reason, asked) = waiting.get(&install)?;
        (asked.elapsed() < SILENCE).then(|| reason.clone())
    }

    fn note(&self, install: InstallId, reason: Option<&String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (_, asked)| asked.elapsed() < SILENCE);
        match reason {
            Some(reason) => waiting.insert(install, (reason.clone(), Instant::now())),
            None => waiting.remove(&install),
        };
    }
}

/// Lets an install begin, unless it has to wait: then the reason.
///
/// # Errors
/// When the database fails.
pub(crate) async fn take_turn(app: &App, install: &InstallRow) -> Result<Option<String>, ApiError> {
    let deciding = app.waves.deciding.lock().await;
    let mut clients = app.db.agents_on_machine(install.machine).await?;
    clients.retain(|client| client.overwritten.is_none());
    let reason = match install.at_once {
        true => None,
        false => obstacle(app, &clients).await?,
    };
    app.waves.note(install.id, reason.as_ref());
    if reason.is_some() {
        return Ok(reason);
    }
    for client in &clients {
        app.db.note_overwritten(client.id, Moment::now()).await?;
        tracing::info!(agent = client.name, install = %install.id, "what a client holds is overwritten: others take over");
    }
    drop(deciding);
    if !clients.is_empty() {
        app.queue_scatter_of_all(SETTLE).await?;
    }
    for client in &clients {
        if let Some(row) = app.db.agent(client.id).await? {
            let view = api::agent::view(app, &row).await?;
            app.events.emit(Event::AgentChanged(Box::new(view))).await;
        }
    }
    Ok(None)
}

/// What could not be read any more without these clients.
async fn obstacle(app: &App, clients: &[AgentRow]) -> anyhow::Result<Option<String>> {
    if clients.is_empty() {
        return Ok(None);
    }
    let fleet = app.db.approved_agents().await.context("list agents")?;
    let alive: BTreeSet<AgentId> =
        fleet.iter().filter(|agent| !is_lost(agent)).map(|agent| agent.id).collect();
    let images = app.db.images().await.context("list images")?.into_iter();
    let volumes = app.db.volumes().await.context("list volumes")?.into_iter();
    let sets = images.map(|image| (StripeSetId::from(image.id), image.name));
    for (set, name) in sets.chain(volumes.map(|volume| (volume.id.into(), volume.name))) {
        let Some(map) = present_map(app, set).await? else { continue };
        let held = app.db.holders_of_set(set).await.context("list holders")?;
        let holds = |agent: AgentId, id: SegmentId| {
            alive.contains(&agent) && held.get(&id).is_some_and(|all| all.contains(&agent))
        };
        for client in clients {
            if unreadable_without(&map, holds, client.id).is_some() {
                return Ok(Some(format!(
                    "without client {} the clients could not read {name} any more; it goes on as soon as others hold its part",
                    client.name
                )));
            }
        }
    }
    Ok(None)
}
