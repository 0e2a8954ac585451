//! How long a room of machines takes that installs together, over what one pass of the data over one link takes; beside it what
//! others need for the same bytes in the same lab: curl from nginx one by one, udpcast's multicast, and BitTorrent by aria2.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Figure, Wanted};
use cairn_tests::{
    image::first_difference,
    netns::{Host, Lab, MegabitsPerSecond},
    process::{Process, Program},
    site::{NetworkBoot, Site},
    tool,
};

pub(super) const RATE: MegabitsPerSecond = MegabitsPerSecond(100);
pub(super) const BYTES: u64 = 256 << 20;
pub(super) const LONG: Duration = Duration::from_secs(900);
/// Ethernet, IP and TCP headers leave 1448 of 1514 bytes.
const HEADERS: f64 = 1514.0 / 1448.0;

/// Seconds that one pass of so many bytes over one link takes.
#[expect(clippy::cast_precision_loss, reason = "a measured size")]
pub(super) fn pass(bytes: u64) -> f64 {
    bytes as f64 * 8.0 * HEADERS / (f64::from(RATE.0) * 1e6)
}

/// Where the copies go: memory, so that the links are measured and not the disk that all share.
#[derive(Debug)]
pub(super) struct Memory(pub(super) PathBuf);

impl Memory {
    pub(super) fn mount(lab: &Lab) -> Result<Self> {
        let path = lab.dir().join("memory");
        std::fs::create_dir(&path).context("make a folder")?;
        tool::run(
            "mount",
            ["-t", "tmpfs", "-o", "size=12g", "tmpfs", path.to_str().context("name it")?],
        )?;
        Ok(Self(path))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        tool::run("umount", ["--lazy".as_ref(), self.0.as_os_str()]).ok();
    }
}

pub(super) fn noise(path: &Path) -> Result<()> {
    let mut random = File::open("/dev/urandom").context("open the source of noise")?.take(BYTES);
    let mut file = File::create(path).context("make the file of noise")?;
    std::io::copy(&mut random, &mut file).context("write noise")?;
    file.flush().context("write noise")
}

/// A program that was begun for every host.
struct Running {
    _serving: Vec<Process>,
    receivers: Vec<Process>,
    /// When the first receiver began.
    since: Instant,
    /// What a receiver says when it has all; none: it ends then.
    says: Option<&'static str>,
}

impl Running {
    /// Whoever serves is there: has everybody receive.
    fn begin(
        serving: Vec<Process>,
        hosts: &[Host],
        says: Option<&'static str>,
        receive: impl Fn(&Host) -> Result<Process>,
    ) -> Result<Self> {
        let since = Instant::now();
        let receivers = hosts.iter().map(receive).collect::<Result<_>>()?;
        Ok(Self { _serving: serving, receivers, since, says })
    }

    /// Until all have all. Returns the seconds since the first began.
    fn wait(&mut self) -> Result<f64> {
        for receiver in &mut self.receivers {
            match self.says {
                Some(line) => drop(receiver.wait_for_line(line, LONG)?),
                None => receiver.wait_success(LONG)?,
            }
        }
        Ok(self.since.elapsed().as_secs_f64())
    }
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let one = cairn(1, &mut figures)?;
    cairn(8, &mut figures)?;
    let sixteen = cairn(16, &mut figures)?;
    figures.push(Figure::new("T(16) over T(1)", sixteen / one, "", Wanted::AtMost(1.08)));
    for count in [1, 8] {
        let name = format!("nginx + curl, N = {count}, last over one pass");
        figures.push(Figure::new(&name, others(count, unicast)?, "", Wanted::Nothing));
        let name = format!("udpcast, N = {count}, last over one pass");
        figures.push(Figure::new(&name, others(count, multicast)?, "", Wanted::Nothing));
        let name = format!("aria2, N = {count}, last over one pass");
        figures.push(Figure::new(&name, others(count, torrent)?, "", Wanted::Nothing));
    }
    Ok(figures)
}

