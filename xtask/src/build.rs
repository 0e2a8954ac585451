//! Builds what the lab runs: the programs and the boot payload.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result};

use crate::step;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// Which build of server and agent is run.
#[derive(Clone, Copy)]
pub(crate) enum Programs {
    /// For people and figures.
    Release,
    /// For tests, which build them anyway.
    Debug,
}

impl Programs {
    /// The profile of the static agent that goes with them.
    const fn static_profile(self) -> &'static str {
        match self {
            Self::Release => "initramfs",
            Self::Debug => "initramfs-test",
        }
    }

    /// Kernel and initramfs for blank machines.
    fn payload(self) -> PathBuf {
        target().join("cairn-cache/boot").join(self.static_profile())
    }

    fn folder(self) -> PathBuf {
        target().join(match self {
            Self::Release => "release",
            Self::Debug => "debug",
        })
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
        // The selection of the test run, so that no dependency is built again with other features.
        Programs::Debug => &["build", "--workspace", "--bins", "--tests"],
    };
    step::cargo("build", build)?;
    let mut agent = step::command("cargo");
    agent
        .args(["build", "--profile", programs.static_profile()])
        .args(["-p", "cairn-agent", "--target", TRIPLE])
        // It runs as init of a system without a loader. `--target` keeps the flag away from build
        // scripts and gives it a folder of its own.
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    step::run("build the static agent", &mut agent)?;
    let agent = target().join(TRIPLE).join(programs.static_profile()).join("cairn-agent");
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

/// Whether `made` is newer than everything that it is made of.
fn is_current(made: &Path, sources: &[&Path]) -> bool {
    let modified = |path: &Path| -> Result<SystemTime> {
        fs::metadata(path).and_then(|metadata| metadata.modified()).context("look at a file")
    };
    let Ok(made) = modified(made) else { return false };
    sources.iter().all(|source| modified(source).is_ok_and(|source| source < made))
}
