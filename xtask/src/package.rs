//! `cargo xtask package`: the Debian packages, made by cargo-deb from a release build.
//!
//! ```text
//!   release build ─► cairn-agent ───► cairn-agent_*.deb ─┐ offered to clients
//!                    boot payload ──────────────────────►├─► cairn-boot_*.deb
//!                    cairn-server ──► cairn-server_*.deb
//! ```
//!
//! `[package.metadata.deb]` in the manifests of server, agent and xtask says what is in them; units and
//! maintainer scripts are in `packaging/`. Manual pages and completions are written by the programs, the
//! changelog here, below `target/release/packaging`. Afterwards the packages are unpacked and checked: size,
//! stripped programs, units.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{self, Programs},
    setup::{self, Purpose},
    step,
};

/// Without liblzma, which is 5.2 in the crate: `xz` compresses.
const CARGO_DEB: [&str; 2] = ["cargo-deb@3.8.0", "--no-default-features"];

/// The most that the programs of a package take when they are installed; kernel and initramfs are beside it.
const MAX_INSTALLED_BYTES: u64 = 40_000_000;

const DEBS: [Deb; 3] = [
    Deb { name: "cairn-agent", of: "cairn-agent", unit: true },
    Deb { name: "cairn-server", of: "cairn-server", unit: true },
    Deb { name: "cairn-boot", of: "xtask", unit: false },
];

/// A package.
struct Deb {
    name: &'static str,
    /// The crate whose manifest says what is in it.
    of: &'static str,
    /// Whether it has a program and a unit of its name.
    unit: bool,
}

/// Where the packages go.
pub(crate) fn packages() -> PathBuf {
    build::target().join("packages")
}

/// Makes the packages, checks them, and prints where they are and how large.
pub(crate) fn run() -> Result<()> {
    setup::run(Purpose::Packages)?;
    let cargo_deb = cargo_deb()?;
    build::all(Programs::Release)?;
    step::timed("manual pages, completions, changelog", || {
        for program in ["cairn-server", "cairn-agent"] {
            stage_program(program).with_context(|| format!("write what {program} comes with"))?;
        }
        stage_changelog()
    })?;
    forget_earlier_packages()?;
    for deb in &DEBS {
        if deb.name == "cairn-boot" {
            stage_boot()?;
        }
        let mut make = step::command(&cargo_deb);
        make.args(["--no-build", "--strip", "--quiet", "--package", deb.of, "--output"]);
        step::run(deb.name, make.arg(packages()))?;
    }
    for deb in &DEBS {
        let checked = deb.check().with_context(|| format!("check {}", deb.name))?;
        step::say(&checked);
    }
    Ok(())
}

fn cargo_deb() -> Result<PathBuf> {
    let folder = build::target().join("tools/cargo-deb");
    let program = folder.join("bin/cargo-deb");
    if !program.exists() {
        let mut install = step::command("cargo");
        install.args(["install", "--locked"]).args(CARGO_DEB).arg("--root").arg(folder);
        step::run("build cargo-deb", &mut install)?;
    }
    Ok(program)
}

/// cargo-deb replaces `target/release` in `assets` by this.
fn release() -> PathBuf {
    build::target().join("release")
}

fn staged(name: &str) -> Result<PathBuf> {
    let folder = release().join("packaging").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).context("remove what was staged before")?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Manual pages and completions, as the program itself writes them.
fn stage_program(name: &str) -> Result<()> {
    let (folder, program) = (staged(name)?, release().join(name));
    let man = folder.join("man");
    step::succeed(step::command(&program).arg("man").arg(&man))?;
    for page in fs::read_dir(&man).context("list manual pages")? {
        compress(&page.context("list manual pages")?.path())?;
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = output(step::command(&program).args(["completions", shell]))?;
        fs::write(folder.join(shell), text).context("write completions")?;
    }
    Ok(())
}

/// The changelog that Debian wants, of one entry: what changed is in CHANGELOG.md.
fn stage_changelog() -> Result<()> {
    let changes = build::workspace().join("CHANGELOG.md");
    let date = output(step::command("date").arg("--rfc-email").arg("--reference").arg(changes))?;
    let text = format!(
        "cairn ({}-1) unstable; urgency=medium\n\n  * See CHANGELOG.md of Cairn.\n\n -- {MAINTAINER}  {}\n",
        env!("CARGO_PKG_VERSION"),
        date.trim_end()
    );
    let file = release().join("packaging/changelog");
    fs::write(&file, text).context("write the changelog")?;
    compress(&file)
}

