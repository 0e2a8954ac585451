//! Fuzzing: every decoder of bytes from outside, for a while.

use std::{
    fs,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build, step};

/// What a target gets when nothing is said.
const SECONDS: u32 = 60;

/// What is to be fuzzed, and for how long each.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    /// All, when none is named.
    names: Vec<String>,
    seconds: u32,
}

/// Fuzzes one target after the other. The first crash ends it, with its input in `fuzz/artifacts`.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let Wish { names, seconds } = parse(args)?;
    let known = targets()?;
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target {unknown}; there are: {}", known.join(", "));
    }
    install()?;
    let limit = format!("-max_total_time={seconds}");
    for name in if names.is_empty() { known } else { names } {
        let mut fuzz = step::command("cargo");
        fuzz.args(["+nightly", "fuzz", "run", &name, "--", &limit, "-print_final_stats=1"]);
        step::run(&format!("fuzz {name} for {seconds} s"), &mut fuzz)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(args: &[String]) -> Result<Wish> {
    let mut wish = Wish { names: Vec::new(), seconds: SECONDS };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let number = args.next().context("--seconds needs a number")?;
            wish.seconds =
                number.parse().with_context(|| format!("--seconds {number} is no number"))?;
        } else {
            ensure!(!arg.starts_with('-'), "fuzz knows no option {arg}");
            wish.names.push(arg.clone());
        }
    }
    Ok(wish)
}

/// The targets, sorted.
fn targets() -> Result<Vec<String>> {
    let folder = build::workspace().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.context("list the fuzz targets")?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Coverage needs a nightly compiler, and cargo-fuzz drives it.
fn install() -> Result<()> {
    let works = |args: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !works(&["+nightly", "--version"]) {
        let mut rustup = step::command("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        step::run("install a nightly compiler", &mut rustup)?;
    }
    if !works(&["fuzz", "--version"]) {
        step::cargo("install cargo-fuzz", &["install", "cargo-fuzz", "--locked"])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn names_and_seconds_come_in_any_order() {
        let wish = parse(&args("segment --seconds 5 directory")).unwrap();
        assert_eq!(wish, Wish { names: args("segment directory"), seconds: 5 });
        assert_eq!(parse(&[]).unwrap(), Wish { names: vec![], seconds: SECONDS });
        assert!(parse(&args("--seconds")).is_err() && parse(&args("--fast")).is_err());
    }

    #[test]
    fn every_target_is_found() {
        assert!(targets().unwrap().contains(&"stripe_map".to_owned()));
    }
}
