//! `cargo xtask demo`.

use std::{
    path::PathBuf,
    process::{self, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use cairn_tests::{
    demo::{self, Options, interrupt, say},
    netns::Lab,
    qemu::Firmware,
};
use clap::Parser;
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

/// A real system from a file, over the disks of four clients, onto a blank machine
#[derive(Parser)]
struct Args {
    /// Install this raw disk image, which must show a login on its serial line, instead of the small
    /// Debian that is made for the demo
    #[arg(long)]
    image: Option<PathBuf>,
    /// UEFI firmware instead of BIOS
    #[arg(long)]
    uefi: bool,
    /// How many blank machines to install at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    targets: u8,
    /// 1: with the server only. 2: then the server is killed, and a client stands in for it
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    acts: u8,
    /// Leave everything running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

static ENDING: Mutex<()> = Mutex::new(());

fn main() -> ExitCode {
    let Args { image, uefi, targets, acts, keep } = Args::parse();
    let firmware = if uefi { Firmware::Uefi } else { Firmware::Bios };
    let outcome = clean_up_on_signals()
        .and_then(|()| demo::run(&Options { image, firmware, targets, acts, keep }));
    // Held for good by whoever is cleaning up after a signal: then the program ends there.
    let _ending = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(()) => {
            say("done");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Drops do not run when a signal ends the program, so a thread does their work. The processes of the
/// lab end with this one.
fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new(TERM_SIGNALS).context("listen to signals")?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        let _ending = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
        interrupt("interrupted: cleaning up");
        if let Err(error) = Lab::remove_own() {
            interrupt(&format!("clean up: {error:#}"));
        }
        process::exit(128 + signal);
    });
    Ok(())
}
