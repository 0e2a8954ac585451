//! The process that keeps a machine's disk at hand while the machine runs: between the kernel's NBD driver and the server.
//!
//! It outlives the boot payload. Invariants: it needs no file once the disk is there, since files may be on that disk; it is
//! in memory as a whole, is the last to be killed for want of it, and is not ended with the services: it passes over SIGTERM,
//! systemd passes over root's processes whose name begins with an at sign, and sysvinit over those whose number lies in a folder.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::{
        fd::AsFd as _,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use cairn_array::{
    nbd::client::{Connection, Place, keep},
    tls::Papers,
};
use cairn_core::nbd::client::Export;
use rustix::mm::MlockAllFlags;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::netlink;

/// The argument that starts it.
const KEEPER: &str = "init-keeper";
/// Its name among the processes.
const NAME: &str = "@cairn-disk";
const DEVICE: u32 = 0;
/// What it says when the disk is there.
const READY: &str = "ready";
/// The server may be starting, or not have the volume open yet.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(2);
/// Where sysvinit finds whom it does not end.
const SYSVINIT: &str = "/run/sendsigs.omit.d";

/// The disk of a machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RemoteDisk {
    pub(super) server: SocketAddr,
    pub(super) volume: String,
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
    pub(super) ca_pem: String,
}

/// Starts the process; when this returns, the disk is there: its name below `/dev`.
///
/// # Errors
/// What the process says is wrong.
pub(super) fn start(disk: &RemoteDisk) -> Result<String> {
    let mut child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .arg(KEEPER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the keeper of the disk")?;
    let mut input = child.stdin.take().context("talk to the keeper of the disk")?;
    let text = serde_json::to_vec(disk).context("write down the disk")?;
    input.write_all(&text).context("talk to the keeper of the disk")?;
    drop(input);
    let mut said = String::new();
    let mut output = child.stdout.take().context("hear the keeper of the disk")?;
    output.read_to_string(&mut said).context("hear the keeper of the disk")?;
    match said.trim() {
        READY => Ok(format!("nbd{DEVICE}")),
        "" => bail!("the keeper of the disk ended without a word"),
        fault => bail!("{fault}"),
    }
}

/// Is that process: reads the disk from its input, says on its output that it is there, and keeps it. Returns when the kernel
/// needs it no more.
///
/// # Errors
/// Why it cannot.
pub fn run() -> Result<()> {
    // Not to be ended with the one who started it.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "begin a session");
    }
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context("read what the disk is")?;
    let disk: RemoteDisk = serde_json::from_slice(&text).context("read what the disk is")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the keeper")?;
    let kept = runtime.block_on(async {
        match attach(&disk).await {
            Ok(kept) => Ok(kept),
            Err(error) => {
                print(&format!("{error:#}\n"))?;
                Err(error)
            }
        }
    });
    let (kernel, place, connection, export) = kept?;
    let log = File::options().write(true).open("/dev/kmsg").ok();
    stay();
    let _signals = runtime.block_on(async { pass_over_signals() })?;
    print(READY)?;
    leave_outputs().context("leave the console")?;
    let say = |line: &str| {
        if let Some(mut log) = log.as_ref() {
            // A log that takes nothing must not cost the disk.
            drop(writeln!(log, "<4>cairn: {line}"));
        }
    };
    runtime.block_on(async {
        let kernel = tokio::net::UnixStream::from_std(kernel).context("use the kernel's socket")?;
        keep(kernel, &place, connection, export, say).await
    })
}

async fn attach(disk: &RemoteDisk) -> Result<(UnixStream, Place, Connection, Export)> {
    let papers = Papers {
        certificate_pem: disk.certificate_pem.clone(),
        key_pem: disk.key_pem.clone(),
        ca_pem: disk.ca_pem.clone(),
    };
    let place = Place::new(disk.server, &disk.volume, &papers)?;
    let mut tries = 0;
    let (connection, export) = loop {
        match place.connect().await {
            Ok(connected) => break connected,
            Err(error) => {
                tries += 1;
                if tries == TRIES {
                    return Err(error.context(format!("reach volume {}", disk.volume)));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let (ours, kernels) = UnixStream::pair().context("make a pair of sockets")?;
    ours.set_nonblocking(true).context("make a pair of sockets")?;
    netlink::attach(DEVICE, kernels.as_fd(), export)?;
    Ok((ours, place, connection, export))
}

/// What cannot be had of this is done without.
fn stay() {
    let locked = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    if let Err(error) = locked {
        tracing::warn!(%error, "keep this process in memory");
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::warn!(%error, "have memory for the disk");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "be the last to be killed");
    }
    let noted = fs::create_dir_all(SYSVINIT)
        .and_then(|()| fs::write(format!("{SYSVINIT}/cairn"), std::process::id().to_string()));
    if let Err(error) = noted {
        tracing::warn!(%error, "tell the next system of this process");
    }
}

/// As long as what it returns is kept. What ends services must not end the disk that they are on.
fn pass_over_signals() -> Result<Vec<Signal>> {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    kinds.into_iter().map(signal).collect::<std::io::Result<_>>().context("pass over signals")
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("say how it is")
}

/// Who waits for what is said sees its end; the consoles are the next system's.
fn leave_outputs() -> Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    std::env::set_current_dir("/").context("leave the folder")
}
