//! One try to install this machine, from loading drivers to the reboot, or to bring it up from a volume.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cairn_array::{
    pace::Rates,
    tls::{self, KeyAndCsr, Member, NameTable, Papers, Trust},
    wire::AfterInstall,
};
use rustix::{mount::MountFlags, system::RebootCommand};

use super::{
    cmdline, console::Consoles, keeper::RemoteDisk, modules::Drivers, network::Network, restart,
    root, run_folder,
};
use crate::{
    limits::RateLimits,
    target::{
        Screen,
        disks::{Roots, disks},
        flow::{Goal, Installer, Next},
    },
};

/// The exit code after the reason was shown.
pub(super) const FAILED: i32 = 1;
/// The exit code when the root of a volume is mounted, for the first process to become its system.
pub(super) const MOUNTED: i32 = 3;
/// Disks show up some time after their driver.
const DISK_PATIENCE: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const TEND_EVERY: Duration = Duration::from_secs(2);
/// Where the next system's networkd looks first.
const NETWORKD: &str = "/run/systemd/network";
/// Until the last lines were read.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Tries once. Returns the exit code when the machine was not restarted.
#[must_use]
pub fn run() -> i32 {
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let consoles = Consoles::open(&cmdline);
    match install(&cmdline, &consoles) {
        Ok(Ended::Mounted) => MOUNTED,
        Ok(Ended::Installed(AfterInstall::Exit)) => 0,
        Ok(Ended::Installed(then)) => {
            let (command, line) = match then {
                AfterInstall::PowerOff => (RebootCommand::PowerOff, "turning this machine off"),
                _ => (RebootCommand::Restart, "restarting into the installed system"),
            };
            consoles.say(line);
            std::thread::sleep(LAST_LOOK);
            restart(command);
            consoles.say("this machine could not be restarted; turn it off and on");
            FAILED
        }
        Err(error) => {
            consoles.say(&format!("\nThis machine was not installed: {error:#}\n"));
            FAILED
        }
    }
}

/// What a try came to.
enum Ended {
    Installed(AfterInstall),
    /// The root of a volume is there.
    Mounted,
}

fn install(cmdline: &str, consoles: &Consoles) -> Result<Ended> {
    let words = cmdline::parse(cmdline)?;
    let sys = PathBuf::from("/sys");
    let mut drivers = Drivers::default();
    consoles.say("loading drivers");
    drivers.load_all(&sys);
    let efivars = sys.join("firmware/efi/efivars");
    if efivars.is_dir() {
        // Mounted already on a second try; without it the machine counts as unverified and gets no boot entry.
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match rustix::mount::mount("efivarfs", &efivars, "efivarfs", flags, None) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => {
                consoles.say(&format!("the firmware's variables cannot be read: {error}"))
            }
        }
    }
    let mut network = Network::new(sys.clone(), run_folder().join("net"))?;
    network.wait_for_lease(&mut drivers, |line| consoles.say(line))?;
    wait_for_disks(&mut drivers, &sys);

    let key = boot_key(&run_folder().join("key.json"))?;
    let names = NameTable::default();
    names.set(Member::Server, words.server);
    let installer = Installer {
        trust: Trust::Pinned(words.ca),
        names: names.into(),
        key,
        goal: Goal::Assigned,
        server: words.server.to_string(),
        limits: RateLimits::new(Rates::default()),
    };
    // Leases are renewed, and late links and hardware come up, while the installer waits and works.
    let (stop_tending, stopped) = channel::<()>();
    let tending = std::thread::Builder::new().name("network".into());
    let tending = tending
        .spawn(move || tend(network, drivers, &sys, &stopped))
        .context("start the network's thread")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("start the installer's threads")?;
    match runtime.block_on(installer.run(consoles.clone()))? {
        Next::Installed(then) => Ok(Ended::Installed(then)),
        Next::Volume { volume, port, papers } => {
            drop(stop_tending);
            let network = tending.join().ok().context("the network's thread broke")?;
            let Papers { certificate_pem, key_pem, ca_pem } = papers;
            let server = SocketAddr::new(words.server.ip(), port);
            let disk = RemoteDisk { server, volume, certificate_pem, key_pem, ca_pem };
            root::mount_volume(&disk, |line| consoles.say(line))?;
            network.hand_over(Path::new(NETWORKD))?;
            Ok(Ended::Mounted)
        }
    }
}

/// Looks after the network until the other end of the channel is dropped.
fn tend(mut network: Network, mut drivers: Drivers, sys: &Path, stopped: &Receiver<()>) -> Network {
    while matches!(stopped.recv_timeout(TEND_EVERY), Err(RecvTimeoutError::Timeout)) {
        drivers.load_new(sys);
        network.tend();
    }
    network
}

/// Until the list of disks has not changed for a second.
fn wait_for_disks(drivers: &mut Drivers, sys: &Path) {
    let (roots, start) = (Roots::default(), Instant::now());
    let (mut seen, mut since) = (disks(&roots), start);
    while start.elapsed() < DISK_PATIENCE
        && (seen.is_empty() || since.elapsed() < Duration::from_secs(1))
    {
        std::thread::sleep(LOOK_EVERY);
        drivers.load_new(sys);
        let now = disks(&roots);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// The key of this boot: made by the first try, in memory only.
fn boot_key(path: &Path) -> Result<KeyAndCsr> {
    let read = || -> Option<KeyAndCsr> {
        let text = fs::read(path).ok()?;
        let (key_pem, csr_pem): (String, String) = serde_json::from_slice(&text).ok()?;
        let public_key_der = tls::public_key_of_csr(&csr_pem).ok()?;
        Some(KeyAndCsr { key_pem, csr_pem, public_key_der })
    };
    if let Some(key) = read() {
        return Ok(key);
    }
    let key = tls::new_key_and_csr()?;
    let text = serde_json::to_vec(&(&key.key_pem, &key.csr_pem)).context("write down the key")?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_boot_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.json");
        let first = boot_key(&path).unwrap();
        let second = boot_key(&path).unwrap();
        assert_eq!(first.public_key_der, second.public_key_der);
        assert_eq!(first.key_pem, second.key_pem);
        fs::write(&path, "[").unwrap();
        assert_ne!(boot_key(&path).unwrap().public_key_der, first.public_key_der);
    }
}
