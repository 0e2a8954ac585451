//! A volume by NBD beside what else serves a file by NBD on the same disk: fio asks all of them the same, in turn.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::{Figure, Wanted};
use cairn_tests::{
    cairn::Server,
    netns::{Host, Lab},
    process::{Process, Program},
    tool,
};

const SIZE_MIB: u64 = 1024;
const SECONDS: u32 = 5;
/// Each question is asked so often, in turn.
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(600);
/// Scattered blocks of a volume.
const EXTENTS: u32 = 1_000_000;
const CAIRN: &str = "cairn";
const RAW: &str = "qemu-nbd, raw";
const QCOW2: &str = "qemu-nbd, qcow2";
const NBDKIT: &str = "nbdkit file";

/// Somebody who serves a disk.
struct Contender {
    name: &'static str,
    uri: String,
    /// Kept until the end.
    _process: Option<Process>,
}

/// What fio says.
#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
pub(super) struct Job {
    read: Side,
    pub(super) write: Side,
}

#[derive(Deserialize)]
pub(super) struct Side {
    iops: f64,
    bw_bytes: f64,
    pub(super) io_bytes: f64,
}

/// A question, and what is wanted of its answer beside others'.
struct Question {
    what: &'static str,
    fio: &'static [&'static str],
    wanted: &'static [(&'static str, f64)],
    /// Bytes, not operations.
    megabytes: bool,
}

const TIMED: &str = "--time_based";
const QUESTIONS: [Question; 5] = [
    Question {
        what: "1 MiB sequential writes",
        fio: &["--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"],
        wanted: &[(RAW, 0.6)],
        megabytes: true,
    },
    Question {
        what: "4 KiB random writes, depth 32",
        fio: &["--rw=randwrite", "--bs=4k", "--iodepth=32", TIMED],
        wanted: &[(RAW, 1.0)],
        megabytes: false,
    },
    Question {
        what: "4 KiB random writes, a flush every 32",
        fio: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32", TIMED],
        wanted: &[(NBDKIT, 1.0)],
        megabytes: false,
    },
    Question {
        what: "4 KiB random reads, depth 32",
        fio: &["--rw=randread", "--bs=4k", "--iodepth=32", TIMED],
        wanted: &[(RAW, 0.8)],
        megabytes: false,
    },
    Question {
        what: "1 MiB sequential reads",
        fio: &["--rw=read", "--bs=1m", "--iodepth=8"],
        wanted: &[(RAW, 0.8)],
        megabytes: true,
    },
];

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut lab = Lab::new("bench-array")?;
    let host = lab.host("server", 1)?;
    let data = lab.dir().join("data");
    let mut server = Server::first_start(&lab, &host, &data, &[])?;
    server.run(&["volume", "create", "disk", "--size", &format!("{SIZE_MIB}MiB")])?;
    let contenders = contenders(&lab, &host)?;
    let mut figures = Vec::new();
    for question in &QUESTIONS {
        figures.extend(ask(&host, &contenders, question)?);
    }
    drop(contenders);
    figures.extend(amplification(&host, &mut server)?);
    figures.push(restart(&lab, &host, &mut server)?);
    Ok(figures)
}

fn contenders(lab: &Lab, host: &Host) -> Result<Vec<Contender>> {
    let folder = lab.dir().join("others");
    fs::create_dir(&folder).context("make a folder")?;
    let raw = |name: &str| -> Result<std::path::PathBuf> {
        let path = folder.join(name);
        File::create(&path)?.set_len(SIZE_MIB << 20).context("size a file")?;
        Ok(path)
    };
    let (one, two, three) = (raw("one.raw")?, raw("two.raw")?, folder.join("three.qcow2"));
    tool::run("qemu-img", ["create", "-q", "-f", "qcow2", path(&three)?, &format!("{SIZE_MIB}M")])?;
    let qemu = |format: &str, port: &str, file: &Path| {
        Program::new("qemu-nbd", "qemu-nbd")
            .args(["--persistent", "--shared=4", "--bind=127.0.0.1", "-f", format, "-p", port])
            .args([file])
            .on(host)
            .start()
    };
    let kit = Program::new("nbdkit", "nbdkit")
        .args(["--foreground", "-i", "127.0.0.1", "-p", "10813", "file"])
        .args([&two])
        .on(host)
        .start()?;
    let contender = |name, port: u16, export: &str, process| Contender {
        name,
        uri: format!("nbd://127.0.0.1:{port}/{export}"),
        _process: process,
    };
    let all = vec![
        contender(CAIRN, 10809, "disk", None),
        contender(RAW, 10811, "", Some(qemu("raw", "10811", &one)?)),
        contender(QCOW2, 10812, "", Some(qemu("qcow2", "10812", &three)?)),
        contender(NBDKIT, 10813, "", Some(kit)),
    ];
    for one in &all {
        wait_until_served(host, &one.uri)?;
    }
    Ok(all)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("name a file")
}

