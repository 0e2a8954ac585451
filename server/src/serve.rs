//! `cairn-server serve`: the order in which a server comes up and goes down.
//!
//! Lock, secrets, database, what a kill cut short, sockets, then the sign that it serves. Everything that can be refused
//! is refused before the first socket is bound; everything is bound before `ready:` is printed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use cairn_array::{
    ownership::{Owner, hand_over, is_root},
    peer::PeerClient,
    store::{DeviceAddress, Store},
    swarm::Swarms,
    tls::{self, Member, NameTable, Papers, Token, Trust, local_addresses},
};
use cairn_pxe::{DhcpMode, FullDhcp, PayloadFiles, PxeConfig};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agent_package::AgentPackage,
    agents::{
        condition::Conditions,
        directory::{self, DirectoryKeeper},
        holdings::FullDisks,
    },
    announce, api,
    app::{App, Changes, Inner},
    backup,
    boot::{BootNet, Decider},
    boot_build, bundle,
    config::{DhcpChoice, ServeOptions, reachable},
    dashboard::{self, live::Live},
    db::{DatabaseAddress, Db, token::TokenKind},
    disks::Disks,
    events::Events,
    finder::Finder,
    first_start::{self, FirstStart},
    jobs,
    limits::SiteLimits,
    moment::Moment,
    presence, rebalance, recover,
    register::{self, Registrations, Sources},
    scrub,
    site::{Opened, Site, secrets},
    standby,
    targets::reports::{self, Reports},
    volumes::{self, Served, ServerId, Volumes},
    webhooks,
};

/// What the command line on this machine finds the server by: `DATA/run/server.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFile {
    pub url: String,
    /// SHA-256 of the CA certificate.
    pub ca: String,
}

/// The file with [`ServerFile`].
#[must_use]
pub fn server_file(data_dir: &Path) -> PathBuf {
    data_dir.join("run").join("server.json")
}

/// A server that serves.
#[derive(Debug)]
pub struct Running {
    app: App,
    /// Where the HTTPS service is bound.
    pub bound: SocketAddr,
    /// Where boot files are served.
    pub boot: SocketAddr,
    /// Where volumes are served.
    pub nbd: SocketAddr,
    pub first_start: Option<FirstStart>,
    services: JoinSet<anyhow::Result<()>>,
    _lock: File,
}

impl Running {
    /// What its parts share.
    #[must_use]
    pub const fn app(&self) -> &App {
        &self.app
    }

    /// Where others reach the HTTPS service.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.app.address)
    }

    /// Runs until the server is told to stop or a service fails for good, then goes down in order.
    ///
    /// # Errors
    /// When a service failed.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.services.join_next().await {
            let ended = ended.context("wait for a service").and_then(|ended| ended);
            if ended.is_err() && result.is_ok() {
                result = ended;
            }
            // The others do not outlive the first that ended.
            self.app.stop.cancel();
        }
        self.app.tasks.close();
        self.app.tasks.wait().await;
        let app = self.app.clone();
        // What the journals have is sealed before the end.
        if let Err(error) = tokio::task::spawn_blocking(move || app.volumes.close()).await {
            tracing::error!(%error, "close volumes");
        }
        self.app.store.release().await;
        self.app.db.close().await;
        result
    }
}

/// Runs a server until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or a service fails for good.
pub async fn serve(options: ServeOptions) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let running = if options.standby {
        match standby::wait(&options, &stop).await? {
            Some(running) => running,
            None => return Ok(()),
        }
    } else {
        start(options, stop).await?
    };
    announce(&running).context("write to standard output")?;
    notify_service_manager("serving");
    running.run().await
}

/// Reports to systemd that the start is over; does nothing unless the unit is of `Type=notify`.
pub(crate) fn notify_service_manager(status: &str) {
    use sd_notify::NotifyState;
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        tracing::warn!(%error, "systemd does not hear that the server is up");
    }
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let stop = stop.clone();
    // Lives as long as the process; there is nothing to wait for.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(())
}

fn announce(running: &Running) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let url = running.url();
    if let Some(first) = &running.first_start {
        first.show(&url, &mut out)?;
    }
    writeln!(out, "ready: {url}")?;
    out.flush()
}

