//! Steps: a command with a name, its time, and nothing of it left running.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

/// A command that runs in the workspace.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(crate::build::workspace());
    command
}

/// Runs cargo as a step.
pub(crate) fn cargo(name: &str, args: &[&str]) -> Result<()> {
    run(name, command("cargo").args(args))
}

/// Runs `command` to its end, with its output as it comes, and says how long it took.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    timed(name, || succeed(command))
}

/// Runs `command` to its end; it must succeed.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Says what begins, and how it ended and when.
pub(crate) fn timed(name: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
    say(&format!("==> {name}"));
    let started = Instant::now();
    let result = action();
    let ended = if result.is_ok() { "ok" } else { "FAILED" };
    say(&format!("<== {name}: {ended}, {:.1} s", started.elapsed().as_secs_f64()));
    result
}

/// Becomes `command`: signals from the terminal reach it, and its exit code is ours.
pub(crate) fn hand_over(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("start {command:?}"))
}

/// Prints a line; a closed pipe is no reason to stop.
pub(crate) fn say(text: &str) {
    writeln!(io::stdout().lock(), "{text}").ok();
}
