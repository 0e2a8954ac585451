//! A process that is really killed, many times, over one DSF.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use super::*;

const ROUNDS: u64 = 25;
const NAMES: u32 = 30;
const PATH: &str = "CAIRN_TEST_DSF_PATH";
const SEED: &str = "CAIRN_TEST_DSF_SEED";

/// Tells the parent, in one write: what it does not read did not happen.
fn tell(word: &str, name: u32) {
    std::io::stdout().write_all(format!("\ndsf {word} {name}\n").as_bytes()).unwrap();
}

/// Not a test of its own: what the test below starts, again and again, in a process of its own.
#[test]
fn child_that_works_until_it_is_killed() {
    let (Ok(path), Ok(seed)) = (std::env::var(PATH), std::env::var(SEED)) else { return };
    let mut dice = Dice(seed.parse().unwrap());
    let mut dsf = Dsf::open(Path::new(&path)).unwrap();
    loop {
        match dice.below(8) {
            0..5 => {
                let names: BTreeSet<u32> = (0..=dice.below(3)).map(|_| dice.below(NAMES)).collect();
                let absent = names.iter().filter(|name| !dsf.reader().contains(id(**name)));
                absent.for_each(|name| tell("begin", *name));
                let puts: Vec<_> = names.iter().map(|name| put(*name, dice.class())).collect();
                dsf.put(&puts);
            }
            5..7 => {
                let name = dice.below(NAMES);
                tell("begin", name);
                dsf.remove(&[id(name)]).unwrap();
            }
            _ => {
                (0..NAMES).for_each(|name| tell("begin", name));
                dsf.resize(SlotCount(4 + dice.below(8))).unwrap();
            }
        }
        for name in 0..NAMES {
            tell(if dsf.reader().contains(id(name)) { "held" } else { "absent" }, name);
        }
    }
}

/// Starts the child, kills it after some of its lines, and returns what it said last of each segment.
fn work_and_kill(path: &Path, seed: u64, lines: u32) -> Vec<Option<bool>> {
    let test = "dsf::tests::kill::child_that_works_until_it_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(PATH, path)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = vec![None; NAMES as usize];
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((word, name)) = line.strip_prefix("dsf ").and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        // Cut off by the kill.
        let Ok(name) = name.parse::<usize>() else { continue };
        said[name] = match word {
            "held" => Some(true),
            "absent" => Some(false),
            _ => None,
        };
        seen += 1;
        if seen == lines {
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success(), "the child ended by itself");
    assert!(seen >= lines);
    said
}

#[test]
fn a_killed_agent_loses_nothing_it_acknowledged() {
    let place = Place::new();
    let mut dsf = place.create(8);
    put_data(&mut dsf, 0..4);
    drop(dsf);
    let mut dice = Dice(42);
    for round in 0..ROUNDS {
        let lines = 1 + dice.below(400);
        let said = work_and_kill(&place.path, round, lines);
        let dsf = place.open();
        let reader = dsf.reader();
        for (name, said) in (0..NAMES).zip(said) {
            if let Some(held) = said {
                assert_eq!(reader.contains(id(name)), held, "segment {name} in round {round}");
            }
        }
        for held in reader.list() {
            assert!(reader.get(held.id).is_ok(), "{:?} in round {round}", held.id);
        }
    }
}
