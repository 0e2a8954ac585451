//! One client of ten that does wrong, in every way, while others install.

use std::{net::Ipv4Addr, path::Path};

use cairn_tests::{
    image::first_difference,
    process::{Process, Program},
    site::Site,
};

use super::{INSTALL, NAME, SOON, scattered};

const CLIENTS: usize = 10;
/// The port of every client's peer service.
const PORT: u16 = 8442;

/// Plays the part of a client whose agent does not run.
fn hostile(site: &Site, index: usize, manner: &str) -> Process {
    let agent = &site.agents[index];
    Program::new("hostile", env!("CARGO_BIN_EXE_cairn-hostile"))
        .args(["--manner", manner, "--listen"])
        .args([format!("{}:{PORT}", Ipv4Addr::UNSPECIFIED).as_str(), "--state-dir"])
        .args([agent.state_dir()])
        .on(agent.host())
        .log(site.lab.dir().join(format!("hostile-{manner}.log")))
        .start()
        .unwrap()
}

fn installs_right(site: &Site, image: &Path, manner: &str) {
    let installed = site.lab.dir().join(format!("{manner}.raw"));
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(image, &installed).unwrap(), None, "{manner}");
}

#[test]
fn one_of_ten_that_does_wrong_is_noticed_avoided_and_told_of() {
    let (mut site, image) = scattered("hostile", 10, 96);
    let agents = site.server.agents().unwrap();
    // Not the one whose operator installs; one that is asked for something.
    let last = (1..CLIENTS).max_by_key(|index| agents[*index].data_segments).unwrap();
    site.agents[last].process().terminate().unwrap();
    let name = agents[last].id.clone();
    for (manner, fault) in [
        ("missing", "Empty"),
        ("trickle", "Slow"),
        ("silent", "Slow"),
        ("wrong", "Damaged"),
        ("endless", "Damaged"),
    ] {
        let mut hostile = hostile(&site, last, manner);
        installs_right(&site, &image, manner);
        let told = format!("a target complains.*{name}.*{fault}");
        site.server.process().wait_for_line(&told, SOON).unwrap();
        hostile.kill().unwrap();
    }
    // An administrator sees it.
    let listed = site.server.run(&["agent", "list"]).unwrap();
    assert!(listed.contains("5 machines complain: damaged, empty, slow"), "{listed}");
}
