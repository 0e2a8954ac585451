//! What goes wrong in a fleet, done to real processes: killed clients, a killed server, a killed
//! installer, spent tokens.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_tests::{
    cairn::{Agent, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::MegabitsPerSecond,
    process::Program,
    site::{NetworkBoot, Site},
};

const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "faulty";
/// Kills of the installer, at moments spread over its run.
const KILLS: u32 = 20;

/// A site with `clients` clients and an image that is scattered over them.
fn scattered(name: &str, clients: u8, files_mib: u32) -> (Site, PathBuf) {
    let (mut site, image) = prepared(name, clients, files_mib);
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    site.agents.iter_mut().for_each(|agent| assert!(agent.process().ended().unwrap().is_none()));
    (site, image)
}

fn prepared(name: &str, clients: u8, files_mib: u32) -> (Site, PathBuf) {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    site.join(clients, "1GiB").unwrap();
    let wanted = Synthetic { size_mib: 2 * files_mib, files_mib, seed: 9 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap();
    (site, image.path)
}

fn is_blank(file: &Path) -> bool {
    let mut first = [0; 4096];
    // A file that is not there, or still shorter, is as blank as a disk of zeros.
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut first));
    read.is_err() || first == [0; 4096]
}

#[test]
fn an_installer_that_is_killed_again_and_again_finishes_and_never_leaves_half_a_system() {
    let (site, image) = scattered("killed-installer", 3, 48);
    // Its superblock lies there, or this would prove nothing.
    assert!(!is_blank(&image));
    let installed = site.lab.dir().join("installed.raw");
    let link = site.agents[0].host();
    link.shape(MegabitsPerSecond(200)).unwrap();
    let mut killed = 0;
    for round in 0..KILLS {
        let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
        // Spread over the first seconds; no event marks "any moment".
        let moment = Duration::from_millis(u64::from(37 * (round * 7 % KILLS) + 5));
        if installer.wait(moment).is_err() {
            installer.kill().unwrap();
            killed += 1;
        }
        let whole = first_difference(&image, &installed).unwrap_or(None).is_none();
        assert!(is_blank(&installed) || whole, "round {round}: half a system would boot");
    }
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
    assert!(killed >= KILLS / 2, "only {killed} of {KILLS} were killed before they were done");
}

#[test]
fn a_server_that_is_killed_while_scattering_goes_on_afterwards() {
    let (mut site, image) = prepared("killed-server", 3, 48);
    for agent in &site.agents {
        agent.host().shape(MegabitsPerSecond(50)).unwrap();
    }
    site.add_image(&image, NAME).unwrap();
    let begun = eventually("the first segments to arrive", SOON, || {
        let scatter = site.server.image(NAME)?.scatter;
        Ok((scatter.held_bytes > 0).then_some(scatter))
    });
    assert!(!begun.unwrap().complete, "it was killed too late to mean anything");
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    site.wait_scattered(NAME).unwrap();
}

#[test]
fn an_install_goes_on_from_peers_when_the_server_is_killed() {
    let (mut site, image) = scattered("server-gone", 3, 64);
    let installed = site.lab.dir().join("installed.raw");
    site.agents[0].host().shape(MegabitsPerSecond(100)).unwrap();
    let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
    installer.wait_for_line("writing|[0-9]+ ?%", SOON).unwrap();
    site.server.process().kill().unwrap();
    assert!(installer.ended().unwrap().is_none(), "it was done too early to mean anything");
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
}

#[test]
fn a_client_that_is_killed_while_scattering_comes_back_and_takes_its_share() {
    let (mut site, image) = prepared("killed-client", 3, 48);
    for agent in &site.agents {
        agent.host().shape(MegabitsPerSecond(50)).unwrap();
    }
    site.add_image(&image, NAME).unwrap();
    eventually("the first segments to arrive", SOON, || {
        Ok((site.server.image(NAME)?.scatter.held_bytes > 0).then_some(()))
    })
    .unwrap();
    let (host, state) = (site.agents[1].host().clone(), site.agents[1].state_dir().to_owned());
    site.agents[1].process().kill().unwrap();
    assert!(!site.server.image(NAME).unwrap().scatter.complete, "it was killed too late");
    site.agents[1] = Agent::run(&site.lab, &host, &state).unwrap();
    site.wait_scattered(NAME).unwrap();
}

#[test]
fn a_join_token_is_good_once_and_a_made_up_one_never() {
    let mut site = Site::start("tokens", NetworkBoot::Off).unwrap();
    site.join(1, "64MiB").unwrap();
    let spent = site.server.first().join_token.clone();
    let fresh = site.server.join_token().unwrap();
    let expired = site.server.run(&["token", "create", "--expires", "0s", "--json"]);
    let host = site.lab.host("stranger", 50).unwrap();
    let join = |token: &str| {
        Agent::join(&site.lab, &host, &site.server, token, "64MiB").map(drop).unwrap_err()
    };
    let error = format!("{:#}", join(&spent));
    assert!(error.contains("used"), "{error}");
    // The same token with another secret: the right server, the right form, nobody's token.
    let (last, rest) = (fresh.chars().last().unwrap(), &fresh[..fresh.len() - 1]);
    let other = if last == 'A' { 'B' } else { 'A' };
    join(&format!("{rest}{other}"));
    if let Ok(expired) = expired {
        let expired: serde_json::Value = serde_json::from_str(&expired).unwrap();
        let error = format!("{:#}", join(expired["token"].as_str().unwrap()));
        assert!(error.contains("expired"), "{error}");
    }
    assert_eq!(site.server.agents().unwrap().len(), 1, "no stranger became a member");
    Agent::join(&site.lab, &host, &site.server, &fresh, "64MiB").unwrap();
    assert_eq!(site.server.agents().unwrap().len(), 2);
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let site = Site::start("second-server", NetworkBoot::Off).unwrap();
    let mut second = Program::new("second", cairn_tests::cairn::binary("cairn-server").unwrap())
        .args(["serve", "--listen", "0.0.0.0:9440", "--boot-listen", "0.0.0.0:9441", "--data-dir"])
        .args([site.server.data_dir()])
        .on(site.server.host())
        .start()
        .unwrap();
    let status = second.wait(SOON).unwrap();
    assert_eq!(status.code(), Some(1), "{}", second.transcript().text(0));
}
