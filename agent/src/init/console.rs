//! The consoles of a blank machine: what is said is said on all of them, and Enter is heard from any.
//!
//! A console never blocks: a serial port without a cable, or one whose flow control is stuck, must not stop the
//! install. What it does not take is lost there and still seen elsewhere.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn_array::wire::{InstallPhase, InstallProgress};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

use super::cmdline;
use crate::target::{
    Screen,
    progress::{Speed, line},
};

/// A console that keeps all lines gets one of progress at most so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// All consoles that could be opened.
#[derive(Clone, Debug)]
pub(super) struct Consoles {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    consoles: Vec<Console>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Console {
    file: File,
    /// A screen, whose last line can be replaced.
    screen: bool,
}

#[derive(Debug, Default)]
struct State {
    speed: Speed,
    said: Option<(InstallPhase, Instant)>,
    /// A line of progress stands on the screens.
    open_line: bool,
}

impl Consoles {
    /// Opens the screen, the first serial port, and what `console=` names.
    #[must_use]
    pub(super) fn open(cmdline: &str) -> Self {
        let mut names = BTreeSet::from(["tty0".to_owned(), "ttyS0".to_owned()]);
        names.extend(cmdline::consoles(cmdline));
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        names.extend(active.split_whitespace().map(str::to_owned));
        let consoles = names.iter().filter_map(|name| {
            let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC).bits();
            let file = File::options()
                .read(true)
                .write(true)
                .custom_flags(flags.cast_signed())
                .open(format!("/dev/{name}"))
                .ok()?;
            let screen = name
                .strip_prefix("tty")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            Some(Console { file, screen })
        });
        let consoles = consoles.collect();
        Self { shared: Arc::new(Shared { consoles, state: Mutex::default() }) }
    }

    /// Waits until somebody presses Enter or the time is over; true for Enter.
    #[must_use]
    pub(super) fn wait_for_enter(&self, patience: Option<Duration>) -> bool {
        let deadline = patience.map(|patience| Instant::now() + patience);
        self.forget_input();
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            if self.input(left).iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
                return true;
            }
        }
    }

    /// Keys that were pressed while nobody was asked.
    fn forget_input(&self) {
        while !self.input(Some(Duration::ZERO)).is_empty() {}
    }

    fn input(&self, patience: Option<Duration>) -> Vec<u8> {
        let consoles = &self.shared.consoles;
        let mut fds: Vec<PollFd<'_>> =
            consoles.iter().map(|console| PollFd::new(&console.file, PollFlags::IN)).collect();
        // Without any console left this is a plain sleep.
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        if !ready.contains(&true) && fds.iter().any(|fd| !fd.revents().is_empty()) {
            // A console that hung up is ready for ever: do not spin on it.
            std::thread::sleep(Duration::from_millis(500));
        }
        let mut keys = Vec::new();
        for (mut file, _) in consoles.iter().map(|c| &c.file).zip(ready).filter(|(_, ready)| *ready)
        {
            let mut buffer = [0; 256];
            keys.extend(
                file.read(&mut buffer)
                    .ok()
                    .and_then(|count| buffer.get(..count))
                    .unwrap_or_default(),
            );
        }
        keys
    }

    fn write(&self, screen: &str, paper: Option<&str>) {
        for console in &self.shared.consoles {
            let text = if console.screen { Some(screen) } else { paper };
            if let Some(text) = text {
                put(&console.file, text.as_bytes());
            }
        }
    }
}

/// Writes what the console takes within a moment.
fn put(mut file: &File, mut bytes: &[u8]) {
    let deadline = Instant::now() + Duration::from_millis(200);
    while !bytes.is_empty() && Instant::now() < deadline {
        match file.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return,
        }
    }
}

impl Screen for Consoles {
    fn say(&self, line: &str) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = if std::mem::take(&mut state.open_line) { "\r\x1b[K" } else { "" };
        self.write(&format!("{start}{line}\n"), Some(&format!("{line}\n")));
    }

    fn show(&self, progress: &InstallProgress) {
        let now = Instant::now();
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let line = line(progress, state.speed.note(progress, now));
        let news = state.said.is_none_or(|(phase, then)| {
            phase != progress.phase || now.duration_since(then) >= LINE_EVERY
        });
        if news {
            state.said = Some((progress.phase, now));
        }
        let ended = matches!(progress.phase, InstallPhase::Done | InstallPhase::Failed);
        state.open_line = !ended;
        let end = if ended { "\n" } else { "" };
        self.write(&format!("\r\x1b[K{line}{end}"), news.then(|| format!("{line}\n")).as_deref());
    }
}
