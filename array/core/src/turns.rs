//! Whom a sender serves next: a few at a time, and everybody once before anybody twice.
//!
//! Receivers ask for several turns at once. A sender that gave them in the order of the asks would feed one machine at a time,
//! and what only it has would spread slowly: by turns, a segment is soon with three machines instead of two, and those differ
//! in what they have.
//!
//! Invariants: at most so many turns are in use as there are; who got a turn waits behind all others for the next one.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Names one ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(u64);

/// The turns of one sender; `W` names a receiver.
#[derive(Debug)]
pub struct Turns<W> {
    free: usize,
    next: u64,
    waiting: VecDeque<(AskId, W)>,
    using: HashMap<W, usize>,
}

impl<W: Copy + Eq + Hash> Turns<W> {
    /// So many at a time.
    #[must_use]
    pub fn new(turns: usize) -> Self {
        Self { free: turns, next: 0, waiting: VecDeque::new(), using: HashMap::new() }
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A receiver wants a turn.
    pub fn ask(&mut self, who: W) -> AskId {
        self.next += 1;
        let ask = AskId(self.next);
        self.waiting.push_back((ask, who));
        ask
    }

    /// A receiver does not wait any more; whether it did.
    pub fn forget(&mut self, ask: AskId) -> bool {
        let at = self.waiting.iter().position(|(other, _)| *other == ask);
        at.is_some_and(|at| self.waiting.remove(at).is_some())
    }

    /// Gives a free turn to the next in line. To be asked again until there is none.
    pub fn grant(&mut self) -> Option<(AskId, W)> {
        if self.free == 0 {
            return None;
        }
        let has = |who: &W| self.using.get(who).copied().unwrap_or(0);
        let waiting = self.waiting.iter().enumerate();
        let (at, _) = waiting.min_by_key(|(at, (_, who))| (has(who), *at))?;
        let (ask, who) = self.waiting.remove(at)?;
        let (again, others) = self.waiting.drain(..).partition(|(_, other)| *other == who);
        let (mut again, others): (VecDeque<_>, VecDeque<_>) = (again, others);
        self.waiting = others;
        self.waiting.append(&mut again);
        self.free -= 1;
        *self.using.entry(who).or_default() += 1;
        Some((ask, who))
    }

    /// A turn ends.
    pub fn end(&mut self, who: W) {
        let Some(count) = self.using.get_mut(&who) else { return };
        *count -= 1;
        if *count == 0 {
            self.using.remove(&who);
        }
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn everybody_gets_a_turn_before_anybody_gets_two() {
        let mut turns = Turns::new(2);
        let asks: Vec<_> = ["a", "a", "a", "b", "c"].map(|who| turns.ask(who)).into();
        assert_eq!(turns.grant(), Some((asks[0], "a")));
        assert_eq!(turns.grant(), Some((asks[3], "b")));
        assert_eq!(turns.grant(), None);
        turns.end("a");
        assert_eq!(turns.grant(), Some((asks[4], "c")), "it has had one");
        let late = turns.ask("c");
        turns.end("c");
        assert_eq!(turns.grant(), Some((asks[1], "a")));
        turns.end("b");
        assert_eq!(turns.grant(), Some((late, "c")), "the other has one in use");
        turns.end("c");
        assert!(turns.forget(asks[2]));
        assert!(!turns.forget(asks[2]));
        assert_eq!(turns.waiting(), 0);
        turns.end("nobody");
        turns.end("a");
        assert_eq!(turns.grant(), None, "nobody waits");
    }

    proptest! {
        #[test]
        fn no_turn_is_lost_and_none_is_idle_while_somebody_waits(
            count in 1..4_usize, steps in prop::collection::vec((0..3_u8, 0..5_u8), 0..200),
        ) {
            let mut turns = Turns::new(count);
            let mut using: Vec<u8> = Vec::new();
            let mut asks = Vec::new();
            for (what, who) in steps {
                match what {
                    0 => asks.push(turns.ask(who)),
                    1 => {
                        if let Some(at) = using.iter().position(|other| *other == who) {
                            using.remove(at);
                            turns.end(who);
                        }
                    }
                    _ => {
                        if let Some(ask) = asks.pop() {
                            turns.forget(ask);
                        }
                    }
                }
                while let Some((_, who)) = turns.grant() {
                    using.push(who);
                }
                prop_assert!(using.len() <= count);
                prop_assert!(using.len() == count || turns.waiting() == 0);
            }
        }
    }
}
