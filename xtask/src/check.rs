//! `cargo xtask test`: all checks, one after the other, with a verdict at the end.
//!
//! A failed step does not stop the others: one run says everything that is wrong. Slow tests live in
//! modules called `long` and are run by `--long` alone.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{
    build::{self, Programs},
    deny, setup, step,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Usual,
    Long,
}

/// What is run: everything but the end-to-end tests, what of that opens a database, or the end-to-end tests.
#[derive(Clone, Copy)]
enum Suite {
    Units,
    Database,
    EndToEnd,
}

pub(crate) fn run(depth: Depth) -> Result<ExitCode> {
    let mut verdict = Verdict::default();
    verdict.step("packages", setup::run);
    verdict.step("axe-core", setup::axe);
    if depth == Depth::Long {
        verdict.step("fsx", setup::fsx);
        verdict.step("schemathesis", setup::schemathesis);
    }
    verdict.step("format", || cargo(&["fmt", "--all", "--check"]));
    verdict.step("lints", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
    });
    verdict.step("documentation", || {
        let mut doc = step::command("cargo");
        doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
        step::succeed(&mut doc)
    });
    verdict.step("dependencies", deny::run);
    verdict.step("unit and property tests", || step::succeed(&mut tests(Suite::Units, depth)));
    verdict.step("database tests on PostgreSQL", || {
        cargo(&build::DEBUG)?;
        step::succeed(&mut on_postgres(depth))
    });
    if verdict.step("programs and boot payload", || build::all(Programs::Debug)) {
        verdict.step("end-to-end tests", || {
            step::succeed(build::with_programs(&mut tests(Suite::EndToEnd, depth), Programs::Debug))
        });
    } else {
        verdict.failed.push("end-to-end tests (nothing to run)");
    }
    verdict.say();
    Ok(if verdict.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Default)]
struct Verdict {
    passed: usize,
    failed: Vec<&'static str>,
}

impl Verdict {
    fn step(&mut self, name: &'static str, action: impl FnOnce() -> Result<()>) -> bool {
        match step::timed(name, action) {
            Ok(()) => self.passed += 1,
            Err(error) => {
                step::say(&format!("{name}: {error:#}"));
                self.failed.push(name);
                return false;
            }
        }
        true
    }

    fn say(&self) {
        for name in &self.failed {
            step::say(&format!("failed: {name}"));
        }
        step::say(&format!("{} passed, {} failed", self.passed, self.failed.len()));
    }
}

/// By nextest where it is installed (a process a test, and a time limit), else by cargo.
fn tests(suite: Suite, depth: Depth) -> Command {
    let mut command = step::command("cargo");
    if has_nextest() {
        let (filter, threads): (_, &[_]) = match suite {
            Suite::Units => ("not binary(e2e)", &[]),
            Suite::Database => (
                "package(cairn-server) and (test(/^db::/) or binary(api) and not test(/^upgrade::/))",
                &[],
            ),
            // Machines under emulation take a core each while they compute, and wait for each other a third of the time.
            Suite::EndToEnd => ("binary(e2e)", &["--test-threads=3"]),
        };
        let depth = match depth {
            Depth::Usual => " and not test(/(^|::)long::/)",
            Depth::Long => "",
        };
        let filter = format!("{filter}{depth}");
        command.args(["nextest", "run", "--workspace", "-E", &filter]).args(threads);
    } else {
        match suite {
            Suite::Units => command.args(["test", "--workspace", "--lib", "--bins", "--"]),
            Suite::Database => command.args(["test", "-p", "cairn-server", "--"]),
            Suite::EndToEnd => command.args([
                "test",
                "-p",
                "cairn-tests",
                "--test",
                "e2e",
                "--",
                "--test-threads=2",
            ]),
        };
        if depth == Depth::Usual {
            command.args(["--skip", "long::"]);
        }
    }
    command
}

/// What opens a database, once more beside a PostgreSQL server that is started for it.
fn on_postgres(depth: Depth) -> Command {
    let tests = tests(Suite::Database, depth);
    let mut command = step::command(build::target().join("debug/cairn-postgres"));
    command.arg(tests.get_program()).args(tests.get_args());
    command
}

fn has_nextest() -> bool {
    Command::new("cargo-nextest")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn cargo(args: &[&str]) -> Result<()> {
    step::succeed(step::command("cargo").args(args))
}
