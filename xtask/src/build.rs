//! Builds the programs of the lab and the boot payload.
//!
//! Demo and tests share one profile (`dev`), one folder and, by the crate `workspace-hack`, one feature set for each
//! dependency: whichever was built first, the other compiles no dependency again. [`check_shared`] holds that to be true.
//! Release builds are for people, packages and figures.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};

use crate::step;

pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// A selection of programs and a profile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Programs {
    /// Server, agent and demo.
    Demo,
    /// Everything in the workspace, with its tests.
    Tests,
    /// Server and agent, for people.
    Release,
    /// Server, agent and benches, for figures.
    Benches,
}

impl Programs {
    const fn selection(self) -> &'static [&'static str] {
        match self {
            Self::Demo => &[
                "build",
                "-pcairn-server",
                "-pcairn-agent",
                "-pcairn-tests",
                "--bin=cairn-server",
                "--bin=cairn-agent",
                "--bin=cairn-demo",
            ],
            Self::Tests => &["build", "--workspace", "--bins", "--tests"],
            Self::Release => &["build", "--release", "-pcairn-server", "-pcairn-agent"],
            Self::Benches => &[
                "build",
                "--release",
                "-pcairn-server",
                "-pcairn-agent",
                "-pcairn-bench",
                "--bin=cairn-server",
                "--bin=cairn-agent",
                "--bin=cairn-bench",
            ],
        }
    }

    const fn profile(self) -> &'static str {
        match self {
            Self::Demo | Self::Tests => "dev",
            Self::Release | Self::Benches => "release",
        }
    }

    pub(crate) fn folder(self) -> PathBuf {
        target().join(match self {
            Self::Demo | Self::Tests => "debug",
            Self::Release | Self::Benches => "release",
        })
    }

    /// Kernel and initramfs for blank machines.
    fn payload(self) -> PathBuf {
        target().join("cairn-cache/boot").join(self.profile())
    }
}

/// Tells the lab where the programs and the payload are.
pub(crate) fn with_programs(command: &mut Command, programs: Programs) -> &mut Command {
    command.env("CAIRN_BIN_DIR", programs.folder()).env("CAIRN_PAYLOAD_DIR", programs.payload())
}

/// Builds the programs, and the payload made of the static agent.
pub(crate) fn all(programs: Programs) -> Result<()> {
    // Cargo has one place for both agents: the one for clients is to be there in the end.
    let agent = static_agent(programs)?;
    step::cargo("build the programs", programs.selection())?;
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

/// The agent as init of a system without a loader. Only its own crate is linked anew for that.
fn static_agent(programs: Programs) -> Result<PathBuf> {
    let kept = target().join("cairn-cache/static-agent").join(programs.profile());
    let mut build = step::command("cargo");
    build.args(STATIC_AGENT).args(["--profile", programs.profile(), "--"]).args(STATIC_FLAGS);
    step::run("build the static agent", &mut build)?;
    let made = programs.folder().join("cairn-agent");
    let is_new = !fs::read(&kept).is_ok_and(|old| fs::read(&made).is_ok_and(|new| old == new));
    if is_new {
        fs::create_dir_all(kept.parent().unwrap_or(&kept)).context("make a folder")?;
        fs::copy(&made, &kept).context("keep the static agent")?;
    }
    Ok(kept)
}

const STATIC_AGENT: [&str; 3] = ["rustc", "-pcairn-agent", "--bin=cairn-agent"];
const STATIC_FLAGS: [&str; 4] = ["-C", "target-feature=+crt-static", "-C", "strip=symbols"];

/// Checks that demo and static agent take every dependency as the tests built it.
///
/// # Errors
/// Names the crates that would be compiled once more, and what to do about it.
pub(crate) fn check_shared() -> Result<()> {
    for (what, args, flags) in [
        ("the demo", Programs::Demo.selection(), &[][..]),
        ("the static agent", &STATIC_AGENT[..], &["--"][..]),
    ] {
        let mut cargo = step::command("cargo");
        cargo.args(args).arg("--message-format=json").args(flags);
        if !flags.is_empty() {
            cargo.args(STATIC_FLAGS);
        }
        let output = cargo.stderr(Stdio::inherit()).output().context("start cargo")?;
        ensure!(output.status.success(), "build {what}: {}", output.status);
        let again = compiled_dependencies(&String::from_utf8_lossy(&output.stdout));
        ensure!(
            again.is_empty(),
            "{what} compiles dependencies that the tests have with other features: {}\n\
             `cargo install cargo-hakari && cargo hakari generate` brings workspace-hack up to date",
            again.join(", ")
        );
    }
    Ok(())
}

/// The packages from a registry that cargo's messages name as compiled just now.
fn compiled_dependencies(messages: &str) -> Vec<String> {
    let mut names: Vec<String> = messages
        .lines()
        .filter(|line| {
            line.contains(r#""reason":"compiler-artifact""#) && line.contains(r#""fresh":false"#)
        })
        .filter_map(|line| line.split_once(r#""package_id":"registry+"#))
        .filter_map(|(_, id)| id.split_once('"'))
        .filter_map(|(id, _)| id.split_once('#'))
        .map(|(_, name)| name.to_owned())
        .collect();
    names.dedup();
    names
}

/// Whether `made` is newer than everything that it is made of.
fn is_current(made: &Path, sources: &[&Path]) -> bool {
    let modified = |path: &Path| -> Result<SystemTime> {
        fs::metadata(path).and_then(|metadata| metadata.modified()).context("look at a file")
    };
    let Ok(made) = modified(made) else { return false };
    sources.iter().all(|source| modified(source).is_ok_and(|source| source < made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_compiled_anew_are_read_from_messages() {
        let line = |id: &str, fresh: bool| {
            format!(r#"{{"reason":"compiler-artifact","package_id":"{id}","fresh":{fresh}}}"#)
        };
        let messages = [
            line("registry+https://example/index#tokio@1.54.1", false),
            line("registry+https://example/index#serde@1.0.1", true),
            line("path+file:///cairn/agent#cairn-agent@0.1.0", false),
        ];
        assert_eq!(compiled_dependencies(&messages.join("\n")), ["tokio@1.54.1"]);
    }
}