/// Binds what blank machines and loaders talk to, and its address for HTTP.
async fn bind_boot(
    options: &ServeOptions,
    app: &App,
) -> anyhow::Result<(cairn_pxe::Bound, SocketAddr)> {
    let address = app.address;
    let decider = Arc::new(Decider::new(app.clone(), address));
    let config = pxe_config(options, address)?;
    let pxe = cairn_pxe::bind(config, decider, Arc::clone(&app.boot.record)).await?;
    let boot = pxe.http_addr().context("read the address of boot files")?;
    app.disks.serve_at(format!("http://{}/boot", SocketAddr::new(address.ip(), boot.port())));
    Ok((pxe, boot))
}

/// Starts a server; when this returns, it serves.
///
/// # Errors
/// Each says what to do: the folder is in use, a secret is not as it must be, a port is taken.
pub async fn start(options: ServeOptions, stop: CancellationToken) -> anyhow::Result<Running> {
    let data_dir = options.data_dir.clone();
    let agent_package = AgentPackage::new(options.agent_package()?);
    let lock = claim(&data_dir)?;
    let Opened { site, first_start } = Site::open(&data_dir)?;
    let db = open_database(&options.database()).await?;
    let (listener, bound) = bind(options.listen, "--listen").await?;
    let (nbd_listener, nbd) = bind(options.nbd, "--nbd").await?;
    let address = reachable(bound, boot_address(&options)?, &local_addresses()?);
    let directory = DirectoryKeeper::open(&db, &site).await?;
    let limits = SiteLimits::open(&db).await?;
    let generation = db.next_generation().await?;
    let names = Arc::new(NameTable::default());
    let store = Arc::new(open_store(&options.store_devices(), first_start).await?);
    let finder = finder(&site, &db, &store, &names)?;
    let app = App::new(Inner {
        disks: Disks::open(&db).await?,
        events: Events::new(db.clone()),
        db,
        site,
        data_dir: data_dir.clone(),
        server_id: ServerId::of(&data_dir)?,
        store,
        address,
        bound,
        nbd,
        names,
        boot_folder: options.boot_folder(),
        ipxe_dir: options.ipxe_dir.clone(),
        agent_package,
        boot: BootNet::new(options.boot_interface.clone(), options.dhcp),
        stop: stop.clone(),
        tasks: TaskTracker::new(),
        directory,
        bell: jobs::Bell::default(),
        login_limit: api::session::LoginLimit::default(),
        registrations: Registrations::default(),
        sources: Sources::new(options.image_host.clone(), &data_dir),
        full_disks: FullDisks::default(),
        conditions: Conditions::default(),
        complaints: crate::agents::complaint::Complaints::default(),
        limits,
        edits: api::edit::Edits::default(),
        reports: Reports::default(),
        swarms: Swarms::default(),
        waves: crate::waves::Waves::default(),
        live: Live::default(),
        finder: Arc::new(finder),
        bundling: tokio::sync::Mutex::default(),
        volumes: Volumes::new(generation),
        agents_changed: Changes::default(),
        holdings_changed: Changes::default(),
        targets_changed: Changes::default(),
    });
    let moved = app.directory.server().is_some_and(|before| before != address);
    take_up(&app).await?;
    warn_without_payload(&options, &app)?;
    let papers = app.site.server_papers(Some(&hostname()))?;
    let server = tls::server_tls(&papers)?;
    let (pxe, boot) = bind_boot(&options, &app).await?;
    let mut services = JoinSet::new();
    let (served, secure) = (Arc::new(Served(app.clone())), Some(Arc::clone(&server)));
    services.spawn(cairn_array::nbd::serve(nbd_listener, served, secure, stop.clone()));
    services.spawn(tls::serve(listener, server, api::router(&app), stop.clone()));
    services.spawn(pxe.run(stop.clone()));
    run_beside(&app, (papers, moved), &mut services);
    let_command_line_in(&app).await?;
    let first_start = welcome(&app, first_start).await?;
    Ok(Running { app, bound, boot, nbd, first_start, services, _lock: lock })
}

/// Opens the database, unless it was moved elsewhere.
pub(crate) async fn open_database(address: &DatabaseAddress) -> anyhow::Result<Db> {
    let what = || format!("open the database {address}");
    let db = Db::open(address).await.with_context(what)?;
    if let Some(elsewhere) = db.moved().await.with_context(what)? {
        bail!("{address} was moved to {elsewhere}: start with --database and that");
    }
    Ok(db)
}

