//! A client that stands in for a server that is gone.

use std::{fs, path::PathBuf, time::Duration};

use cairn_tests::{
    cairn::eventually,
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::MegabitsPerSecond,
    process::Process,
    site::{NetworkBoot, Site},
    stand_in::StandIn,
};

const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
pub(crate) const NAME: &str = "lab";

pub(crate) fn dark_site(name: &str, clients: u8) -> (Site, PathBuf) {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    site.join(clients, "1GiB").unwrap();
    let wanted = Synthetic { size_mib: 96, files_mib: 70, seed: 5 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    let all: Vec<usize> = (0..usize::from(clients)).collect();
    site.wait_for_stand_ins(&all).unwrap();
    (site, image)
}

/// The last words of a stand-in that does not begin.
fn refusal(mut process: Process) -> String {
    assert_eq!(process.wait(SOON).unwrap().code(), Some(1));
    process.transcript().text(0)
}

#[test]
fn a_stand_in_begins_only_without_the_server_with_the_right_key_and_a_clear_choice() {
    let (mut site, _) = dark_site("stand-in-begins", 2);
    let try_start = |site: &Site, options: &[&str]| {
        StandIn::try_start(&site.lab, &site.agents[0], &site.server, options).unwrap()
    };
    let said = refusal(try_start(&site, &[]));
    assert!(said.contains("answers: nothing needs to stand in for it"), "{said}");
    // Forced, it begins, and ends when it is told to.
    let mut forced =
        StandIn::start(&site.lab, &site.agents[0], &site.server, &["--force"]).unwrap();
    assert!(forced.process().terminate().unwrap().success());

    let other = synthetic_ext4(
        &site.lab.dir().join("other.raw"),
        Synthetic { size_mib: 32, files_mib: 4, seed: 6 },
    );
    site.add_image(&other.unwrap().path, "office").unwrap();
    site.wait_scattered("office").unwrap();
    site.wait_for_stand_ins(&[0, 1]).unwrap();
    site.server.process().kill().unwrap();
    let said = refusal(try_start(&site, &[]));
    assert!(said.contains("--image") && said.contains("lab, office"), "{said}");
    let said = refusal(try_start(&site, &["--image", "classroom"]));
    assert!(said.contains("there is no image classroom"), "{said}");

    let key = site.server.data_dir().join("recovery-key.txt");
    let right = fs::read_to_string(&key).unwrap();
    let wrong = cairn_array::wrap::Identity::generate().to_secret_text();
    fs::write(&key, wrong).unwrap();
    let said = refusal(try_start(&site, &["--image", "lab"]));
    assert!(said.contains("not the recovery key of this site"), "{said}");
    fs::write(&key, "# nothing\n").unwrap();
    let said = refusal(try_start(&site, &["--image", "lab"]));
    assert!(said.contains("AGE-SECRET-KEY"), "{said}");
    fs::write(&key, right).unwrap();

    // Nobody else has what it needs, and this client lost it too.
    site.agents.iter_mut().for_each(|agent| agent.process().kill().unwrap());
    let said = refusal(try_start(&site, &["--image", "lab"]));
    assert!(said.contains("switch more clients on"), "{said}");
}

#[test]
fn machines_install_by_a_stand_in_while_two_clients_are_gone_and_an_unapproved_one_gets_nothing() {
    let (mut site, image) = dark_site("stand-in-installs", 4);
    site.server.process().kill().unwrap();
    // Of 2+2 stripes over four clients, two are left: one stripe in six has both its data segments there.
    site.agents[2].process().kill().unwrap();
    site.agents[3].process().kill().unwrap();
    let stand_in = StandIn::start(&site.lab, &site.agents[0], &site.server, &[]).unwrap();
    let files = ["one.raw", "two.raw"].map(|name| site.lab.dir().join(name));
    let mut installs: Vec<_> = [1, 2]
        .into_iter()
        .zip(&files)
        .map(|(client, file)| site.install_by(&stand_in, client, NAME, file).unwrap())
        .collect();
    let mut sources = Vec::new();
    for ((installer, code), file) in installs.iter_mut().zip(&files) {
        installer.wait_success(INSTALL).unwrap();
        assert_eq!(first_difference(&image, file).unwrap(), None);
        sources.push(stand_in.wait_installed(code, SOON).unwrap());
    }
    // One of the two may have got everything from the other, which rebuilt it.
    let rebuilt = |sources: &String| !sources.contains(" 0 B rebuilt");
    assert!(sources.iter().any(rebuilt), "two clients are gone: {sources:?}");
    let wrong = stand_in.approve_unlisted("AAAA-AAAA").unwrap_err().to_string();
    assert!(wrong.contains("no machine shows code AAAA-AAAA"), "{wrong}");
    // An image that this stand-in does not give, although its code is approved.
    let (mut other, _) =
        site.install_by(&stand_in, 1, "classroom", &site.lab.dir().join("three.raw")).unwrap();
    assert!(!other.wait(SOON).unwrap().success());
    assert!(other.transcript().text(0).contains("start it with --image classroom"));
}

#[test]
fn a_stand_in_ends_when_the_server_is_back_and_nobody_installs_any_more() {
    let (mut site, image) = dark_site("stand-in-ends", 3);
    site.server.process().kill().unwrap();
    let mut stand_in = StandIn::start(&site.lab, &site.agents[0], &site.server, &[]).unwrap();
    site.agents[1].host().shape(MegabitsPerSecond(3)).unwrap();
    let file = site.lab.dir().join("installed.raw");
    let (mut installer, _) = site.install_by(&stand_in, 1, NAME, &file).unwrap();
    installer.wait_for_line("^installing", SOON).unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    stand_in.process().wait_for_line("the server answers again", SOON).unwrap();
    assert!(installer.ended().unwrap().is_none(), "the install was over too soon to show anything");
    assert!(stand_in.process().ended().unwrap().is_none());
    site.agents[1].host().shape(MegabitsPerSecond(400)).unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &file).unwrap(), None);
    eventually("the stand-in to end", SOON, || {
        Ok(stand_in.process().ended()?.filter(std::process::ExitStatus::success))
    })
    .unwrap();
}
