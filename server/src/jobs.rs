//! The worker that takes jobs from the database: a few at once, again after a failure, again after kill -9.
//!
//! Invariants: no job runs twice at once; a job that was cut short is begun again at the next start; every kind is
//! idempotent, so beginning again is safe.

use std::{sync::Mutex, time::Duration};

use anyhow::Context as _;
use tokio::{sync::Notify, task::JoinSet, time::Instant};

pub use crate::db::job::{JobProgress, Kind};
use crate::{
    app::App,
    db::{
        job::{Ended, JobRow},
        volume::VolumeLayout,
    },
    events::Event,
    moment::Moment,
};

/// Jobs that run at once: they share disks and network with everything else here. A scrub may be one of them for hours.
const AT_ONCE: usize = 3;
/// After this many failures in a row a job is given up.
const MAX_ATTEMPTS: u32 = 12;
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long a job runs before its pace says anything.
const LEAST_PACE: Duration = Duration::from_secs(2);
/// How often a job's progress is written down.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Wakes the worker.
#[derive(Debug, Default)]
pub struct Bell(Notify);

/// How long after its `attempts`-th failure a job is begun again: 1 s, doubled each time, at most five minutes.
fn pause_after(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    Duration::from_secs(1 << doublings).min(LONGEST_PAUSE)
}

/// What a running job tells of itself.
#[derive(Debug)]
pub struct JobHandle {
    app: App,
    id: i64,
    told: Mutex<Option<Instant>>,
    pace: Mutex<Option<Pace>>,
}

/// Where a job was when it first told, of how many.
#[derive(Clone, Copy, Debug)]
struct Pace {
    at: Instant,
    done: u64,
    total: u64,
}

impl Pace {
    /// Seconds until `done` is all, as fast as it went so far; none before that says anything.
    fn left(&self, done: u64, now: Instant) -> Option<u64> {
        let (took, came) = (now - self.at, done.checked_sub(self.done)?);
        let worth = came > 0 && took >= LEAST_PACE;
        let left = u128::from(self.total.saturating_sub(done));
        let milliseconds = worth.then(|| took.as_millis() * left / u128::from(came))?;
        u64::try_from(milliseconds.div_ceil(1000)).ok()
    }
}

impl JobHandle {
    /// Says how far the job is. Cheap to call often: about once a second it is passed on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn progress(&self, done: u64, total: u64, unit: &str) -> anyhow::Result<()> {
        let due = {
            let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let due = done == total || told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY);
            if due {
                *told = Some(Instant::now());
            }
            due
        };
        if due {
            let seconds_left = self.seconds_left(done, total);
            let progress = JobProgress { done, total, unit: unit.to_owned(), seconds_left };
            self.app.db.note_job_progress(self.id, &progress, Moment::now()).await?;
            self.app.events.emit(Event::JobProgress { id: self.id, progress }).await;
        }
        Ok(())
    }

    fn seconds_left(&self, done: u64, total: u64) -> Option<u64> {
        let now = Instant::now();
        let mut pace = self.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Another total is another piece of work.
        let fresh = Pace { at: now, done, total };
        let known = pace.filter(|pace| pace.total == total && pace.done <= done);
        known.unwrap_or_else(|| *pace.insert(fresh)).left(done, now)
    }
}

impl App {
    /// Queues work for now. Work that waits already is not queued twice.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn queue(&self, kind: Kind) -> crate::db::Result<()> {
        self.queue_after(kind, Duration::ZERO).await
    }

    /// Queues work for later; what happens often in a row (agents joining) then costs one run.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn queue_after(&self, kind: Kind, delay: Duration) -> crate::db::Result<()> {
        let now = Moment::now();
        self.db.queue_job(kind, now.plus(delay), now).await?;
        self.bell.0.notify_one();
        Ok(())
    }

    /// Queues [`Kind::Scatter`] for every image and volume, and the bundle: the fleet changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn queue_scatter_of_all(&self, delay: Duration) -> crate::db::Result<()> {
        for image in self.db.images().await? {
            self.queue_after(Kind::Scatter { set: image.id.into() }, delay).await?;
        }
        for volume in self.db.volumes().await? {
            if volume.layout != VolumeLayout::Server {
                self.queue_after(Kind::Scatter { set: volume.id.into() }, delay).await?;
            }
        }
        self.queue_after(Kind::Bundle, delay).await
    }
}

