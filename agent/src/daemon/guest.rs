//! The guest on somebody's disk: keeps the storage file as large as the owner has room for, and steps aside.
//!
//! ```text
//!   look ──► sizer ──► resize the DSF ──► worker (what was given up) and sync (what is lent now)
//!     │  ──► power ──► paused: nothing is fetched, scrubbed or served
//!     └────  ledger ─► spent: nothing is fetched until tomorrow
//! ```
//!
//! Shrinking asks nobody: the server hears of it afterwards and restores what is missing elsewhere. Tails of journals go first:
//! the server has what they have, and sends it to another client.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cairn_array::{
    dsf::{DsfHandle, ResizeError, SlotCount},
    peer::tails::Writable,
    tails::Tails,
};
use cairn_core::{
    id::SegmentId,
    units::{ByteCount, SEGMENT_MAX_BYTES},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    home::Home,
    lending::{Day, Decision, Held, Ledger, Medium, Sizer, Space, Terms, medium_of, on_battery},
    limits::RateLimits,
};

/// How often the terms and limits are read, which `cairn-agent lend` and `limit` may have changed.
const TERMS_EVERY: Duration = Duration::from_millis(500);
/// How often the mains are looked at.
const POWER_EVERY: Duration = Duration::from_secs(5);
/// How often the ledger is written down; a kill forgets what was written since.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// How the guest stands on its owner's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestStatus {
    pub terms: Terms,
    /// What the storage file takes at most as it is now.
    pub lent: ByteCount,
    pub space: Space,
    pub medium: Medium,
    pub on_battery: bool,
    pub written_today: ByteCount,
    /// Why it is not as large as the terms allow, or not resized, when something is in the way.
    pub problem: Option<String>,
}

impl GuestStatus {
    /// The most that is written on one day.
    #[must_use]
    pub fn daily_cap(&self) -> Option<ByteCount> {
        self.terms.daily_cap(self.space.total, self.medium.class)
    }

    /// Why nothing is to be written now.
    #[must_use]
    pub fn no_writes(&self) -> Option<&'static str> {
        if self.on_battery {
            return Some("paused: the machine runs on its battery");
        }
        let spent = self.daily_cap().is_some_and(|cap| self.written_today >= cap);
        spent.then_some("today's writes are used up: it goes on tomorrow (UTC)")
    }

    /// Whether the server may write here at once: on what its owner does not want to stay free.
    fn has_room(&self) -> bool {
        self.no_writes().is_none() && self.space.available > self.terms.kept_free(self.space.total)
    }
}

/// Bytes written today. The worker adds, the guest keeps.
#[derive(Debug)]
pub(super) struct Writes(Mutex<Ledger>);

impl Writes {
    pub(super) fn add(&self, bytes: u32) {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.add(Day::today(), ByteCount(bytes.into()));
    }

    fn ledger(&self) -> Ledger {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the guest's task has for itself.
#[derive(Debug)]
pub(super) struct Guest {
    home: Home,
    dsf: DsfHandle,
    tails: Arc<Tails>,
    sizer: Sizer,
    writes: Arc<Writes>,
    kept: (Instant, Ledger),
    terms: (Instant, Terms),
    power_at: Option<Instant>,
    status: watch::Sender<GuestStatus>,
    /// Bounded by what the DSF holds: only what is held can be given up.
    given_up: mpsc::UnboundedSender<Vec<SegmentId>>,
    sys: PathBuf,
}

/// What others see of the guest.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: watch::Receiver<GuestStatus>,
    pub(super) writes: Arc<Writes>,
    pub(super) given_up: mpsc::UnboundedReceiver<Vec<SegmentId>>,
}

impl Guest {
    /// Looks for the first time.
    ///
    /// # Errors
    /// When the terms or the file system cannot be read.
    pub(super) fn new(home: Home, dsf: DsfHandle, tails: Arc<Tails>) -> Result<(Self, Seen)> {
        let (terms, ledger) = (home.terms()?, home.ledger()?);
        let sys = PathBuf::from("/sys");
        let space =
            Space::of(home.folder()).context("look at the file system of the state folder")?;
        let medium = medium_of(home.folder(), &sys, "/proc".as_ref());
        let status = GuestStatus {
            terms,
            lent: lent(&terms, space, dsf.stats().capacity),
            space,
            medium,
            on_battery: on_battery(&sys),
            written_today: ledger.written(Day::today()),
            problem: None,
        };
        tracing::info!(
            disk = status.medium.class.name(),
            device = status.medium.device,
            kept_free = terms.kept_free(space.total).0,
            "a guest on this disk"
        );
        let (tell, seen) = watch::channel(status);
        let (give_up, given_up) = mpsc::unbounded_channel();
        let writes = Arc::new(Writes(Mutex::new(ledger)));
        let guest = Self {
            home,
            dsf,
            tails,
            sizer: Sizer::default(),
            writes: Arc::clone(&writes),
            kept: (Instant::now(), ledger),
            terms: (Instant::now(), terms),
            power_at: None,
            status: tell,
            given_up: give_up,
            sys,
        };
        Ok((guest, Seen { status: seen, writes, given_up }))
    }

