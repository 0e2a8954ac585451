//! `cairn-agent run`: the client of the site.
//!
//! ```text
//!            directory, assignment                    what is held
//!   server ◄──────────────────────── sync          ┌── scrub ──┐ rot
//!     ▲                               │ watch      │           ▼
//!     │        stored, dropped, bad   ▼            │        worker ──── fetch ──► peers, then the server
//!     └────────────────────────────── worker ──► DSF ◄── service ◄── members ask for segments
//! ```
//!
//! The server has tails of its journals kept here, beside the DSF ([`cairn_array::tails`]).
//!
//! Each state has one owner: the directory and the assignment belong to `sync`, what the DSF holds to `worker`;
//! the others read. All tasks end on one token; when one of them fails, all end and the process says why.
//!
//! Invariants: an older directory or assignment never replaces a newer one; nobody who is not in the directory is
//! served; a kill at any moment loses nothing but time, since what counts is in the DSF and in the directory file.

mod difference;
mod gossip;
mod guest;
mod mirror;
mod renew;
mod roster;
mod scrub;
mod service;
mod status;
mod sync;
mod worker;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use cairn_array::{
    dsf::{Dsf, DsfHandle, DsfOwner},
    peer::{self, PeerClient},
    tails::Tails,
    tls::{self, LivePapers, NameTable},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    guest::GuestStatus,
    status::{GuestUse, Status, ask as ask_status, render as render_status, render_lending},
    sync::SyncStatus,
    worker::WorkStatus,
};
use self::{
    roster::{Members, Roster},
    worker::Worker,
};
use crate::{
    home::{Home, Membership},
    lan,
    limits::RateLimits,
    link::ServerLink,
    signals::stop_signals,
};

/// Rot reports and requests for a full list that wait for the worker.
const EVENTS: usize = 64;
/// Tasks that do not end within this are left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What the worker is told besides its assignment.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The server wants a full list of what is held.
    ListWanted,
    /// A segment was found damaged on disk.
    Rotten(cairn_core::id::SegmentId),
}

/// Runs the client until it is told to stop.
///
/// # Errors
/// When it cannot start, its disk fails, or the site has dismissed it.
pub async fn run(home: Home) -> Result<()> {
    let membership = home.membership()?;
    let Some(_lock) = home.lock()? else {
        bail!(
            "another cairn-agent runs on {}; stop it first, or see `cairn-agent status`",
            home.folder().display()
        );
    };
    let dsf =
        tokio::task::block_in_place(|| Dsf::open(&home.dsf())).context("open the storage file")?;
    let (owner, dsf) = DsfOwner::start(dsf).context("start the storage file's thread")?;
    let outcome = serve(home, membership, dsf).await;
    owner.stop().await;
    outcome
}

