//! `cairn-agent stand-in`: acts for a server that is gone, from any client, with the recovery key.
//!
//! ```text
//!   directory on disk ─► opened with the recovery key ─► CA, signing key
//!        │ names                                             │ certify
//!        ▼                                                   ▼
//!   bundle, from the peers ─► boot files ─► PXE, HTTP     server's papers, targets' tickets
//!                          └► manifests, stripe maps ───► targets ─► fetch from the peers, and from each other
//! ```
//!
//! It holds no image data and changes nothing on the clients: what it gives out is what they hold, signed long before by
//! the server. What it decides (who was approved) is in memory and ends with it.
//!
//! Invariants: it does not begin while the server answers, unless forced; a machine gets a ticket only after somebody
//! approved its code here; the keys of the site and the recovery key are never written to a disk.

mod boot;
mod console;
mod routes;
mod targets;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use cairn_array::{
    tls::{self, local_addresses},
    wire::DiskSelector,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::console::approve;
use self::{boot::Boot, targets::Targets};
use crate::{
    dark::{self, DarkSite},
    home::{Home, Membership},
    leave::member_link,
    link::{CallError, Patience},
    signals::stop_signals,
};

/// How often it looks whether the server is back.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// What the operator asks for.
#[derive(Clone, Debug)]
pub struct Options {
    pub recovery_key: PathBuf,
    /// Where machines boot from; none: only machines that reach it otherwise.
    pub interface: Option<String>,
    /// HTTPS, for machines that install.
    pub listen: SocketAddr,
    /// HTTP, for boot files.
    pub boot_listen: SocketAddr,
    /// Answers DHCP beside the site's DHCP server.
    pub dhcp: bool,
    /// `NAME` or `NAME@N`; needed when the site has several images.
    pub image: Option<String>,
    pub disk: DiskSelector,
    /// Also while the server answers.
    pub force: bool,
}

/// Acts for the server until it is told to stop, or the server is back and nobody installs.
///
/// # Errors
/// When the key is not this site's, the server answers, or what is needed is held by nobody that can be reached.
pub async fn run(home: Home, options: Options) -> Result<()> {
    let membership = home.membership()?;
    if !options.force && server_answers(&home, &membership).await? {
        bail!(
            "the server at {} answers: nothing needs to stand in for it. If that is not your server, or it cannot do its \
             work, run this with --force",
            membership.server
        );
    }
    console::say("fetching boot files and manifests from the other clients");
    let (site, _) = dark::open_site(&home, &options.recovery_key).await?;
    serve(&home, &membership, options, site).await
}

async fn serve(
    home: &Home,
    membership: &Membership,
    options: Options,
    site: DarkSite,
) -> Result<()> {
    // Before anybody is told that this serves: from then on it may be told to stop.
    let stopped = stop_signals()?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("listen on {}: choose another with --listen", options.listen))?;
    let port = listener.local_addr().context("read the address that was bound")?.port();
    let address = SocketAddr::new(address(&options)?.into(), port);
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let papers = site.authority.certify_server(Some(&hostname), &local_addresses()?)?;
    let server_tls = tls::server_tls(&papers)?;
    let image = site.catalog.choose(options.image.as_deref())?.full_name();
    let clients = site.directory.members.len();
    let files = Boot::prepare(home, &site, options.interface.is_some())?;
    let limits = home.site_rates()?;
    let targets = Arc::new(Targets::new(site, &image, options.disk.clone(), limits)?);
    let stop = CancellationToken::new();
    let mut services = tokio::task::JoinSet::new();
    if let Some(interface) = &options.interface {
        let bound = files.bind(interface, &options, address, Arc::clone(&targets)).await?;
        services.spawn(bound.run(stop.clone()));
    }
    services.spawn(tls::serve(
        listener,
        server_tls,
        routes::router(Arc::clone(&targets)),
        stop.clone(),
    ));
    services.spawn(console::listen(home.stand_in_socket(), Arc::clone(&targets), stop.clone()));
    services.spawn(console::read(Arc::clone(&targets), stop.clone()));
    console::say(&format!(
        "standing in for the server of site {}: {image}, from {clients} clients",
        membership.site
    ));
    console::say(&format!("ready: https://{address}"));
    console::say("type the code that a machine shows to approve it; Ctrl-C ends this");
    let back = returned(home, membership, &targets, options.force);
    let mut outcome = tokio::select! {
        signal = stopped => signal,
        back = back => back,
        Some(ended) = services.join_next() => ended.context("a task of the stand-in broke").flatten(),
    };
    stop.cancel();
    while let Some(ended) = services.join_next().await {
        let ended = ended.context("a task of the stand-in broke").flatten();
        if outcome.is_ok() {
            outcome = ended;
        }
    }
    files.clear()?;
    outcome
}

/// Ends when the server answers again and no machine installs any more; with `force` never.
async fn returned(
    home: &Home,
    membership: &Membership,
    targets: &Targets,
    force: bool,
) -> Result<()> {
    if force {
        return std::future::pending().await;
    }
    let mut said = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !server_answers(home, membership).await? {
            said = false;
            continue;
        }
        if !std::mem::replace(&mut said, true) {
            console::say("the server answers again: this ends when no machine installs any more");
        }
        if !targets.are_busy() {
            return Ok(());
        }
    }
}

/// Whether the server of this site answers, with good or bad news.
async fn server_answers(home: &Home, membership: &Membership) -> Result<bool> {
    let link = member_link(home, membership)?;
    let health = link.get::<serde_json::Value>("/healthz", Patience::Prompt).await;
    Ok(!matches!(health, Err(CallError::Unreachable(_) | CallError::BrokeOff(_))))
}

/// The address that machines are sent to.
fn address(options: &Options) -> Result<Ipv4Addr> {
    if let Some(interface) = &options.interface {
        return cairn_pxe::address_of_interface(interface);
    }
    let listen = Some(options.listen.ip()).filter(|ip| !ip.is_unspecified());
    let all = listen.into_iter().chain(local_addresses()?);
    let mut v4 = all.filter_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    let first = v4.next();
    let reachable =
        first.filter(|ip| !ip.is_loopback()).or_else(|| v4.find(|ip| !ip.is_loopback()));
    reachable.or(first).context("find an IPv4 address of this machine: name one with --listen")
}
