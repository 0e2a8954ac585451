//! The conversation with the server: what is new comes in here.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use cairn_array::{
    dsf::DsfHandle,
    tls::{Member, card_towards},
    wire::{Assignment, MAX_SEGMENTS, MemberState, SyncReply, SyncRequest, WIRE_VERSION},
};
use cairn_core::units::{ByteCount, Generation};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Event, gossip::Gossip, guest::GuestStatus, roster::Roster};
use crate::{
    home::Home,
    limits::RateLimits,
    link::{Patience, ServerLink},
};

/// Between two calls that brought nothing new; the server itself holds a call for longer.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// After the first failure, doubled up to [`MOST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(15);
/// A directory of 65,535 members with the longest names and a million revocations.
pub(super) const MAX_DIRECTORY_BYTES: usize = 48 << 20;

/// How the conversation stands.
#[derive(Clone, Debug, Default)]
pub struct SyncStatus {
    /// None before the first answer.
    pub state: Option<MemberState>,
    pub directory: Generation,
    pub assignment: Generation,
    /// Why the last call failed; none when it did not.
    pub problem: Option<String>,
}

pub(super) struct Sync {
    pub(super) gossip: Gossip,
    pub(super) link: ServerLink,
    pub(super) roster: Roster,
    pub(super) dsf: DsfHandle,
    pub(super) assign: watch::Sender<Option<Arc<Assignment>>>,
    pub(super) events: mpsc::Sender<Event>,
    /// Directories that others offer.
    pub(super) offered: mpsc::Receiver<Bytes>,
    pub(super) status: watch::Sender<SyncStatus>,
    pub(super) guest: watch::Receiver<GuestStatus>,
    pub(super) peer_port: u16,
    pub(super) limits: RateLimits,
    pub(super) home: Home,
}

