//! The frame of the benches: named measurements with what is wanted of them, printed as a table
//! together with how busy the machine was, and appended to `docs/BENCHMARKS.md` when asked.
//!
//! A figure without the load of the machine it was measured on says little, so both always go together.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
};

use anyhow::{Context as _, Result, ensure};

use cairn_tests::paths;

mod array;
mod dashboard;
mod holders;
mod images;
mod layouts;
mod lighthouse;
mod link;
mod overhead;
mod owner;
mod random;
mod simulation;
mod swarm;

/// A bench: add it here.
pub const BENCHES: [Bench; 16] = [
    Bench {
        name: "lab-link",
        about: "what plain TCP gets out of a shaped link of the lab: the ceiling of every other figure",
        run: link::measure,
    },
    Bench {
        name: "register",
        about: "`image add` of real file content and of zeros",
        run: images::register,
    },
    Bench {
        name: "install",
        about: "an install to a file from four local clients",
        run: images::install,
    },
    Bench {
        name: "slow-link",
        about: "an install over a link of 200 Mbit/s",
        run: images::slow_link,
    },
    Bench {
        name: "second-version",
        about: "what a version with 8 % of its file bytes changed costs to store and to fetch",
        run: images::second_version,
    },
    Bench {
        name: "swarm",
        about: "a room of machines that install together, beside curl, udpcast and aria2",
        run: swarm::measure,
    },
    Bench {
        name: "holders",
        about: "a room that installs what clients hold: with the server, without it, and without every fifth client",
        run: holders::measure,
    },
    Bench {
        name: "agent",
        about: "an idle agent's memory, and its start with 20 GiB",
        run: images::idle_agent,
    },
    Bench {
        name: "array",
        about: "a volume by NBD beside qemu-nbd and nbdkit on the same disk, and what it writes per byte",
        run: array::measure,
    },
    Bench {
        name: "extents",
        about: "a volume of 1 TiB with a million scattered blocks: its memory, and how long it takes to open",
        run: array::extents,
    },
    Bench {
        name: "layouts",
        about: "volumes that clients hold: network, a device or a client lost, and reads without the server",
        run: layouts::measure,
    },
    Bench {
        name: "dashboard",
        about: "pages and the API with 1,000 machines and 200 images, and 200 people who look on",
        run: dashboard::measure,
    },
    Bench {
        name: "lighthouse",
        about: "Lighthouse on the pages of the dashboard: accessibility and best practices",
        run: lighthouse::measure,
    },
    Bench {
        name: "overhead",
        about: "what the planner stores for being readable without the server, and how often it then is",
        run: overhead::measure,
    },
    Bench {
        name: "owner",
        about: "how soon a client gives way to the owner of its disk, and how much it slows him",
        run: owner::measure,
    },
    Bench {
        name: "simulation",
        about: "a year of 10,000 clients and a room of 1,000 targets, on the real planner, placement and scheduler",
        run: simulation::measure,
    },
];

#[derive(Debug, Clone, Copy)]
pub struct Bench {
    pub name: &'static str,
    pub about: &'static str,
    run: fn() -> Result<Vec<Figure>>,
}

/// What is wanted of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// Good to know.
    Nothing,
}

/// One measured number.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub wanted: Wanted,
}

/// The load averages of the last 1, 5 and 15 minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load(String);

impl Load {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/loadavg").context("read the load average")?;
        Ok(Self(text.split(' ').take(3).collect::<Vec<_>>().join(" ")))
    }
}

impl Figure {
    pub fn new(what: &str, value: f64, unit: &'static str, wanted: Wanted) -> Self {
        Self { what: what.to_owned(), value, unit, wanted }
    }

    pub fn is_reached(&self) -> bool {
        match self.wanted {
            Wanted::AtLeast(wanted) => self.value >= wanted,
            Wanted::AtMost(wanted) => self.value <= wanted,
            Wanted::Nothing => true,
        }
    }

