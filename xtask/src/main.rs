//! `cargo xtask …`: what a person types. It installs, builds and calls; what is worth testing lives in
//! `cairn-tests`. No dependencies but anyhow, so that it builds in seconds.

use std::{env, process::ExitCode};

use anyhow::Result;
use build::Programs;
use setup::Purpose;

mod build;
mod check;
mod deny;
mod fuzz;
mod package;
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
  setup     installs the Debian packages that the tests need (needs root); removes and downgrades nothing
  build     builds server, agent and the boot payload for a site of your own
  package   makes the Debian packages in target/packages, from a release build; installs what that needs
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
            setup::run(Purpose::Tests).and_then(|()| setup::axe()).map(|()| ExitCode::SUCCESS)
        }
        "build" if rest.is_empty() => build::all(Programs::Release).map(|()| ExitCode::SUCCESS),
        "package" if rest.is_empty() => package::run().map(|()| ExitCode::SUCCESS),
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
    step::say(
        "cargo xtask demo: installs the Debian packages that are missing, builds server and agent, makes a small Debian \
         image, and shows it installed onto blank machines.\nOn 2 cores about 10 minutes the first time, 5 after that. \
         Everything is below the folder target and in network namespaces of its own.",
    );
    setup::run(Purpose::Demo)?;
    build::all(Programs::Demo)?;
    let program = Programs::Demo.folder().join("cairn-demo");
    step::hand_over(build::with_programs(step::command(program).args(args), Programs::Demo))
}

fn bench(args: &[String]) -> Result<ExitCode> {
    // Listing needs nothing to be installed, nor a server.
    if args.iter().any(|arg| !arg.starts_with("--")) {
        setup::run(Purpose::Benches)?;
        build::all(Programs::Benches)?;
    } else {
        step::cargo("build the benches", &["build", "--release", "-pcairn-bench"])?;
    }
    let program = Programs::Benches.folder().join("cairn-bench");
    step::hand_over(build::with_programs(step::command(program).args(args), Programs::Benches))
}