fn wait_until_served(host: &Host, uri: &str) -> Result<()> {
    cairn_tests::cairn::eventually("somebody at the port", PATIENCE, || {
        Ok(size(host, uri).is_ok().then_some(()))
    })
}

fn size(host: &Host, uri: &str) -> Result<String> {
    tool::run("ip", ["netns", "exec", host.namespace(), "nbdinfo", "--size", uri])
}

pub(super) fn fio(host: &Host, uri: &str, options: &[&str]) -> Result<Job> {
    let uri = format!("--uri={uri}");
    let (size, runtime) = (format!("--size={SIZE_MIB}m"), format!("--runtime={SECONDS}"));
    let enter = ["netns", "exec", host.namespace(), "fio", "--name=bench", "--ioengine=nbd"];
    let common = [&*uri, &size, &runtime, "--output-format=json", "--refill_buffers"];
    let text = tool::run("ip", enter.iter().chain(&common).chain(options))?;
    let begin = text.find('{').context("find what fio measured")?;
    let report: Report = serde_json::from_str(text.get(begin..).unwrap_or_default())
        .context("read what fio measured")?;
    report.jobs.into_iter().next().context("find fio's job")
}

fn ask(host: &Host, contenders: &[Contender], question: &Question) -> Result<Vec<Figure>> {
    let mut sums = vec![0.0; contenders.len()];
    for _ in 0..ROUNDS {
        for (sum, contender) in sums.iter_mut().zip(contenders) {
            let job = fio(host, &contender.uri, question.fio)
                .with_context(|| format!("ask {} for {}", contender.name, question.what))?;
            *sum += if question.megabytes {
                (job.read.bw_bytes + job.write.bw_bytes) / 1e6
            } else {
                job.read.iops + job.write.iops
            };
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let rounds = ROUNDS as f64;
    let unit = if question.megabytes { "MB/s" } else { "IOPS" };
    let named = |name: &str| contenders.iter().position(|contender| contender.name == name);
    let mut figures: Vec<Figure> = contenders
        .iter()
        .zip(&sums)
        .map(|(contender, sum)| {
            let what = format!("{}: {}", question.what, contender.name);
            Figure::new(&what, sum / rounds, unit, Wanted::Nothing)
        })
        .collect();
    for (other, wanted) in question.wanted {
        let other_sum = named(other).and_then(|index| sums.get(index)).context("find a peer")?;
        let what = format!("{}: {CAIRN} over {other}", question.what);
        figures.push(Figure::new(&what, sums[0] / other_sum, "", Wanted::AtLeast(*wanted)));
    }
    Ok(figures)
}

/// Bytes that a process had written to disks.
pub(super) fn written(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).context("read what was written")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.context("find write_bytes")?.trim().parse().context("read write_bytes")
}

/// What random overwriting of half of a volume costs, once the store is in its steady state.
fn amplification(host: &Host, server: &mut Server) -> Result<Vec<Figure>> {
    server.run(&["volume", "create", "half", "--size", &format!("{}MiB", SIZE_MIB)])?;
    let half = format!("--size={}m", SIZE_MIB / 2);
    let uri = "nbd://127.0.0.1:10809/half";
    fio(host, uri, &["--rw=write", "--bs=1m", &half, "--end_fsync=1"])?;
    let random =
        ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap", "--randrepeat=0", &half];
    fio(host, uri, &random)?;
    settle(server)?;
    let pid = server.process().pid();
    let before = written(pid)?;
    let mut bytes = 0.0;
    for _ in 0..2 {
        bytes += fio(host, uri, &random)?.write.io_bytes;
    }
    settle(server)?;
    let ratio = (written(pid)? - before) / bytes;
    Ok(vec![Figure::new(
        "written per byte, 4 KiB at random over half of a volume",
        ratio,
        "",
        Wanted::AtMost(3.0),
    )])
}

#[derive(Deserialize)]
struct Volume {
    journal: u64,
}

/// A thin volume with a million blocks, none beside another.
pub(super) fn extents() -> Result<Vec<Figure>> {
    let mut lab = Lab::new("bench-extents")?;
    let host = lab.host("server", 1)?;
    let data = lab.dir().join("data");
    let mut server = Server::first_start(&lab, &host, &data, &[])?;
    server.process().terminate()?;
    let empty = start(&lab, &mut server)?;
    server.run(&["volume", "create", "disk", "--size", "1TiB"])?;
    let blocks = format!("--number_ios={EXTENTS}");
    let scattered = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap", "--size=1t"];
    let uri = "nbd://127.0.0.1:10809/disk";
    fio(&host, uri, &[&scattered, &[&*blocks, "--end_fsync=1", "--runtime=1200"][..]].concat())?;
    settle(&server)?;
    server.process().terminate()?;
    let full = start(&lab, &mut server)?;
    let each = (full.memory - empty.memory) / f64::from(EXTENTS);
    let opened = full.seconds - empty.seconds;
    Ok(vec![
        Figure::new("memory of a million extents", each, "bytes each", Wanted::AtMost(32.0)),
        Figure::new("1 TiB with a million extents, opened", opened, "s", Wanted::AtMost(2.0)),
    ])
}

/// What a server that was just started has in memory, and how long that took until it served.
struct Started {
    /// Bytes.
    memory: f64,
    seconds: f64,
}

fn start(lab: &Lab, server: &mut Server) -> Result<Started> {
    let begun = Instant::now();
    server.restart(lab, &[])?;
    let seconds = begun.elapsed().as_secs_f64();
    let status = format!("/proc/{}/status", server.process().pid());
    let text = fs::read_to_string(status).context("read what a process has in memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.context("find RssAnon")?.trim().trim_end_matches(" kB").trim().parse::<f64>();
    Ok(Started { memory: kib.context("read RssAnon")? * 1024.0, seconds })
}

/// Waits until the journals are sealed.
fn settle(server: &Server) -> Result<()> {
    cairn_tests::cairn::eventually("the journals to be sealed", PATIENCE, || {
        let volumes: Vec<Volume> = server.json(&["volume", "list"])?;
        Ok(volumes.iter().all(|volume| volume.journal == 0).then_some(()))
    })
}

/// Kills the server with as much in a journal as there ever is unsealed, and times it until the volume is served again.
fn restart(lab: &Lab, host: &Host, server: &mut Server) -> Result<Figure> {
    let uri = "nbd://127.0.0.1:10809/disk";
    settle(server)?;
    // It begins to seal at a third; what comes in until that is done stays in the journal.
    fio(host, uri, &["--rw=randwrite", "--bs=4k", "--iodepth=32", TIMED, "--runtime=2"])?;
    let volumes: Vec<Volume> = server.json(&["volume", "list"])?;
    let journal = volumes.iter().map(|volume| volume.journal).max().unwrap_or(0);
    server.process().kill()?;
    let started = Instant::now();
    let again = thread::scope(|scope| {
        let waits = scope.spawn(|| -> Result<Duration> {
            wait_until_served(host, uri)?;
            Ok(started.elapsed())
        });
        let restarted = server.restart(lab, &[]);
        let waited = waits.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))?;
        restarted.and(waited)
    })?;
    let mib = journal >> 20;
    let what = format!("from the start after a kill to the first answer, {mib} MiB in the journal");
    Ok(Figure::new(&what, again.as_secs_f64(), "s", Wanted::AtMost(2.0)))
}
