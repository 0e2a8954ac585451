//! Cairn's own programs, as an administrator uses them: `cairn-server serve`, its command line with
//! `--json`, and agents. Only the contract of the command line is known here, nothing of the inside.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    netns::{Host, Lab},
    paths,
    process::{Process, Program},
    tool,
};

mod agent;

pub use agent::{Agent, AgentStatus, join};

/// The port of dashboard, API and agents.
pub const PORT: u16 = 8440;
/// What the server prints when everything is bound.
const READY: &str = "^ready: https://";
const START: Duration = Duration::from_secs(30);
/// Every segment of the site is fetched.
const RECOVER: Duration = Duration::from_secs(600);
/// Between two looks at something that only the command line can tell.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the first start prints, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstStart {
    pub dashboard: String,
    pub password: String,
    pub join_url: String,
    pub join_token: String,
}

/// A running `cairn-server serve`.
#[derive(Debug)]
pub struct Server {
    process: Process,
    host: Host,
    data_dir: PathBuf,
    environment: Vec<(&'static str, String)>,
    first_start: FirstStart,
}

/// An agent of `agent list --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentLine {
    pub id: String,
    pub state: String,
    /// Bytes that it lends now.
    pub lend: u64,
    /// `IP:PORT` of its peer service.
    pub address: Option<String>,
    /// Segments it holds, and those of them that are not parity.
    pub segments: u64,
    pub data_segments: u64,
    /// When it last spoke.
    pub seen: Option<String>,
    /// Seconds by which its clock is wrong, when that is worth a word.
    pub clock_ahead: Option<i64>,
    /// It stores nothing for the time being.
    pub rests: bool,
}

/// A machine of `machine list --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct MachineLine {
    pub id: String,
    pub state: String,
    pub macs: Vec<String>,
    /// What its screen shows while it waits for approval.
    pub codes: Vec<String>,
}

/// An image of `image show NAME --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageDetail {
    pub name: String,
    /// What may be lost, in words.
    pub redundancy: Option<String>,
    pub scatter: Scatter,
    /// Oldest first.
    pub versions: Vec<VersionLine>,
}

/// A volume of `volume show NAME --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct VolumeDetail {
    /// What may be lost, in words.
    pub redundancy: Option<String>,
    /// None of a volume that is on the server only.
    pub scatter: Option<Scatter>,
    /// Clients that have all of its journal, when some are to.
    pub tail_holders: Option<u64>,
    pub state: String,
    /// Bytes in the store.
    pub stored: u64,
    /// Bytes that wait to be sealed.
    pub journal: u64,
}

/// How far the segments of an image or a volume are where they are to be.
#[derive(Debug, Clone, Deserialize)]
pub struct Scatter {
    pub wanted_bytes: u64,
    pub held_bytes: u64,
    pub complete: bool,
}

/// What clients hold to go on without the server, of `status --json`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Bundle {
    /// Nothing until it is in the store.
    pub bytes: u64,
    /// Clients that hold all of it.
    pub clients: usize,
    pub published: bool,
}

/// The site, of `status --json`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Status {
    /// The number of the newest directory.
    pub directory: u64,
    pub bundle: Bundle,
    pub jobs: Jobs,
}

/// Work of the server that is not done.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Jobs {
    pub queued: u64,
    pub running: u64,
}

/// A version of an image.
#[derive(Debug, Clone, Deserialize)]
pub struct VersionLine {
    /// Length of the raw image.
    pub size: u64,
    /// Sealed bytes of its segments.
    pub stored: u64,
    /// Those that no earlier version had.
    pub added: u64,
}

/// A deployment of `deploy --json` and `deployment show ID --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Deployment {
    pub id: i64,
    pub installs: Vec<Install>,
}

/// One machine's share of a deployment; bytes are sealed unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Install {
    pub state: String,
    pub phase: Option<String>,
    pub percent: u8,
    pub total: u64,
    pub from_peers: u64,
    pub from_server: u64,
    pub rebuilt: u64,
    /// Plain bytes that were right already, and that were written.
    pub already: u64,
    pub written: u64,
    /// What holds it up.
    pub bottleneck: Option<String>,
    pub error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CreatedToken {
    token: String,
}

