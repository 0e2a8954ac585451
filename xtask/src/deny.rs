//! cargo-deny: licences, bans and sources always, advisories where their database can be had.

use anyhow::Result;

use crate::{setup, step};

pub(crate) fn run() -> Result<()> {
    let deny = setup::cargo_deny()?;
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
