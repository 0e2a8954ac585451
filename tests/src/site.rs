//! A whole site in a lab: a server, and clients that lend space to it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cairn::{
        Agent, AgentStatus, ImageDetail, LAB_RESERVE, Server, Status, VolumeDetail, binary,
        eventually, join,
    },
    dhcpd::Dhcpd,
    netns::{Host, Lab},
    paths,
    process::{Process, Program},
    stand_in::StandIn,
};

const APPROVE: Duration = Duration::from_secs(60);
const SCATTER: Duration = Duration::from_secs(600);
const CODE: Duration = Duration::from_secs(60);
/// How an installer shows the code that the administrator compares.
pub const CODE_LINE: &str = r"\bcode: ([0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4})\b";

/// Whether blank machines can boot from the site's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkBoot {
    /// The server answers beside the site's DHCP server, which runs too.
    Proxy,
    Off,
}

/// Ends in this order: clients, server, DHCP server, network.
#[derive(Debug)]
pub struct Site {
    pub agents: Vec<Agent>,
    pub server: Server,
    pub dhcpd: Option<Dhcpd>,
    pub lab: Lab,
}

impl Site {
    /// A server that has just been started for the first time, without clients.
    ///
    /// # Errors
    /// A program is not built, or does not start.
    pub fn start(name: &str, boot: NetworkBoot) -> Result<Self> {
        // Noticed before anything is made.
        binary("cairn-server")?;
        binary("cairn-agent")?;
        let mut lab = Lab::new(name)?;
        let (dhcpd, options): (_, &[&str]) = match boot {
            NetworkBoot::Off => (None, &[]),
            NetworkBoot::Proxy => {
                let payload = paths::boot_payload();
                ensure!(
                    payload.join("boot.json").is_file(),
                    "there is no boot payload in {}: `cargo xtask demo` or `cargo xtask test` makes it",
                    payload.display()
                );
                let host = lab.host("dhcp", 2)?;
                (Some(Dhcpd::start(&lab, &host)?), &["--boot-interface", "eth0"])
            }
        };
        Self::serve(lab, dhcpd, options)
    }