    /// Looks again and again until the stop.
    pub(super) async fn run(mut self, limits: RateLimits, stop: CancellationToken) -> Result<()> {
        loop {
            let pause = self.look(&limits).await?;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.keep_ledger()
    }

    /// One look, and what follows from it; how long to wait for the next.
    async fn look(&mut self, limits: &RateLimits) -> Result<Duration> {
        if self.terms.0.elapsed() >= TERMS_EVERY {
            // While `cairn-agent lend` replaces the file, one of the two is there.
            self.terms = (Instant::now(), self.home.terms()?);
            limits.set_own(self.home.rates()?);
        }
        let terms = self.terms.1;
        let space =
            Space::of(self.home.folder()).context("look at the file system of the state folder")?;
        let stats = self.dsf.stats();
        let held = Held { used: stats.used, capacity: stats.capacity };
        let problem = match self.sizer.decide(Instant::now(), &terms, space, held) {
            Decision::Keep => None,
            Decision::Resize(capacity) => self.resize(held, capacity).await?,
        };
        if self.power_at.is_none_or(|at| at.elapsed() >= POWER_EVERY) {
            self.power_at = Some(Instant::now());
            let on_battery = on_battery(&self.sys);
            self.status.send_if_modified(|status| {
                let changed = status.on_battery != on_battery;
                if changed {
                    tracing::info!(on_battery, "the machine's power changed");
                    status.on_battery = on_battery;
                }
                changed
            });
        }
        if self.kept.0.elapsed() >= KEEP_EVERY {
            self.keep_ledger()?;
        }
        let next = GuestStatus {
            terms,
            lent: lent(&terms, space, self.dsf.stats().capacity),
            space,
            written_today: self.writes.ledger().written(Day::today()),
            problem,
            ..self.status.borrow().clone()
        };
        self.status.send_if_modified(|status| {
            let changed = *status != next;
            if changed {
                *status = next;
            }
            changed
        });
        Ok(Sizer::next_look(&terms, space))
    }

    /// Makes the storage file larger or smaller; what is in the way, when something is.
    async fn resize(&self, held: Held, capacity: SlotCount) -> Result<Option<String>> {
        if capacity < held.capacity {
            self.let_tails_go().await?;
        }
        let resized = match self.dsf.resize(capacity).await {
            Ok(resized) => resized,
            Err(ResizeError::Full) => {
                return Ok(Some(
                    "no room on the disk for the headers of a larger storage file".to_owned(),
                ));
            }
            Err(error) => return Err(error).context("resize the storage file"),
        };
        let moved = u64::from(resized.moved) * SEGMENT_MAX_BYTES as u64;
        self.writes.add(u32::try_from(moved).unwrap_or(u32::MAX));
        let gone: Vec<_> =
            resized.evicted.iter().chain(&resized.rotten).map(|held| held.id).collect();
        tracing::info!(
            before = held.capacity.0,
            now = resized.capacity.0,
            given_up = gone.len(),
            moved = resized.moved,
            "the storage file was resized for the owner of the disk"
        );
        if !gone.is_empty() && self.given_up.send(gone).is_err() {
            tracing::debug!("the worker has ended: the next start tells everything");
        }
        Ok(None)
    }

    async fn let_tails_go(&self) -> Result<()> {
        let tails = Arc::clone(&self.tails);
        let gone = tokio::task::spawn_blocking(move || tails.forget_all()).await;
        let gone = gone.context("wait for a thread")?.context("remove tails of journals")?;
        if gone.0 > 0 {
            tracing::info!(
                bytes = gone.0,
                "tails of journals were removed for the owner of the disk"
            );
        }
        Ok(())
    }

    fn keep_ledger(&mut self) -> Result<()> {
        let ledger = self.writes.ledger();
        if ledger != self.kept.1 {
            self.home.keep_ledger(&ledger)?;
        }
        self.kept = (Instant::now(), ledger);
        Ok(())
    }
}

/// What is lent with so many slots: what the terms say when they are all there.
fn lent(terms: &Terms, space: Space, capacity: SlotCount) -> ByteCount {
    if capacity >= terms.slots(space.total) {
        terms.lend.of(space.total)
    } else {
        capacity.file_bytes()
    }
}

/// Lets the server have tails of journals written while there is room for them, and counts what is.
pub(super) fn writable(status: watch::Receiver<GuestStatus>, writes: Arc<Writes>) -> Writable {
    Arc::new(move |bytes| {
        let has_room = status.borrow().has_room();
        if has_room {
            writes.add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        has_room
    })
}

/// Whether segments are neither fetched, scrubbed nor served.
pub(super) fn is_paused(status: &watch::Receiver<GuestStatus>) -> bool {
    status.borrow().on_battery
}
