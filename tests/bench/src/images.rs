//! Registering and installing with the real programs: how fast, in how much memory, how much of a link.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Figure, Wanted};
use cairn_tests::{
    cairn::{Agent, Install, LAB_RESERVE, Server, binary, eventually, join},
    image::{Percent, Synthetic, mutate, synthetic_ext4},
    netns::{Host, Lab, MegabitsPerSecond},
    process::Program,
    tool,
};

const CLIENTS: u8 = 4;
/// How long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);
const RATE: u32 = 200;

/// A server and some clients that run in one lab.
struct Site {
    lab: Lab,
    server: Server,
    agents: Vec<Agent>,
    target: Host,
    installs: u32,
}

impl Site {
    fn start(name: &str) -> Result<Self> {
        let mut lab = Lab::new(name)?;
        let host = lab.host("server", 1)?;
        let data = lab.dir().join("data");
        let server = Server::first_start(&lab, &host, &data, &[])?;
        let mut agents = Vec::new();
        for number in 1..=CLIENTS {
            let host = lab.host(&format!("pc{number}"), 10 + number)?;
            agents.push(Agent::join(&lab, &host, &server, &server.join_token()?, "8GiB")?);
        }
        server.approve_agents(CLIENTS.into(), LONG)?;
        let target = lab.host("target", 30)?;
        Ok(Self { lab, server, agents, target, installs: 0 })
    }

    /// Adds an image with the command line; the seconds that took.
    fn add(&self, image: &Path, name: &str) -> Result<f64> {
        let started = Instant::now();
        let path = image.to_str().context("name the image")?;
        self.server.run(&["image", "add", path, "--name", name, "--any-content"])?;
        Ok(started.elapsed().as_secs_f64())
    }

    fn wait_until_scattered(&self, name: &str) -> Result<()> {
        eventually("the image on its clients", LONG, || {
            let scatter = self.server.image(name)?.scatter;
            Ok((scatter.complete && scatter.wanted_bytes > 0).then_some(()))
        })
    }

    /// Installs to a file with an agent of its own on the target host.
    fn install(&mut self, name: &str, disk: &Path) -> Result<Installed> {
        self.installs += 1;
        let state = self.lab.dir().join(format!("target{}", self.installs));
        let token = self.server.join_token()?;
        join(&self.target, &self.server, &token, &["64MiB", "--reserve", LAB_RESERVE], &state)?;
        let mut install = Program::new("install", "/usr/bin/time")
            .args(["-v"])
            .args([binary("cairn-agent")?])
            .args(["install", name, "--disk"])
            .args([disk])
            .args(["--state-dir"])
            .args([&state])
            .on(&self.target)
            .log(self.lab.dir().join(format!("install{}.log", self.installs)))
            .start()?;
        let code = install.wait_for_line(r"machine approve (\S+?)`", LONG)?.groups[1].clone();
        self.server.run(&["machine", "approve", &code])?;
        install.wait_for_line("^comparing|^installing", LONG)?;
        let started = Instant::now();
        install.wait_for_line("^reading back", LONG)?;
        let fetching = started.elapsed().as_secs_f64();
        install.wait_success(LONG)?;
        let seconds = started.elapsed().as_secs_f64();
        let resident =
            install.wait_for_line(r"Maximum resident set size \(kbytes\): (\d+)", LONG)?;
        let deployments: Vec<cairn_tests::cairn::Deployment> =
            self.server.json(&["deployment", "list"])?;
        let newest = deployments
            .iter()
            .max_by_key(|deployment| deployment.id)
            .context("find the deployment")?;
        let done = self
            .server
            .deployment(newest.id)?
            .installs
            .into_iter()
            .next()
            .context("find the install")?;
        Ok(Installed { done, fetching, seconds, resident_kib: resident.groups[1].parse()? })
    }
}

