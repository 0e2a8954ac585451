//! `cairn-server doctor`: tries what `serve` needs, changes nothing, and says what to do.
//!
//! It takes the options of `serve`, so that it looks at what will be used. Ports are tried by binding them, unless a
//! server runs with the same data folder: then it has them.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use cairn_array::{
    store::{BucketAddress, DeviceAddress},
    tls::valid_until,
};
use cairn_pxe::{BootDecider, BootDecision, DecisionFuture, MachineHint, dhcp::Offer};
use rustix::fs::{FlockOperation, flock, statvfs};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use utoipa::ToSchema;

use crate::{
    boot_build,
    config::{DhcpChoice, ServeOptions, reachable},
    moment::Moment,
    recover,
    serve::pxe_config,
    site::{Secrets, secrets::RECOVERY_FILE},
    timekeeping,
};

/// Under this the server will soon stand still.
const LEAST_FREE: u64 = 1 << 30;
/// Of a disk that is to hold images.
const LOW_SHARE: u64 = 10;
/// Servers that answer at all answer within this; some first look for three seconds whether an address is in use.
const LISTEN: Duration = Duration::from_secs(6);
/// When a CA has less than this left, somebody should think of it.
const CA_LOW: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);
/// A clock may differ by this from the newest file.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Good,
    /// It works, and something should be done or known.
    Note,
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// What was found, and what to do about it.
    pub(crate) finding: String,
}

const fn good(name: &'static str, finding: String) -> Check {
    Check { name, verdict: Verdict::Good, finding }
}

const fn note(name: &'static str, finding: String) -> Check {
    Check { name, verdict: Verdict::Note, finding }
}

const fn bad(name: &'static str, finding: String) -> Check {
    Check { name, verdict: Verdict::Bad, finding }
}

/// Looks at all of it.
pub(crate) async fn examine(options: &ServeOptions) -> Vec<Check> {
    let runs = is_running(&options.data_dir);
    let mut checks = vec![data_folder(&options.data_dir, runs)];
    let mut folders = vec![options.data_dir.clone()];
    for device in options.store_devices() {
        match device {
            DeviceAddress::Folder(folder) => folders.push(folder),
            DeviceAddress::Bucket(bucket) => checks.push(reach(&bucket).await),
        }
    }
    checks.extend(folders.iter().map(|folder| room(folder)));
    checks.extend(secrets(&options.data_dir));
    checks.extend(authority(&options.data_dir));
    checks.push(clock(&options.data_dir));
    checks.extend(time_service());
    checks.push(payload(options));
    if runs {
        checks.push(good("ports", "a server with this data folder has them".to_owned()));
    } else {
        checks.push(port("HTTPS", options.listen, "--listen").await);
        checks.push(port("NBD", options.nbd, "--nbd").await);
        checks.push(boot_services(options).await);
    }
    checks.push(neighbours(options.boot_interface.as_deref(), options.dhcp).await);
    checks
}