/// One of Cairn's programs.
///
/// # Errors
/// It is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = paths::binaries().join(name);
    ensure!(
        path.is_file(),
        "{} is not built: `cargo build --workspace --bins`, or name its folder in CAIRN_BIN_DIR",
        path.display()
    );
    Ok(path)
}

impl Server {
    /// Starts it on `host` with an empty `data_dir` and waits until it serves. `options` are further
    /// ones of `serve`, such as `--boot-interface eth0`.
    ///
    /// # Errors
    /// It ends, or does not print what a first start prints.
    pub fn first_start(lab: &Lab, host: &Host, data_dir: &Path, options: &[&str]) -> Result<Self> {
        Self::first_start_in(lab, host, data_dir, options, Vec::new())
    }

    /// As [`Self::first_start`], with these in its environment, now and when it is started again.
    ///
    /// # Errors
    /// As [`Self::first_start`].
    pub fn first_start_in(
        lab: &Lab,
        host: &Host,
        data_dir: &Path,
        options: &[&str],
        environment: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let process = serve(lab, host, data_dir, options, &environment)?.start()?;
        process.wait_for_line(READY, START).context("start the server")?;
        let find = |pattern: &str| {
            let found = process.wait_for_line(pattern, START).context("read the first start")?;
            Ok::<_, anyhow::Error>(found.groups)
        };
        let join = find(r"^join: .*cairn-agent join (https://\S+) (\S+)")?;
        let first_start = FirstStart {
            dashboard: find(r"^dashboard: +(https://\S+)")?[1].clone(),
            password: find(r"^sign in: .* password (\S+)")?[1].clone(),
            join_url: join[1].clone(),
            join_token: join[2].clone(),
        };
        let (host, data_dir) = (host.clone(), data_dir.to_owned());
        Ok(Self { process, host, data_dir, environment, first_start })
    }

    /// What it has in its environment.
    pub fn environment(&self) -> &[(&'static str, String)] {
        &self.environment
    }

    /// Starts another server of the same site that waits until this one is gone.
    ///
    /// # Errors
    /// It does not wait.
    pub fn standby(
        &self,
        lab: &Lab,
        host: &Host,
        data_dir: &Path,
        options: &[&str],
    ) -> Result<Self> {
        let options = [options, &["--standby"]].concat();
        let process = serve(lab, host, data_dir, &options, &self.environment)?.start()?;
        process.wait_for_line("^standby: ", START)?;
        Ok(Self {
            process,
            host: host.clone(),
            data_dir: data_dir.to_owned(),
            environment: self.environment.clone(),
            first_start: self.first_start.clone(),
        })
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// It ends, or does not come up.
    pub fn wait_ready(&self) -> Result<()> {
        self.process.wait_for_line(READY, START).map(drop)
    }

    /// Has it started with these in its environment from the next time on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, String)>) {
        self.environment = environment;
    }

    /// Starts it again on the same data, after it was killed or ended.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self, lab: &Lab, options: &[&str]) -> Result<()> {
        self.process =
            serve(lab, &self.host, &self.data_dir, options, &self.environment)?.start()?;
        self.process.wait_for_line(READY, START).map(drop)
    }

    /// As [`Self::restart`], on a machine whose clock is off by `offset`, as faketime(1) writes it: `+8d`.
    ///
    /// # Errors
    /// As [`Self::restart`].
    pub fn restart_with_clock(&mut self, lab: &Lab, offset: &str) -> Result<()> {
        let program = serve(lab, &self.host, &self.data_dir, &[], &self.environment)?;
        self.process = with_clock(program, offset).start()?;
        self.process.wait_for_line(READY, START).map(drop)
    }

    /// Builds a lost one anew on `host`, from the recovery key in `key` and the client at `peer`, and starts it.
    ///
    /// # Errors
    /// Something cannot be read any more, or it does not start.
    pub fn recover(
        lab: &Lab,
        host: &Host,
        data_dir: &Path,
        key: &Path,
        peer: &Host,
    ) -> Result<Self> {
        let mut recover = Program::new("recover", binary("cairn-server")?)
            .args(["recover", "--recovery-key"])
            .args([key])
            .args(["--data-dir"])
            .args([data_dir])
            .args(["--peer", &peer.address().to_string()])
            .on(host)
            .log(lab.dir().join("recover.log"))
            .start()?;
        recover.wait_success(RECOVER)?;
        Self::first_start(lab, host, data_dir, &[])
    }

