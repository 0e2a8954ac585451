//! The first process of the boot payload.
//!
//! ```text
//!   PID 1: mount ─► clock ─► consoles ─► start worker ◄────────────────┐
//!                                          │ ended with a failure      │
//!                                          ▼                           │
//!                               reason stays on the screen ─── Enter, or a minute
//!
//!   worker: drivers ─► network ─► install (target::flow) ─► sync ─► reboot
//!                                    └─ or a volume: its root is mounted (root.rs), and PID 1 becomes its system, while a third
//!                                       process stays between the kernel and the server (keeper.rs)
//! ```
//!
//! Two processes, because the first one may never end (the kernel would panic) and inherits every orphan: it does
//! next to nothing and reaps, so a worker that fails, panics or is killed for memory only leads to another try.
//!
//! Invariants: the first process never ends by itself; the key of a boot is made once and kept in memory (`/run`),
//! so the code on the screen stays the same over all tries.

pub mod cmdline;
mod console;
mod keeper;
mod modules;
mod netlink;
mod network;
mod root;
mod worker;

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitStatus},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    mount::MountFlags,
    process::{Pid, WaitOptions},
    system::RebootCommand,
    time::{ClockId, Timespec, clock_settime},
};

use self::console::Consoles;
pub use self::{keeper::run as keep, worker::run as work};
use crate::target::Screen as _;

/// The argument with which the first process starts its worker.
pub const WORKER: &str = "init-worker";
/// A failed try is repeated by itself after this.
const RETRY: Duration = Duration::from_secs(60);
/// A clock that differs from the boot script's by more is wrong: certificates would not be valid.
const CLOCK_TOLERANCE: u64 = 120;
const MOUNTS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),
];

/// Whether this process was started by a kernel, and not by a person.
#[must_use]
pub fn is_first_process() -> bool {
    std::process::id() == 1
}

/// Runs as the first process. Returns only when it is not the first one.
///
/// # Errors
/// When this is not the first process.
pub fn run() -> Result<()> {
    ensure!(
        is_first_process(),
        "`cairn-agent init` is the first process of the boot payload; on a running system use `cairn-agent install`"
    );
    let failures: Vec<String> = MOUNTS.iter().filter_map(|mount| mount_one(*mount).err()).collect();
    // Errors of the kernel only: its other messages would scroll the code away.
    drop(fs::write("/proc/sys/kernel/printk", "3\n"));
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let consoles = Consoles::open(&cmdline);
    consoles
        .say(&format!("\ncairn-agent {}: installing this machine\n", env!("CARGO_PKG_VERSION")));
    for failure in failures {
        consoles.say(&failure);
    }
    if let Err(error) = set_clock(&cmdline) {
        consoles.say(&format!("the clock could not be set: {error:#}"));
    }
    loop {
        match try_once() {
            Ok(status) if status.success() => finish(&consoles),
            Ok(status) if status.code() == Some(worker::MOUNTED) => {
                let Err(error) = root::enter();
                consoles.say(&format!("the volume's system cannot be started: {error:#}"));
            }
            // The worker has said why.
            Ok(status) if status.code() == Some(worker::FAILED) => {}
            Ok(status) => consoles.say(&format!("the installer broke: {}", describe(status))),
            Err(error) => consoles.say(&format!("the installer cannot be started: {error:#}")),
        }
        consoles.say(&format!(
            "Press Enter to try again; it tries by itself in {} s.\n",
            RETRY.as_secs()
        ));
        // Either way the next try follows.
        let _pressed: bool = consoles.wait_for_enter(Some(RETRY));
    }
}

/// What cannot be mounted makes a later step fail; the reason is for the screen, once there is one.
fn mount_one((source, target, kind): (&str, &str, &str)) -> Result<(), String> {
    fs::create_dir_all(target).map_err(|error| format!("{target} could not be made: {error}"))?;
    rustix::mount::mount(source, target, kind, MountFlags::NOSUID, None)
        .map_err(|error| format!("{target} could not be mounted: {error}"))
}

/// Starts the worker and reaps whatever ends until it does.
fn try_once() -> Result<ExitStatus> {
    let child =
        Command::new("/proc/self/exe").arg(WORKER).spawn().context("start the installer")?;
    let worker = Pid::from_child(&child);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == worker => {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
            // An orphan.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the installer"),
        }
    }
}

/// The worker has installed this machine and was told not to reboot it.
fn finish(consoles: &Consoles) {
    consoles.say("Press Enter to restart this machine.");
    let _pressed: bool = consoles.wait_for_enter(None);
    restart(RebootCommand::Restart);
}

/// Restarts or turns off; on return it did not work.
fn restart(command: RebootCommand) {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(command) {
        tracing::error!(%error, "restart this machine");
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with code {code}"),
        (None, Some(signal)) => {
            format!("it was killed by signal {signal}, perhaps for want of memory")
        }
        (None, None) => "it ended in an unknown way".to_owned(),
    }
}

/// A machine whose clock battery is empty says 1970, and no certificate is valid then. It cannot be earlier than
/// the payload's build, nor far from the time that the boot script names; neither source can do worse than make
/// certificates invalid, and the CA's fingerprint came the same way.
fn set_clock(cmdline: &str) -> Result<()> {
    let now = seconds(SystemTime::now());
    let built = fs::metadata("/init").and_then(|init| init.modified()).map_or(0, seconds);
    let told = cmdline::parse(cmdline).ok().and_then(|words| words.time);
    let Some(right) = corrected(now, built, told) else { return Ok(()) };
    let tv_sec = i64::try_from(right).context("represent the time")?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: 0 }).context("set the clock")
}

/// The time to set, when the clock is wrong.
fn corrected(now: u64, built: u64, told: Option<u64>) -> Option<u64> {
    let right = told.filter(|told| now.abs_diff(*told) > CLOCK_TOLERANCE).unwrap_or(now).max(built);
    (right != now).then_some(right)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Folder of this boot's own files, in memory.
fn run_folder() -> &'static Path {
    Path::new("/run/cairn")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_corrected_and_a_right_one_left_alone() {
        const BUILT: u64 = 1_790_000_000;
        const TOLD: u64 = 1_795_000_000;
        assert_eq!(corrected(TOLD + 5, BUILT, Some(TOLD)), None);
        assert_eq!(corrected(0, BUILT, Some(TOLD)), Some(TOLD));
        assert_eq!(corrected(TOLD + 90_000_000, BUILT, Some(TOLD)), Some(TOLD));
        assert_eq!(corrected(0, BUILT, None), Some(BUILT));
        assert_eq!(corrected(BUILT + 1, BUILT, None), None);
    }

    #[test]
    fn only_the_first_process_is_init() {
        let error = run().unwrap_err().to_string();
        assert!(error.contains("cairn-agent install"), "{error}");
    }
}
