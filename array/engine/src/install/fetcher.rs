//! Carries out what the scheduler of `cairn-core` decides: asks peers, keeps what a rebuild needs, rebuilds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
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
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    peer::{FetchError, PeerClient},
    wire::BadSegment,
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
    bad: mpsc::Sender<BadSegment>,
}

type Kept = HashMap<JobId, HashMap<SegmentId, Bytes>>;

enum Outcome {
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
    /// Asks `members` as `maps` name them as holders, then the server. Damaged segments are told through `bad`.
    #[must_use]
    pub fn new(
        peers: PeerClient,
        maps: Vec<StripeMap>,
        members: Vec<AgentId>,
        seed: u64,
        bad: mpsc::Sender<BadSegment>,
    ) -> Self {
        let limits = Limits::for_peers(members.len());
        Self { peers, maps, members, seed, limits, stats: Mutex::default(), bad }
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
    /// Sealed bytes kept for rebuilds; the scheduler bounds them.
    kept: Kept,
    before: FetchStats,
    started: Instant,
    out: mpsc::Sender<(SegmentEntry, Bytes)>,
}

impl Drive<'_> {
    async fn run(mut self) -> Result<(), NoSource> {
        loop {
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
            Action::Fetch { ticket, segment, bytes, from, install, keep } => {
                let request =
                    Request { entry: SegmentEntry { id: segment, bytes }, from, install, keep };
                let peers = self.fetcher.peers.clone();
                self.flights.spawn(async move {
                    let result = peers.fetch(from, segment, bytes).await;
                    Outcome::Fetched { ticket, request, result }
                });
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

    /// Err when `out` is closed.
    async fn take(
        &mut self,
        outcome: Outcome,
    ) -> Result<(), mpsc::error::SendError<(SegmentEntry, Bytes)>> {
        match outcome {
            Outcome::Fetched { ticket, request, result: Ok(bytes) } => {
                if let Some(job) = request.keep {
                    self.kept.entry(job).or_default().insert(request.entry.id, bytes.clone());
                }
                self.scheduler.on_done(ticket);
                self.count();
                if request.install {
                    self.out.send((request.entry, bytes)).await?;
                }
            }
            Outcome::Fetched { ticket, request, result: Err(error) } => {
                tracing::debug!(segment = %request.entry.id, from = %request.from, %error, "fetch a segment");
                let now = self.now_ms();
                self.scheduler.on_failed(ticket, failure(&error), now);
                self.report();
            }
            Outcome::Rebuilt { ticket, result: Some(segments) } => {
                self.scheduler.on_done(ticket);
                self.count();
                for segment in segments {
                    self.out.send(segment).await?;
                }
            }
            Outcome::Rebuilt { ticket, result: None } => {
                let now = self.now_ms();
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
        for BadSource { source, segment } in self.scheduler.take_reports() {
            let holder = match source {
                Source::Peer(agent) => Some(agent),
                Source::Server => None,
            };
            tracing::warn!(%segment, from = %source, "a source delivered a damaged segment; another is used");
            if self.fetcher.bad.try_send(BadSegment { segment, holder }).is_err() {
                tracing::debug!("too many reports of damaged segments wait; this one is dropped");
            }
        }
    }
}

const fn failure(error: &FetchError) -> Failure {
    match error {
        FetchError::Stalled => Failure::Timeout,
        FetchError::Unreachable(_) | FetchError::Refused(_) | FetchError::Broken(_) => {
            Failure::Refused
        }
        FetchError::Missing => Failure::Missing,
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