/// Installs to `count` machines with an empty fleet. Returns the seconds until the last has everything.
fn cairn(count: u8, figures: &mut Vec<Figure>) -> Result<f64> {
    let mut site = Site::start(&format!("bench-swarm{count}"), NetworkBoot::Off)?;
    let memory = Memory::mount(&site.lab)?;
    let image = memory.0.join("image.raw");
    noise(&image)?;
    site.add_image(&image, "noise")?;
    let mut targets = Vec::new();
    let mut codes = Vec::new();
    for number in 1..=count {
        let host = site.lab.host(&format!("t{number}"), 30 + number)?;
        let disk = memory.0.join(format!("disk{number}"));
        let (installer, code) = site.waiting_target(&host, "noise", &disk)?;
        host.shape(RATE)?;
        targets.push((installer, disk));
        codes.push(code);
    }
    let server = site.server.host().clone();
    server.shape(RATE)?;
    let (sent_before, _) = server.traffic()?;
    let started = Instant::now();
    let deployment = site.server.deploy_to_all("noise", &codes)?;
    let times = std::thread::scope(|scope| {
        let wait = |installer: &mut Process| -> Result<(f64, f64)> {
            installer.wait_for_line("^reading back", LONG)?;
            let fetched = started.elapsed().as_secs_f64();
            installer.wait_for_line("^installed in", LONG)?;
            Ok((fetched, started.elapsed().as_secs_f64()))
        };
        let waits: Vec<_> =
            targets.iter_mut().map(|(installer, _)| scope.spawn(move || wait(installer))).collect();
        waits
            .into_iter()
            .map(|wait| wait.join().map_err(|_| anyhow::anyhow!("a waiting thread died"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    for (installer, disk) in &mut targets {
        installer.wait_success(LONG)?;
        ensure!(first_difference(&image, disk)?.is_none(), "a disk is not the image");
    }
    let (sent_after, _) = server.traffic()?;
    let installs = site.server.deployment(deployment.id)?.installs;
    let total = installs.iter().map(|install| install.total).max().context("find an install")?;
    let mut fetched: Vec<_> = times.iter().map(|(fetched, _)| *fetched).collect();
    fetched.sort_unstable_by(f64::total_cmp);
    let last = fetched.last().copied().context("find the last")?;
    let median = fetched.get(fetched.len() / 2).copied().context("find the median")?;
    let ended = times.iter().map(|(_, ended)| *ended).fold(0.0, f64::max);
    let wanted = Wanted::AtMost(if count == 1 { 1.05 } else { 1.10 });
    let name = |what: &str| format!("N = {count}, {what}");
    figures.push(Figure::new(&name("last has all, over one pass"), last / pass(total), "", wanted));
    figures.push(Figure::new(
        &name("last is installed, over one pass"),
        ended / pass(total),
        "",
        Wanted::Nothing,
    ));
    figures.push(Figure::new(&name("last over median"), last / median, "", Wanted::AtMost(1.1)));
    #[expect(clippy::cast_precision_loss, reason = "a measured size")]
    let sent = (sent_after - sent_before) as f64 / total as f64;
    figures.push(Figure::new(&name("images that the server sent"), sent, "", Wanted::AtMost(1.1)));
    Ok(last)
}

/// What another program takes for the same in the same lab, over one pass.
fn others(count: u8, begin: fn(&Lab, &Host, &[Host], &Path) -> Result<Running>) -> Result<f64> {
    let mut lab = Lab::new(&format!("bench-others{count}"))?;
    let memory = Memory::mount(&lab)?;
    let image = memory.0.join("image.raw");
    noise(&image)?;
    let server = lab.host("server", 1)?;
    server.shape(RATE)?;
    let mut hosts = Vec::new();
    for number in 1..=count {
        let host = lab.host(&format!("t{number}"), 30 + number)?;
        host.shape(RATE)?;
        hosts.push(host);
    }
    let mut running = begin(&lab, &server, &hosts, &memory.0)?;
    let took = running.wait()?;
    for host in &hosts {
        let copy = memory.0.join(host.namespace());
        ensure!(first_difference(&image, &copy)?.is_none(), "a copy is not the image");
    }
    Ok(took / pass(BYTES))
}

/// Serves the files of `folder`.
fn nginx(lab: &Lab, server: &Host, folder: &Path) -> Result<Process> {
    let config = lab.dir().join("nginx.conf");
    let text = format!(
        "user root; daemon off; worker_processes 2; pid {0}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ sendfile on; access_log off; client_body_temp_path {0}; server {{ listen 80; root {1}; }} }}\n",
        lab.dir().display(),
        folder.display(),
    );
    std::fs::write(&config, text).context("write nginx's configuration")?;
    Program::new("nginx", "nginx").args(["-c"]).args([&config]).on(server).start()
}

fn unicast(lab: &Lab, server: &Host, hosts: &[Host], folder: &Path) -> Result<Running> {
    let nginx = nginx(lab, server, folder)?;
    let url = format!("http://{}/image.raw", server.address());
    let receive = |host: &Host| {
        let copy = folder.join(host.namespace());
        Program::new("curl", "curl")
            .args(["-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "-o"])
            .args([&copy])
            .args([&url])
            .on(host)
            .start()
    };
    Running::begin(vec![nginx], hosts, None, receive)
}

fn multicast(_: &Lab, server: &Host, hosts: &[Host], folder: &Path) -> Result<Running> {
    let rate = format!("{}m", RATE.0 * 95 / 100);
    let count = hosts.len().to_string();
    let sender = Program::new("udp-sender", "udp-sender")
        .args(["--interface", "eth0", "--nokbd", "--full-duplex", "--min-receivers", &count])
        .args(["--max-bitrate", &rate, "--mcast-data-address", "239.77.0.1", "--file"])
        .args([folder.join("image.raw")])
        .on(server)
        .start()?;
    let receive = |host: &Host| {
        Program::new("udp-receiver", "udp-receiver")
            .args(["--interface", "eth0", "--nokbd", "--nosync", "--file"])
            .args([folder.join(host.namespace())])
            .on(host)
            .start()
    };
    Running::begin(vec![sender], hosts, None, receive)
}

const TORRENT_PORT: u16 = 6881;

/// Who has a piece serves it until all have all. All peers are known beforehand, so the tracker is a file.
fn torrent(lab: &Lab, server: &Host, hosts: &[Host], folder: &Path) -> Result<Running> {
    let mut peers = Vec::new();
    for host in std::iter::once(server).chain(hosts) {
        peers.extend(host.address().octets());
        peers.extend(TORRENT_PORT.to_be_bytes());
    }
    // BEP 23: who is asked says where the peers are, six bytes each.
    let mut answer = format!("d8:intervali5e5:peers{}:", peers.len()).into_bytes();
    answer.extend(peers);
    answer.push(b'e');
    std::fs::write(folder.join("announce"), answer).context("write the tracker's answer")?;
    let nginx = nginx(lab, server, folder)?;
    let torrent = folder.join("image.torrent");
    let made = torrent.to_str().context("name the torrent")?;
    let image = folder.join("image.raw");
    let image = image.to_str().context("name the image")?;
    let tracker = format!("http://{}/announce", server.address());
    // Pieces of 1 MiB.
    tool::run("mktorrent", ["-l", "20", "-a", &tracker, "-o", made, image])?;
    let begin = |host: &Host, name: &str, more: &[&str]| {
        let place = format!("1={name}");
        Program::new("aria2c", "aria2c")
            .args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-max-peers=0"])
            .args(["--bt-tracker-interval=2", "--bt-request-peer-speed-limit=100M"])
            .args([format!("--listen-port={TORRENT_PORT}")])
            .args(["--file-allocation=none", "--seed-ratio=0"])
            // It says nothing by itself, and goes on serving.
            .args(["--on-bt-download-complete=/usr/bin/echo"])
            .args([
                "--console-log-level=error",
                "--show-console-readout=false",
                "--summary-interval=0",
            ])
            .args(["--dir", folder.to_str().context("name the folder")?, "--index-out", &place])
            .args(more)
            .args([made])
            .on(host)
            .start()
    };
    let seed = begin(server, "image.raw", &["--bt-seed-unverified=true"])?;
    let receive = |host: &Host| begin(host, host.namespace(), &[]);
    Running::begin(vec![nginx, seed], hosts, Some("^[0-9a-f]{16} 1 /"), receive)
}
