//! What the demo prints: progress as it happens, and a summary.

use std::{
    io::{self, Write as _},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Installed;
use crate::cairn::{ImageDetail, Install};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Prints a line with the seconds since the start in front.
pub fn say(text: &str) {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return;
    }
    print(text);
}

/// Prints a last line: whatever fails from now on fails because the demo is being ended.
pub fn interrupt(text: &str) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    print(text);
}

fn print(text: &str) {
    static LINE: Mutex<()> = Mutex::new(());
    let _line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    // A closed pipe is no reason to stop.
    writeln!(io::stdout().lock(), "[{:6.1} s] {text}", START.elapsed().as_secs_f64()).ok();
}

#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<(String, Duration)>,
    sources: Vec<String>,
}

impl Report {
    pub(super) fn phase<T>(&mut self, name: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        say(name);
        let started = Instant::now();
        let result = action()?;
        self.rows.push((name.to_owned(), started.elapsed()));
        Ok(result)
    }

    pub(super) fn machine(&mut self, name: &str, installed: &Installed) {
        let phases = [
            ("network boot", installed.to_installer),
            ("install", installed.install),
            ("first boot to login", installed.to_login),
        ];
        for (phase, took) in phases {
            self.rows.push((format!("{name}: {phase}"), took));
        }
        if let Some(outcome) = &installed.outcome {
            self.sources.push(format!("{name}: {}", sources(outcome)));
        }
    }

    pub(super) fn print(&self, image: &ImageDetail, dashboard: &str) {
        say("summary");
        for (phase, took) in &self.rows {
            say(&format!("  {phase:<32} {:>7.1} s", took.as_secs_f64()));
        }
        for version in &image.versions {
            let (raw, sealed) = (megabytes(version.size), megabytes(version.stored));
            say(&format!("  image: {raw} raw, {sealed} sealed"));
        }
        say(&format!("  on clients: {} with parity", megabytes(image.scatter.held_bytes)));
        for line in &self.sources {
            say(&format!("  {line}"));
        }
        say(&format!("  {dashboard}"));
    }
}

/// One line while an install runs.
pub(super) fn progress(name: &str, install: &Install) -> String {
    let phase = install.phase.as_deref().unwrap_or("starting");
    format!("{name}: {phase}, {} % done, {}", install.percent, sources(install))
}

fn sources(install: &Install) -> String {
    format!(
        "{} from peers, {} rebuilt from parity, {} from the server",
        megabytes(install.from_peers),
        megabytes(install.rebuilt),
        megabytes(install.from_server)
    )
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
