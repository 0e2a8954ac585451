//! Turns: how many targets are sent to at once.
//!
//! A few complete segments are worth more to a swarm than many half ones, so a sender serves [`SLOTS`] targets at a time, as
//! [`cairn_core::turns`] decides. A receiver that is slower than this sender's link does not keep others waiting: a turn counts
//! only as long as a sending at the best speed seen would take.
//!
//! Invariants: a turn that is granted and not used ends after [`UNUSED`]; those that wait are bounded.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_core::turns::{self, AskId};
use futures::stream;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{pace::Pace, tls::Member};

const SLOTS: usize = 2;
/// How long an ask is held.
const WAIT: Duration = Duration::from_secs(5);
/// The most asks that are held.
const MAX_WAITING: usize = 1024;
/// How long a granted turn may stay unused: many round trips.
const UNUSED: Duration = Duration::from_secs(1);
/// Bytes handed to the connection at once.
const PIECE: usize = 128 << 10;
/// A sending counts at least and at most this long.
const LEAST: Duration = Duration::from_millis(10);
const MOST: Duration = Duration::from_secs(2);
/// Speed is measured over this.
const WINDOW: Duration = Duration::from_millis(500);

/// As much is being sent as this sender takes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy;

#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: Arc<Mutex<Queue>>,
    next: AtomicU64,
    granted: Mutex<HashMap<u64, (Member, Slot)>>,
    speed: Mutex<Speed>,
    pace: Pace,
}

impl Turns {
    /// Everything is sent at this pace.
    pub(super) fn new(pace: Pace) -> Self {
        Self(Arc::new(Inner {
            queue: Arc::new(Mutex::new(Queue {
                turns: turns::Turns::new(SLOTS),
                answers: HashMap::new(),
            })),
            next: AtomicU64::new(1),
            granted: Mutex::default(),
            speed: Mutex::new(Speed::new(Instant::now())),
            pace,
        }))
    }

    /// Waits for a turn.
    pub(super) async fn wait(&self, member: Member) -> Result<Slot, Busy> {
        let (_place, granted) = self.queue_up(member)?;
        grant_all(&self.0.queue);
        tokio::time::timeout(WAIT, granted).await.ok().and_then(Result::ok).ok_or(Busy)
    }

    fn queue_up(&self, member: Member) -> Result<(Place, oneshot::Receiver<Slot>), Busy> {
        let (answer, granted) = oneshot::channel();
        let mut queue = lock(&self.0.queue);
        if queue.turns.waiting() >= MAX_WAITING {
            return Err(Busy);
        }
        let ask = queue.turns.ask(member);
        queue.answers.insert(ask, answer);
        drop(queue);
        Ok((Place { queue: Arc::clone(&self.0.queue), ask }, granted))
    }

    /// Waits for a turn and keeps it for `member`.
    pub(super) async fn grant(&self, member: Member) -> Result<u64, Busy> {
        let slot = self.wait(member).await?;
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.granted().insert(number, (member, slot));
        let turns = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(UNUSED).await;
            turns.take(number, member);
        });
        Ok(number)
    }

    /// Takes a granted turn, to use it or to end it. None when it ended already or is another's.
    pub(super) fn take(&self, number: u64, member: Member) -> Option<Slot> {
        let mut granted = self.granted();
        let own = granted.get(&number).is_some_and(|(owner, _)| *owner == member);
        own.then(|| granted.remove(&number)).flatten().map(|(_, slot)| slot)
    }

    fn granted(&self) -> MutexGuard<'_, HashMap<u64, (Member, Slot)>> {
        lock(&self.0.granted)
    }

    fn speed(&self) -> MutexGuard<'_, Speed> {
        lock(&self.0.speed)
    }

    /// The body of an answer that uses `slot`, if it needs one, while it is sent, but not longer than it should take.
    pub(super) fn body(&self, bytes: Bytes, slot: Option<Slot>) -> axum::body::Body {
        let counts = self.speed().takes(bytes.len());
        let sent = CancellationToken::new();
        let sending =
            Sending { rest: bytes, turns: self.clone(), _sent: sent.clone().drop_guard() };
        if let Some(slot) = slot {
            tokio::spawn(async move {
                tokio::select! {
                    () = sent.cancelled() => {}
                    () = tokio::time::sleep(counts) => {}
                }
                drop(slot);
            });
        }
        axum::body::Body::from_stream(stream::unfold(sending, |mut sending| async move {
            let piece = sending.rest.split_to(PIECE.min(sending.rest.len()));
            sending.turns.0.pace.pass(piece.len()).await;
            sending.turns.speed().note(piece.len(), Instant::now());
            (!piece.is_empty()).then_some((Ok::<_, std::convert::Infallible>(piece), sending))
        }))
    }
}

