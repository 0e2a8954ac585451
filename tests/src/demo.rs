//! The whole journey on one machine: a real system from a file, over the disks of four clients, onto
//! a blank machine that boots from the network and comes up running it.
//!
//! It fails unless the newcomer's promise holds: the disk is bit for bit the image before the system
//! first starts, most bytes come from peers, parity is used (one client is switched off), and the
//! login appears.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cairn::{self, Agent, Deployment, Install, Server, eventually},
    image::{Image, LOGIN_PROMPT, Variant, first_difference},
    netns::Lab,
    portal::Portal,
    process::describe,
    qemu::{Firmware, Hardware, OnReboot, blank_disk},
    site::{CODE_LINE, NetworkBoot, Site},
    stand_in::StandIn,
};

mod report;

use report::Report;
pub use report::{interrupt, say};

const CLIENTS: u8 = 4;
const LEND: &str = "4GiB";
const NAME: &str = "demo";
const LISTED: Duration = Duration::from_secs(60);
const NETWORK_BOOT: Duration = Duration::from_secs(240);
const INSTALL: Duration = Duration::from_secs(1200);
/// Clients are told after twenty seconds where a new server is, and again after forty more.
const FOUND: Duration = Duration::from_secs(90);
const LOGIN: Duration = Duration::from_secs(300);
/// What a machine shows when it will not get as far as its code.
const INSTALLER_FAILURES: [&str; 2] = ["no boot payload", "tries by itself in [0-9]+ s"];
const SHOW_EVERY: Duration = Duration::from_secs(2);
#[derive(Debug, Clone)]
pub struct Options {
    /// Another image than the small Debian that is made for it.
    pub image: Option<PathBuf>,
    pub firmware: Firmware,
    /// How many blank machines are installed at once.
    pub targets: u8,
    /// 1: with the server. 2: then without it, from a client that stands in for it.
    pub acts: u8,
    /// Leave all of it running until a key is pressed.
    pub keep: bool,
}

/// What was learned of one machine.
#[derive(Debug)]
struct Installed {
    to_installer: Duration,
    install: Duration,
    to_login: Duration,
    /// What the server knows of it.
    outcome: Option<Install>,
}

/// Who lets a machine in, and hears how it goes.
type Host<'a> = dyn Fn(&Hardware, &str) -> Result<Option<Install>> + Sync + 'a;

/// Runs the demo and prints what happens.
///
/// # Errors
/// Any step fails, with what was to be done and what came instead.
pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::default();
    // Noticed now and not after a minute of preparation.
    cairn::binary("cairn-server")?;
    cairn::binary("cairn-agent")?;
    let image = report.phase("image", || match &options.image {
        Some(path) => Ok(Image { path: path.clone(), root_offset: 0 }),
        None => {
            say("a small Debian; the first time it is made, in a minute or two");
            Variant::Small.image()
        }
    })?;
    let mut site = report.phase("server", || Site::start("demo", NetworkBoot::Proxy))?;
    let outcome = run_in(&mut site, options, &image, &mut report);
    if outcome.is_err() {
        say(&format!("the logs are in {}", site.lab.rescue_logs()?.display()));
    }
    outcome
}

fn run_in(site: &mut Site, options: &Options, image: &Image, report: &mut Report) -> Result<()> {
    let mut dashboard = dashboard(site)?;
    say(&dashboard);
    report.phase("clients join", || site.join(CLIENTS, LEND))?;
    report.phase("register", || site.add_image(&image.path, NAME))?;
    let detail = report.phase("scatter", || site.wait_scattered(NAME))?;
    if let Some(promise) = &detail.redundancy {
        say(&format!("promise: {promise}"));
    }
    // The one with most data: whoever holds parity alone would not be missed.
    let lines = site.server.agents()?;
    let fullest = lines.iter().max_by_key(|line| line.data_segments).context("find a client")?;
    let address = fullest.address.clone().context("read the client's address")?;
    let is_it = |agent: &&mut Agent| address.starts_with(&format!("{}:", agent.host().address()));
    let stopped = site.agents.iter_mut().find(is_it).context("find the client's process")?;
    let namespace = stopped.host().namespace().to_owned();
    stopped.process().kill().context("switch a client off")?;
    say("one client is switched off");
    let gone = site.agents.iter().position(|agent| agent.host().namespace() == namespace);
    let machines = hardware(&mut site.lab, options, image, 1)?;
    let server = &site.server;
    let host = |machine: &Hardware, code: &str| {
        let id = approve(server, machine, code)?;
        follow(server, &machine.name, &server.deploy(NAME, &id)?).map(Some)
    };
    let installed = all_at_once(&site.lab, &host, &machines, image)?;
    for (machine, installed) in machines.iter().zip(&installed) {
        report.machine(&machine.name, installed);
    }
    for outcome in installed.iter().filter_map(|installed| installed.outcome.as_ref()) {
        judge(outcome)?;
    }
    if options.acts > 1 {
        second_act(site, options, image, gone, report)?;
        dashboard = self::dashboard(site)?;
    }
    report.print(&detail, &dashboard);
    if options.keep {
        say(&format!("still running, {dashboard}"));
        say(&format!("its network: ip netns exec {} sh", site.server.host().namespace()));
        say("Ctrl-C ends it and cleans up");
        loop {
            thread::park();
        }
    }
    site.server.process().terminate().map(drop)
}

