//! A real process, in a network namespace or outside, whose output is written to a log and can be
//! waited for.
//!
//! Invariant: it never outlives us. It gets its own process group, which is killed on drop, and
//! asks the kernel for SIGKILL when its parent dies (`setpriv --pdeathsig`), for the case that we are
//! killed ourselves. That signal comes when the *thread* that started it ends, so all are started by
//! one thread that never does.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use regex::bytes::Regex;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    netns::Host,
    transcript::{Found, Transcript},
};

/// How long a process that was asked to end may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be started.
#[derive(Debug)]
pub struct Program {
    name: String,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    namespace: Option<String>,
    log: Option<PathBuf>,
}

impl Program {
    /// `name` is what errors and logs call it.
    pub fn new(name: &str, program: impl AsRef<OsStr>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            namespace: None,
            log: None,
        }
    }

    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn on(self, host: &Host) -> Self {
        self.in_namespace(host.namespace())
    }

    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Appends standard output and standard error to this file too.
    #[must_use]
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// # Errors
    /// The log cannot be opened, or the program cannot be started. A program that does not
    /// exist is only noticed when it ends, with code 127.
    pub fn start(self) -> Result<Process> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(namespace) = &self.namespace {
            command.args(["ip", "netns", "exec", namespace]);
        }
        command.arg(&self.program).args(&self.args).envs(self.env).process_group(0);
        // One pipe for both, so that the log has them in the order in which they were written.
        let (output, writer) = io::pipe().context("make a pipe")?;
        command
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().context("share the pipe")?)
            .stderr(writer);
        let log = match &self.log {
            Some(path) => Some(
                File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("open log {}", path.display()))?,
            ),
            None => None,
        };
        let mut child = spawn(command).with_context(|| format!("start {}", self.name))?;
        let transcript = Arc::new(Transcript::default());
        let copy = Arc::clone(&transcript);
        let reader = thread::spawn(move || record(output, log, &copy));
        Ok(Process {
            name: self.name,
            log: self.log,
            stdin: child.stdin.take(),
            child,
            transcript,
            reader: Some(reader),
            read_to: 0,
        })
    }
}

/// A running, or ended, process.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: Option<PathBuf>,
    child: Child,
    stdin: Option<ChildStdin>,
    transcript: Arc<Transcript>,
    reader: Option<JoinHandle<()>>,
    read_to: usize,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Waits until `pattern` (multi-line: `^` and `$` are line ends) was printed, now or earlier.
    ///
    /// # Errors
    /// It was not within `timeout`, or the process ended without.
    pub fn wait_for_line(&self, pattern: &str, timeout: Duration) -> Result<Found> {
        self.transcript
            .wait_for(0, &multi_line(pattern)?, &[], timeout)
            .with_context(|| format!("wait for {}", self.name))
    }

    /// Waits for each of `patterns` in this order, after what an earlier call found.
    ///
    /// # Errors
    /// As [`Self::wait_for_line`], or one of `failures` was printed first.
    pub fn wait_for(
        &mut self,
        patterns: &[&str],
        failures: &[&str],
        timeout: Duration,
    ) -> Result<Vec<Found>> {
        let deadline = std::time::Instant::now() + timeout;
        let failures =
            failures.iter().map(|failure| multi_line(failure)).collect::<Result<Vec<_>>>()?;
        let mut found = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let next = self
                .transcript
                .wait_for(self.read_to, &multi_line(pattern)?, &failures, left)
                .with_context(|| format!("wait for {}", self.name))?;
            self.read_to = next.end;
            found.push(next);
        }
        Ok(found)
    }

    /// Types `text`.
    ///
    /// # Errors
    /// The process has ended or closed its input.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("open the program's input")?;
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .with_context(|| format!("write to {}", self.name))
    }

    /// The exit status if the process has ended.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look at {}", self.name))
    }

    /// Waits for the process to end by itself; its transcript is whole then.
    ///
    /// # Errors
    /// It does not within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        // A pidfd becomes readable when the process ends: no polling and no race with the pid.
        let pid = self.group().context("name the process")?;
        if let Some(status) = self.ended()? {
            self.finish_reading();
            return Ok(status);
        }
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .with_context(|| format!("open {}", self.name))?;
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout_spec = timeout.try_into().context("convert the timeout")?;
        let ready = rustix::event::poll(&mut poll, Some(&timeout_spec))
            .with_context(|| format!("wait for the end of {}", self.name))?;
        if ready == 0 {
            let tail = self.transcript.text(self.transcript.end().saturating_sub(3000));
            bail!("{} still runs after {} s:\n{tail}", self.name, timeout.as_secs());
        }
        let status = self.child.wait().with_context(|| format!("reap {}", self.name))?;
        self.finish_reading();
        Ok(status)
    }

    /// As [`Self::wait`], and the exit code must be 0.
    ///
    /// # Errors
    /// It does not end in time, or ends with a failure.
    pub fn wait_success(&mut self, timeout: Duration) -> Result<()> {
        let status = self.wait(timeout)?;
        if !status.success() {
            let tail = self.transcript.text(self.transcript.end().saturating_sub(3000));
            bail!("{} failed: {status}:\n{tail}", self.name);
        }
        Ok(())
    }

    /// Kills it at once, as a power cut would (SIGKILL), with whatever it started.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().with_context(|| format!("reap {}", self.name))?;
        self.finish_reading();
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// It does not within 10 s.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let status = self.wait(PATIENCE)?;
        self.finish_reading();
        Ok(status)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let group = self.group().context("name the process")?;
        kill_process_group(group, signal)
            .with_context(|| format!("send {signal:?} to {}", self.name))
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    fn finish_reading(&mut self) {
        if let Some(reader) = self.reader.take() {
            // A grandchild that left the group could hold the pipe open: then the thread stays.
            let closed = self.transcript.wait_for(0, &never(), &[], Duration::from_secs(2));
            if matches!(closed, Err(crate::transcript::WaitError::Ended { .. })) {
                drop(reader.join());
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Unless it was reaped, the pid still names it (at least as a zombie), so this cannot
        // hit a stranger. Errors are not reported: there is nobody left to handle them.
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(group) = self.group()
        {
            kill_process_group(group, Signal::KILL).ok();
            self.child.wait().ok();
        }
    }
}

/// Describes how a process ended, for people.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn multi_line(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("(?m){pattern}")).with_context(|| format!("parse /{pattern}/"))
}

