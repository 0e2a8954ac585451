//! An install's progress as one line, with speed and time left.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use cairn_array::wire::{InstallPhase, InstallProgress};
use cairn_core::units::ByteCount;

use crate::size;

/// The speed is that of the last seconds, so that it shows what happens now.
const WINDOW: Duration = Duration::from_secs(5);

/// Remembers enough of the past to tell the speed.
#[derive(Debug, Default)]
pub struct Speed {
    seen: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// Sealed bytes a second over the last seconds, as of `now`.
    pub fn note(&mut self, progress: &InstallProgress, now: Instant) -> ByteCount {
        let done = done(progress);
        self.seen.push_back((now, done));
        while self.seen.len() > 2
            && self.seen.front().is_some_and(|(then, _)| now.duration_since(*then) > WINDOW)
        {
            self.seen.pop_front();
        }
        let Some((then, before)) = self.seen.front().copied() else { return ByteCount(0) };
        let millis = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX);
        ByteCount(done.saturating_sub(before).saturating_mul(1000).checked_div(millis).unwrap_or(0))
    }
}

/// Sealed bytes that need not be fetched any more.
const fn done(progress: &InstallProgress) -> u64 {
    progress.from_peers.0 + progress.from_server.0 + progress.rebuilt.0
}

/// The progress in one line of at most 79 characters in practice.
#[must_use]
pub fn line(progress: &InstallProgress, speed: ByteCount) -> String {
    let seconds = progress.milliseconds / 1000;
    match progress.phase {
        InstallPhase::Planning => format!("comparing the disk with the image, {seconds} s"),
        InstallPhase::Writing if progress.total.0 == 0 => "preparing the disk".to_owned(),
        InstallPhase::Writing => {
            let (total, done) = (progress.total.0, done(progress));
            let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
            let left = match total.saturating_sub(done).checked_div(speed.0) {
                Some(seconds) => format!(", {} left", clock(seconds)),
                None => String::new(),
            };
            format!(
                "{percent:3} % of {}, {}/s{left}; peers {}, server {}, rebuilt {}",
                size::show(progress.total),
                size::show(speed),
                size::show(progress.from_peers),
                size::show(progress.from_server),
                size::show(progress.rebuilt),
            )
        }
        InstallPhase::Verifying => format!("reading back what was written, {seconds} s"),
        InstallPhase::Finishing => "making the disk bootable".to_owned(),
        InstallPhase::Done => format!(
            "installed in {}: {} written, {} already right; {} from peers, {} from the server, {} rebuilt",
            clock(seconds),
            size::show(progress.written),
            size::show(progress.already),
            size::show(progress.from_peers),
            size::show(progress.from_server),
            size::show(progress.rebuilt),
        ),
        InstallPhase::Failed => {
            format!("failed: {}", progress.error.as_deref().unwrap_or("no reason was given"))
        }
    }
}

fn clock(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_share_speed_and_time_left() {
        let start = Instant::now();
        let mut speed = Speed::default();
        let at = |mib: u64| InstallProgress {
            phase: InstallPhase::Writing,
            total: ByteCount(100 << 20),
            from_peers: ByteCount(mib << 20),
            ..InstallProgress::begin()
        };
        assert_eq!(speed.note(&at(0), start), ByteCount(0));
        let now = speed.note(&at(40), start + Duration::from_secs(4));
        assert_eq!(now, ByteCount(10 << 20));
        assert_eq!(
            line(&at(40), now),
            " 40 % of 100 MiB, 10 MiB/s, 0:06 left; peers 40 MiB, server 0 B, rebuilt 0 B"
        );
        // Stalled: the window forgets the start.
        let stalled = (5..20).map(|s| speed.note(&at(40), start + Duration::from_secs(s))).last();
        assert_eq!(stalled, Some(ByteCount(0)));
        assert!(!line(&at(40), ByteCount(0)).contains("left"));
    }
}
