//! What cannot be tried out here: a year of thousands of clients, and a thousand targets. The planner, the placement and the
//! scheduler are the real ones; clients, links and time are simulated.

mod fleet;
mod presence;
mod room;

use std::{fs, time::Instant};

use anyhow::{Context as _, Result};
use cairn_core::{
    id::AgentId,
    planner::{Candidate, DEFAULT_AVAILABILITY, plan},
    units::{ByteCount, SEGMENT_MAX_BYTES},
};

use super::{Figure, Wanted, random::Random};
use fleet::{Cause, Outcome, Year};

const CLIENTS: u32 = 10_000;
const IMAGES: u32 = 100;
/// 4 GiB each.
const SEGMENTS: u32 = 1024;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let started = Instant::now();
    let outcome = Year::new(CLIENTS, IMAGES, SEGMENTS, true).run()?;
    let took = started.elapsed().as_secs_f64();
    year(&mut figures, &outcome);
    figures.push(Figure::new("the year took", took, "s", Wanted::Nothing));
    let quiet = Year::new(CLIENTS / 10, IMAGES / 10, SEGMENTS, false).run()?;
    for (what, cause, wanted) in [
        ("to repair what is only off at night and on Sundays", Cause::Lost, Wanted::AtMost(0.0)),
        ("because availability was measured", Cause::Measured, Wanted::Nothing),
        ("otherwise", Cause::Moved, Wanted::Nothing),
    ] {
        let name = format!("a year of 1000 clients without losses: sent {what}");
        figures.push(Figure::new(&name, gib(quiet.sent(cause)), "GiB", wanted));
    }
    planning(&mut figures)?;
    room::measure(&mut figures)?;
    figures.push(Figure::new("peak memory", peak_mib()?, "MiB", Wanted::Nothing));
    Ok(figures)
}

fn year(figures: &mut Vec<Figure>, outcome: &Outcome) {
    let name = format!("a year of {CLIENTS} clients, {IMAGES} images:");
    let mut add = |what: &str, value, unit, wanted| {
        figures.push(Figure::new(&format!("{name} {what}"), value, unit, wanted));
    };
    add("disks lost", f64::from(outcome.disks), "", Wanted::Nothing);
    add("away for more than a week", f64::from(outcome.away), "", Wanted::Nothing);
    add("lost with them", gib(outcome.lost), "GiB", Wanted::Nothing);
    let repair = ratio(outcome.sent(Cause::Lost), outcome.lost);
    add("sent to repair over lost", repair, "", Wanted::AtMost(1.1));
    let stored = gib(outcome.stored);
    add("stored", stored, "GiB", Wanted::Nothing);
    add("sent at first", gib(outcome.sent(Cause::First)), "GiB", Wanted::Nothing);
    let measured = gib(outcome.sent(Cause::Measured));
    add("sent because availability was measured", measured, "GiB", Wanted::Nothing);
    add("moved otherwise", gib(outcome.sent(Cause::Moved)), "GiB", Wanted::Nothing);
    let broken = ratio(outcome.broken, 1);
    add("hours in which a promise was broken", broken, "", Wanted::AtMost(0.0));
    let readable = ratio(outcome.readable_in_use, outcome.in_use);
    add("readable without the server in the hours of use", readable, "", Wanted::AtLeast(0.999));
    let readable = ratio(outcome.readable, outcome.hours);
    add("readable without the server at any hour", readable, "", Wanted::Nothing);
    add("plans made", ratio(outcome.plans, 1), "", Wanted::Nothing);
}

/// What one plan costs, by the number of clients.
fn planning(figures: &mut Vec<Figure>) -> Result<()> {
    const ROUNDS: u32 = 50;
    for clients in [100, 1_000, 10_000] {
        let mut random = Random::new(u64::from(clients));
        let candidates: Vec<_> = (0..clients)
            .map(|number| Candidate {
                agent: agent(number),
                room: ByteCount((1 + random.below(40)) << 30),
                availability: DEFAULT_AVAILABILITY * (0.8 + 0.4 * random.share()),
                holds: false,
            })
            .collect();
        let started = Instant::now();
        for _ in 0..ROUNDS {
            plan(&candidates, ByteCount(u64::from(SEGMENTS) * SEGMENT_MAX_BYTES as u64))?;
        }
        let each = started.elapsed().as_secs_f64() * 1000.0 / f64::from(ROUNDS);
        let name = format!("one plan for {clients} clients");
        figures.push(Figure::new(&name, each, "ms", Wanted::Nothing));
    }
    Ok(())
}

fn agent(number: u32) -> AgentId {
    AgentId(u128::from(number + 1).to_be_bytes())
}

#[expect(clippy::cast_precision_loss, reason = "a report")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

#[expect(clippy::cast_precision_loss, reason = "a report")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn peak_mib() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("read the memory used")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("find the memory")?;
    Ok(kib.trim().parse::<f64>().context("read the memory used")? / 1024.0)
}