/// A pattern that matches nothing: waits for the end of the output.
fn never() -> Regex {
    static NEVER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[^\s\S]").ok());
    #[expect(clippy::expect_used, reason = "a constant pattern")]
    NEVER.clone().expect("the pattern is valid")
}

fn record(mut output: impl Read, mut log: Option<File>, transcript: &Transcript) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let bytes = buffer.get(..read).unwrap_or_default();
                if let Some(file) = &mut log
                    && file.write_all(bytes).is_err()
                {
                    transcript.append(b"\n(the log cannot be written any more)\n");
                    log = None;
                }
                transcript.append(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    transcript.close();
}

/// Starts `command` from the thread that never ends.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                let child = command.spawn();
                // The command holds our ends of the pipes: they must close for us to see its end.
                drop(command);
                if let Err(mpsc::SendError(Ok(mut child))) = reply.send(child) {
                    child.kill().ok();
                    child.wait().ok();
                }
            }
        });
        orders
    });
    let gone = || io::Error::other("the spawning thread is gone");
    let (reply, answer) = mpsc::channel();
    SPAWNER.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Program {
        Program::new("shell", "sh").args(["-c", script])
    }

    #[test]
    fn output_is_waited_for_and_logged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("shell.log");
        let mut process = shell("echo one; echo two >&2; read answer; echo got $answer")
            .log(&log)
            .start()
            .unwrap();
        process.wait_for(&["^one$", "^two$"], &[], SOON).unwrap();
        process.send("three\n").unwrap();
        let found = process.wait_for(&["^got (.*)$"], &[], SOON).unwrap();
        assert_eq!(found[0].groups[1], "three");
        process.wait_success(SOON).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\ngot three\n");
    }

    #[test]
    fn a_failure_names_the_program_and_quotes_it() {
        let mut process = shell("echo no such thing; exit 3").start().unwrap();
        let error = process.wait_success(SOON).unwrap_err().to_string();
        assert!(error.contains("shell failed") && error.contains("no such thing"), "{error}");
    }

    #[test]
    fn a_drop_kills_the_process_and_what_it_started() {
        let process = shell("sleep 600 & echo $!; wait").start().unwrap();
        let found = process.wait_for_line("^([0-9]+)$", SOON).unwrap();
        let grandchild = PathBuf::from(format!("/proc/{}/stat", found.groups[1]));
        assert!(grandchild.exists());
        drop(process);
        let deadline = Instant::now() + SOON;
        // init reaps it: gone, or a zombie for a moment.
        while fs::read_to_string(&grandchild).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "the grandchild still runs");
            thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_ends_does_not_take_its_process_along() {
        let start = || {
            let mut process = shell("echo up; read x; echo $x").start().unwrap();
            // Only now has it told the kernel to be killed with its parent.
            process.wait_for(&["^up$"], &[], SOON).unwrap();
            process
        };
        let mut process = thread::spawn(start).join().unwrap();
        process.send("alive\n").unwrap();
        process.wait_for(&["^alive$"], &[], SOON).unwrap();
        process.wait_success(SOON).unwrap();
    }
}
