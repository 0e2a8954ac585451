//! Runs a command beside a private PostgreSQL server, whose address it finds in `CAIRN_TEST_POSTGRES`.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use cairn_tests::postgres::{Postgres, VARIABLE};
use clap::Parser;

#[derive(Debug, Parser)]
struct Options {
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let Options { command } = Options::parse();
    let server = Postgres::start()?;
    let (program, args) = command.split_first().context("name a command")?;
    let status = Command::new(program)
        .args(args)
        .env(VARIABLE, server.url("postgres"))
        .status()
        .with_context(|| format!("start {program}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