/// Whether a server has the data folder. Unlike starting one, this makes nothing.
pub(crate) fn is_running(data_dir: &Path) -> bool {
    let Ok(lock) = File::open(data_dir.join("run/lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

fn data_folder(folder: &Path, runs: bool) -> Check {
    let name = "data folder";
    let shown = folder.display();
    if runs {
        return good(name, format!("a server runs with {shown}"));
    }
    if let Err(error) = recover::refuse_unfinished(folder) {
        return bad(name, format!("{error:#}"));
    }
    let existing = existing(folder);
    let writable = rustix::fs::access(&existing, rustix::fs::Access::WRITE_OK);
    match (writable, existing == folder) {
        (Ok(()), true) => good(name, format!("{shown} can be written")),
        (Ok(()), false) => good(name, format!("{shown} will be made at the first start")),
        (Err(error), _) => bad(
            name,
            format!(
                "{}: {error}; run as its owner, or name another with --data-dir",
                existing.display()
            ),
        ),
    }
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    if absolute.exists() {
        return folder.to_owned();
    }
    let above = absolute.ancestors().find(|above| above.exists());
    above.unwrap_or_else(|| Path::new("/")).to_owned()
}

fn room(folder: &Path) -> Check {
    let name = "disk space";
    match statvfs(existing(folder)) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let size = found.f_blocks.saturating_mul(found.f_frsize);
            enough(name, folder, free, size)
        }
        Err(error) => bad(name, format!("{}: {error}", folder.display())),
    }
}

async fn reach(bucket: &BucketAddress) -> Check {
    let name = "bucket";
    match bucket.is_device().await {
        Ok(true) => good(name, format!("{} is a device of a store", bucket)),
        Ok(false) => note(
            name,
            format!(
                "{} is no device yet: the first start makes it one, later `store add-device`",
                bucket
            ),
        ),
        Err(error) => bad(
            name,
            format!(
                "{:#}: set AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                anyhow::Error::new(error)
            ),
        ),
    }
}

fn enough(name: &'static str, folder: &Path, free: u64, size: u64) -> Check {
    let found = format!(
        "{}: {} of {} free",
        folder.display(),
        indicatif::BinaryBytes(free),
        indicatif::BinaryBytes(size)
    );
    if free < LEAST_FREE {
        return bad(name, format!("{found}: make room, or put the store elsewhere with --store"));
    }
    if free < size / LOW_SHARE {
        return note(name, format!("{found}: images need more soon; --store names another disk"));
    }
    good(name, found)
}

fn secrets(data_dir: &Path) -> Option<Check> {
    let name = "secrets";
    if !data_dir.join("secrets").exists() {
        return None;
    }
    if let Err(error) = Secrets::read(data_dir) {
        return Some(bad(name, format!("{error:#}")));
    }
    let recovery = data_dir.join(RECOVERY_FILE);
    if recovery.exists() {
        return Some(note(
            name,
            format!(
                "{} is still here: take it offline and delete it. Whoever gets it can read every image",
                recovery.display()
            ),
        ));
    }
    Some(good(name, "there, and nobody else can read them".to_owned()))
}

fn clock(data_dir: &Path) -> Check {
    let name = "clock";
    let newest = ["cairn.db", "cairn.db-wal", "secrets/ca.pem"];
    let newest = newest.iter().filter_map(|file| fs::metadata(data_dir.join(file)).ok());
    let newest = newest.filter_map(|found| found.modified().ok()).max();
    let program = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified());
    right(name, SystemTime::now(), newest.into_iter().chain(program.ok()).max())
}

fn right(name: &'static str, now: SystemTime, newest: Option<SystemTime>) -> Check {
    let ahead = newest.and_then(|newest| newest.duration_since(now).ok());
    match ahead.filter(|ahead| *ahead > CLOCK_TOLERANCE) {
        Some(ahead) => bad(
            name,
            format!(
                "it is {} behind what was written last: set it (NTP), or certificates will not be valid",
                indicatif::HumanDuration(ahead)
            ),
        ),
        None => good(name, "not behind what was written last".to_owned()),
    }
}

/// Said only where it should be mended: not every kernel of a container says.
fn time_service() -> Option<Check> {
    let finding = "no time service steers this machine's clock: install one (chrony, systemd-timesyncd), or it drifts from the clients'";
    (!timekeeping::is_steered().ok()?).then(|| note("time service", finding.to_owned()))
}

/// The site's CA, once there is one. Clients have theirs renewed, and the server makes its own at each start.
fn authority(data_dir: &Path) -> Option<Check> {
    let pem = fs::read_to_string(data_dir.join("secrets/ca.pem")).ok()?;
    let until = valid_until(&pem).map(|until| Moment(until.saturating_mul(1000)));
    Some(match until {
        Ok(until) => lasting("certificates", until, Moment::now()),
        Err(error) => bad("certificates", format!("secrets/ca.pem: {error:#}")),
    })
}

fn lasting(name: &'static str, until: Moment, now: Moment) -> Check {
    let said = format!("the site's CA is valid until {}", until.to_text());
    let left = until.since(now);
    if left.is_zero() {
        bad(
            name,
            format!("{said}, which is over, or the clock is wrong: set it, or begin a new site"),
        )
    } else if left < CA_LOW {
        note(name, format!("{said}: begin a new site before that, its clients join anew"))
    } else {
        good(name, said)
    }
}

