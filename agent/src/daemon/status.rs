//! What a running agent tells about itself over a socket that only its user and root can open.

use std::{
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use cairn_array::{dsf::DsfHandle, tails::Tails, wire::MemberState};
use cairn_core::{
    id::{AgentId, SiteId},
    units::{ByteCount, Generation},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{guest::GuestStatus, sync::SyncStatus, worker::WorkStatus};
use crate::{
    home::Membership,
    lending::{Amount, Medium, Space, Terms},
    limits::{RateLimits, Told},
    size,
};

/// A status is never larger.
const MAX_BYTES: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(3);

/// How an agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub agent: AgentId,
    pub site: SiteId,
    pub server: String,
    /// None before the server's first answer.
    pub state: Option<MemberState>,
    /// What the storage file may take as it is now.
    pub lend: ByteCount,
    /// Sealed bytes held.
    pub used: ByteCount,
    pub segments: u32,
    /// Bytes of journals' tails, beside what is lent.
    pub tails: ByteCount,
    /// Of the owner's disk, and how the guest stands on it.
    pub guest: GuestUse,
    /// How fast it moves segments at most.
    pub limits: Told,
    /// Segments that the assignment names and that are not here yet.
    pub missing: usize,
    pub directory: Generation,
    pub assignment: Generation,
    /// The newest assignment that is wholly here.
    pub fulfilled: Generation,
    /// Why the server cannot be talked to, when it cannot.
    pub server_problem: Option<String>,
    /// Why segments are missing, when something is in the way.
    pub storage_problem: Option<String>,
}

/// What the guest uses of its owner's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestUse {
    pub terms: Terms,
    pub space: Space,
    /// What stays free for the owner.
    pub kept_free: ByteCount,
    pub medium: Medium,
    pub written_today: ByteCount,
    /// The most that is written on one day; none: no limit.
    pub daily_cap: Option<ByteCount>,
    /// The machine runs on its battery: nothing is fetched, scrubbed or served.
    pub on_battery: bool,
    /// Why the storage file is not as it is to be, when something is in the way.
    pub problem: Option<String>,
    /// Resident memory of this process.
    pub memory: ByteCount,
    /// Processor time since the start.
    pub processor_seconds: u64,
}

impl GuestUse {
    fn of(status: &GuestStatus) -> Self {
        let processor = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self {
            terms: status.terms,
            space: status.space,
            kept_free: status.terms.kept_free(status.space.total),
            medium: status.medium.clone(),
            written_today: status.written_today,
            daily_cap: status.daily_cap(),
            on_battery: status.on_battery,
            problem: status.problem.clone(),
            memory: resident(),
            processor_seconds: u64::try_from(processor.tv_sec).unwrap_or(0),
        }
    }
}

/// Resident memory, by `/proc/self/status` (proc(5)); 0 where it cannot be read.
fn resident() -> ByteCount {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    ByteCount(kib.unwrap_or(0).saturating_mul(1024))
}

/// Where a status comes from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) membership: Membership,
    pub(super) sync_status: watch::Receiver<SyncStatus>,
    pub(super) work_status: watch::Receiver<WorkStatus>,
    pub(super) guest: watch::Receiver<GuestStatus>,
    pub(super) dsf: DsfHandle,
    pub(super) tails: Arc<Tails>,
    pub(super) limits: RateLimits,
}

impl Source {
    fn status(&self) -> Status {
        let (sync, work) = (self.sync_status.borrow().clone(), self.work_status.borrow().clone());
        let (guest, stats) = (self.guest.borrow().clone(), self.dsf.stats());
        Status {
            agent: self.membership.agent,
            site: self.membership.site,
            server: self.membership.server.to_string(),
            state: sync.state,
            lend: guest.lent,
            used: stats.held,
            segments: stats.used.0,
            tails: self.tails.bytes(),
            guest: GuestUse::of(&guest),
            limits: self.limits.told(),
            missing: work.missing,
            directory: sync.directory,
            assignment: sync.assignment,
            fulfilled: work.fulfilled,
            server_problem: sync.problem,
            storage_problem: work.problem,
        }
    }
}

