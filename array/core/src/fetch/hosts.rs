//! What is known about the sources of segments: how busy they are, and whether they answer.

use crate::id::AgentId;

/// Where a segment comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Peer(AgentId),
    Server,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(agent) => write!(f, "client {agent}"),
            Self::Server => f.write_str("the server"),
        }
    }
}

/// How long a source is left alone after its first failure; doubled by each further one.
const FIRST_BACKOFF_MS: u64 = 2_000;
/// The longest a source is left alone.
const LONGEST_BACKOFF_MS: u64 = 30_000;

/// One source. Life cycle: up → (failure) aside → (time passes) on probation → up again, or aside for longer, or gone.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) source: Source,
    pub(super) in_flight: usize,
    /// Bytes it delivered, good ones.
    pub(super) served: u64,
    /// Segments that it delivered and were not what they should be.
    pub(super) bad: u32,
    failures: u32,
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
        Self { source, in_flight: 0, served: 0, bad: 0, failures: 0, state: State::Up }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Whether it may be asked for one more. On probation that is one at a time: a dead peer costs one timeout, not one per
    /// segment.
    pub(super) fn is_free(&self, most: usize) -> bool {
        let most = if self.failures > 0 { 1 } else { most };
        self.is_up() && self.in_flight < most
    }

    pub(super) const fn aside_until(&self) -> Option<u64> {
        match self.state {
            State::Aside { until_ms } => Some(until_ms),
            State::Up | State::Gone => None,
        }
    }

    /// Better sources first: those that answered, never lied, are least busy and gave least so far.
    pub(super) const fn preference(&self) -> (u32, u32, usize, u64) {
        (self.failures, self.bad, self.in_flight, self.served)
    }

    pub(super) const fn succeeded(&mut self, bytes: u32) {
        self.failures = 0;
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

    /// Puts it on probation when its time aside is over. True when that changed something.
    pub(super) fn wake(&mut self, now_ms: u64) -> bool {
        let over = self.aside_until().is_some_and(|until| until <= now_ms);
        if over {
            self.state = State::Up;
        }
        over
    }

    /// It was heard of: whatever was held against its silence is void.
    pub(super) fn revive(&mut self) -> bool {
        let was_down = !self.is_up();
        self.state = State::Up;
        self.failures = 0;
        was_down
    }
}
