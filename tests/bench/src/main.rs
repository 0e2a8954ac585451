//! `cargo xtask bench`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use cairn_bench::BENCHES;
use clap::Parser;

/// Measures Cairn in its lab; without a name, lists what can be measured
#[derive(Parser)]
struct Args {
    /// What to measure
    names: Vec<String>,
    /// Append the tables to docs/BENCHMARKS.md
    #[arg(long)]
    record: bool,
}

fn main() -> ExitCode {
    let Args { names, record } = Args::parse();
    // A closed pipe is no reason to stop.
    let print = |text: &str| drop(writeln!(io::stdout().lock(), "{text}"));
    if names.is_empty() {
        for bench in BENCHES {
            print(&format!("{:<16} {}", bench.name, bench.about));
        }
        return ExitCode::SUCCESS;
    }
    match cairn_bench::run(&names, record, print) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