struct Sending {
    rest: Bytes,
    turns: Turns,
    _sent: DropGuard,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits, and how each is told.
#[derive(Debug)]
struct Queue {
    turns: turns::Turns<Member>,
    answers: HashMap<AskId, oneshot::Sender<Slot>>,
}

/// Gives out the turns that are free.
fn grant_all(queue: &Arc<Mutex<Queue>>) {
    loop {
        let mut locked = lock(queue);
        let Some((ask, member)) = locked.turns.grant() else { return };
        let answer = locked.answers.remove(&ask);
        drop(locked);
        let slot = Slot { queue: Arc::clone(queue), member };
        // Who does not wait any more gives it back by dropping it.
        if let Some(answer) = answer {
            drop(answer.send(slot));
        }
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    queue: Arc<Mutex<Queue>>,
    member: Member,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.queue).turns.end(self.member);
        grant_all(&self.queue);
    }
}

/// A place among those that wait.
struct Place {
    queue: Arc<Mutex<Queue>>,
    ask: AskId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        queue.turns.forget(self.ask);
        queue.answers.remove(&self.ask);
    }
}

/// How fast this sender is at its best.
#[derive(Debug)]
struct Speed {
    since: Instant,
    bytes: usize,
    /// Bytes a second; none before the first window is over.
    best: Option<f64>,
}

impl Speed {
    const fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, best: None }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn note(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        let passed = now.duration_since(self.since);
        if passed >= WINDOW {
            let speed = self.bytes as f64 / passed.as_secs_f64();
            // Slowly forgotten, since links get slower too.
            self.best = Some(self.best.map_or(speed, |best| speed.max(best * 0.95)));
            (self.since, self.bytes) = (now, 0);
        }
    }

    /// How long a sending of so many bytes takes when all slots are in use.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn takes(&self, bytes: usize) -> Duration {
        let best = self.best.filter(|best| *best >= 1.0);
        let time = best.map(|best| (SLOTS * bytes) as f64 / best);
        time.map_or(MOST, |time| Duration::try_from_secs_f64(time).unwrap_or(MOST))
            .clamp(LEAST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use cairn_core::id::InstallId;
    use futures::StreamExt as _;

    use super::*;

    const ONE: Member = Member::Target(InstallId([1; 16]));
    const OTHER: Member = Member::Target(InstallId([2; 16]));

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_its_owners_and_ends_unused() {
        let turns = Turns::new(Pace::default());
        let first = turns.grant(ONE).await.unwrap();
        let second = turns.grant(ONE).await.unwrap();
        assert!(turns.take(first, OTHER).is_none());
        let begun = tokio::time::Instant::now();
        let third = turns.grant(OTHER).await.unwrap();
        assert_eq!(begun.elapsed(), UNUSED, "the first or second ended");
        assert!(turns.take(first, ONE).is_none() || turns.take(second, ONE).is_none());
        assert!(turns.take(third, OTHER).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_keeps_no_turn_from_others() {
        let turns = Turns::new(Pace::default());
        let slots = (turns.wait(ONE).await.unwrap(), turns.wait(ONE).await.unwrap());
        let gone = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait(OTHER).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(lock(&turns.0.queue).turns.waiting(), 1);
        gone.abort();
        assert!(gone.await.is_err());
        assert_eq!(lock(&turns.0.queue).turns.waiting(), 0);
        let begun = tokio::time::Instant::now();
        drop(slots);
        let _both = (turns.wait(ONE).await.unwrap(), turns.wait(OTHER).await.unwrap());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_hears_that_all_are_busy() {
        let turns = Turns::new(Pace::default());
        let _slots = (turns.wait(ONE).await.unwrap(), turns.wait(ONE).await.unwrap());
        let begun = tokio::time::Instant::now();
        assert!(turns.grant(ONE).await.is_err());
        assert_eq!(begun.elapsed(), WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_does_not_read_keeps_others_waiting_for_a_while_only() {
        let turns = Turns::new(Pace::default());
        let bytes = Bytes::from(vec![1; 1 << 20]);
        let slow = turns.body(bytes.clone(), turns.wait(ONE).await.ok());
        let _other = turns.wait(OTHER).await.unwrap();
        let begun = tokio::time::Instant::now();
        drop(turns.wait(ONE).await.unwrap());
        assert_eq!(begun.elapsed(), MOST);
        let mut read = Vec::new();
        let mut pieces = slow.into_data_stream();
        while let Some(piece) = pieces.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(read, bytes);
    }

    #[test]
    fn what_a_sending_takes_follows_the_best_speed() {
        let begin = Instant::now();
        let mut speed = Speed::new(begin);
        assert_eq!(speed.takes(1 << 20), MOST);
        speed.note(10_000_000, begin + Duration::from_secs(1));
        assert_eq!(speed.takes(5_000_000), Duration::from_secs(1));
        speed.note(1_000, begin + Duration::from_secs(2));
        assert!(speed.takes(5_000_000) < Duration::from_millis(1100));
    }
}
