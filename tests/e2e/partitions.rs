//! Networks that fall apart between any two kinds of members, and grow together again.

use std::time::Duration;

use cairn_tests::{
    cairn::eventually,
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::{Host, MegabitsPerSecond},
    site::{NetworkBoot, Site},
    stand_in::StandIn,
};

use crate::swarm::{NAME, Room, room};

const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// Of about 48 MiB that a target writes.
const THIRD: u64 = 14 << 20;

/// Cuts pairs of hosts while all targets of a room install; everybody gets the whole image all the same.
fn installs_although(name: &str, pairs: impl Fn(&Room) -> Vec<(Host, Host)>) {
    let mut room = room(name, 3, 2);
    let pairs = pairs(&room);
    room.site.server.deploy_to_all(NAME, &room.codes).unwrap();
    (0..2).for_each(|number| room.wait_written(number, THIRD));
    let running = room.targets.iter_mut().all(|target| target.1.ended().unwrap().is_none());
    assert!(running, "they were done too early for this test to mean anything");
    for (one, other) in &pairs {
        one.cut(other).unwrap();
    }
    room.assert_installed();
}

fn clients(room: &Room) -> Vec<Host> {
    room.site.agents.iter().map(|agent| agent.host().clone()).collect()
}

#[test]
fn targets_that_lose_the_server_go_on() {
    installs_although("cut-server-target", |room| {
        let server = room.site.server.host();
        room.targets.iter().map(|(host, ..)| (host.clone(), server.clone())).collect()
    });
}

#[test]
fn targets_that_lose_each_other_go_on() {
    installs_although("cut-target-target", |room| {
        vec![(room.targets[0].0.clone(), room.targets[1].0.clone())]
    });
}

#[test]
fn a_target_that_loses_the_clients_goes_on() {
    installs_although("cut-client-target", |room| {
        let target = &room.targets[0].0;
        clients(room).into_iter().map(|client| (target.clone(), client)).collect()
    });
}

#[test]
fn an_image_reaches_clients_that_cannot_reach_each_other_or_the_server_for_a_while() {
    let mut site = Site::start("cut-clients", NetworkBoot::Off).unwrap();
    site.join(4, "1GiB").unwrap();
    let hosts: Vec<Host> = site.agents.iter().map(|agent| agent.host().clone()).collect();
    hosts[0].cut(&hosts[1]).unwrap();
    hosts[3].cut(site.server.host()).unwrap();
    let wanted = Synthetic { size_mib: 96, files_mib: 48, seed: 4 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    eventually("those who are there to hold their part", SOON, || {
        let agents = site.server.agents()?;
        Ok((agents.iter().filter(|agent| agent.segments > 0).count() >= 3).then_some(()))
    })
    .unwrap();
    let apart = site.server.image(NAME).unwrap().scatter;
    assert!(!apart.complete, "one client cannot have heard of it: {apart:?}");
    let installed = site.lab.dir().join("installed.raw");
    site.install_to_file(1, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);

    hosts[3].heal().unwrap();
    site.wait_scattered(NAME).unwrap();
    site.wait_settled(3).unwrap();
}

#[test]
fn each_side_of_a_partition_has_its_own_stand_in() {
    let mut site = Site::start("cut-stand-ins", NetworkBoot::Off).unwrap();
    site.join(4, "1GiB").unwrap();
    let wanted = Synthetic { size_mib: 96, files_mib: 48, seed: 4 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    site.wait_for_stand_ins(&[0, 1, 2, 3]).unwrap();
    site.server.process().kill().unwrap();
    // Stripes are 2+2: each side has as many holders as it takes, and not one more.
    for one in [0, 1] {
        for other in [2, 3] {
            site.agents[one].host().cut(site.agents[other].host()).unwrap();
        }
    }
    let mut sides = Vec::new();
    for (leader, target) in [(0, 1), (2, 3)] {
        let stand_in = StandIn::start(&site.lab, &site.agents[leader], &site.server, &[]).unwrap();
        let file = site.lab.dir().join(format!("side{leader}.raw"));
        site.agents[target].host().shape(MegabitsPerSecond(200)).unwrap();
        let (installer, code) = site.install_by(&stand_in, target, NAME, &file).unwrap();
        sides.push((stand_in, installer, code, file));
    }
    for (stand_in, installer, code, file) in &mut sides {
        installer.wait_success(INSTALL).unwrap();
        assert_eq!(first_difference(&image, file).unwrap(), None);
        stand_in.wait_installed(code, SOON).unwrap();
    }
    // The network is whole again, and so is the server: both give way to it, and nobody disagrees.
    for one in [0, 1] {
        site.agents[one].host().heal().unwrap();
    }
    site.server.restart(&site.lab, &[]).unwrap();
    for (stand_in, ..) in &mut sides {
        eventually("the stand-in to end", SOON, || {
            Ok(stand_in.process().ended()?.filter(std::process::ExitStatus::success))
        })
        .unwrap();
    }
    site.wait_scattered(NAME).unwrap();
}
