//! An install shown on the terminal of a running system.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn_array::wire::{InstallPhase, InstallProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Screen,
    progress::{Speed, line},
};

/// Without a terminal (a log, a test) a line at most so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Standard error.
#[derive(Clone, Debug)]
pub struct Terminal {
    bar: ProgressBar,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    speed: Speed,
    said: Option<(InstallPhase, Instant)>,
}

impl Terminal {
    #[must_use]
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar, state: Arc::default() }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::print_stderr, reason = "this is the program's own screen, not a log")]
impl Screen for Terminal {
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    fn show(&self, progress: &InstallProgress) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let line = line(progress, state.speed.note(progress, now));
        let ended = matches!(progress.phase, InstallPhase::Done | InstallPhase::Failed);
        let news = state.said.is_none_or(|(phase, then)| {
            phase != progress.phase || now.duration_since(then) >= LINE_EVERY
        });
        if ended {
            self.bar.finish_and_clear();
        } else if !self.bar.is_hidden() {
            self.bar.set_message(line.clone());
        }
        if news && (ended || self.bar.is_hidden()) {
            state.said = Some((progress.phase, now));
            eprintln!("{line}");
        }
    }
}