    /// The same, with a store of these folders of the lab.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_stores(name: &str, folders: &[&str]) -> Result<Self> {
        let lab = Lab::new(name)?;
        let folders: Vec<_> = folders.iter().map(|folder| lab.dir().join(folder)).collect();
        let options = stores(&folders)?;
        Self::serve(lab, None, &options)
    }

    fn serve(mut lab: Lab, dhcpd: Option<Dhcpd>, options: &[&str]) -> Result<Self> {
        let host = lab.host("server", 1)?;
        let data_dir = lab.dir().join("server");
        let server = Server::first_start(&lab, &host, &data_dir, options)?;
        Ok(Self { agents: Vec::new(), server, dhcpd, lab })
    }

    /// Lets `count` clients join that lend `lend` each, and approves them.
    ///
    /// # Errors
    /// One does not become a member.
    pub fn join(&mut self, count: u8, lend: &str) -> Result<()> {
        for _ in 0..count {
            let (host, number) = self.next_client()?;
            // The first start prints one token; further ones are made as an administrator makes them.
            let token = match number {
                1 => self.server.first().join_token.clone(),
                _ => self.server.join_token()?,
            };
            self.agents.push(Agent::join(&self.lab, &host, &self.server, &token, lend)?);
        }
        self.server.approve_agents(self.agents.len(), APPROVE)
    }

    /// Lets a client join whose state is in a folder of its own, with `terms` after `--lend`, and approves it.
    ///
    /// # Errors
    /// It does not become a member.
    pub fn join_at(&mut self, state_dir: &Path, terms: &[&str]) -> Result<()> {
        let (host, _) = self.next_client()?;
        join(&host, &self.server, &self.server.join_token()?, terms, state_dir)?;
        self.agents.push(Agent::run(&self.lab, &host, state_dir)?);
        self.server.approve_agents(self.agents.len(), APPROVE)
    }

    /// The machine of the next client, and its number from 1.
    fn next_client(&mut self) -> Result<(Host, u8)> {
        let number = u8::try_from(self.agents.len() + 1).context("number the client")?;
        Ok((self.lab.host(&format!("client{number}"), 10 + number)?, number))
    }

    /// Registers a raw image.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn add_image(&self, file: &Path, name: &str) -> Result<()> {
        let file = file.to_str().context("the image's path is not UTF-8")?;
        self.server
            .run(&["image", "add", file, "--name", name, "--format", "raw", "--any-content"])
            .map(drop)
    }

    /// Waits until every segment of an image is where it is to be.
    ///
    /// # Errors
    /// It is not in time.
    pub fn wait_scattered(&self, name: &str) -> Result<ImageDetail> {
        eventually(&format!("image {name} to be scattered"), SCATTER, || {
            let detail = self.server.image(name)?;
            Ok(detail.scatter.complete.then_some(detail))
        })
    }

    /// Waits until clients hold what they are to hold of a volume, up to what was written last.
    ///
    /// # Errors
    /// They do not in time.
    pub fn wait_volume_scattered(&self, name: &str) -> Result<VolumeDetail> {
        eventually(&format!("volume {name} to be scattered"), SCATTER, || {
            let detail = self.server.volume(name)?;
            let complete = detail.scatter.as_ref().is_some_and(|scatter| scatter.complete);
            // What is let go of is gone when nobody works any more.
            let jobs = self.server.status()?.jobs;
            let done = complete && detail.journal == 0 && jobs.queued + jobs.running == 0;
            Ok(done.then_some(detail))
        })
    }

    /// Waits until client `index` has all that it was last asked to hold: its share of the images and of the bundle.
    ///
    /// # Errors
    /// It is not in time, or the client does not tell.
    pub fn wait_settled(&self, index: usize) -> Result<AgentStatus> {
        let agent = self.agents.get(index).context("find the client")?;
        eventually("the client to hold its share", SCATTER, || {
            let status = agent.status()?;
            Ok((status.missing == 0).then_some(status))
        })
    }

    /// Waits until all these clients could stand in for the server: they hold boot files, manifests and stripe maps, and
    /// have the directory that names them.
    ///
    /// # Errors
    /// It is not in time.
    pub fn wait_for_stand_ins(&self, clients: &[usize]) -> Result<()> {
        eventually("the clients to hold the bundle", SCATTER, || {
            let Status { directory, bundle, jobs } = self.server.status()?;
            let settled = bundle.published
                && bundle.clients >= clients.len()
                && jobs.queued + jobs.running == 0;
            if !settled {
                return Ok(None);
            }
            for client in clients {
                let agent = self.agents.get(*client).context("find the client")?;
                if agent.directory()? < directory {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// Starts the installer on the machine of client `index`, to a file, and approves it. The file is
    /// whole when the process ends with 0.
    ///
    /// # Errors
    /// It does not start, or the server refuses it.
    pub fn install_to_file(&self, index: usize, image: &str, file: &Path) -> Result<Process> {
        let agent = self.agents.get(index).context("find the client")?;
        let installer = self.installer(agent.host(), agent.state_dir(), image, file)?;
        let code = self.shown_code(&installer)?;
        self.server.run(&["machine", "approve", &code])?;
        Ok(installer)
    }

    /// Starts the installer on a machine of its own that is in nobody's fleet, to a file, and returns it with the code that it
    /// shows, once the server knows that.
    ///
    /// # Errors
    /// It does not start.
    pub fn waiting_target(
        &self,
        host: &Host,
        image: &str,
        file: &Path,
    ) -> Result<(Process, String)> {
        let state = file.with_extension("state");
        let token = self.server.join_token()?;
        join(host, &self.server, &token, &["64MiB", "--reserve", LAB_RESERVE], &state)?;
        let installer = self.installer(host, &state, image, file)?;
        let code = self.shown_code(&installer)?;
        Ok((installer, code))
    }

    /// Starts the installer of [`Self::waiting_target`] again, as after a reboot, and approves its new code.
    ///
    /// # Errors
    /// It does not start, or the server refuses it.
    pub fn install_again(&self, host: &Host, image: &str, file: &Path) -> Result<Process> {
        let installer = self.installer(host, &file.with_extension("state"), image, file)?;
        let code = self.shown_code(&installer)?;
        self.server.run(&["machine", "approve", &code])?;
        Ok(installer)
    }

    /// The code that an installer shows, once the server knows it too.
    ///
    /// # Errors
    /// It shows none in time, or the server does not hear of it.
    pub fn shown_code(&self, installer: &Process) -> Result<String> {
        let started = Instant::now();
        let found = installer.wait_for_line(CODE_LINE, CODE)?;
        let code = found.groups.get(1).context("read the code")?;
        // The code is shown before the server has heard of it.
        let left = CODE.saturating_sub(started.elapsed());
        eventually(&format!("code {code} to be known"), left, || {
            let machines = self.server.machines()?;
            Ok(machines.iter().any(|machine| machine.codes.contains(code)).then_some(()))
        })?;
        Ok(code.clone())
    }

    /// As [`Self::install_to_file`], from a server at another address than the one that the client joined.
    ///
    /// # Errors
    /// It does not start, or the server refuses it.
    pub fn install_at(&self, index: usize, image: &str, file: &Path, url: &str) -> Result<Process> {
        let agent = self.agents.get(index).context("find the client")?;
        let server = ["--server", url];
        let installer =
            self.installer_with(agent.host(), agent.state_dir(), image, file, &server)?;
        let code = self.shown_code(&installer)?;
        self.server.run(&["machine", "approve", &code])?;
        Ok(installer)
    }

    /// As [`Self::install_to_file`], by a client that stands in for the server.
    ///
    /// # Errors
    /// It does not start, or the stand-in refuses it.
    pub fn install_by(
        &self,
        stand_in: &StandIn,
        index: usize,
        image: &str,
        file: &Path,
    ) -> Result<(Process, String)> {
        let agent = self.agents.get(index).context("find the client")?;
        let server = ["--server", stand_in.url()];
        let installer =
            self.installer_with(agent.host(), agent.state_dir(), image, file, &server)?;
        let found = installer.wait_for_line(CODE_LINE, CODE)?;
        let code = found.groups.get(1).context("read the code")?;
        stand_in.approve(code)?;
        Ok((installer, code.clone()))
    }

    /// Starts an installer with papers of a client that has joined; it waits for approval.
    ///
    /// # Errors
    /// It does not start.
    pub fn installer(
        &self,
        host: &Host,
        state: &Path,
        image: &str,
        file: &Path,
    ) -> Result<Process> {
        self.installer_with(host, state, image, file, &[])
    }

    fn installer_with(
        &self,
        host: &Host,
        state: &Path,
        image: &str,
        file: &Path,
        options: &[&str],
    ) -> Result<Process> {
        Program::new("installer", binary("cairn-agent")?)
            .args(["install", image, "--disk"])
            .args([file.as_os_str(), "--state-dir".as_ref(), state.as_os_str()])
            .args(options)
            .on(host)
            .log(self.lab.dir().join(format!("installer-{}.log", host.namespace())))
            .start()
    }
}

/// The options of `serve` for a store of these folders.
///
/// # Errors
/// A path is not UTF-8.
pub fn stores(folders: &[PathBuf]) -> Result<Vec<&str>> {
    let mut options = Vec::new();
    for folder in folders {
        options.extend(["--store", folder.to_str().context("the path is not UTF-8")?]);
    }
    Ok(options)
}