async fn serve(home: Home, membership: Membership, dsf: DsfHandle) -> Result<()> {
    let shown = LivePapers::new(&home.papers()?)?;
    let names = Arc::new(NameTable::default());
    membership.server.announce(&names);
    let client = tls::live_client(shown.clone(), Arc::clone(&names))?;
    let link = ServerLink::new(client.clone());
    let (listener, peer_port) = listen(&membership).await?;
    let (roster, directory) = Roster::load(home.clone(), &membership, Arc::clone(&names))?;
    let (events, mailbox) = mpsc::channel(EVENTS);
    let (assign, assignment) = watch::channel(None);
    let (tell_sync, sync_status) = watch::channel(SyncStatus::default());
    let (tell_work, work_status) = watch::channel(WorkStatus::default());

    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let admits = service::admission(directory.clone());
    let tails = open_tails(&home)?;
    let (guest, seen) = guest::Guest::new(home.clone(), dsf.clone(), Arc::clone(&tails))?;
    let guest_status = seen.status.clone();
    let shelf = service::Shelf::new(dsf.clone(), events.clone(), guest_status.clone());
    let (offers, offered) = mpsc::channel(mirror::OFFERS);
    let mirror = mirror::Mirror::new(&membership, directory.clone(), Arc::clone(&admits), offers);
    let limits = RateLimits::of(&home)?;
    let room = guest::writable(guest_status.clone(), Arc::clone(&seen.writes));
    let keeps = peer::tails::routes(Arc::clone(&tails), Arc::clone(&admits), room);
    let app = peer::routes(shelf, admits, limits.upload()).merge(mirror.routes()).merge(keeps);
    tasks.spawn(tls::serve(listener, tls::live_server_tls(shown.clone())?, app, stop.clone()));
    let status = status::Source {
        membership: membership.clone(),
        sync_status: sync_status.clone(),
        work_status,
        guest: guest_status.clone(),
        dsf: dsf.clone(),
        tails,
        limits: limits.clone(),
    };
    tasks.spawn(renew::run(home.clone(), link.clone(), shown, stop.clone()));
    tasks.spawn(status::listen(home.socket(), status, stop.clone()));
    tasks.spawn(guest.run(limits.clone(), stop.clone()));
    let scrub = scrub::Scrub::new(dsf.clone(), events.clone(), guest_status.clone());
    tasks.spawn(scrub.run(stop.clone()));
    let worker = Worker::new(worker::Parts {
        me: membership.agent,
        dsf: dsf.clone(),
        peers: PeerClient::new(client.clone()).paced(limits.download()),
        link: link.clone(),
        assignment,
        events: mailbox,
        guest: seen,
        status: tell_work,
    });
    tasks.spawn(worker.run(stop.clone()));
    let sync = sync::Sync {
        gossip: gossip::Gossip::new(membership.agent, client.clone()),
        link,
        roster,
        dsf,
        assign,
        events,
        offered,
        status: tell_sync,
        guest: guest_status,
        peer_port,
        limits,
        home: home.clone(),
    };
    tasks.spawn(sync.run(stop.clone()));
    let me = membership.clone();
    tasks.spawn(meet_others(me, peer_port, names, directory, sync_status, stop.clone()));
    tracing::info!(agent = %membership.agent, server = %membership.server, peer_port, "agent runs");
    supervise(tasks, stop).await
}

fn open_tails(home: &Home) -> Result<Arc<Tails>> {
    let tails = tokio::task::block_in_place(|| Tails::open(home.tails()));
    Ok(Arc::new(tails.context("open the tails of journals")?))
}

/// Finds the other members on the LAN while the server does not answer.
async fn meet_others(
    membership: Membership,
    port: u16,
    names: Arc<NameTable>,
    members: watch::Receiver<Arc<Members>>,
    mut sync: watch::Receiver<SyncStatus>,
    stop: CancellationToken,
) -> Result<()> {
    let (tell, alone) = watch::channel(false);
    let is_member = |agent: &_| members.borrow().is_member(agent);
    let follow_server = async {
        loop {
            let is_alone = sync.borrow_and_update().problem.is_some();
            tell.send_if_modified(|told| std::mem::replace(told, is_alone) != is_alone);
            if sync.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        done = lan::meet(membership, port, names, is_member, alone, stop) => done,
        never = follow_server => never,
    }
}

/// The peer service's socket, and its port.
async fn listen(membership: &Membership) -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(membership.peer_listen).await.with_context(|| {
        format!(
            "listen on {} for peers; choose another address with `cairn-agent join --peer-listen`",
            membership.peer_listen
        )
    })?;
    let port = listener.local_addr().context("read the address peers connect to")?.port();
    Ok((listener, port))
}

/// Waits for the first task that ends or the signal to stop, then ends all.
async fn supervise(mut tasks: JoinSet<Result<()>>, stop: CancellationToken) -> Result<()> {
    let stopped = stop_signals()?;
    let (asked, mut outcome) = tokio::select! {
        signal = stopped => (true, signal),
        Some(ended) = tasks.join_next() => (false, result(ended)),
    };
    stop.cancel();
    let rest = async {
        while let Some(ended) = tasks.join_next().await {
            match result(ended) {
                // A task that fails takes others along, and one of them may have been faster.
                Err(error) if !asked && outcome.is_ok() => outcome = Err(error),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "while stopping"),
                Ok(()) => {}
            }
        }
    };
    if tokio::time::timeout(STOP_PATIENCE, rest).await.is_err() {
        tracing::warn!("a task did not stop in time");
    }
    outcome
}

fn result(ended: std::result::Result<Result<()>, JoinError>) -> Result<()> {
    ended.context("a task of the agent broke")?
}
