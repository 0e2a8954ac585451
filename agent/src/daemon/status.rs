//! What a running agent tells about itself over a socket that only its user and root can open.

use std::{
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cairn_array::{dsf::DsfHandle, wire::MemberState};
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

use super::{sync::SyncStatus, worker::WorkStatus};
use crate::{home::Membership, size};

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
    pub lend: ByteCount,
    /// Sealed bytes held.
    pub used: ByteCount,
    pub segments: u32,
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

/// Where a status comes from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) membership: Membership,
    pub(super) sync_status: watch::Receiver<SyncStatus>,
    pub(super) work_status: watch::Receiver<WorkStatus>,
    pub(super) dsf: DsfHandle,
}

impl Source {
    fn status(&self) -> Status {
        let (sync, work) = (self.sync_status.borrow().clone(), self.work_status.borrow().clone());
        let stats = self.dsf.stats();
        Status {
            agent: self.membership.agent,
            site: self.membership.site,
            server: self.membership.server.to_string(),
            state: sync.state,
            lend: self.membership.lend,
            used: stats.held,
            segments: stats.used.0,
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
    let mut text = format!(
        "agent      {}\nserver     {}\nstate      {state}\nlends      {}\nholds      {} in {} segments\nassignment {} (fulfilled {}, {} segments missing)\ndirectory  {}\n",
        status.agent,
        status.server,
        size::show(status.lend),
        size::show(status.used),
        status.segments,
        status.assignment,
        status.fulfilled,
        status.missing,
        status.directory,
    );
    for (label, problem) in
        [("server", &status.server_problem), ("storage", &status.storage_problem)]
    {
        if let Some(problem) = problem {
            text.push_str(&format!("problem    {label}: {problem}\n"));
        }
    }
    text
}
