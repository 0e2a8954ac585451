//! What is known about the sources of segments: how busy they are, and whether they answer.

use serde::{Deserialize, Serialize};

use super::Ticket;
use crate::id::{AgentId, InstallId};

/// Where a segment comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Peer(AgentId),
    /// A machine that is being installed with the same image and passes on what it has.
    Target(InstallId),
    Server,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(agent) => write!(f, "client {agent}"),
            Self::Target(install) => write!(f, "the machine of install {install}"),
            Self::Server => f.write_str("the server"),
        }
    }
}

/// How long a source is left alone after its first failure; doubled by each further one.
const FIRST_BACKOFF_MS: u64 = 2_000;
/// The longest a source is left alone.
const LONGEST_BACKOFF_MS: u64 = 30_000;
/// How long a busy source is not asked, the first time; doubled by each further one.
const FIRST_PAUSE_MS: u64 = 50;
const LONGEST_PAUSE_MS: u64 = 200;

/// One source. Life cycle: up → (failure) aside → (time passes) on probation → up again, or aside for longer, or gone.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) source: Source,
    pub(super) in_flight: usize,
    /// Turns that it was asked for and has not granted yet.
    pub(super) asked: usize,
    /// Turns that it has granted and that are not used yet.
    pub(super) turns: Vec<Ticket>,
    /// Bytes it delivered, good ones.
    pub(super) served: u64,
    /// Segments that it delivered and were not what they should be.
    pub(super) bad: u32,
    /// Segments that it was said to hold and has not.
    pub(super) missing: u32,
    /// It has all that it wants itself: it will announce no more.
    pub(super) complete: bool,
    failures: u32,
    /// Answers in a row that it is busy, and until when it is let be. It stays up: what it holds counts.
    busy: u32,
    paused_until_ms: Option<u64>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Aside { until_ms: u64 },
    Gone,
}

impl Host {
    pub(super) const fn new(source: Source) -> Self {
        Self {
            source,
            in_flight: 0,
            asked: 0,
            turns: Vec::new(),
            served: 0,
            bad: 0,
            missing: 0,
            complete: false,
            failures: 0,
            busy: 0,
            paused_until_ms: None,
            state: State::Up,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Whether it waits to be told what to send.
    pub(super) fn is_ready(&self) -> bool {
        self.is_up() && !self.turns.is_empty()
    }

    /// Whether it may be asked for one more turn. On probation that is one at a time: a dead peer costs one timeout, not one per
    /// segment.
    pub(super) fn is_free(&self, most: usize) -> bool {
        let most = if self.failures > 0 { 1 } else { most };
        let taken = self.asked + self.turns.len() + self.in_flight;
        self.is_up() && self.paused_until_ms.is_none() && taken < most
    }

    /// When it may be asked again, if time decides that.
    pub(super) const fn back_at(&self) -> Option<u64> {
        match self.state {
            State::Aside { until_ms } => Some(until_ms),
            State::Up => self.paused_until_ms,
            State::Gone => None,
        }
    }

    /// Better sources first: those that answered, never lied, are least busy and gave least so far.
    pub(super) const fn preference(&self) -> (u32, u32, usize, u64) {
        (self.failures, self.bad, self.in_flight, self.served)
    }

    pub(super) const fn succeeded(&mut self, bytes: u32) {
        self.failures = 0;
        self.busy = 0;
        self.served = self.served.saturating_add(bytes as u64);
    }

    /// It did not answer. True when it was up until now.
    pub(super) fn failed(&mut self, now_ms: u64, gone_after: u32) -> bool {
        let was_up = self.is_up();
        // Requests that were under way together fail together: that is one failure.
        if was_up {
            self.failures += 1;
            let backoff = FIRST_BACKOFF_MS.saturating_mul(1 << (self.failures - 1).min(16));
            let until_ms = now_ms.saturating_add(backoff.min(LONGEST_BACKOFF_MS));
            let gone = self.failures >= gone_after;
            self.state = if gone { State::Gone } else { State::Aside { until_ms } };
        }
        was_up
    }

    /// It has more to do than it takes on: an answer, so nothing is held against it.
    pub(super) fn is_busy(&mut self, now_ms: u64) {
        let pause = FIRST_PAUSE_MS.saturating_mul(1 << self.busy.min(16)).min(LONGEST_PAUSE_MS);
        self.busy += 1;
        self.paused_until_ms = Some(now_ms.saturating_add(pause));
    }

    /// It is not asked again.
    pub(super) const fn give_up(&mut self) {
        self.state = State::Gone;
    }

    /// Ends a pause, or puts it on probation when its time aside is over. True when what it holds counts again.
    pub(super) fn wake(&mut self, now_ms: u64) -> bool {
        let over = self.back_at().is_some_and(|until| until <= now_ms);
        if over {
            self.paused_until_ms = None;
        }
        let was_aside = over && !self.is_up();
        if was_aside {
            self.state = State::Up;
        }
        was_aside
    }

    /// It was heard of: whatever was held against its silence is void.
    pub(super) fn revive(&mut self) -> bool {
        let was_down = !self.is_up();
        self.state = State::Up;
        self.failures = 0;
        self.paused_until_ms = None;
        was_down
    }
}
