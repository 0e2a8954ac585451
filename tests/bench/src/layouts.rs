//! Volumes that clients hold: what crosses the network, how reads go when the server lost a device or a client, and how soon
//! a client reads one when the server is gone.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{
    Figure, Wanted,
    array::{fio, written},
    swarm::{BYTES, noise},
};
use cairn_tests::{
    cairn::binary,
    netns::Host,
    site::{NetworkBoot, Site, stores},
    tool,
};

const CLIENTS: u8 = 4;
const NBD: &str = "nbd://127.0.0.1:10809";

/// Reads a block of every 4 MiB and says how long the slowest took, in seconds, and the first.
const PROBE: &str = r"
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
took = []
for at in range(0, h.get_size(), 4 << 20):
    begun = time.monotonic()
    h.pread(4096, at)
    took.append(time.monotonic() - begun)
print(max(took), took[0])
";

/// Writes a block and flushes, many times, and says how long the middle one took and the hundredth slowest, in milliseconds.
const FLUSHES: &str = r"
import nbd, os, random, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
dice = random.Random(1)
took = []
for _ in range(1000):
    at = dice.randrange(h.get_size() // 4096) * 4096
    begun = time.monotonic()
    h.pwrite(os.urandom(4096), at)
    h.flush()
    took.append((time.monotonic() - begun) * 1000)
took.sort()
print(took[500], took[990])
";

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = swarm()?;
    figures.extend(mirrored()?);
    figures.extend(full_stripes()?);
    figures.extend(server_parity()?);
    figures.extend(offline()?);
    Ok(figures)
}

/// Makes a volume of noise that clients hold. Returns the bytes that the server sent meanwhile.
fn fill(site: &Site, layout: &str) -> Result<u64> {
    let file = site.lab.dir().join("noise");
    noise(&file)?;
    let size = format!("{}MiB", BYTES >> 20);
    site.server.run(&["volume", "create", "v", "--size", &size, "--layout", layout])?;
    // What is made beside it is there by now.
    site.wait_for_stand_ins(&(0..usize::from(CLIENTS)).collect::<Vec<_>>())?;
    let (before, _) = site.server.host().traffic()?;
    let file = file.to_str().context("the path is not UTF-8")?;
    tool::finish(&mut site.server.host().command(&[
        "nbdcopy",
        "--flush",
        file,
        &format!("{NBD}/v"),
    ]))?;
    site.wait_volume_scattered("v")?;
    let (after, _) = site.server.host().traffic()?;
    Ok(after - before)
}

/// MB/s of reading all of it once, in order.
fn read(host: &Host) -> Result<f64> {
    let started = Instant::now();
    tool::finish(&mut host.command(&["nbdcopy", &format!("{NBD}/v"), "null:"]))?;
    Ok(mega(BYTES) / started.elapsed().as_secs_f64())
}

fn probe(host: &Host) -> Result<(f64, f64)> {
    two_numbers(host, PROBE, "v")
}

/// What a script prints about a volume.
fn two_numbers(host: &Host, script: &str, volume: &str) -> Result<(f64, f64)> {
    let uri = format!("{NBD}/{volume}");
    let said = tool::finish(&mut host.command(&["/usr/bin/python3", "-c", script, &uri]))?;
    let mut words = said.split_whitespace().map(str::parse);
    let mut next = || words.next().context("read the probe")?.context("read the probe");
    Ok((next()?, next()?))
}

#[expect(clippy::cast_precision_loss, reason = "a size")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Starts the server again, so that it has nothing in memory.
fn again(site: &mut Site, options: &[&str]) -> Result<()> {
    site.server.process().terminate()?;
    site.server.restart(&site.lab, options)
}

fn swarm() -> Result<Vec<Figure>> {
    let mut site = Site::start_with_stores("bench-swarm", &["one", "two"])?;
    site.join(CLIENTS, "2GiB")?;
    let sent = fill(&site, "swarm")?;
    let devices = [site.lab.dir().join("one"), site.lab.dir().join("two")];
    let both = stores(&devices)?;
    again(&mut site, &both)?;
    let healthy = read(site.server.host())?;
    site.server.process().terminate()?;
    fs::remove_dir_all(&devices[1]).context("lose a device")?;
    site.server.restart(&site.lab, &stores(&devices[..1])?)?;
    let bereft = read(site.server.host())?;
    let repaired = read(site.server.host())?;
    Ok(vec![
        Figure::new(
            "swarm of 2+2: sent by the server, over (1 + m/k) of the volume",
            mega(sent) / (2.0 * mega(BYTES)),
            "",
            Wanted::AtMost(1.15),
        ),
        Figure::new("swarm: sequential reads", healthy, "MB/s", Wanted::Nothing),
        Figure::new(
            "swarm: sequential reads while a lost device is mended, over healthy",
            bereft / healthy,
            "",
            Wanted::AtLeast(0.5),
        ),
        Figure::new("swarm: the same, after that", repaired / healthy, "", Wanted::Nothing),
    ])
}