/// Answers every connection with one status, until the stop.
pub(super) async fn listen(socket: PathBuf, source: Source, stop: CancellationToken) -> Result<()> {
    // Left over from a killed agent: the lock says that no other one runs.
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", socket.display()));
        }
        _ => {}
    }
    let what = || format!("listen on {}", socket.display());
    let listener = UnixListener::bind(&socket).with_context(what)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).with_context(what)?;
    loop {
        let (mut stream, _) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted.with_context(what)?,
        };
        let text = serde_json::to_vec(&source.status()).context("describe the status")?;
        // Whoever asked may have gone.
        if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, stream.write_all(&text)).await {
            tracing::debug!(%error, "tell the status");
        }
    }
}

/// Asks the running agent; `None` when none runs.
///
/// # Errors
/// When an agent is there but does not answer.
pub async fn ask(socket: &Path) -> Result<Option<Status>> {
    let what = || format!("ask the running agent at {}", socket.display());
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream.into_std().with_context(what)?,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(what),
    };
    let read = move || -> io::Result<Vec<u8>> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = Vec::new();
        stream.take(MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = tokio::task::spawn_blocking(read).await.with_context(what)?.with_context(what)?;
    serde_json::from_slice(&text).map(Some).with_context(what)
}

/// A status for people.
#[must_use]
pub fn render(status: &Status) -> String {
    let state = match status.state {
        None => "not yet heard from the server",
        Some(MemberState::Pending) => "pending: approve it with `cairn-server agent approve`",
        Some(MemberState::Approved) => "approved",
        Some(MemberState::Revoked) => "revoked",
        Some(MemberState::Left) => "left",
    };
    let mut text =
        format!("agent      {}\nserver     {}\nstate      {state}\n", status.agent, status.server);
    text.push_str(&render_lending(status));
    text.push_str(&status.limits.to_string());
    text.push_str(&format!(
        "assignment {} (fulfilled {}, {} segments missing)\ndirectory  {}\n",
        status.assignment, status.fulfilled, status.missing, status.directory,
    ));
    let problems = [
        ("server", &status.server_problem),
        ("storage", &status.storage_problem),
        ("lending", &status.guest.problem),
    ];
    for (label, problem) in problems {
        if let Some(problem) = problem {
            text.push_str(&format!("problem    {label}: {problem}\n"));
        }
    }
    text
}

/// What the guest may use and uses, for people.
#[must_use]
pub fn render_lending(status: &Status) -> String {
    let guest = &status.guest;
    let asked = guest.terms.lend.of(guest.space.total);
    let lends = if status.lend < asked {
        format!(
            "{} of {}: the owner of the disk needs the room",
            size::show(status.lend),
            guest.terms.lend
        )
    } else if matches!(guest.terms.lend, Amount::Percent(_)) {
        format!("{} ({} of the disk)", size::show(asked), guest.terms.lend)
    } else {
        size::show(asked)
    };
    let daily = match guest.daily_cap {
        Some(cap) => format!("at most {} a day", size::show(cap)),
        None => "without a daily limit".to_owned(),
    };
    let mut text = format!(
        "lends      {lends}\nholds      {} in {} segments\ndisk       {} {}: {} of {} free, {} stay free for its owner\n\
         writes     {} today, {daily}\nuses       {} of memory, {} s of processor time since the start\n",
        size::show(status.used),
        status.segments,
        guest.medium.class.name(),
        guest.medium.device.as_deref().unwrap_or(""),
        size::show(guest.space.available),
        size::show(guest.space.total),
        size::show(guest.kept_free),
        size::show(guest.written_today),
        size::show(guest.memory),
        guest.processor_seconds,
    );
    if status.tails.0 > 0 {
        let tails = size::show(status.tails);
        text.push_str(&format!(
            "keeps      {tails} of journals for the server, beside what it lends\n"
        ));
    }
    if guest.on_battery {
        text.push_str("paused     the machine runs on its battery\n");
    }
    text
}
