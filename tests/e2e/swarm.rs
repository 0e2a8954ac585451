//! Machines that install the same image together: real installers on shaped links.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use cairn_tests::{
    cairn::eventually,
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::{Host, MegabitsPerSecond},
    process::Process,
    site::{NetworkBoot, Site},
};

pub(crate) const NAME: &str = "room";
const INSTALL: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const RATE: MegabitsPerSecond = MegabitsPerSecond(80);

pub(crate) struct Room {
    pub(crate) site: Site,
    pub(crate) image: PathBuf,
    pub(crate) targets: Vec<(Host, Process, PathBuf)>,
    pub(crate) codes: Vec<String>,
}

/// A site with `clients` clients and an image, and `targets` machines that wait for it.
pub(crate) fn room(name: &str, clients: u8, targets: u8) -> Room {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    if clients > 0 {
        site.join(clients, "1GiB").unwrap();
    }
    let wanted = Synthetic { size_mib: 96, files_mib: 48, seed: 4 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    if clients > 0 {
        site.wait_scattered(NAME).unwrap();
    }
    let mut room = Room { site, image, targets: Vec::new(), codes: Vec::new() };
    for number in 1..=targets {
        let host = room.site.lab.host(&format!("target{number}"), 30 + number).unwrap();
        let disk = room.site.lab.dir().join(format!("disk{number}"));
        let (installer, code) = room.site.waiting_target(&host, NAME, &disk).unwrap();
        host.shape(RATE).unwrap();
        room.targets.push((host, installer, disk));
        room.codes.push(code);
    }
    room.site.server.host().shape(RATE).unwrap();
    room
}

impl Room {
    /// Waits until so much of a target's disk is written, of about 48 MiB.
    pub(crate) fn wait_written(&self, number: usize, bytes: u64) {
        let (.., disk) = &self.targets[number];
        eventually("the disk to be written", SOON, || {
            let written = fs::metadata(disk).map_or(0, |metadata| metadata.blocks() * 512);
            Ok((written > bytes).then_some(()))
        })
        .unwrap();
    }

    pub(crate) fn assert_installed(&mut self) {
        for (_, installer, disk) in &mut self.targets {
            installer.wait_success(INSTALL).unwrap();
            assert_eq!(first_difference(&self.image, disk).unwrap(), None);
        }
    }
}

#[test]
fn the_server_sends_little_more_than_one_image_to_a_room_without_clients() {
    let mut room = room("swarm", 0, 4);
    let (before, _) = room.site.server.host().traffic().unwrap();
    let deployment = room.site.server.deploy_to_all(NAME, &room.codes).unwrap();
    eventually("the link to be found what holds them up", SOON, || {
        let installs = room.site.server.deployment(deployment.id)?.installs;
        let network = installs.iter().filter(|it| it.bottleneck.as_deref() == Some("network"));
        Ok((network.count() > 0).then_some(()))
    })
    .unwrap();
    room.assert_installed();
    let (after, _) = room.site.server.host().traffic().unwrap();
    let installs = room.site.server.deployment(deployment.id).unwrap().installs;
    assert_eq!(installs.len(), 4);
    assert!(installs.iter().all(|install| install.state == "done"), "{installs:?}");
    let total = installs.iter().map(|install| install.total).max().unwrap();
    let from_server: u64 = installs.iter().map(|install| install.from_server).sum();
    assert!(
        from_server <= total * 3 / 2,
        "the server gave {from_server} bytes of {total}: {installs:?}"
    );
    // On the wire, headers and everything else that is said included.
    assert!(after - before <= total * 2, "{} bytes left the server for {total}", after - before);
}

#[test]
fn all_finish_when_the_server_is_killed_and_a_target_is_switched_off() {
    let mut room = room("swarm-alone", 3, 4);
    room.site.server.deploy_to_all(NAME, &room.codes).unwrap();
    // 30 % of 48 MiB.
    (0..4).for_each(|number| room.wait_written(number, (48 << 20) / 10 * 3));
    room.site.server.process().kill().unwrap();
    let (_, mut lost, _) = room.targets.remove(1);
    assert!(
        lost.ended().unwrap().is_none(),
        "it was done too early for this test to mean anything"
    );
    lost.kill().unwrap();
    room.assert_installed();
}

#[test]
fn who_is_late_gets_it_from_those_who_linger() {
    let mut room = room("swarm-late", 0, 2);
    let late = room.codes.pop().unwrap();
    room.site.server.deploy_to_all(NAME, &room.codes).unwrap();
    room.wait_written(0, 20 << 20);
    let deployment = room.site.server.deploy_to_all(NAME, &[late]).unwrap();
    room.assert_installed();
    let done = eventually("the late one to be done", SOON, || {
        let installs = room.site.server.deployment(deployment.id)?.installs;
        Ok(installs.into_iter().find(|install| install.state == "done"))
    })
    .unwrap();
    assert!(done.from_peers > done.total / 4, "{done:?}");
}

#[test]
fn a_room_that_is_switched_off_in_the_middle_goes_on_where_it_was() {
    let mut room = room("swarm-reboot", 0, 3);
    room.site.server.deploy_to_all(NAME, &room.codes).unwrap();
    (0..3).for_each(|number| room.wait_written(number, 24 << 20));
    for (_, installer, _) in &mut room.targets {
        assert!(installer.ended().unwrap().is_none(), "it was done too early to mean anything");
        installer.kill().unwrap();
    }
    let again: Vec<_> = (0..3)
        .map(|number| {
            let (host, _, disk) = &room.targets[number];
            room.site.install_again(host, NAME, disk).unwrap()
        })
        .collect();
    for (target, installer) in room.targets.iter_mut().zip(again) {
        target.1 = installer;
    }
    room.assert_installed();
    for (_, installer, _) in &room.targets {
        let last = installer.wait_for_line("^installed in [0-9:]+: ([0-9.]+) MiB written", SOON);
        let written: f64 = last.unwrap().groups[1].parse().unwrap();
        assert!(written < 36.0, "{written} of 48 MiB were written again");
    }
}
