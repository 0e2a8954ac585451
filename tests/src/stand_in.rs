//! A client that stands in for the server.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{
    cairn::{Agent, Server, binary},
    netns::Lab,
    process::{Process, Program},
    tool,
};

const START: Duration = Duration::from_secs(60);
const LISTED: Duration = Duration::from_secs(60);

/// `cairn-agent stand-in`, running beside a client's daemon.
#[derive(Debug)]
pub struct StandIn {
    process: Process,
    url: String,
    namespace: String,
    state_dir: PathBuf,
}

impl StandIn {
    /// Starts it on the machine of `agent`, with the recovery key of `server`'s first start, and waits until it serves.
    ///
    /// # Errors
    /// It ends, with what it said.
    pub fn start(lab: &Lab, agent: &Agent, server: &Server, options: &[&str]) -> Result<Self> {
        let process = Self::try_start(lab, agent, server, options)?;
        let ready = process.wait_for_line(r"^ready: (https://\S+)", START);
        let url = ready.context("start the stand-in")?.groups[1].clone();
        let namespace = agent.host().namespace().to_owned();
        Ok(Self { process, url, namespace, state_dir: agent.state_dir().to_owned() })
    }

    /// As [`Self::start`], without waiting.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn try_start(
        lab: &Lab,
        agent: &Agent,
        server: &Server,
        options: &[&str],
    ) -> Result<Process> {
        Program::new("stand-in", binary("cairn-agent")?)
            .args(["stand-in", "--recovery-key"])
            .args([server.data_dir().join("recovery-key.txt")])
            .args(["--state-dir"])
            .args([agent.state_dir()])
            .args(options)
            .on(agent.host())
            .log(lab.dir().join("stand-in.log"))
            .start()
    }

    /// Where machines that install reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Approves the machine that shows `code`, once the stand-in has listed it.
    ///
    /// # Errors
    /// It refuses.
    pub fn approve(&self, code: &str) -> Result<()> {
        self.process.wait_for_line(&format!("^waiting: {code}"), LISTED)?;
        self.approve_unlisted(code)
    }

    /// As [`Self::approve`], whether the stand-in has listed it or not.
    ///
    /// # Errors
    /// It refuses.
    pub fn approve_unlisted(&self, code: &str) -> Result<()> {
        let mut approve = Command::new("ip");
        approve
            .args(["netns", "exec", &self.namespace])
            .arg(binary("cairn-agent")?)
            .args(["stand-in", "--approve", code, "--state-dir"])
            .arg(&self.state_dir);
        tool::finish(&mut approve).map(drop)
    }

    /// Waits until the machine that showed `code` says that it is installed; returns where its bytes came from, in words.
    ///
    /// # Errors
    /// It failed, or did not say so in time.
    pub fn wait_installed(&self, code: &str, timeout: Duration) -> Result<String> {
        let pattern = format!("^(installed|failed): {code}, (.*)$");
        let found = self.process.wait_for_line(&pattern, timeout)?;
        match found.groups[1].as_str() {
            "installed" => Ok(found.groups[2].clone()),
            _ => bail!("the machine with code {code} failed: {}", found.groups[2]),
        }
    }
}
