//! What all parts of a running server share: one immutable value, handed out as a cheap clone.

use std::{net::SocketAddr, ops::Deref, path::PathBuf, sync::Arc};

use cairn_array::{store::Store, swarm::Swarms, tls::NameTable};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agent_package::AgentPackage,
    agents::{
        complaint::Complaints, condition::Conditions, directory::DirectoryKeeper,
        holdings::FullDisks,
    },
    api::{edit::Edits, session::LoginLimit},
    boot::BootNet,
    dashboard::live::Live,
    db::Db,
    disks::Disks,
    events::Events,
    finder::Finder,
    jobs::Bell,
    limits::SiteLimits,
    register::{Registrations, Sources},
    site::Site,
    targets::reports::Reports,
    volumes::{ServerId, Volumes},
    waves::Waves,
};

/// A running server.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

/// What [`App`] gives access to.
#[derive(Debug)]
pub struct Inner {
    pub db: Db,
    pub site: Site,
    pub events: Events,
    pub data_dir: PathBuf,
    /// Of the data folder.
    pub server_id: ServerId,
    pub store: Arc<Store>,
    /// Where others reach the HTTPS service.
    pub address: SocketAddr,
    /// Where the HTTPS service is bound.
    pub bound: SocketAddr,
    /// Where volumes are served by NBD.
    pub nbd: SocketAddr,
    /// Where members are.
    pub names: Arc<NameTable>,
    /// The folder with kernel and initramfs for blank machines.
    pub boot_folder: PathBuf,
    /// The folder with the distribution's iPXE binaries.
    pub ipxe_dir: PathBuf,
    /// What machines that are to become clients install.
    pub(crate) agent_package: AgentPackage,
    /// The boot services.
    pub(crate) boot: BootNet,
    /// Fires when the server is to stop.
    pub stop: CancellationToken,
    /// Everything that runs beside the requests.
    pub tasks: TaskTracker,
    pub(crate) directory: DirectoryKeeper,
    pub(crate) bell: Bell,
    pub(crate) login_limit: LoginLimit,
    pub(crate) registrations: Registrations,
    /// Where images may come from but from uploads.
    pub(crate) sources: Sources,
    pub(crate) full_disks: FullDisks,
    pub(crate) conditions: Conditions,
    pub(crate) complaints: Complaints,
    pub(crate) limits: SiteLimits,
    /// Held by who edits.
    pub(crate) edits: Edits,
    /// How far installs are, before it is written.
    pub(crate) reports: Reports,
    /// Who installs now and serves others.
    pub(crate) swarms: Swarms,
    /// Who waits until others hold what goes with its disk.
    pub(crate) waves: Waves,
    /// What tells the pages of the dashboard that something changed.
    pub(crate) live: Live,
    /// Finds segments that the store lacks.
    pub finder: Arc<Finder>,
    /// Held by who makes a bundle.
    pub bundling: tokio::sync::Mutex<()>,
    /// What is read as a disk by plain HTTP.
    pub(crate) disks: Disks,
    /// The volumes, open.
    pub volumes: Volumes,
    /// Something about an agent changed: whoever holds a sync looks again.
    pub(crate) agents_changed: Changes,
    /// An agent reported what it holds: whoever waits for segments to be in place looks again.
    pub holdings_changed: Changes,
    /// Something about a target or an install changed: whoever holds a ticket call looks again.
    pub(crate) targets_changed: Changes,
}

impl Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    #[must_use]
    pub fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }
}

/// Wakes those who wait for a change of something that the database holds.
#[derive(Debug)]
pub struct Changes(watch::Sender<()>);

impl Default for Changes {
    fn default() -> Self {
        Self(watch::channel(()).0)
    }
}

impl Changes {
    /// Wakes everybody who waits.
    pub(crate) fn notify(&self) {
        self.0.send_replace(());
    }

    /// Waits for changes from now on. Subscribe first, then look, then wait: nothing is missed.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}