    /// As a row of the table: what, measured, wanted, their ratio, verdict.
    fn row(&self) -> String {
        let Self { what, value, unit, wanted } = self;
        let (sign, wanted) = match wanted {
            Wanted::AtLeast(wanted) => ("≥", *wanted),
            Wanted::AtMost(wanted) => ("≤", *wanted),
            Wanted::Nothing => return format!("| {what} | {value:.3} {unit} | | | |\n"),
        };
        let verdict = if self.is_reached() { "reached" } else { "**missed**" };
        // Of nothing there is no ratio.
        let ratio = if wanted == 0.0 { String::new() } else { format!("{:.2}", value / wanted) };
        format!("| {what} | {value:.3} {unit} | {sign} {wanted} {unit} | {ratio} | {verdict} |\n")
    }
}

/// Runs the benches with these names, prints their tables through `print`, and appends them to
/// `docs/BENCHMARKS.md` if `record`. Returns whether every figure was reached.
///
/// # Errors
/// There is no such bench, or it cannot measure.
pub fn run(names: &[String], record: bool, mut print: impl FnMut(&str)) -> Result<bool> {
    let chosen = names.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?;
    let mut all_reached = true;
    for bench in chosen {
        print(&format!("{}: {}", bench.name, bench.about));
        let before = Load::now()?;
        let figures = (bench.run)().with_context(|| format!("measure {}", bench.name))?;
        let table = table(bench, &figures, &before, &Load::now()?);
        print(&table);
        if record {
            append(&table)?;
        }
        all_reached &= figures.iter().all(Figure::is_reached);
    }
    Ok(all_reached)
}

fn find(name: &str) -> Result<Bench> {
    let bench = BENCHES.into_iter().find(|bench| bench.name == name);
    bench.with_context(|| format!("there is no bench {name}; without a name all are listed"))
}

fn table(bench: Bench, figures: &[Figure], before: &Load, after: &Load) -> String {
    let mut table = format!("\n### {}\n\n", bench.name);
    let (before, after) = (&before.0, &after.0);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    // Writing to a String cannot fail.
    write!(table, "{cores} cores, load before {before}, after {after}\n\n").ok();
    table.push_str("| what | measured | wanted | ratio | |\n|---|---|---|---|---|\n");
    table.extend(figures.iter().map(Figure::row));
    table
}

fn append(table: &str) -> Result<()> {
    let path = paths::workspace().join("docs/BENCHMARKS.md");
    let file = File::options().append(true).open(&path);
    let mut file = file.with_context(|| format!("open {}", path.display()))?;
    ensure!(table.ends_with('\n'), "the table ends within a line");
    file.write_all(table.as_bytes()).with_context(|| format!("append to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_much_was_reached() {
        let fast = Figure::new("register", 0.5, "GB/s", Wanted::AtLeast(0.4));
        assert_eq!(fast.row(), "| register | 0.500 GB/s | ≥ 0.4 GB/s | 1.25 | reached |\n");
        let none = Figure::new("broken promises", 0.0, "", Wanted::AtMost(0.0));
        assert_eq!(none.row(), "| broken promises | 0.000  | ≤ 0  |  | reached |\n");
        let large = Figure::new("idle agent", 96.0, "MiB", Wanted::AtMost(64.0));
        assert!(!large.is_reached());
        assert_eq!(large.row(), "| idle agent | 96.000 MiB | ≤ 64 MiB | 1.50 | **missed** |\n");
    }

    #[test]
    fn an_unknown_bench_is_refused_before_anything_is_measured() {
        let names = ["lab-link".to_owned(), "no-such".to_owned()];
        let mut printed = String::new();
        let error = run(&names, false, |text| printed.push_str(text)).unwrap_err();
        assert!(error.to_string().contains("no-such"), "{error}");
        assert_eq!(printed, "");
    }
}
