//! How agents said to be when they last spoke. Forgotten by a restart: every sync says it again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use cairn_array::wire::WIRE_VERSION;
use cairn_core::{
    id::AgentId,
    units::{ByteCount, Generation},
};

/// A clock that is wrong by less is not worth a word, in seconds.
const TOLERATED: u64 = 300;

/// What an agent said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// It stores what it is to hold; not so on battery, or when enough was written for today.
    pub(crate) stores: bool,
    /// What was written to the space that it lends today.
    pub(crate) written_today: ByteCount,
    /// Seconds by which its clock is ahead of the server's.
    pub(crate) clock_ahead: i64,
    /// The directory that it has.
    pub(crate) directory: Generation,
    /// The version of its messages.
    pub(crate) wire: u32,
}

impl Condition {
    /// The clock's fault, when it is worth a word.
    const fn clock_fault(self) -> Option<i64> {
        if self.clock_ahead.unsigned_abs() > TOLERATED { Some(self.clock_ahead) } else { None }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Conditions(Mutex<HashMap<AgentId, Condition>>);

impl Conditions {
    /// Takes over what an agent says; true when its clock was not known to be wrong before.
    pub(super) fn note(&self, agent: AgentId, condition: Condition) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(agent, condition).and_then(Condition::clock_fault);
        before.is_none() && condition.clock_fault().is_some()
    }

    /// It stores nothing for the time being: nobody waits for it.
    pub(crate) fn rests(&self, agent: AgentId) -> bool {
        self.get(agent).is_some_and(|condition| !condition.stores)
    }

    /// What was written to the space that it lends today, as it said last.
    pub(crate) fn written_today(&self, agent: AgentId) -> Option<ByteCount> {
        self.get(agent).map(|condition| condition.written_today)
    }

    /// The directory that it said to have; none when it has not spoken yet.
    pub(crate) fn directory(&self, agent: AgentId) -> Option<Generation> {
        self.get(agent).map(|condition| condition.directory)
    }

    /// It speaks an older version of the messages than this server.
    pub(crate) fn is_old(&self, agent: AgentId) -> bool {
        self.get(agent).is_some_and(|condition| condition.wire < WIRE_VERSION)
    }

    /// Seconds by which its clock is ahead, when that is worth a word.
    pub(crate) fn clock_fault(&self, agent: AgentId) -> Option<i64> {
        self.get(agent).and_then(Condition::clock_fault)
    }

    fn get(&self, agent: AgentId) -> Option<Condition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&agent).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_news_once() {
        let (conditions, agent) = (Conditions::default(), AgentId([1; 16]));
        let directory = Generation(1);
        let at = |clock_ahead| Condition {
            stores: true,
            written_today: ByteCount(7),
            clock_ahead,
            directory,
            wire: 0,
        };
        assert!(!conditions.note(agent, at(200)));
        assert_eq!(conditions.clock_fault(agent), None);
        assert!(conditions.note(agent, at(-259_200)));
        assert!(!conditions.note(agent, at(-259_199)), "it is known");
        assert_eq!(conditions.clock_fault(agent), Some(-259_199));
        conditions.note(agent, at(0));
        assert!(conditions.note(agent, at(301)), "wrong again");
    }
}