impl Sync {
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let mut guest = self.guest.clone();
            let told = Told::by(&guest.borrow());
            let outcome = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // The server holds a call for long; what is lent now it is to know soon.
                () = until_other(&mut guest, told) => Ok(None),
                outcome = self.exchange(told) => outcome,
            };
            let wait = match outcome {
                Ok(Some(MemberState::Left)) => {
                    tracing::info!("this agent has left the site");
                    return Ok(());
                }
                Ok(Some(MemberState::Revoked)) => bail!(
                    "the site has revoked this agent; `cairn-agent leave` removes what it holds, \
                     a new token lets it join again"
                ),
                Ok(_) => {
                    pause = FIRST_PAUSE;
                    LEAST_PAUSE.saturating_sub(started.elapsed())
                }
                Err(error) => {
                    self.trouble(&error);
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = self.ask_a_member() => {}
                    }
                    self.roster.try_other_place();
                    let now = pause;
                    pause = (pause * 2).min(MOST_PAUSE);
                    now
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(signed) = self.offered.recv() => {
                    self.consider(&signed);
                    pause = FIRST_PAUSE;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Without the server, the directory of another client may be newer.
    async fn ask_a_member(&mut self) {
        let (members, known) = (self.roster.members(), self.roster.number());
        match self.gossip.ask(&members, known).await {
            Ok(Some(signed)) => self.consider(&signed),
            Ok(None) => {}
            Err(error) => tracing::debug!(error = format!("{error:#}"), "no news from a client"),
        }
    }

    /// A directory that a member offers: it counts as if the server had given it, since the site signed it.
    fn consider(&mut self, signed: &[u8]) {
        match tokio::task::block_in_place(|| self.roster.take(signed)) {
            Ok(()) => tracing::info!(number = %self.roster.number(), "a member gave a directory"),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a directory that was offered is of no use"
                );
            }
        }
    }

    /// The card by which the server is reached now. Without it the server cannot know which machine this is; it goes on.
    async fn card(&self) -> Option<String> {
        let server = self.roster.names().lookup(&Member::Server).await.ok()?;
        card_towards(*server.first()?).ok().flatten()
    }

    /// One call, and what follows from its answer. `Some` when the site has dismissed this agent.
    async fn exchange(&mut self, told: Told) -> Result<Option<MemberState>> {
        let written_today = self.guest.borrow().written_today;
        let request = SyncRequest {
            lend: told.lend,
            stores: told.stores,
            written_today,
            clock: clock(),
            used: self.dsf.stats().held,
            peer_port: self.peer_port,
            mac: self.card().await,
            directory: self.roster.number(),
            assignment: self.assignment(),
            limits: self.limits.told().site,
            wire: WIRE_VERSION,
        };
        let reply: SyncReply =
            match self.link.post("/agent/v1/sync", &request, Patience::Held).await {
                Ok(reply) => reply,
                Err(error) => match error.dismissal() {
                    Some(state) => return Ok(Some(state)),
                    None => return Err(error).context("ask the server what is new"),
                },
            };
        if matches!(reply.state, MemberState::Revoked | MemberState::Left) {
            return Ok(Some(reply.state));
        }
        self.heard(reply.state);
        if reply.limits != self.limits.told().site {
            self.limits.set_site(reply.limits);
            tokio::task::block_in_place(|| self.home.keep_site_rates(&reply.limits))?;
        }
        if reply.directory > self.roster.number() {
            let signed = self.link.get_bytes("/agent/v1/directory", MAX_DIRECTORY_BYTES).await;
            let signed = signed.context("fetch the directory")?;
            tokio::task::block_in_place(|| self.roster.take(&signed))?;
        }
        if reply.state == MemberState::Approved {
            if reply.want_holdings && self.events.try_send(Event::ListWanted).is_err() {
                tracing::debug!("the worker is busy; the server asks for the list again");
            }
            if reply.assignment > self.assignment() {
                self.take_assignment().await?;
            }
        }
        let (directory, assignment) = (self.roster.number(), self.assignment());
        self.status.send_modify(|status| {
            status.directory = directory;
            status.assignment = assignment;
        });
        if reply.directory > directory
            || (reply.state == MemberState::Approved && reply.assignment > assignment)
        {
            return Err(anyhow!(
                "the server gave an older directory or assignment than it announced"
            ));
        }
        if self.status.borrow().problem.is_some() {
            tracing::info!("the server answers again");
            self.status.send_modify(|status| status.problem = None);
        }
        Ok(None)
    }

    async fn take_assignment(&self) -> Result<()> {
        let assignment: Assignment = self
            .link
            .get("/agent/v1/assignment", Patience::Prompt)
            .await
            .context("fetch the assignment")?;
        let (have, offered) = (self.assignment(), assignment.number);
        if offered < have {
            bail!("assignment {offered} is older than assignment {have}");
        }
        if assignment.segments.len() > MAX_SEGMENTS {
            bail!(
                "assignment {offered} names {} segments, more than {MAX_SEGMENTS}",
                assignment.segments.len()
            );
        }
        if offered > have {
            tracing::info!(number = %offered, segments = assignment.segments.len(), "new assignment");
            self.assign.send_replace(Some(Arc::new(assignment)));
        }
        Ok(())
    }

    fn assignment(&self) -> Generation {
        self.assign.borrow().as_ref().map_or(Generation(0), |assignment| assignment.number)
    }

    fn heard(&self, state: MemberState) {
        if self.status.borrow().state != Some(state) {
            tracing::info!(?state, "membership");
        }
        self.status.send_modify(|status| status.state = Some(state));
    }

    /// Logged when it is news: an absent server would fill the log.
    fn trouble(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.status.borrow().problem.as_deref() != Some(&text) {
            tracing::warn!(error = text, "no news from the server; peers are served all the same");
        }
        self.status.send_modify(|status| status.problem = Some(text));
    }
}

/// What the server hears of the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    lend: ByteCount,
    stores: bool,
}

impl Told {
    fn by(guest: &GuestStatus) -> Self {
        Self { lend: guest.lent, stores: guest.no_writes().is_none() }
    }
}

/// Ends when the server is to hear something else than it was told.
async fn until_other(guest: &mut watch::Receiver<GuestStatus>, told: Told) {
    if guest.wait_for(|guest| Told::by(guest) != told).await.is_err() {
        // The guest's task has ended, and so does everything.
        std::future::pending().await
    }
}

/// Seconds since 1970 UTC.
fn clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