/// Shows clients the server's own papers.
fn finder(
    site: &Site,
    db: &Db,
    store: &Arc<Store>,
    names: &Arc<NameTable>,
) -> anyhow::Result<Finder> {
    let papers = site.server_papers(None)?;
    let trust = Trust::Ca(site.authority().ca_pem().to_owned());
    let client = tls::client(&trust, Some(&papers), Arc::clone(names))?;
    let (db, store) = (db.clone(), Arc::clone(store));
    Ok(Finder::new(db, store, site.verifying_key(), PeerClient::new(client)))
}

/// What runs beside the requests.
fn run_beside(
    app: &App,
    (papers, moved): (Papers, bool),
    services: &mut JoinSet<anyhow::Result<()>>,
) {
    app.tasks.spawn(bundle::watch_payload(app.clone()));
    app.tasks.spawn(presence::watch(app.clone()));
    app.tasks.spawn(volumes::scatter::watch(app.clone()));
    app.tasks.spawn(volumes::open_again(app.clone()));
    app.tasks.spawn(volumes::mirror::watch(app.clone()));
    app.tasks.spawn(scrub::watch(app.clone()));
    app.tasks.spawn(rebalance::watch(app.clone()));
    app.tasks.spawn(webhooks::watch(app.clone()));
    app.tasks.spawn(dashboard::live::watch(app.clone()));
    app.tasks.spawn(reports::write(app.clone()));
    app.tasks.spawn(tell_clients(app.clone(), papers, moved));
    let (db, stop) = (app.db.clone(), app.stop.clone());
    services.spawn(async move { db.watch(&stop).await.context("keep the database") });
    let worker = app.clone();
    services.spawn(async move {
        jobs::work(worker).await;
        Ok(())
    });
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Listens; `option` is where another address can be said.
async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: choose another with {option}"))?;
    let bound = listener.local_addr().context("read the address that was bound")?;
    Ok((listener, bound))
}

fn warn_without_payload(options: &ServeOptions, app: &App) -> anyhow::Result<()> {
    if options.boot_interface.is_some() && boot_build::built(&app.boot_folder)?.is_none() {
        tracing::warn!(
            folder = %app.boot_folder.display(),
            "there is nothing for blank machines to boot yet: run `cairn-server boot build`"
        );
    }
    Ok(())
}

/// Opens the store's devices. They are made at the first start only: later, a folder that is not a device is a disk that is
/// not mounted.
pub(crate) async fn open_store(
    addresses: &[DeviceAddress],
    first_start: bool,
) -> anyhow::Result<Store> {
    let mut devices = Vec::new();
    for address in addresses {
        let opened =
            if first_start { address.open_or_create().await } else { address.open().await };
        devices.push(opened.context("open the store")?);
    }
    Ok(Store::new(devices)?)
}

