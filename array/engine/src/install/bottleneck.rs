//! What holds an install up: looked at several times a second, and told with its progress.
//!
//! | writers at work | holds it up |
//! |---|---|
//! | fewer than may be | the network: there is nothing for the others to do |
//! | all, most of them in a call to the disk | the disk |
//! | all, most of them not | the processor: they decrypt and decompress |

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::wire::Bottleneck;

pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Fewer looks say nothing.
const LEAST: u32 = 4;

/// Counts who is at work.
#[derive(Debug, Default)]
pub(super) struct AtWork(AtomicUsize);

/// At work until it is dropped.
pub(super) struct Turn<'a>(&'a AtWork);

impl AtWork {
    pub(super) fn begin(&self) -> Turn<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Turn(self)
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was seen lately.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<Counts>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    network: u32,
    disk: u32,
    processor: u32,
}

/// What holds it up at one moment.
const fn seen(writers: usize, in_disk: usize, most: usize) -> Bottleneck {
    if writers < most {
        Bottleneck::Network
    } else if in_disk * 2 >= writers {
        Bottleneck::Disk
    } else {
        Bottleneck::Processor
    }
}

impl Looks {
    /// Looks once; `most` writers may be at work.
    pub(super) fn look(&self, writers: usize, in_disk: usize, most: usize) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seen(writers, in_disk, most) {
            Bottleneck::Network => counts.network += 1,
            Bottleneck::Disk => counts.disk += 1,
            Bottleneck::Processor => counts.processor += 1,
        }
    }

    /// What was seen more often than all else together; what was seen long ago counts less.
    pub(super) fn judge(&self) -> Option<Bottleneck> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { network, disk, processor } = *counts;
        *counts = Counts { network: network / 2, disk: disk / 2, processor: processor / 2 };
        let all = network + disk + processor;
        let found = [
            (network, Bottleneck::Network),
            (disk, Bottleneck::Disk),
            (processor, Bottleneck::Processor),
        ];
        let most = found.into_iter().find(|(count, _)| all >= LEAST && count * 2 > all);
        most.map(|(_, bottleneck)| bottleneck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_most_is_told_and_forgotten_in_time() {
        let looks = Looks::default();
        assert_eq!(looks.judge(), None);
        (0..5).for_each(|_| looks.look(1, 1, 2));
        assert_eq!(looks.judge(), Some(Bottleneck::Network));
        (0..5).for_each(|_| looks.look(2, 1, 2));
        assert_eq!(looks.judge(), Some(Bottleneck::Disk));
        (0..5).for_each(|_| looks.look(4, 1, 4));
        assert_eq!(looks.judge(), Some(Bottleneck::Processor));
        looks.look(2, 2, 2);
        assert_eq!(looks.judge(), None, "as often the one as the other");
    }

    #[test]
    fn who_is_at_work_is_counted() {
        let work = AtWork::default();
        let (one, two) = (work.begin(), work.begin());
        assert_eq!(work.count(), 2);
        drop(one);
        assert_eq!(work.count(), 1);
        drop(two);
        assert_eq!(work.count(), 0);
    }
}
