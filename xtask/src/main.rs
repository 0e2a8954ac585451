//! `cargo xtask …`: what a person types. It installs, builds and calls; what is worth testing lives in
//! `cairn-tests`. No dependencies but anyhow, so that it builds in seconds.

use std::{env, process::ExitCode};

use anyhow::Result;
use build::Programs;

mod build;
mod check;
mod deny;
mod fuzz;
mod setup;
mod step;

const USAGE: &str = "\
cargo xtask COMMAND

  demo [--image FILE] [--uefi] [--targets N] [--acts 1] [--keep]
            a real system from a file, over four clients' disks, onto a blank machine (needs root)
  test [--long]
            everything that .ci/run checks; --long adds the slow tests
  bench [NAME…] [--record]
            measures; without a name, lists; --record appends to docs/BENCHMARKS.md
  setup     installs the Debian packages that the lab needs (needs root)
  build     builds server, agent and the boot payload, as demo does
  fuzz [NAME…] [--seconds N]
            fuzzes the decoders, or those that are named, for a minute each; installs what that needs
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            step::say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let (command, rest) = match args.split_first() {
        None => ("help", [].as_slice()),
        Some((command, rest)) => (command.as_str(), rest),
    };
    match command {
        "demo" => demo(rest),
        "test" => match rest {
            [] => check::run(check::Depth::Usual),
            [long] if long == "--long" => check::run(check::Depth::Long),
            _ => usage(),
        },
        "bench" => bench(rest),
        "setup" if rest.is_empty() => {
            setup::run().and_then(|()| setup::axe()).map(|()| ExitCode::SUCCESS)
        }
        "build" if rest.is_empty() => build::all(Programs::Release).map(|()| ExitCode::SUCCESS),
        "fuzz" => fuzz::run(rest),
        "help" | "--help" | "-h" => {
            step::say(USAGE);
            Ok(ExitCode::SUCCESS)
        }
        _ => usage(),
    }
}

fn usage() -> Result<ExitCode> {
    step::say(USAGE);
    Ok(ExitCode::from(2))
}

fn demo(args: &[String]) -> Result<ExitCode> {
    setup::run()?;
    build::all(Programs::Release)?;
    step::cargo(
        "build the demo",
        &["build", "--release", "-p", "cairn-tests", "--bin", "cairn-demo"],
    )?;
    let program = build::target().join("release/cairn-demo");
    step::hand_over(build::with_programs(step::command(program).args(args), Programs::Release))
}

fn bench(args: &[String]) -> Result<ExitCode> {
    // Listing needs nothing to be built.
    if args.iter().any(|arg| !arg.starts_with("--")) {
        setup::run_for_benches()?;
        build::all(Programs::Release)?;
    }
    step::cargo(
        "build the benches",
        &["build", "--release", "-p", "cairn-tests", "--bin", "cairn-bench"],
    )?;
    let program = build::target().join("release/cairn-bench");
    step::hand_over(build::with_programs(step::command(program).args(args), Programs::Release))
}
