//! The program `cairn-agent` from outside: processes, files, sockets.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod client;
mod lending;
mod site;
mod usage;

use std::{
    path::Path,
    process::{Command, Output},
};

fn agent(state: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cairn-agent"))
        .arg("--state-dir")
        .arg(state)
        .args(arguments)
        .output()
        .expect("start cairn-agent")
}

/// Exit code and what was said.
fn outcome(state: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = agent(state, arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