/// What came of an install.
struct Installed {
    /// What the server knows of it in the end.
    done: Install,
    /// Seconds from the ticket until everything was fetched and written.
    fetching: f64,
    /// Seconds from the ticket to the end, reading back included.
    seconds: f64,
    /// The installer's largest resident size.
    resident_kib: u32,
}

/// The largest resident size of a running process so far, in MiB.
fn peak_mib(pid: u32) -> Result<f64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("read the process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// The server process that `ip netns exec` became.
fn server_pid(site: &mut Site) -> u32 {
    site.server.process().pid()
}

/// Real file content: as much of this machine's programs and libraries as asked for.
fn real_data(path: &Path, bytes: u64) -> Result<()> {
    let command = format!(
        "tar -C / --ignore-failed-read -cf - usr/lib usr/bin usr/share 2>/dev/null | head -c {bytes} > {}",
        path.display()
    );
    tool::run("sh", ["-c", &command])?;
    File::options().write(true).open(path)?.set_len(bytes).context("size the file")
}

fn gigabytes_per_second(bytes: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a measured size")]
    let bytes = bytes as f64;
    bytes / 1e9 / seconds
}

fn share(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a measured size")]
    let share = part as f64 / whole as f64;
    share
}

/// `image add` over loopback TLS: real file content, then zeros.
pub(super) fn register() -> Result<Vec<Figure>> {
    const DATA: u64 = 1 << 30;
    const ZEROS: u64 = 4 << 30;
    let mut site = Site::start("bench-register")?;
    let data = site.lab.dir().join("data.raw");
    real_data(&data, DATA)?;
    let took = site.add(&data, "data")?;
    let zeros = site.lab.dir().join("zeros.raw");
    write_zeros(&zeros, ZEROS)?;
    let zeros_took = site.add(&zeros, "zeros")?;
    let pid = server_pid(&mut site);
    Ok(vec![
        Figure::new(
            "register, data",
            gigabytes_per_second(DATA, took),
            "GB/s",
            Wanted::AtLeast(0.4),
        ),
        Figure::new(
            "register, zeros",
            gigabytes_per_second(ZEROS, zeros_took),
            "GB/s",
            Wanted::AtLeast(2.0),
        ),
        Figure::new("server's largest resident size", peak_mib(pid)?, "MiB", Wanted::AtMost(512.0)),
    ])
}

/// Zeros that are written, not holes; then one block that is not, for all zeros are no image.
fn write_zeros(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path).context("make the file of zeros")?;
    let chunk = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk).context("write zeros")?;
    }
    use std::os::unix::fs::FileExt as _;
    file.write_all_at(&[1; 4096], 0).context("write the one block")
}

/// An install to a file from four local clients, nothing shaped.
pub(super) fn install() -> Result<Vec<Figure>> {
    const DATA: u64 = 1 << 30;
    let mut site = Site::start("bench-install")?;
    let data = site.lab.dir().join("data.raw");
    real_data(&data, DATA)?;
    site.add(&data, "data")?;
    site.wait_until_scattered("data")?;
    let disk = site.lab.dir().join("disk.raw");
    let Installed { done, seconds, resident_kib, .. } = site.install("data", &disk)?;
    let resident = f64::from(resident_kib) / 1024.0;
    Ok(vec![
        Figure::new(
            "install, data",
            gigabytes_per_second(done.written, seconds),
            "GB/s",
            Wanted::AtLeast(0.3),
        ),
        Figure::new("installer's largest resident size", resident, "MiB", Wanted::AtMost(512.0)),
        Figure::new(
            "share that came from the server",
            share(done.from_server, done.total),
            "",
            Wanted::Nothing,
        ),
    ])
}

