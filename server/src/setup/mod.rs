//! `cairn-server setup`: makes this machine the server of a site.
//!
//! ```text
//!  interface ──► configuration file ──► site, if there is none ──► service ──► waits until it serves
//! ```
//!
//! Invariants: done again with the same wishes it changes nothing; the password is written to standard output and nowhere
//! else; what was made is shown before the service is started, since it is shown once.

use std::{
    fs,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_array::{
    ownership::is_root,
    settings::Place,
    systemd::Unit,
    tls::{self, Member, NameTable, Trust, interface_addresses, local_addresses},
};

mod configuration;
mod interface;
mod new_site;

use self::configuration::Configuration;
use crate::{
    api::session::ADMIN,
    boot_build,
    config::{CONFIG_FILE, ServeOptions, reachable},
    doctor::is_running,
};

const UNIT: Unit = Unit("cairn-server.service");
/// A first start makes certificates and asks the network; a later one reads journals.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the administrator asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// None: the one of the configuration file, else the one with the default route.
    pub(crate) interface: Option<String>,
    /// Further keys of the configuration file.
    pub(crate) values: Vec<(&'static str, String)>,
}

/// Does it, and tells on standard output.
///
/// # Errors
/// When this is not root, the interface is not clear, a value is wrong, or the service does not come up. What was done is
/// not done again by the next run.
pub(crate) async fn run(wishes: Wishes, place: &Place) -> Result<()> {
    ensure!(is_root(), "setup writes files of the system and starts a service: run it as root");
    let mut configuration = Configuration::open(&place.path)?;
    let wanted = wishes.interface.or(configuration.boot_interface()?);
    let interface = find_interface(wanted.as_deref())?;
    configuration.set("boot_interface", &interface)?;
    for (key, value) in &wishes.values {
        configuration.set(key, value)?;
    }
    let options = configuration.options()?;
    let address = IpAddr::V4(cairn_pxe::address_of_interface(&interface)?);
    let address = reachable(options.listen, Some(address), &local_addresses()?);
    let is_unit = place.path == Path::new(CONFIG_FILE) && UNIT.is_installed();
    let runs = is_running(&options.data_dir);
    ensure!(
        !runs || !is_unit || UNIT.is_active(),
        "a cairn-server that is not {} uses {}: stop it first",
        UNIT.0,
        options.data_dir.display()
    );
    let changed = configuration.write()?;
    if changed {
        say(&format!("configured: {} (boot_interface = {interface:?})", place.path.display()))?;
    }
    let first = if runs { None } else { new_site::make(&options, address).await? };
    let url = format!("https://{address}");
    if let Some(first) = &first {
        let mut out = io::stdout().lock();
        first
            .show(&url, &mut out)
            .and_then(|()| out.flush())
            .context("write to standard output")?;
    } else {
        show_again(&url)?;
    }
    tell_of_payload(&options)?;
    if !is_unit {
        return tell_what_to_run(place, runs, changed);
    }
    let was_up = UNIT.is_active() && UNIT.is_enabled();
    match (was_up, changed) {
        (false, _) => UNIT.enable_now()?,
        (true, true) => UNIT.restart()?,
        (true, false) => {}
    }
    wait_until_it_serves(&options.data_dir, address).await?;
    if was_up && !changed && first.is_none() {
        say("Nothing was to do: this server is set up.")?;
    }
    say(&format!("ready: {url}"))
}

fn find_interface(wanted: Option<&str>) -> Result<String> {
    let routes =
        fs::read_to_string(interface::ROUTES).context("read the routes of this machine")?;
    interface::choose(wanted, &interface_addresses()?, &interface::of_default_routes(&routes))
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("write to standard output")
}

/// Of a site that is there already, whose secrets are not shown again.
fn show_again(url: &str) -> Result<()> {
    say(&format!("dashboard: {url}"))?;
    say(&format!("sign in:   {ADMIN}; `cairn-server user password {ADMIN}` makes a new password"))?;
    say("join:      `cairn-server token create` makes a command for the next client")
}

fn tell_of_payload(options: &ServeOptions) -> Result<()> {
    let folder = options.boot_folder();
    if boot_build::built(&folder)?.is_some() {
        return Ok(());
    }
    say(&format!(
        "boot:      there is nothing for blank machines to boot in {}: install the package cairn-boot, or run `cairn-server boot build`",
        folder.display()
    ))
}

/// Without the service, everything is prepared and somebody starts the server.
fn tell_what_to_run(place: &Place, runs: bool, changed: bool) -> Result<()> {
    let serve = match place.path == Path::new(CONFIG_FILE) {
        true => "cairn-server serve".to_owned(),
        false => format!("cairn-server serve --config {}", place.path.display()),
    };
    match (runs, changed) {
        (true, false) => say("Nothing was to do: this server is set up."),
        (true, true) => say(&format!("Start the server again, to use what changed: `{serve}`")),
        (false, _) => say(&format!("There is no {} here: start the server with `{serve}`", UNIT.0)),
    }
}

async fn wait_until_it_serves(data_dir: &Path, address: SocketAddr) -> Result<()> {
    let ca = data_dir.join("secrets/ca.pem");
    let ca = fs::read_to_string(&ca).with_context(|| format!("read {}", ca.display()))?;
    let names = Arc::new(NameTable::default());
    names.set(Member::Server, address);
    let client = tls::client(&Trust::Ca(ca), None, names)?;
    let begun = Instant::now();
    loop {
        let answer = client.get(tls::url(&Member::Server, "/readyz")).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        let advice = || format!("see `journalctl -e -u {}` and `cairn-server doctor`", UNIT.0);
        if UNIT.has_failed() {
            bail!("the server did not start: {}", advice());
        }
        if begun.elapsed() > PATIENCE {
            bail!("the server does not answer at https://{address}: {}", advice());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