fn payload(options: &ServeOptions) -> Check {
    let name = "boot payload";
    let folder = options.boot_folder();
    match boot_build::built(&folder) {
        Ok(Some(payload)) => {
            good(name, format!("kernel {} in {}", payload.kernel, folder.display()))
        }
        Ok(None) => {
            let say = format!(
                "none in {}: blank machines have nothing to boot. Run `cairn-server boot build`, or name one with --boot-dir",
                folder.display()
            );
            if options.boot_interface.is_some() { bad(name, say) } else { note(name, say) }
        }
        Err(error) => bad(name, format!("{error:#}")),
    }
}

async fn port(name: &'static str, address: SocketAddr, option: &str) -> Check {
    match TcpListener::bind(address).await {
        Ok(_) => good(name, format!("{address} is free")),
        Err(error) => bad(name, busy(address, option, &error)),
    }
}

fn busy(address: SocketAddr, option: &str, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has TCP port {port} (`ss -ltnp sport = :{port}` shows it): stop it, or choose another with {option}"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("port {port} is for root: run as root, or choose one above 1023 with {option}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is no address of this machine: choose another with {option}", address.ip())
        }
        _ => format!("{address} cannot be used: {error}"),
    }
}

/// Nobody is answered while this is tried.
struct Nobody;

impl BootDecider for Nobody {
    fn decide(&self, _hint: MachineHint) -> DecisionFuture<'_> {
        Box::pin(async { BootDecision::Wait { seconds: 60 } })
    }
}

/// Interface, iPXE's files, and the ports of DHCP, TFTP and boot files, as `serve` takes them.
async fn boot_services(options: &ServeOptions) -> Check {
    let name = "boot services";
    let local = match cairn_array::tls::local_addresses() {
        Ok(local) => local,
        Err(error) => return bad(name, format!("{error:#}")),
    };
    let address = reachable(options.listen, None, &local);
    let bound = async {
        let config = pxe_config(options, address)?;
        cairn_pxe::bind(config, Arc::new(Nobody), Arc::default()).await
    };
    match bound.await {
        Ok(_) => match &options.boot_interface {
            Some(interface) => good(name, format!("can begin on {interface}")),
            None => note(
                name,
                "blank machines are not answered: name their network's interface with --boot-interface"
                    .to_owned(),
            ),
        },
        Err(error) => bad(name, format!("{error:#}")),
    }
}

/// Who else answers machines that boot.
pub(crate) async fn neighbours(interface: Option<&str>, dhcp: DhcpChoice) -> Check {
    let name = "DHCP";
    let Some(interface) = interface else {
        return note(name, "not looked for: --boot-interface names the network".to_owned());
    };
    let ours = match cairn_pxe::address_of_interface(interface) {
        Ok(ours) => ours,
        Err(error) => return bad(name, format!("{error:#}")),
    };
    match cairn_pxe::survey(interface, LISTEN).await {
        Ok(offers) => judge(name, interface, dhcp, ours, &offers),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => note(
            name,
            "not looked for: this machine's own DHCP client has port 68. Look from another machine"
                .to_owned(),
        ),
        Err(error) => bad(name, format!("nobody could be asked on {interface}: {error}")),
    }
}

