//! Volumes whose journal clients keep: who keeps it, and what they are sent.
//!
//! ```text
//!   for each such volume: lane ─► a client ─► all that the journal has for it, then what comes
//!                         lane ─► another
//! ```
//!
//! Invariants: the database names every client that may have the end of a journal before it has it, so that another server
//! knows whom to ask; a client counts only once it has all from the last root that clients know on; no client keeps a journal in
//! two lanes; a root counts as known once every client that is there has the bundle with it, and the directory that says so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use cairn_array::{
    peer::tails::SendError,
    volume::{Cut, DiskMedium, TailFeed},
};
use cairn_core::{
    bundle::{self, Item},
    id::{AgentId, Hasher, VolumeId},
    volume::{
        Durability,
        checkpoint::Root,
        tail::{Attempt, Misfit},
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::blocking;
use crate::{app::App, scatter::is_asleep};

/// Clients that keep a journal at once: one of them is enough for a flush to be answered.
const COPIES: usize = 2;
/// How often it is looked whether there are volumes to be mirrored that are not yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Until another client is tried.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A client that failed is tried again before others only after this.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// How often it is looked whether clients have heard of the newest directory.
const HEARD_AGAIN: Duration = Duration::from_millis(100);
/// How often it is looked whether a client can let go of what it keeps.
const LET_GO_EVERY: Duration = Duration::from_secs(10);

type Feed = TailFeed<DiskMedium>;

/// Who keeps a volume's journal, and who failed to.
#[derive(Debug, Default)]
struct Holders {
    busy: BTreeSet<AgentId>,
    /// Those who may have its end, and no lane any more.
    left: BTreeSet<AgentId>,
    failed: HashMap<AgentId, Instant>,
}

/// One client after the other, of the same volume.
#[derive(Clone)]
struct Lane {
    app: App,
    volume: VolumeId,
    feed: Feed,
    /// Of the last attempt that this controller made.
    attempts: Arc<AtomicU32>,
    holders: Arc<Mutex<Holders>>,
    /// One lane at a time changes what the database says: none is taken off that the other just noted.
    noting: Arc<tokio::sync::Mutex<()>>,
}

/// Mirrors the journals of all volumes that are to be, until the server stops.
pub(crate) async fn watch(app: App) {
    let mut running: BTreeMap<VolumeId, CancellationToken> = BTreeMap::new();
    // Kept for as long as the server runs: no attempt has the number of an earlier one.
    let mut numbers: HashMap<VolumeId, Arc<AtomicU32>> = HashMap::new();
    loop {
        running.retain(|_, ended| !ended.is_cancelled());
        for (volume, feed) in app.volumes.tail_feeds(|volume| running.contains_key(&volume)) {
            let attempts = Arc::clone(numbers.entry(volume).or_default());
            let left = match app.db.tail_holders(volume).await {
                Ok(left) => left.into_iter().collect(),
                Err(error) => {
                    tracing::error!(%volume, %error, "list who has a journal");
                    continue;
                }
            };
            running.insert(volume, feed.ended().clone());
            let holders = Arc::new(Mutex::new(Holders { left, ..Holders::default() }));
            let noting = Arc::default();
            let lane = Lane { app: app.clone(), volume, feed, attempts, holders, noting };
            for _ in 0..COPIES {
                app.tasks.spawn(lane.clone().run());
            }
        }
        if app.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            // What is waited for does not come any more, and nothing ends before nobody waits.
            app.volumes.tail_feeds(|_| false).iter().for_each(|(_, feed)| feed.end());
            return;
        }
    }
}

impl Lane {
    async fn run(mut self) {
        let (ended, stop) = (self.feed.ended().clone(), self.app.stop.clone());
        tokio::select! {
            () = ended.cancelled() => {}
            () = stop.cancelled() => {}
            () = self.serve() => {}
        }
    }

    async fn serve(&mut self) {
        loop {
            match self.choose().await {
                Ok(Some(client)) => {
                    let failed = self.keep_up(client).await;
                    let volume = self.volume;
                    let error =
                        failed.map_or_else(|error| format!("{error:#}"), |never| match never {});
                    tracing::warn!(%volume, %client, error, "a client keeps a journal no longer");
                    let mut holders = self.holders();
                    holders.busy.remove(&client);
                    holders.left.insert(client);
                    holders.failed.insert(client, Instant::now());
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(volume = %self.volume, error = format!("{error:#}"), "look for clients");
                }
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client that is there, and not taken by the other lane: the same ones for a volume as long as they do.
    async fn choose(&self) -> anyhow::Result<Option<AgentId>> {
        let app = &self.app;
        let mut fleet = app.db.approved_agents().await.context("list agents")?;
        fleet.retain(|agent| {
            agent.address.is_some()
                && !is_asleep(agent)
                && !app.conditions.rests(agent.id)
                && !app.full_disks.is_full(agent)
        });
        let mut holders = self.holders();
        holders.failed.retain(|_, at| at.elapsed() < AVOIDED_FOR);
        let free = fleet.iter().map(|agent| agent.id).filter(|id| !holders.busy.contains(id));
        let chosen = free.min_by_key(|id| (holders.failed.get(id).copied(), self.rank(*id)));
        holders.busy.extend(chosen);
        Ok(chosen)
    }

    /// Another order of clients for each volume.
    fn rank(&self, client: AgentId) -> [u8; 32] {
        let mut hasher = Hasher::default();
        hasher.update(self.volume.as_bytes());
        hasher.update(client.as_bytes());
        hasher.finish()
    }

    /// Those who may have the journal's end, and no lane.
    fn left(&self) -> BTreeSet<AgentId> {
        let holders = self.holders();
        holders.left.difference(&holders.busy).copied().collect()
    }

    /// A client has all that was flushed since these were left: nothing is lost with them.
    async fn forget(&self, left: BTreeSet<AgentId>) -> anyhow::Result<()> {
        if left.is_empty() {
            return Ok(());
        }
        let _noting = self.noting.lock().await;
        for client in left.intersection(&self.left()) {
            self.app.db.remove_tail_holder(self.volume, *client).await?;
            self.holders().left.remove(client);
        }
        Ok(())
    }

    async fn note(&self, client: AgentId) -> anyhow::Result<()> {
        let _noting = self.noting.lock().await;
        let noted = self.app.db.add_tail_holder(self.volume, client).await;
        noted.context("note who has the journal")
    }

    fn next_attempt(&self) -> Attempt {
        let number = self.attempts.fetch_add(1, Ordering::AcqRel);
        Attempt { generation: self.app.volumes.generation, number }
    }

    /// Sends a client what there is, and then what comes, until that fails.
    async fn keep_up(&mut self, client: AgentId) -> anyhow::Result<std::convert::Infallible> {
        let peers = self.app.finder.peers().clone();
        let (mut attempt, mut at) = (self.next_attempt(), None);
        let mut counted = None;
        loop {
            let (feed, left) = (self.feed.clone(), self.left());
            match blocking(move || feed.cut(attempt, at)).await.context("read the journal")? {
                Cut::Piece { bytes, end } => {
                    if at.is_none() {
                        self.note(client).await?;
                    }
                    match peers.send_tail(client, self.volume, bytes).await {
                        Ok(()) => {
                            at = Some(end);
                            self.feed.keeps(end);
                        }
                        // It let go of what it had: its owner wanted the room.
                        Err(SendError::Misfit(Misfit::Gap)) if at.is_some() => {
                            (attempt, at, counted) = (self.next_attempt(), None, None);
                        }
                        Err(error) => return Err(error).context("the client"),
                    }
                }
                Cut::Freed => (attempt, at, counted) = (self.next_attempt(), None, None),
                Cut::Nothing { upto } => {
                    self.feed.keeps(upto);
                    counted.get_or_insert_with(|| self.feed.count());
                    self.forget(left).await.context("note who has the journal")?;
                    let more = tokio::time::timeout(LET_GO_EVERY, self.feed.more()).await;
                    if more.is_err() && at.is_some_and(|at| self.feed.needed() >= at) {
                        let gone = peers.forget_tail(client, self.volume, attempt).await;
                        gone.context("the client")?;
                        let noted = self.app.db.remove_tail_holder(self.volume, client).await;
                        noted.context("note who has the journal")?;
                        (attempt, at) = (self.next_attempt(), None);
                    }
                }
            }
        }
    }
}

/// Clients hold this bundle, which the directory names: once they have that, the journals need not keep what its roots cover.
pub(crate) async fn note_known(app: &App, bytes: &[u8]) -> anyhow::Result<()> {
    let verifier = app.site.verifying_key();
    let mut known = Vec::new();
    for item in bundle::decode(bytes).context("read the bundle")? {
        let Item::VolumeRoot(signed) = item else { continue };
        let volume = Root::open(&verifier, signed).context("read a root")?.volume;
        let is_mirrored = |open: super::Open| open.durability() == Durability::Mirrored;
        if app.volumes.by_id(volume).is_some_and(is_mirrored) {
            known.push((volume, signed));
        }
    }
    if known.is_empty() {
        return Ok(());
    }
    wait_until_heard(app).await?;
    // Nobody keeps a volume in use meanwhile.
    for (volume, signed) in known {
        let Some(open) = app.volumes.by_id(volume) else { continue };
        app.db.keep_known_root(volume, signed).await.context("note a root")?;
        open.clients_know(signed)?;
    }
    Ok(())
}

/// Waits until every client that is there has the directory as it is now: one with an older would read by an older root.
async fn wait_until_heard(app: &App) -> anyhow::Result<()> {
    let number = app.directory.number();
    loop {
        let fleet = app.db.approved_agents().await.context("list agents")?;
        let mut there = fleet.iter().filter(|agent| !is_asleep(agent));
        let has = |id| app.conditions.directory(id).is_some_and(|directory| directory >= number);
        if there.all(|agent| has(agent.id)) {
            return Ok(());
        }
        tokio::time::sleep(HEARD_AGAIN).await;
    }
}

/// Has clients let go of the journal of a volume that is removed. Who does not hear it keeps it in vain.
pub(super) async fn forget(app: &App, volume: VolumeId) -> anyhow::Result<()> {
    let last = Attempt { generation: app.volumes.generation, number: u32::MAX };
    let fleet = app.db.approved_agents().await.context("list agents")?;
    let there = fleet.iter().filter(|agent| agent.address.is_some() && !is_asleep(agent));
    let peers = app.finder.peers();
    let asks = there.map(|agent| async move {
        if let Err(error) = peers.forget_tail(agent.id, volume, last).await {
            tracing::debug!(%volume, client = %agent.id, %error, "let go of a journal");
        }
    });
    futures::future::join_all(asks).await;
    Ok(())
}
