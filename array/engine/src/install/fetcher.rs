//! Carries out what the scheduler of `cairn-core` decides: asks peers, keeps what a rebuild needs, rebuilds.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use cairn_core::{
    erasure::{ErasureError, Recipe},
    fetch::{
        self, Action, BadSource, Failure, JobId, Limits, Next, RebuildPlan, Source, Stuck, Ticket,
        Wanted,
    },
    id::{AgentId, SegmentId},
    manifest::SegmentEntry,
    stripe_map::{ShardPlace, StripeMap},
    units::ByteCount,
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use crate::{
    peer::{FetchError, PeerClient, TurnNumber},
    swarm::{Heard, Swarm},
    wire::Complaint,
};

/// Some segments can be had from nobody.
#[derive(Debug, thiserror::Error)]
#[error(
    "{stuck}: start more clients that hold this image, or the server, and run the install again"
)]
pub struct NoSource {
    pub stuck: Stuck,
}

/// Sealed bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    pub from_peers: ByteCount,
    pub from_server: ByteCount,
    pub rebuilt: ByteCount,
}

/// Gets segments of an image from the members of a site.
#[derive(Debug)]
pub struct Fetcher {
    peers: PeerClient,
    maps: Vec<StripeMap>,
    members: Vec<AgentId>,
    /// Decides the order of equals, so that targets differ.
    seed: u64,
    limits: Limits,
    stats: Mutex<FetchStats>,
    swarm: Option<Arc<Swarm>>,
    bad: mpsc::Sender<Complaint>,
}

type Kept = HashMap<JobId, HashMap<SegmentId, Bytes>>;

enum Outcome {
    Turn { ticket: Ticket, from: Source, result: Result<TurnNumber, FetchError> },
    Fetched { ticket: Ticket, request: Request, result: Result<Bytes, FetchError> },
    Rebuilt { ticket: Ticket, result: Option<Vec<(SegmentEntry, Bytes)>> },
}

#[derive(Clone, Copy)]
struct Request {
    entry: SegmentEntry,
    from: Source,
    install: bool,
    keep: Option<JobId>,
}

impl Fetcher {
    /// Asks `members` as `maps` name them as holders, then the server. What sources do wrong is told through `bad`.
    #[must_use]
    pub fn new(
        peers: PeerClient,
        maps: Vec<StripeMap>,
        members: Vec<AgentId>,
        seed: u64,
        bad: mpsc::Sender<Complaint>,
    ) -> Self {
        let limits = Limits::default();
        Self { peers, maps, members, seed, limits, stats: Mutex::default(), swarm: None, bad }
    }

    /// The same, together with other targets.
    #[must_use]
    pub fn with_swarm(mut self, swarm: Arc<Swarm>) -> Self {
        self.swarm = Some(swarm);
        self
    }

    /// What this target has for others, when it installs together with them.
    pub(super) fn swarm(&self) -> Option<&Arc<Swarm>> {
        self.swarm.as_ref()
    }

    /// The same with other limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What came from where until now.
    #[must_use]
    pub fn stats(&self) -> FetchStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets all of `wanted` in whatever order suits, each handed out once through `out`, checked.
    ///
    /// # Errors
    /// [`NoSource`] when some can be had from nobody.
    pub async fn fetch_all(
        &self,
        wanted: &[SegmentEntry],
        out: mpsc::Sender<(SegmentEntry, Bytes)>,
    ) -> Result<(), NoSource> {
        let wanted: Vec<_> =
            wanted.iter().map(|entry| Wanted { id: entry.id, bytes: entry.bytes }).collect();
        let scheduler =
            fetch::Fetcher::new(&wanted, &self.maps, &self.members, true, self.limits, self.seed);
        Drive {
            fetcher: self,
            scheduler,
            flights: JoinSet::new(),
            aborts: HashMap::new(),
            turns: HashMap::new(),
            heard: Heard::default(),
            kept: Kept::new(),
            before: self.stats(),
            started: Instant::now(),
            out,
        }
        .run()
        .await
    }
}

/// One call of [`Fetcher::fetch_all`]. Dropping it aborts what is under way.
struct Drive<'a> {
    fetcher: &'a Fetcher,
    scheduler: fetch::Fetcher,
    flights: JoinSet<Outcome>,
    aborts: HashMap<Ticket, AbortHandle>,
    /// Turns that are granted and not used yet.
    turns: HashMap<Ticket, (Source, TurnNumber)>,
    heard: Heard,
    /// Sealed bytes kept for rebuilds; the scheduler bounds them.
    kept: Kept,
    before: FetchStats,
    started: Instant,
    out: mpsc::Sender<(SegmentEntry, Bytes)>,
}

