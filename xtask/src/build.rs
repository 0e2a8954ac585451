//! Builds what the lab runs: the programs and the boot payload.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result};

use crate::step;

pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// The selection of the test run, so that no dependency is built again with other features.
pub(crate) const DEBUG: [&str; 4] = ["build", "--workspace", "--bins", "--tests"];

/// Which build of server and agent is run.
#[derive(Clone, Copy)]
pub(crate) enum Programs {
    /// For people and figures.
    Release,
    /// For tests, which build them anyway.
    Debug,
}

impl Programs {
    const fn profile(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "dev",
        }
    }

    fn folder(self) -> PathBuf {
        target().join(match self {
            Self::Release => "release",
            Self::Debug => "debug",
        })
    }

    /// Kernel and initramfs for blank machines.
    fn payload(self) -> PathBuf {
        target().join("cairn-cache/boot").join(self.profile())
    }
}

/// Tells the lab where the programs and the payload are.
pub(crate) fn with_programs(command: &mut Command, programs: Programs) -> &mut Command {
    command.env("CAIRN_BIN_DIR", programs.folder()).env("CAIRN_BOOT_DIR", programs.payload())
}

/// Server, agent, and the payload made of the static agent.
pub(crate) fn all(programs: Programs) -> Result<()> {
    let build: &[&str] = match programs {
        Programs::Release => &["build", "--release", "-p", "cairn-server", "-p", "cairn-agent"],
        Programs::Debug => &DEBUG,
    };
    let agent = static_agent(programs)?;
    step::cargo("build", build)?;
    if is_current(&programs.payload().join("boot.json"), &[&agent]) {
        return Ok(());
    }
    let mut build = step::command(programs.folder().join("cairn-server"));
    build
        .args(["boot", "build", "--out"])
        .arg(programs.payload())
        .arg("--cache")
        .arg(target().join("cairn-cache/kernel"))
        .arg("--agent")
        .arg(&agent);
    step::run("build the boot payload", &mut build)
}

/// The agent as init of a system without a loader. Only its own crate is compiled and linked for that: the crates below are
/// those of the other programs, as far as these use them with the same features.
fn static_agent(programs: Programs) -> Result<PathBuf> {
    let kept = target().join("cairn-cache/static-agent").join(programs.profile());
    let mut build = step::command("cargo");
    build
        .args(["rustc", "--profile", programs.profile(), "-p", "cairn-agent"])
        .args(["--bin", "cairn-agent", "--"])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    step::run("build the static agent", &mut build)?;
    // Cargo has one place for both agents, and the other one comes there with the next build.
    let made = programs.folder().join("cairn-agent");
    let is_new = !fs::read(&kept).is_ok_and(|old| fs::read(&made).is_ok_and(|new| old == new));
    if is_new {
        fs::create_dir_all(kept.parent().unwrap_or(&kept)).context("make a folder")?;
        fs::copy(&made, &kept).context("keep the static agent")?;
    }
    Ok(kept)
}

/// Whether `made` is newer than everything that it is made of.
fn is_current(made: &Path, sources: &[&Path]) -> bool {
    let modified = |path: &Path| -> Result<SystemTime> {
        fs::metadata(path).and_then(|metadata| metadata.modified()).context("look at a file")
    };
    let Ok(made) = modified(made) else { return false };
    sources.iter().all(|source| modified(source).is_ok_and(|source| source < made))
}
