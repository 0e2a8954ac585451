//! `cargo xtask test`: all checks, one after the other, with a verdict at the end.
//!
//! A failed step does not stop the others: one run says everything that is wrong. Slow tests live in
//! modules called `long` and are run by `--long` alone.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Programs},
    deny, package,
    setup::{self, Purpose},
    step,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Usual,
    Long,
}

/// A part of the tests: all but end-to-end tests, those of them that open a database, or the end-to-end tests.
#[derive(Clone, Copy)]
enum Suite {
    Units,
    Database,
    EndToEnd,
}

pub(crate) fn run(depth: Depth) -> Result<ExitCode> {
    step::say(
        "cargo xtask test: installs the Debian packages that are missing, checks format, lints, documentation and licences, \
         and runs all tests, with real machines in QEMU.\nOn 2 cores about 25 minutes, 21 where the demo was built before. \
         A failed step stops no other; the verdict is at the end.",
    );
    let mut verdict = Verdict::default();
    let purpose = if depth == Depth::Long { Purpose::LongTests } else { Purpose::Tests };
    verdict.step("packages", || setup::run(purpose));
    verdict.step("axe-core", setup::axe);
    // Without it, some tests would be left out, and the verdict would not say so.
    let nextest =
        setup::nextest().context("install it with `cargo install cargo-nextest --locked`")?;
    if depth == Depth::Long {
        verdict.step("fsx", setup::fsx);
        verdict.step("schemathesis", setup::schemathesis);
        verdict.step("Debian packages", package::run);
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
    let tests = |suite| tests(&nextest, suite, depth);
    verdict.step("unit and property tests", || step::succeed(&mut tests(Suite::Units)));
    verdict.step("one build for demo and tests", build::check_shared);
    verdict.step("database tests on PostgreSQL", || {
        step::succeed(&mut on_postgres(&tests(Suite::Database)))
    });
    if verdict.step("programs and boot payload", || build::all(Programs::Tests)) {
        verdict.step("end-to-end tests", || {
            step::succeed(build::with_programs(&mut tests(Suite::EndToEnd), Programs::Tests))
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

/// nextest: a process for each test, and a time limit.
fn tests(nextest: &Path, suite: Suite, depth: Depth) -> Command {
    let (filter, threads): (_, &[_]) = match suite {
        Suite::Units => ("not binary(e2e)", &[]),
        Suite::Database => (
            "package(cairn-server) and (test(/^db::/) or binary(api) and not test(/^upgrade::/))",
            &[],
        ),
        // They wait for most of their time; .config/nextest.toml says what may not run beside what.
        Suite::EndToEnd => ("binary(e2e)", &["--test-threads=5"]),
    };
    let depth = match depth {
        Depth::Usual => " and not test(/(^|::)long::/)",
        Depth::Long => "",
    };
    let filter = format!("{filter}{depth}");
    let mut command = step::command(nextest);
    command.args(["nextest", "run", "--workspace", "-E", &filter]).args(threads);
    command
}

/// Database tests once more, beside a PostgreSQL server that is started for them.
fn on_postgres(tests: &Command) -> Command {
    let mut command = step::command(Programs::Tests.folder().join("cairn-postgres"));
    command.arg(tests.get_program()).args(tests.get_args());
    command
}

fn cargo(args: &[&str]) -> Result<()> {
    step::succeed(step::command("cargo").args(args))
}