/// Opens a door to the dashboard of the present server, and says where it is.
fn dashboard(site: &Site) -> Result<String> {
    let portal = Portal::open(site.server.host(), cairn::PORT)?;
    let password = &site.server.first().password;
    Ok(format!("dashboard: https://{}/ (password {password})", portal.address()))
}

/// The server is gone; a client stands in for it, and a second blank machine comes up.
fn second_act(
    site: &mut Site,
    options: &Options,
    image: &Image,
    gone: Option<usize>,
    report: &mut Report,
) -> Result<()> {
    let left: Vec<usize> = (0..site.agents.len()).filter(|client| Some(*client) != gone).collect();
    report.phase("clients could stand in", || site.wait_for_stand_ins(&left))?;
    site.server.process().kill().context("kill the server")?;
    say("the server is killed");
    let first = left.first().and_then(|client| site.agents.get(*client));
    let agent = first.context("find a client that is left")?;
    let interface = ["--interface", "eth0"];
    let mut stand_in = report.phase("a client stands in", || {
        StandIn::start(&site.lab, agent, &site.server, &interface)
    })?;
    let machines = hardware(&mut site.lab, options, image, options.targets + 1)?;
    let host = |machine: &Hardware, code: &str| {
        stand_in.approve(code)?;
        let sources = stand_in.wait_installed(code, INSTALL)?;
        say(&format!("{}: {sources}", machine.name));
        Ok(None)
    };
    let installed = all_at_once(&site.lab, &host, &machines, image)?;
    for (machine, installed) in machines.iter().zip(&installed) {
        report.machine(&machine.name, installed);
    }
    stand_in.process().terminate()?;
    report.phase("server built anew", || recover(site, left.len()))
}

/// Another machine becomes the server, with nothing but the recovery key; its clients find it.
fn recover(site: &mut Site, clients: usize) -> Result<()> {
    let key = site.lab.dir().join("recovery-key.txt");
    fs::copy(site.server.data_dir().join("recovery-key.txt"), &key)
        .context("take the recovery key out of the lost server")?;
    let host = site.lab.host("phoenix", 200)?;
    let data_dir = site.lab.dir().join("phoenix");
    let left = site.agents.iter_mut().find_map(|agent| match agent.process().ended() {
        Ok(None) => Some(agent.host().clone()),
        _ => None,
    });
    let peer = left.context("find a client that is left")?;
    site.server = Server::recover(&site.lab, &host, &data_dir, &key, &peer)?;
    say(&format!("the new server is at {}", host.address()));
    eventually("the clients to find the new server", FOUND, || {
        let agents = site.server.agents()?;
        let here = agents.iter().filter(|agent| agent.seen.is_some() && agent.segments > 0).count();
        Ok((here >= clients).then_some(()))
    })?;
    let image = site.server.image(NAME)?;
    say(&format!(
        "{clients} clients have found it; image {NAME} is back with {} version",
        image.versions.len()
    ));
    Ok(())
}