/// Two servers on one folder would undo each other's work.
pub(crate) fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let run = data_dir.join("run");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&run)
        .with_context(|| format!("make folder {}", run.display()))?;
    let path = run.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(
            "another cairn-server uses {}: stop it, or name another folder with --data-dir",
            data_dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Takes up what a stop or a kill cut short, before anybody is served.
async fn take_up(app: &App) -> anyhow::Result<()> {
    backup::make::tidy(&app.data_dir).context("clear away a backup that was cut short")?;
    for agent in app.db.approved_agents().await? {
        if let Some(address) = agent.address {
            app.names.set(Member::Agent(agent.id), address);
        }
    }
    app.store.even_out_blobs().await.context("bring blobs to all devices of the store")?;
    let begun = SystemTime::now();
    let volumes_cut_short = volumes::open_all(app).await.context("open volumes")?;
    let cut_short = register::clear_away(app).await;
    let cut_short = cut_short.context("clear away registrations that were cut short")?;
    if cut_short || volumes_cut_short || !app.volumes.is_empty() {
        register::delete_leftovers(app, begun).await?;
    }
    app.db.forget_unfinished().await.context("let go of requests that were cut short")?;
    let resumed = app.db.resume_jobs(Moment::now()).await?;
    if resumed > 0 {
        tracing::info!(resumed, "jobs that were cut short are begun again");
    }
    // It says where this server is, which may be elsewhere than before.
    directory::rebuild(app).await
}

async fn tell_clients(app: App, papers: Papers, moved: bool) {
    if let Err(error) = announce::run(app, papers, moved).await {
        tracing::error!(error = format!("{error:#}"), "tell clients where this server is");
    }
}

/// The address on the boot interface, when there is one.
fn boot_address(options: &ServeOptions) -> anyhow::Result<Option<IpAddr>> {
    let Some(interface) = &options.boot_interface else { return Ok(None) };
    Ok(Some(IpAddr::V4(cairn_pxe::address_of_interface(interface)?)))
}

pub(crate) fn pxe_config(options: &ServeOptions, address: SocketAddr) -> anyhow::Result<PxeConfig> {
    let dhcp = match (options.dhcp, &options.boot_interface, options.dhcp_pool) {
        (DhcpChoice::Off, _, _) | (DhcpChoice::Proxy, None, _) => DhcpMode::Off,
        (DhcpChoice::Proxy, Some(_), _) => DhcpMode::Proxy,
        (DhcpChoice::Full, None, _) => anyhow::bail!("full DHCP needs --boot-interface"),
        (DhcpChoice::Full, _, None) => anyhow::bail!("full DHCP needs --dhcp-pool A-B"),
        (DhcpChoice::Full, Some(_), Some(pool)) => DhcpMode::Full(FullDhcp {
            pool_start: pool.first,
            pool_end: pool.last,
            mask: options.dhcp_mask,
            router: options.dhcp_router,
            dns: options.dhcp_dns.clone(),
            lease_seconds: options.dhcp_lease,
        }),
    };
    let server_addr = match boot_address(options)? {
        Some(IpAddr::V4(ip)) => ip,
        _ => match (options.boot_listen.ip(), address.ip()) {
            (IpAddr::V4(ip), _) if !ip.is_unspecified() => ip,
            (_, IpAddr::V4(ip)) => ip,
            (_, IpAddr::V6(_)) => Ipv4Addr::LOCALHOST,
        },
    };
    let folder = options.boot_folder();
    Ok(PxeConfig {
        interface: options.boot_interface.clone(),
        server_addr,
        http_addr: options.boot_listen,
        dhcp,
        ipxe_dir: options.ipxe_dir.clone(),
        files: PayloadFiles {
            kernel: folder.join(boot_build::KERNEL_FILE),
            initrd: folder.join(boot_build::INITRD_FILE),
        },
        state_dir: options.data_dir.clone(),
    })
}

/// Gives what root made in the folder of the server's own user to that user.
pub(crate) fn hand_back(data_dir: &Path) -> anyhow::Result<()> {
    let owner = Owner::of(data_dir);
    let owner = owner.with_context(|| format!("look at {}", data_dir.display()))?;
    if !is_root() || owner.is_root() {
        return Ok(());
    }
    hand_over(data_dir, owner).with_context(|| format!("hand {} to its owner", data_dir.display()))
}

/// Takes the folder of a site that is whole.
pub(crate) fn claim(data_dir: &Path) -> anyhow::Result<File> {
    let lock = lock(data_dir)?;
    recover::refuse_unfinished(data_dir)?;
    Ok(lock)
}

async fn let_command_line_in(app: &App) -> anyhow::Result<()> {
    keep_cli_token(app).await?;
    write_server_file(app)
}

/// The command line on this machine needs a token that works; one that was revoked or lost is replaced.
async fn keep_cli_token(app: &App) -> anyhow::Result<()> {
    if let Some(text) = secrets::read_cli_token(&app.data_dir)?
        && let Ok(token) = text.parse::<Token>()
        && app.db.api_token(&token.secret, Moment::now()).await?.is_some()
    {
        return Ok(());
    }
    let request = api::token::TokenRequest {
        kind: TokenKind::Api,
        auto_approve: false,
        role: None,
        groups: Vec::new(),
        expires_in: None,
        note: "command line on the server".to_owned(),
    };
    let made =
        api::token::make(app, &request).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    secrets::keep_cli_token(&app.data_dir, &made.token)
}

fn write_server_file(app: &App) -> anyhow::Result<()> {
    let path = server_file(&app.data_dir);
    let mut here = app.address;
    // The command line runs here: loopback works whatever happens to the net, when the service listens there.
    if app.bound.ip().is_unspecified() {
        here.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let file =
        ServerFile { url: format!("https://{here}"), ca: app.site.fingerprint().to_string() };
    let text = serde_json::to_vec_pretty(&file).context("write server.json")?;
    let beside = path.with_extension("new");
    fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, &path).with_context(|| format!("put {} in place", path.display()))
}

async fn welcome(app: &App, site_is_new: bool) -> anyhow::Result<Option<FirstStart>> {
    let site = (&app.db, &app.site, app.data_dir.as_path());
    let first = first_start::greet(site, app.address, &app.agent_package).await?;
    if first.is_some() && !site_is_new {
        tracing::warn!("there was no account: a start was cut short, or the database is new");
    }
    Ok(first)
}