/// As Debian wants documentation: FILE becomes FILE.gz.
fn compress(file: &Path) -> Result<()> {
    step::succeed(step::command("gzip").args(["--best", "--no-name", "--force"]).arg(file))
}

/// As in `[package.metadata.deb]`.
const MAINTAINER: &str = "The Cairn developers <maintainers@cairn.invalid>";

/// The boot payload, and the agent's package, which exists by now.
fn stage_boot() -> Result<()> {
    let folder = staged("cairn-boot")?;
    let boot = folder.join("boot");
    fs::create_dir_all(&boot).context("make a folder")?;
    let payload = build::target().join("cairn-cache/boot/release");
    for file in ["boot.json", "vmlinuz", "initrd.img"] {
        copy(&payload.join(file), &boot.join(file))?;
    }
    copy(&made("cairn-agent")?, &folder.join("agent.deb"))
}

/// Packages of earlier versions would be taken for those of this one.
fn forget_earlier_packages() -> Result<()> {
    let folder = packages();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for entry in fs::read_dir(&folder).context("list packages")? {
        let path = entry.context("list packages")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(&path).context("remove an earlier package")?;
        }
    }
    Ok(())
}

/// The package of this name.
fn made(name: &str) -> Result<PathBuf> {
    let folder = packages();
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path = entry.context("list packages")?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&format!("{name}_")) && file.ends_with("_amd64.deb") {
            return Ok(path);
        }
    }
    bail!("no package {name} in {}", folder.display())
}

impl Deb {
    /// Unpacks the package and looks at it; a line about it.
    fn check(&self) -> Result<String> {
        let deb = made(self.name)?;
        let folder = staged(&format!("{}/unpacked", self.name))?;
        step::succeed(step::command("dpkg-deb").arg("--extract").arg(&deb).arg(&folder))?;
        let (boot, all) = (bytes(&folder.join("usr/share/cairn/boot"))?, bytes(&folder)?);
        let installed = all - boot;
        ensure!(
            installed <= MAX_INSTALLED_BYTES,
            "{} would take {}, and {} is the most",
            deb.display(),
            megabytes(installed),
            megabytes(MAX_INSTALLED_BYTES)
        );
        if self.unit {
            is_stripped(&folder.join("usr/bin").join(self.name))?;
            unit_is_sound(&folder, self.name)?;
        }
        let packed = fs::metadata(&deb).context("look at the package")?.len();
        let mut line =
            format!("{}: {}, installed {}", deb.display(), megabytes(packed), megabytes(installed));
        if boot > 0 {
            line.push_str(&format!(" and {} to boot from", megabytes(boot)));
        }
        Ok(line)
    }
}

fn is_stripped(program: &Path) -> Result<()> {
    let sections = output(step::command("readelf").arg("--section-headers").arg(program))?;
    ensure!(sections.contains(".text"), "{} is no program", program.display());
    // Not .debug_gdb_scripts, which is part of the program.
    let unwanted = [".symtab", ".debug_info", ".debug_line"];
    let left = unwanted.into_iter().find(|name| sections.contains(name));
    ensure!(left.is_none(), "{} is not stripped: it has {left:?}", program.display());
    Ok(())
}

/// Whether systemd understands the unit, and each line of it.
fn unit_is_sound(folder: &Path, name: &str) -> Result<()> {
    let unit = folder.join(format!("usr/lib/systemd/system/{name}.service"));
    let text = fs::read_to_string(&unit).with_context(|| format!("read {}", unit.display()))?;
    // The program is not installed here.
    let program = folder.join("usr/bin").join(name);
    let text = text.replace(
        &format!("ExecStart=/usr/bin/{name}"),
        &format!("ExecStart={}", program.display()),
    );
    let copy = staged(&format!("{name}/unit"))?.join(format!("{name}.service"));
    fs::write(&copy, text).context("write a copy of the unit")?;
    let mut verify = step::command("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&copy);
    let said = verify.output().with_context(|| format!("start {verify:?}"))?;
    let words = String::from_utf8_lossy(&said.stderr);
    ensure!(
        said.status.success() && !words.contains(name),
        "systemd does not take {}: {words}",
        unit.display()
    );
    Ok(())
}

/// The sum of the files below a path; nothing when there is none.
fn bytes(path: &Path) -> Result<u64> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(0) };
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    entries.map(|entry| bytes(&entry.context("list a folder")?.path())).sum()
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

/// Runs `command` to its end; its standard output.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("read what {command:?} printed"))
}