impl Drive<'_> {
    async fn run(mut self) -> Result<(), NoSource> {
        let mut news = self.fetcher.swarm.as_ref().map(|swarm| swarm.neighbours().news());
        loop {
            if let Some(swarm) = &self.fetcher.swarm {
                swarm.neighbours().tell(&mut self.heard, &mut self.scheduler);
            }
            match self.scheduler.next(self.now_ms()) {
                Next::Act(action) => self.act(action),
                Next::Done => return Ok(()),
                Next::Stuck(stuck) => return Err(NoSource { stuck }),
                Next::Wait { until_ms } => {
                    let pause =
                        until_ms.map_or(u64::MAX, |until| until.saturating_sub(self.now_ms()));
                    let pause =
                        tokio::time::sleep(std::time::Duration::from_millis(pause.min(60_000)));
                    let outcome = tokio::select! {
                        Some(outcome) = self.flights.join_next() => outcome.ok(),
                        () = pause => None,
                        () = changed(news.as_mut()) => None,
                    };
                    let Some(outcome) = outcome else { continue };
                    if self.take(outcome).await.is_err() {
                        // Nobody takes segments any more: whoever stopped knows why.
                        return Ok(());
                    }
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Ask { ticket, from } => {
                let peers = self.fetcher.peers.clone();
                self.fly(ticket, async move {
                    Outcome::Turn { ticket, from, result: peers.turn(from).await }
                });
            }
            Action::Pass { turn } => {
                if let Some((from, number)) = self.turns.remove(&turn) {
                    self.pass(from, number);
                }
            }
            Action::Fetch { ticket, turn, segment, bytes, from, install, keep } => {
                let request =
                    Request { entry: SegmentEntry { id: segment, bytes }, from, install, keep };
                let turn = turn.and_then(|turn| self.turns.remove(&turn)).map(|(_, number)| number);
                let peers = self.fetcher.peers.clone();
                self.fly(ticket, async move {
                    let result = peers.fetch(from, segment, bytes, turn).await;
                    Outcome::Fetched { ticket, request, result }
                });
            }
            Action::Cancel { ticket } => {
                if let Some(flight) = self.aborts.remove(&ticket) {
                    flight.abort();
                }
            }
            Action::Rebuild { ticket, plan } => {
                let kept = self.kept.remove(&plan.job).unwrap_or_default();
                self.flights.spawn_blocking(move || Outcome::Rebuilt {
                    ticket,
                    result: rebuild(&plan, &kept),
                });
            }
            Action::Forget { job } => {
                self.kept.remove(&job);
            }
        }
    }

    fn fly(&mut self, ticket: Ticket, flight: impl Future<Output = Outcome> + Send + 'static) {
        let abort = self.flights.spawn(flight);
        self.aborts.insert(ticket, abort);
    }

    /// Gives a turn back, whatever becomes of this install meanwhile.
    fn pass(&self, from: Source, turn: TurnNumber) {
        let peers = self.fetcher.peers.clone();
        tokio::spawn(async move { peers.pass(from, turn).await });
    }

    /// Passes a segment on to other targets.
    fn share(&self, entry: SegmentEntry, bytes: &Bytes) {
        if let Some(swarm) = &self.fetcher.swarm {
            swarm.shelf().put(entry.id, bytes.clone());
        }
    }

    /// Err when `out` is closed.
    async fn take(
        &mut self,
        outcome: Outcome,
    ) -> Result<(), mpsc::error::SendError<(SegmentEntry, Bytes)>> {
        let now = self.now_ms();
        match outcome {
            Outcome::Turn { ticket, from, result: Ok(number) } => {
                self.aborts.remove(&ticket);
                if self.scheduler.on_done(ticket, now) {
                    self.turns.insert(ticket, (from, number));
                } else {
                    self.pass(from, number);
                }
            }
            Outcome::Turn { ticket, from, result: Err(error) } => {
                tracing::debug!(%from, %error, "ask for a turn");
                self.aborts.remove(&ticket);
                self.scheduler.on_failed(ticket, failure(&error), now);
            }
            Outcome::Fetched { ticket, request, result: Ok(bytes) } => {
                self.aborts.remove(&ticket);
                if !self.scheduler.on_done(ticket, now) {
                    // The other source was faster.
                    return Ok(());
                }
                if let Some(job) = request.keep {
                    self.kept.entry(job).or_default().insert(request.entry.id, bytes.clone());
                }
                self.count();
                self.report();
                self.share(request.entry, &bytes);
                if request.install {
                    self.out.send((request.entry, bytes)).await?;
                }
            }
            Outcome::Fetched { ticket, request, result: Err(error) } => {
                tracing::debug!(segment = %request.entry.id, from = %request.from, %error, "fetch a segment");
                self.aborts.remove(&ticket);
                self.scheduler.on_failed(ticket, failure(&error), now);
                self.report();
            }
            Outcome::Rebuilt { ticket, result: Some(segments) } => {
                self.scheduler.on_done(ticket, now);
                self.count();
                for segment in segments {
                    self.share(segment.0, &segment.1);
                    self.out.send(segment).await?;
                }
            }
            Outcome::Rebuilt { ticket, result: None } => {
                self.scheduler.on_failed(ticket, Failure::Bad, now);
            }
        }
        Ok(())
    }

    fn count(&self) {
        let (before, progress) = (self.before, self.scheduler.progress());
        let mut stats = self.fetcher.stats.lock().unwrap_or_else(PoisonError::into_inner);
        *stats = FetchStats {
            from_peers: ByteCount(before.from_peers.0 + progress.from_peers),
            from_server: ByteCount(before.from_server.0 + progress.from_server),
            rebuilt: ByteCount(before.rebuilt.0 + progress.rebuilt),
        };
    }

    fn report(&mut self) {
        for BadSource { source, segment, fault } in self.scheduler.take_reports() {
            tracing::warn!(%segment, from = %source, ?fault, "a source did wrong; another is used");
            if self.fetcher.bad.try_send(Complaint { segment, source, fault }).is_err() {
                tracing::debug!("too many complaints wait; this one is dropped");
            }
        }
    }
}

/// Waits for news of neighbours; for ever without a swarm.
async fn changed(news: Option<&mut watch::Receiver<u64>>) {
    let gone = match news {
        Some(news) => news.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending().await
    }
}

const fn failure(error: &FetchError) -> Failure {
    match error {
        FetchError::Stalled => Failure::Timeout,
        FetchError::Unreachable(_) | FetchError::Refused(_) | FetchError::Broken(_) => {
            Failure::Refused
        }
        FetchError::Missing => Failure::Missing,
        FetchError::Busy => Failure::Busy,
        FetchError::Elsewhere => Failure::Elsewhere,
        FetchError::Bad => Failure::Bad,
    }
}

/// The missing segments of a stripe; none when what was kept gives other bytes than their ids name.
fn rebuild(
    plan: &RebuildPlan,
    kept: &HashMap<SegmentId, Bytes>,
) -> Option<Vec<(SegmentEntry, Bytes)>> {
    let result = compute(plan, kept);
    let segments = result
        .inspect_err(|error| {
            tracing::error!(error = error as &dyn std::error::Error, "rebuild a stripe")
        })
        .ok()?;
    let right = segments.iter().all(|(entry, bytes)| SegmentId::of(bytes) == entry.id);
    right.then_some(segments)
}

fn compute(
    plan: &RebuildPlan,
    kept: &HashMap<SegmentId, Bytes>,
) -> Result<Vec<(SegmentEntry, Bytes)>, ErasureError> {
    let by_place: HashMap<ShardPlace, &Bytes> =
        plan.sources.iter().filter_map(|(place, id)| Some((*place, kept.get(id)?))).collect();
    let present: Vec<_> = by_place.keys().copied().collect();
    let wanted: Vec<_> = plan.wanted.iter().map(|(place, ..)| *place).collect();
    let recipe = Recipe::new(plan.k, plan.data, &present, &wanted)?;
    let sources: Vec<&[u8]> = recipe
        .sources()
        .iter()
        .filter_map(|place| by_place.get(place).map(|bytes| &bytes[..]))
        .collect();
    let lengths: Vec<_> = plan.wanted.iter().map(|(.., bytes)| *bytes as usize).collect();
    let shards = recipe.whole(&sources, &lengths)?;
    let entries = plan.wanted.iter().map(|(_, id, bytes)| SegmentEntry { id: *id, bytes: *bytes });
    Ok(entries.zip(shards.into_iter().map(Bytes::from)).collect())
}