fn all_at_once(
    lab: &Lab,
    host: &Host<'_>,
    machines: &[Hardware],
    image: &Image,
) -> Result<Vec<Installed>> {
    thread::scope(|scope| {
        let journeys: Vec<_> = machines
            .iter()
            .map(|machine| scope.spawn(|| journey(lab, host, machine, image)))
            .collect();
        journeys
            .into_iter()
            .map(|journey| journey.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn hardware(lab: &mut Lab, options: &Options, image: &Image, first: u8) -> Result<Vec<Hardware>> {
    let size = image.size()?;
    (first..first + options.targets)
        .map(|number| {
            let disk = lab.dir().join(format!("machine{number}.raw"));
            blank_disk(&disk, size)?;
            let mut hardware = Hardware::new(&format!("machine{number}"), number, &disk);
            hardware.firmware = options.firmware;
            hardware.tap = Some(lab.tap()?);
            Ok(hardware)
        })
        .collect()
}

/// A blank machine is switched on, approved, installed, compared, and started from its disk.
fn journey(lab: &Lab, host: &Host<'_>, hardware: &Hardware, image: &Image) -> Result<Installed> {
    let name = &hardware.name;
    let started = Instant::now();
    let mut machine = hardware.start(lab, OnReboot::Exit)?;
    say(&format!("{name}: boots from the network"));
    let shown = machine.wait_for(&[CODE_LINE], &INSTALLER_FAILURES, NETWORK_BOOT)?;
    let code = shown.first().and_then(|found| found.groups.get(1)).context("read the code")?;
    let to_installer = started.elapsed();
    say(&format!("{name}: shows code {code} after {:.1} s", to_installer.as_secs_f64()));

    let started = Instant::now();
    let outcome = host(hardware, code)?;
    let status = machine.wait_off(INSTALL).context("wait for the reboot")?;
    ensure!(status.success(), "{name}: QEMU ended with {}", describe(status));
    let install = started.elapsed();
    say(&format!("{name}: installed in {:.1} s, reboots", install.as_secs_f64()));
    compare(&image.path, &hardware.disk)?;
    say(&format!("{name}: the disk is bit for bit the image"));

    let started = Instant::now();
    let mut machine = hardware.start(lab, OnReboot::Reboot)?;
    machine.wait_for(&[r"login: *$"], &[], LOGIN)?;
    let to_login = started.elapsed();
    let prompt = machine.process().transcript().text(0).contains(LOGIN_PROMPT);
    let whose = if prompt { LOGIN_PROMPT } else { "login:" };
    say(&format!("{name}: `{whose}` after {:.1} s", to_login.as_secs_f64()));
    machine.switch_off()?;
    Ok(Installed { to_installer, install, to_login, outcome })
}

/// Finds the machine that shows `code`, and approves it.
fn approve(server: &Server, hardware: &Hardware, code: &str) -> Result<String> {
    let mac = hardware.mac();
    let shown = code.to_owned();
    let machine = eventually("the machine to be listed", LISTED, || {
        let machines = server.machines()?;
        Ok(machines.into_iter().find(|machine| machine.codes.contains(&shown)))
    })?;
    ensure!(
        machine.macs.contains(&mac),
        "the machine with code {code} should have the address {mac}, not {}",
        machine.macs.join(", ")
    );
    server.run(&["machine", "approve", &machine.id])?;
    Ok(machine.id)
}

/// Shows the progress until the install is done.
fn follow(server: &Server, name: &str, deployment: &Deployment) -> Result<Install> {
    let mut shown = Instant::now();
    eventually("the install", INSTALL, || {
        let deployment = server.deployment(deployment.id)?;
        let install = deployment.installs.into_iter().next().context("find the install")?;
        match install.state.as_str() {
            "done" => return Ok(Some(install)),
            state @ ("failed" | "cancelled") => {
                bail!("{name}: {state}: {}", install.error.as_deref().unwrap_or("no reason given"))
            }
            _ => {}
        }
        if shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            say(&report::progress(name, &install));
        }
        Ok(None)
    })
}

fn compare(image: &Path, disk: &Path) -> Result<()> {
    match first_difference(image, disk)? {
        None => Ok(()),
        Some(difference) => bail!("the installed disk is not the image: {difference:?}"),
    }
}

/// Whether the install was what Cairn is for.
fn judge(install: &Install) -> Result<()> {
    ensure!(
        install.from_peers > install.from_server,
        "most bytes should come from peers: {} from peers, {} from the server",
        install.from_peers,
        install.from_server
    );
    ensure!(install.rebuilt > 0, "a client was switched off and yet parity was not used");
    Ok(())
}