/// Takes jobs until the server stops. What runs then is dropped, and begun again at the next start.
pub(crate) async fn work(app: App) {
    let mut running = JoinSet::new();
    loop {
        let wake_at = match fill(&app, &mut running).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "take jobs");
                Some(Instant::now() + Duration::from_secs(5))
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => break,
            () = app.bell.0.notified() => {}
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a job panicked");
                }
            }
            () = sleep_until(wake_at) => {}
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Begins jobs while there is room; returns when to look again.
async fn fill(app: &App, running: &mut JoinSet<()>) -> anyhow::Result<Option<Instant>> {
    while running.len() < AT_ONCE {
        let Some(job) = app.db.claim_job(Moment::now()).await.context("claim a job")? else {
            let due = app.db.next_job_due().await.context("look for the next job")?;
            // A job that is due but was not claimed waits for its like to end: the end wakes us.
            return Ok(due
                .map(|due| due.since(Moment::now()))
                .filter(|wait| !wait.is_zero())
                .map(|wait| Instant::now() + wait));
        };
        running.spawn(run(app.clone(), job));
    }
    Ok(None)
}

async fn run(app: App, job: JobRow) {
    app.events.emit(Event::JobChanged { id: job.id, state: "running".to_owned() }).await;
    let handle =
        JobHandle { app: app.clone(), id: job.id, told: Mutex::new(None), pace: Mutex::new(None) };
    let done = match job.kind {
        Kind::Scatter { set } => crate::scatter::converge(&app, set, &handle).await,
        Kind::Scrub => crate::scrub::run(&app, &handle).await,
        Kind::Rebalance => crate::rebalance::run(&app, &handle).await,
        Kind::Bundle => crate::bundle::refresh(&app, &handle).await.map(|_| ()),
        Kind::RemoveVersion { version } => crate::removal::remove(&app, version, &handle).await,
    };
    let error = done.as_ref().err().map(|error| format!("{error:#}"));
    let now = Moment::now();
    let ended = match &error {
        None => Ended::Done,
        Some(error) if job.attempts < MAX_ATTEMPTS => {
            tracing::warn!(
                job = job.id,
                kind = job.kind.word(),
                error,
                "job failed, it is tried again"
            );
            Ended::Retry { error, due: now.plus(pause_after(job.attempts)) }
        }
        Some(error) => {
            tracing::error!(job = job.id, kind = job.kind.word(), error, "job given up");
            Ended::Failed { error }
        }
    };
    let state = match ended {
        Ended::Done => "done",
        Ended::Retry { .. } => "queued",
        Ended::Failed { .. } => "failed",
    };
    if let Err(error) = app.db.end_job(job.id, ended, now).await {
        tracing::error!(
            job = job.id,
            error = &error as &dyn std::error::Error,
            "write down a job's end"
        );
    }
    app.events.emit(Event::JobChanged { id: job.id, state: state.to_owned() }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_pace_so_far() {
        let at = Instant::now();
        let pace = Pace { at, done: 10, total: 110 };
        let after = |seconds| at + Duration::from_secs(seconds);
        assert_eq!(pace.left(60, after(100)), Some(100));
        assert_eq!(pace.left(110, after(100)), Some(0));
        assert_eq!(pace.left(35, after(50)), Some(150));
        // Too early, and not begun.
        assert_eq!(pace.left(60, after(1)), None);
        assert_eq!(pace.left(10, after(100)), None);
    }

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let pauses: Vec<u64> = (1..=12).map(|attempts| pause_after(attempts).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(pause_after(0).as_secs(), 1);
    }
}