    pub fn first(&self) -> &FirstStart {
        &self.first_start
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Runs a subcommand against the running server and returns what it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.host.namespace()])
            .arg(binary("cairn-server")?)
            .args(args)
            .env("CAIRN_DATA_DIR", &self.data_dir);
        tool::finish(&mut command)
    }

    /// As [`Self::run`] with `--json`, parsed.
    ///
    /// # Errors
    /// It fails or prints something else.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = self.run(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("read what cairn-server {} printed: {text}", args.join(" ")))
    }

    /// A join token; each is good for one agent.
    ///
    /// # Errors
    /// The server refuses.
    pub fn join_token(&self) -> Result<String> {
        Ok(self.json::<CreatedToken>(&["token", "create"])?.token)
    }

    /// # Errors
    /// The server refuses.
    pub fn agents(&self) -> Result<Vec<AgentLine>> {
        self.json(&["agent", "list"])
    }

    /// # Errors
    /// The server refuses.
    pub fn machines(&self) -> Result<Vec<MachineLine>> {
        self.json(&["machine", "list"])
    }

    /// # Errors
    /// The server refuses.
    pub fn image(&self, name: &str) -> Result<ImageDetail> {
        self.json(&["image", "show", name])
    }

    /// # Errors
    /// The server refuses.
    pub fn volume(&self, name: &str) -> Result<VolumeDetail> {
        self.json(&["volume", "show", name])
    }

    /// # Errors
    /// The server refuses.
    pub fn status(&self) -> Result<Status> {
        self.json(&["status"])
    }

    /// Deploys `image` to `machine`.
    ///
    /// # Errors
    /// The server refuses.
    pub fn deploy(&self, image: &str, machine: &str) -> Result<Deployment> {
        self.json(&["deploy", image, "--machine", machine])
    }

    /// Deploys `image` to all of `machines` at once.
    ///
    /// # Errors
    /// The server refuses.
    pub fn deploy_to_all(&self, image: &str, machines: &[String]) -> Result<Deployment> {
        let named = machines.iter().flat_map(|machine| ["--machine", machine]);
        self.json(&["deploy", image].into_iter().chain(named).collect::<Vec<_>>())
    }

    /// # Errors
    /// The server refuses.
    pub fn deployment(&self, id: i64) -> Result<Deployment> {
        self.json(&["deployment", "show", &id.to_string()])
    }

    /// Waits until all agents whose state is pending are approved and `count` are members.
    ///
    /// # Errors
    /// They are not within `timeout`.
    pub fn approve_agents(&self, count: usize, timeout: Duration) -> Result<()> {
        eventually(&format!("{count} approved agents"), timeout, || {
            let agents = self.agents()?;
            for agent in agents.iter().filter(|agent| agent.state == "pending") {
                self.run(&["agent", "approve", &agent.id])?;
            }
            let members = agents.iter().filter(|agent| agent.state == "approved").count();
            Ok((members >= count).then_some(()))
        })
    }
}

/// What a client of the lab keeps free: all of them share one disk with the images of the tests.
pub const LAB_RESERVE: &str = "256MiB";

/// The program, on a machine whose clock is off.
fn with_clock(program: Program, offset: &str) -> Program {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    // How long something takes is told by another clock, which is right.
    program
        .env("LD_PRELOAD", library)
        .env("FAKETIME", offset)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

fn serve(
    lab: &Lab,
    host: &Host,
    data_dir: &Path,
    options: &[&str],
    environment: &[(&'static str, String)],
) -> Result<Program> {
    let program = Program::new("cairn-server", binary("cairn-server")?)
        .args(["serve", "--data-dir"])
        .args([data_dir])
        .args(["--boot-dir".as_ref(), paths::boot_payload().as_os_str()])
        .args(options)
        .on(host)
        .log(lab.dir().join("cairn-server.log"));
    let set = |program: Program, (key, value): &(&'static str, String)| program.env(key, value);
    Ok(environment.iter().fold(program, set))
}

/// Looks again and again until `look` finds something. For what can only be asked and not waited for.
///
/// # Errors
/// `look` fails, or finds nothing within `timeout`.
pub fn eventually<T>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look().with_context(|| format!("wait for {what}"))? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("wait for {what}: not within {} s", timeout.as_secs());
        }
        thread::sleep(LOOK_AGAIN);
    }
}