/// What it costs that a client has each flush, too.
fn mirrored() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-mirrored", NetworkBoot::Off)?;
    site.join(CLIENTS, "2GiB")?;
    // A client that carries the bundle is what a mirrored journal needs.
    site.wait_for_stand_ins(&(0..usize::from(CLIENTS)).collect::<Vec<_>>())?;
    let (file, size) = (site.lab.dir().join("noise"), format!("{}MiB", BYTES >> 20));
    noise(&file)?;
    let file = file.to_str().context("the path is not UTF-8")?;
    let host = site.server.host();
    let measured = ["local", "mirrored"].map(|durability| {
        let create = ["volume", "create", durability, "--size", &size, "--layout", "swarm"];
        site.server.run(&[&create[..], &["--durability", durability]].concat())?;
        let (median, slow) = two_numbers(host, FLUSHES, durability)?;
        let started = Instant::now();
        let uri = format!("{NBD}/{durability}");
        tool::finish(&mut host.command(&["nbdcopy", "--flush", file, &uri]))?;
        let written = mega(BYTES) / started.elapsed().as_secs_f64();
        site.wait_volume_scattered(durability)?;
        anyhow::Ok((median, slow, written))
    });
    let [local, mirrored] = measured;
    let (local, mirrored) = (local?, mirrored?);
    Ok(vec![
        Figure::new(
            "mirrored: a 4 KiB write and a flush, the median",
            mirrored.0,
            "ms",
            Wanted::Nothing,
        ),
        Figure::new("mirrored: the same, 99 %", mirrored.1, "ms", Wanted::Nothing),
        Figure::new(
            "mirrored: the median over that of local durability",
            mirrored.0 / local.0,
            "",
            Wanted::Nothing,
        ),
        Figure::new(
            "mirrored: the volume written once and flushed",
            mirrored.2,
            "MB/s",
            Wanted::Nothing,
        ),
        Figure::new(
            "mirrored: the same over local durability",
            mirrored.2 / local.2,
            "",
            Wanted::Nothing,
        ),
    ])
}

/// What disks are written when a volume is written once, in order, whose parity clients hold.
fn full_stripes() -> Result<Vec<Figure>> {
    let mut site = Site::start_with_stores("bench-stripes", &["one", "two"])?;
    site.join(CLIENTS, "2GiB")?;
    let create = ["volume", "create", "v", "--size", "1GiB", "--layout", "client-parity"];
    site.server.run(&create)?;
    site.wait_for_stand_ins(&(0..usize::from(CLIENTS)).collect::<Vec<_>>())?;
    let look = |site: &mut Site| -> Result<(f64, f64)> {
        let clients: Vec<u32> = site.agents.iter_mut().map(|it| it.process().pid()).collect();
        let clients = clients.into_iter().map(written).sum::<Result<f64>>()?;
        Ok((written(site.server.process().pid())?, clients))
    };
    let before = look(&mut site)?;
    let options = ["--rw=write", "--bs=1m", "--end_fsync=1", "--runtime=120"];
    let bytes = fio(site.server.host(), &format!("{NBD}/v"), &options)?.write.io_bytes;
    let detail = site.wait_volume_scattered("v")?;
    let after = look(&mut site)?;
    let (server, clients) = ((after.0 - before.0) / bytes, (after.1 - before.1) / bytes);
    let parity = mega(detail.scatter.context("it is scattered")?.held_bytes) * 1e6 / bytes;
    let figure = |what, value, wanted| Figure::new(what, value, "", wanted);
    Ok(vec![
        figure(
            "client-parity: parity that clients hold, per byte written",
            parity,
            Wanted::Nothing,
        ),
        figure("client-parity: written by the server, journal and data", server, Wanted::Nothing),
        figure("client-parity: written by clients", clients, Wanted::Nothing),
        figure(
            "client-parity: written to all disks beyond the journal and 1 + m/k",
            server + clients - 2.0 - parity,
            Wanted::AtMost(0.1),
        ),
    ])
}

fn server_parity() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-parity", NetworkBoot::Off)?;
    site.join(CLIENTS, "2GiB")?;
    fill(&site, "server-parity")?;
    again(&mut site, &[])?;
    let (healthy, _) = probe(site.server.host())?;
    again(&mut site, &[])?;
    let sequential = read(site.server.host())?;
    site.agents[1].process().kill()?;
    again(&mut site, &[])?;
    let (bereft, _) = probe(site.server.host())?;
    Ok(vec![
        Figure::new(
            "server-parity: slowest first block of 4 MiB, from clients",
            healthy,
            "s",
            Wanted::Nothing,
        ),
        Figure::new(
            "server-parity: sequential reads, from clients",
            sequential,
            "MB/s",
            Wanted::Nothing,
        ),
        Figure::new(
            "server-parity: the slowest with a client killed, by parity",
            bereft,
            "s",
            Wanted::AtMost(0.5),
        ),
    ])
}

fn offline() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-offline", NetworkBoot::Off)?;
    site.join(CLIENTS, "2GiB")?;
    fill(&site, "mirror")?;
    site.wait_for_stand_ins(&(0..usize::from(CLIENTS)).collect::<Vec<_>>())?;
    let key = site.server.data_dir().join("recovery-key.txt");
    site.server.process().kill()?;
    let agent = &site.agents[0];
    let program = binary("cairn-agent")?;
    let mut serve = agent.host().command(&[program.to_str().context("the path is not UTF-8")?]);
    serve.args(["volume", "serve", "v", "--state-dir"]).arg(agent.state_dir());
    serve.arg("--recovery-key").arg(&key).stdout(Stdio::piped());
    let started = Instant::now();
    let mut serving = serve.spawn().context("start the client's reader")?;
    let output = serving.stdout.as_mut().context("read what it says")?;
    let mut ready = String::new();
    BufReader::new(output).read_line(&mut ready).context("read what it says")?;
    let opened = started.elapsed().as_secs_f64();
    let (_, first) = probe(agent.host())?;
    let copied = read(agent.host())?;
    tool::finish(Command::new("kill").arg(serving.id().to_string()))?;
    serving.wait().context("end the client's reader")?;
    Ok(vec![
        Figure::new(
            "mirror without the server: opened and first block read",
            opened + first,
            "s",
            Wanted::AtMost(0.5),
        ),
        Figure::new("mirror without the server: sequential reads", copied, "MB/s", Wanted::Nothing),
    ])
}