fn judge(
    name: &'static str,
    interface: &str,
    choice: DhcpChoice,
    ours: Ipv4Addr,
    offers: &[Offer],
) -> Check {
    let others = || offers.iter().filter(|offer| offer.server != ours);
    let names = |wanted: fn(&Offer) -> bool| {
        let found = others().filter(|offer| wanted(offer)).map(|offer| offer.server.to_string());
        found.collect::<Vec<_>>().join(", ")
    };
    let (addresses, files) =
        (names(|offer| offer.gives_addresses), names(|offer| offer.gives_boot_files));
    if !files.is_empty() && choice != DhcpChoice::Off {
        return bad(
            name,
            format!(
                "{files} on {interface} answers machines that boot, too, and the faster one wins: have it stop that \
                 (options 66, 67 and PXE), or start with --dhcp off and have it name our boot files"
            ),
        );
    }
    match (choice, addresses.is_empty()) {
        (DhcpChoice::Full, false) => bad(
            name,
            format!(
                "{addresses} gives addresses on {interface}: stop it, or start with --dhcp proxy"
            ),
        ),
        (DhcpChoice::Full, true) => {
            good(name, format!("nobody else gives addresses on {interface}"))
        }
        (_, true) => bad(
            name,
            format!(
                "nobody gives addresses on {interface}: start a DHCP server there, or this one with --dhcp full --dhcp-pool A-B"
            ),
        ),
        (_, false) => good(name, format!("{addresses} gives addresses on {interface}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_judged_by_what_is_left() {
        let verdict = |free, size| enough("x", Path::new("/d"), free, size).verdict;
        assert_eq!(verdict(500 << 20, 1 << 40), Verdict::Bad);
        assert_eq!(verdict(50 << 30, 1 << 40), Verdict::Note);
        assert_eq!(verdict(500 << 30, 1 << 40), Verdict::Good);
        assert_eq!(verdict(2 << 30, 10 << 30), Verdict::Good);
    }

    #[test]
    fn a_clock_that_is_behind_its_files_is_wrong() {
        let now = SystemTime::now();
        let verdict = |newest| right("x", now, newest).verdict;
        assert_eq!(verdict(None), Verdict::Good);
        assert_eq!(verdict(Some(now - CLOCK_TOLERANCE)), Verdict::Good);
        assert_eq!(verdict(Some(now + CLOCK_TOLERANCE * 2)), Verdict::Bad);
    }

    #[test]
    fn a_ca_that_is_about_to_end_is_told_of() {
        let now = Moment(1_795_000_000_000);
        let verdict = |until| lasting("x", until, now).verdict;
        assert_eq!(verdict(now.plus(CA_LOW)), Verdict::Good);
        assert_eq!(verdict(now.plus(CA_LOW / 2)), Verdict::Note);
        assert_eq!(verdict(now), Verdict::Bad);
    }

    #[test]
    fn what_others_on_the_network_give_is_judged_by_what_we_are_to_give() {
        const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
        let offer = |last, gives_addresses, gives_boot_files| Offer {
            server: Ipv4Addr::new(10, 0, 0, last),
            gives_addresses,
            gives_boot_files,
        };
        let (plain, boot, own) =
            (offer(2, true, false), offer(3, false, true), offer(1, true, true));
        let verdict = |choice, offers: &[Offer]| judge("x", "eth0", choice, OURS, offers).verdict;
        use DhcpChoice::{Full, Off, Proxy};
        for (choice, offers, wanted) in [
            (Proxy, vec![plain.clone()], Verdict::Good),
            (Proxy, vec![own.clone()], Verdict::Bad),
            (Proxy, vec![], Verdict::Bad),
            (Proxy, vec![plain.clone(), boot.clone()], Verdict::Bad),
            (Full, vec![own], Verdict::Good),
            (Full, vec![plain.clone()], Verdict::Bad),
            (Off, vec![plain, boot], Verdict::Good),
        ] {
            assert_eq!(verdict(choice, &offers), wanted, "{choice:?} {offers:?}");
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let check = port("HTTPS", taken.local_addr().unwrap(), "--listen").await;
        assert_eq!(check.verdict, Verdict::Bad);
        assert!(check.finding.contains("--listen") && check.finding.contains("ss -ltnp"));
        assert_eq!(
            port("HTTPS", "127.0.0.1:0".parse().unwrap(), "--listen").await.verdict,
            Verdict::Good
        );
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let check = data_folder(&folder.path().join("a/b"), false);
        assert_eq!(check.verdict, Verdict::Good);
        assert!(check.finding.contains("will be made"), "{}", check.finding);
        assert!(!folder.path().join("a").exists(), "nothing is made");
    }
}
