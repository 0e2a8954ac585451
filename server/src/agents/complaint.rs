//! What machines that installed lately say of the agents they asked. Kept for a day, and not over a restart: who goes on
//! doing wrong is complained about again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cairn_core::{
    fetch::Fault,
    id::{AgentId, InstallId},
};

use crate::moment::Moment;

const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Machines that are told apart; beyond that it does not matter.
const MAX_MACHINES: usize = 100;

/// The complaints about one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    by: BTreeSet<InstallId>,
    damaged: bool,
    slow: bool,
    empty: bool,
    last: Moment,
}

impl Tally {
    /// How many machines complained, [`MAX_MACHINES`] at most.
    pub(crate) fn machines(&self) -> usize {
        self.by.len()
    }

    /// Of what: the worst first.
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        let all = [(self.damaged, "damaged"), (self.empty, "empty"), (self.slow, "slow")];
        all.into_iter().filter_map(|(is, word)| is.then_some(word)).collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<HashMap<AgentId, Tally>>);

impl Complaints {
    /// Notes what an install says of an agent that is known; true when that is new.
    pub(crate) fn note(&self, about: AgentId, by: InstallId, fault: Fault, now: Moment) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, tally| now.since(tally.last) < KEPT);
        let tally = all.entry(about).or_default();
        let before = tally.clone();
        if tally.by.len() < MAX_MACHINES {
            tally.by.insert(by);
        }
        match fault {
            Fault::Damaged => tally.damaged = true,
            Fault::Slow => tally.slow = true,
            Fault::Empty => tally.empty = true,
        }
        tally.last = before.last;
        let is_new = *tally != before;
        tally.last = now;
        is_new
    }

    /// What is said of an agent now.
    pub(crate) fn about(&self, agent: AgentId, now: Moment) -> Option<Tally> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&agent).filter(|tally| now.since(tally.last) < KEPT).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_counted_by_machine_and_forgotten_after_a_day() {
        let (all, about) = (Complaints::default(), AgentId([1; 16]));
        let by = |n| InstallId([n; 16]);
        let start = Moment(1_000_000);
        assert!(all.note(about, by(1), Fault::Slow, start));
        assert!(!all.note(about, by(1), Fault::Slow, start.plus(KEPT / 2)), "it is known");
        assert!(all.note(about, by(1), Fault::Damaged, start.plus(KEPT / 2)));
        assert!(all.note(about, by(2), Fault::Damaged, start.plus(KEPT / 2)));
        let tally = all.about(about, start.plus(KEPT)).unwrap();
        assert_eq!((tally.machines(), tally.faults()), (2, vec!["damaged", "slow"]));
        assert_eq!(all.about(about, start.plus(KEPT * 2)), None);
        assert_eq!(all.about(AgentId([2; 16]), start), None);
        for n in 0..=255 {
            all.note(about, by(n), Fault::Empty, start);
        }
        assert_eq!(all.about(about, start).unwrap().machines(), MAX_MACHINES);
    }
}