/// An install over one slow link.
pub(super) fn slow_link() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-link200")?;
    let data = site.lab.dir().join("data.raw");
    real_data(&data, 768 << 20)?;
    site.add(&data, "data")?;
    site.wait_until_scattered("data")?;
    site.target.shape(MegabitsPerSecond(RATE))?;
    let disk = site.lab.dir().join("disk.raw");
    let Installed { done, fetching, seconds, .. } = site.install("data", &disk)?;
    let sealed = done.from_peers + done.from_server;
    let link = f64::from(RATE) * 1e6 / 8.0;
    #[expect(clippy::cast_precision_loss, reason = "a measured size")]
    let full = sealed as f64 / link;
    Ok(vec![
        Figure::new("share of 200 Mbit/s while fetching", full / fetching, "", Wanted::Nothing),
        // Ethernet, IP and TCP headers leave 1448 of 1514 bytes.
        Figure::new(
            "the same of what headers leave",
            full / fetching * 1514.0 / 1448.0,
            "",
            Wanted::AtLeast(0.95),
        ),
        Figure::new("share from ticket to end", full / seconds, "", Wanted::Nothing),
    ])
}

/// A second version with 8 % of its file bytes changed: what is stored, and what a machine with the first one fetches.
pub(super) fn second_version() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-version")?;
    let folder = site.lab.dir().to_owned();
    let first = synthetic_ext4(
        &folder.join("one.raw"),
        Synthetic { size_mib: 512, files_mib: 400, seed: 1 },
    )?;
    let second: PathBuf = folder.join("two.raw");
    mutate(&first, Percent(8), 7, &second)?;
    site.add(&first.path, "system")?;
    site.wait_until_scattered("system")?;
    let disk = folder.join("disk.raw");
    site.install("system", &disk)?;
    site.add(&second, "system")?;
    site.wait_until_scattered("system")?;
    let done = site.install("system", &disk)?.done;
    let versions = site.server.image("system")?.versions;
    let newest = versions.last().context("find the second version")?;
    Ok(vec![
        Figure::new(
            "new bytes stored",
            share(newest.added, newest.stored),
            "",
            Wanted::AtMost(0.10),
        ),
        Figure::new(
            "bytes fetched where the first version is",
            share(done.from_peers + done.from_server, newest.stored),
            "",
            Wanted::AtMost(0.10),
        ),
    ])
}

/// An agent that has nothing to do, and one that opens a 20 GiB file.
/// What a process has used of processors since it began.
fn processor_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name may have spaces; behind it are the state and, 11 fields later, user and system time, proc(5).
    let (_, fields) = stat.rsplit_once(')').context("find the fields")?;
    let mut ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let mut next = || ticks.next().context("find the times")?.context("read the times");
    Ok((next()? + next()?) / f64::from(u32::try_from(rustix::param::clock_ticks_per_second())?))
}

pub(super) fn idle_agent() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-agent")?;
    let host = site.lab.host("big", 40)?;
    let mut agent =
        Agent::join(&site.lab, &host, &site.server, &site.server.join_token()?, "20GiB")?;
    site.server.approve_agents(usize::from(CLIENTS) + 1, LONG)?;
    agent.process().wait_for_line("agent runs", LONG)?;
    agent.process().terminate()?;
    let started = Instant::now();
    let mut agent = Agent::run(&site.lab, &host, agent.state_dir())?;
    agent.process().wait_for_line("agent runs", LONG)?;
    let took = started.elapsed().as_secs_f64();
    let pid = site.agents.first_mut().context("find an agent")?.process().pid();
    std::thread::sleep(IDLE);
    let before = processor_seconds(pid)?;
    std::thread::sleep(IDLE);
    let share = (processor_seconds(pid)? - before) / IDLE.as_secs_f64() * 100.0;
    Ok(vec![
        Figure::new("idle agent's share of a processor", share, "%", Wanted::Nothing),
        Figure::new("start with a DSF of 20 GiB", took, "s", Wanted::AtMost(2.0)),
        Figure::new(
            "idle agent's largest resident size",
            peak_mib(pid)?,
            "MiB",
            Wanted::AtMost(64.0),
        ),
    ])
}
