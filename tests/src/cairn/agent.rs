//! Agents, as their owners use them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{LAB_RESERVE, Server, binary, with_clock};
use crate::{
    netns::{Host, Lab},
    process::{Process, Program},
    tool,
};

/// An agent, as `cairn-agent status` shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentStatus {
    pub directory: u64,
    /// Bytes that its storage file may take now.
    pub lend: u64,
    pub segments: u32,
    /// Bytes of journals.
    pub tails: u64,
    pub missing: u64,
}

/// Joins without running: `terms` is what follows `--lend`.
///
/// # Errors
/// The server refuses.
pub fn join(
    host: &Host,
    server: &Server,
    token: &str,
    terms: &[&str],
    state_dir: &Path,
) -> Result<()> {
    let mut join = Command::new("ip");
    join.args(["netns", "exec", host.namespace()])
        .arg(binary("cairn-agent")?)
        .args(["join", &server.first_start.join_url, token, "--state-dir"])
        .arg(state_dir)
        .arg("--lend")
        .args(terms);
    tool::finish(&mut join).map(drop).with_context(|| format!("join at {}", state_dir.display()))
}

/// A client: an agent with its state in a folder of the lab.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    host: Host,
    state_dir: PathBuf,
}

impl Agent {
    /// Joins `server` and runs.
    ///
    /// # Errors
    /// The server refuses, or the agent ends.
    pub fn join(lab: &Lab, host: &Host, server: &Server, token: &str, lend: &str) -> Result<Self> {
        let name = host.namespace().rsplit('-').next().unwrap_or_default().to_owned();
        let state_dir = lab.dir().join(&name);
        join(host, server, token, &[lend, "--reserve", LAB_RESERVE], &state_dir)?;
        Self::run(lab, host, &state_dir)
    }

    /// Runs an agent that has joined already.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(lab: &Lab, host: &Host, state_dir: &Path) -> Result<Self> {
        let program = Self::program(lab, host, state_dir)?;
        Self::start(program, host, state_dir)
    }

    /// As [`Self::run`], on a machine whose clock is off by `offset`, as faketime(1) writes it: `-3d`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_clock(lab: &Lab, host: &Host, state_dir: &Path, offset: &str) -> Result<Self> {
        let program = Self::program(lab, host, state_dir)?;
        Self::start(with_clock(program, offset), host, state_dir)
    }

    /// As [`Self::run`], on a machine whose power supplies are what is in the folder `power`, as the kernel has it below
    /// `/sys/class/power_supply`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_power(lab: &Lab, host: &Host, state_dir: &Path, power: &Path) -> Result<Self> {
        // A program in a namespace has a /sys of its own.
        let script = "mount --bind \"$0\" /sys/class/power_supply && exec \"$@\"";
        let name = state_dir.file_name().context("name the agent")?.to_string_lossy();
        let program = Program::new(&name, "sh")
            .args(["-c", script])
            .args([power.to_path_buf(), binary("cairn-agent")?])
            .args(["run", "--state-dir"])
            .args([state_dir])
            .on(host)
            .log(lab.dir().join(format!("{name}.log")));
        Self::start(program, host, state_dir)
    }

    fn program(lab: &Lab, host: &Host, state_dir: &Path) -> Result<Program> {
        let name = state_dir.file_name().context("name the agent")?.to_string_lossy();
        let program = Program::new(&name, binary("cairn-agent")?)
            .args(["run", "--state-dir"])
            .args([state_dir])
            .on(host)
            .log(lab.dir().join(format!("{name}.log")));
        Ok(program)
    }

    fn start(program: Program, host: &Host, state_dir: &Path) -> Result<Self> {
        let process = program.start()?;
        Ok(Self { process, host: host.clone(), state_dir: state_dir.to_owned() })
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The number of the directory that it has.
    ///
    /// # Errors
    /// It does not run.
    pub fn directory(&self) -> Result<u64> {
        Ok(self.status()?.directory)
    }

    /// How it is, as it says itself.
    ///
    /// # Errors
    /// It does not run.
    pub fn status(&self) -> Result<AgentStatus> {
        let status = self.command(&["status", "--json"])?;
        serde_json::from_str(&status).context("read an agent's status")
    }

    /// Runs a command of its program on its machine; what it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.host.namespace()])
            .arg(binary("cairn-agent")?)
            .args(args)
            .arg("--state-dir")
            .arg(&self.state_dir);
        tool::finish(&mut command)
    }
}
