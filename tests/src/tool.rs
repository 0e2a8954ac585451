//! Runs a program of the distribution to its end, quietly, with an error that names what was run and
//! what it said.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// The most that an error quotes of what a program said.
const QUOTED_BYTES: usize = 4000;

/// Runs `program` with `args` and returns its standard output.
///
/// # Errors
/// It cannot be started (the error names `cargo xtask setup` if it is not installed), or it ends
/// with another code than 0.
pub fn run<I, S>(program: &str, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    finish(Command::new(program).args(args))
}

/// As [`run`], for a command with a working directory or an environment of its own.
///
/// # Errors
/// As [`run`].
pub fn finish(command: &mut Command) -> Result<String> {
    feed(command, b"")
}

/// As [`finish`], for one that takes a minute: its progress goes to standard error as it comes.
///
/// # Errors
/// As [`run`].
pub fn show(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().with_context(|| {
            format!("start {shown} (cargo xtask setup installs what the lab needs)")
        })?;
    ensure!(status.success(), "run {shown}: {status}");
    Ok(())
}

/// As [`finish`], with `input` on standard input.
///
/// # Errors
/// As [`run`], or the program stopped reading its input.
pub fn feed(command: &mut Command, input: &[u8]) -> Result<String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("start {shown} (cargo xtask setup installs what the lab needs)")
        })?;
    let mut stdin = child.stdin.take().context("open the program's input")?;
    // A thread, since a program may fill its output before it has read all of its input.
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        (writer.join(), output)
    });
    let output = match output {
        (Ok(written), output) => {
            let output = output.with_context(|| format!("wait for {shown}"))?;
            if output.status.success() {
                written.with_context(|| format!("write the input of {shown}"))?;
            }
            output
        }
        (Err(_), _) => bail!("write the input of {shown}: the writer panicked"),
    };
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        let start = said.floor_char_boundary(said.len().saturating_sub(QUOTED_BYTES));
        bail!("run {shown}: {}: {}", output.status, said[start..].trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what {shown} printed"))
}
