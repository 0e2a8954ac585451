//! Clients that are killed, whose disk rots or is small, whose clock is wrong, who are away.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use cairn_tests::{
    cairn::{Agent, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::MegabitsPerSecond,
    site::{NetworkBoot, Site},
};

use super::{
    INSTALL, NAME, SOON, Tmpfs, dsf, half_scattered, half_written, image_with, prepared, run_again,
    scattered, slots,
};

#[test]
fn one_that_is_killed_while_scattering_comes_back_and_takes_its_share() {
    let (mut site, image) = prepared("killed-client", 3, 48);
    half_scattered(&site, &image);
    site.agents[1].process().kill().unwrap();
    assert!(!site.server.image(NAME).unwrap().scatter.complete, "it was killed too late");
    run_again(&mut site, 1);
    site.wait_scattered(NAME).unwrap();
    let held = slots(site.agents[1].state_dir());
    assert!(!held.is_empty() && held.iter().all(|slot| slot.right));
}

#[test]
fn an_install_goes_on_by_parity_when_the_server_and_a_client_are_killed() {
    let (mut site, image) = scattered("killed-holder", 3, 48);
    let installed = site.lab.dir().join("installed.raw");
    site.agents[0].host().shape(MegabitsPerSecond(40)).unwrap();
    // One segment takes 6 s from here: however slow this machine is, some are missing when it is killed.
    site.agents[2].host().shape(MegabitsPerSecond(5)).unwrap();
    let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
    half_written(&mut installer, &installed);
    site.agents[2].process().kill().unwrap();
    site.server.process().kill().unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
    let last =
        installer.wait_for_line("^installed in .* ([0-9.]+) [KMG]?i?B rebuilt", SOON).unwrap();
    assert_ne!(last.groups[1], "0", "no parity was used");
}

#[test]
fn its_certificate_is_renewed_long_before_it_ends() {
    let mut site = Site::start("renewal", NetworkBoot::Off).unwrap();
    site.join(1, "64MiB").unwrap();
    let certificate = site.agents[0].state_dir().join("certificate.pem");
    let first = fs::read(&certificate).unwrap();
    let at = |site: &mut Site, offset: &str| {
        site.server.process().terminate().unwrap();
        site.agents[0].process().terminate().unwrap();
        site.server.restart_with_clock(&site.lab, offset).unwrap();
        let (host, state) = (site.agents[0].host().clone(), site.agents[0].state_dir().to_owned());
        site.agents[0] = Agent::run_with_clock(&site.lab, &host, &state, offset).unwrap();
        eventually("the server to answer it", SOON, || {
            let Ok(status) = site.agents[0].command(&["status", "--json"]) else { return Ok(None) };
            let status: serde_json::Value = serde_json::from_str(&status)?;
            Ok((status["state"] == "approved").then_some(()))
        })
        .unwrap();
    };
    at(&mut site, "+300d");
    assert_eq!(fs::read(&certificate).unwrap(), first, "it was renewed too soon");
    at(&mut site, "+400d");
    eventually("the certificate to be renewed", SOON, || {
        Ok((fs::read(&certificate)? != first).then_some(()))
    })
    .unwrap();
    // The first one would be over.
    at(&mut site, "+900d");
}

#[test]
fn rot_on_one_is_noticed_reported_and_repaired_and_installs_come_out_right() {
    let (mut site, image) = scattered("rot", 3, 24);
    // What is replaced soon would be dropped before anybody finds it rotten.
    site.wait_for_stand_ins(&[0, 1, 2]).unwrap();
    let state = site.agents[1].state_dir().to_owned();
    site.agents[1].process().terminate().unwrap();
    let before = slots(&state);
    assert!(before.iter().all(|slot| slot.right));
    let file = File::options().write(true).open(dsf(&state)).unwrap();
    for slot in &before {
        file.write_all_at(b"rot", slot.payload_at + 1000).unwrap();
    }
    assert!(slots(&state).iter().all(|slot| !slot.right));
    run_again(&mut site, 1);
    let installed = site.lab.dir().join("installed.raw");
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
    // The agent says what it found, and so does the server.
    for slot in &before {
        let line = format!("rotten on disk.*{0}|{0}.*rotten on disk", slot.id);
        site.agents[1].process().wait_for_line(&line, SOON).unwrap();
        let line = format!("bad segment.*{}", slot.id);
        site.server.process().wait_for_line(&line, SOON).unwrap();
    }
    eventually("the rot to be repaired", SOON, || {
        let now = slots(&state);
        Ok((now.len() == before.len() && now.iter().all(|slot| slot.right)).then_some(()))
    })
    .unwrap();
    site.wait_scattered(NAME).unwrap();
}

#[test]
fn the_others_take_over_what_a_small_disk_cannot_hold() {
    let mut site = Site::start("small-disk", NetworkBoot::Off).unwrap();
    site.join(2, "1GiB").unwrap();
    let small = Tmpfs::mount(&site.lab.dir().join("client3"), "12m");
    site.join_at(&small.0, &["1GiB", "--reserve", "1MiB"]).unwrap();
    // It lends what there is room for, whatever it was told to.
    assert!((1..12 << 20).contains(&site.agents[2].status().unwrap().lend));
    let image = image_with(&site, 48);
    site.add_image(&image, NAME).unwrap();
    let detail = eventually("the image to be published", SOON, || {
        let detail = site.server.image(NAME)?;
        Ok((detail.redundancy.is_some() && detail.scatter.complete).then_some(detail))
    })
    .unwrap();
    let promise = detail.redundancy.unwrap();
    assert!(promise.contains("may be lost"), "{promise}");
    assert!(site.agents[2].process().ended().unwrap().is_none(), "it serves what it has");
    assert!(slots(&small.0).iter().all(|slot| slot.right));
    // What is promised holds: without the server, and without the client whose disk is small.
    site.agents[2].process().kill().unwrap();
    site.agents[0].host().shape(MegabitsPerSecond(40)).unwrap();
    let installed = site.lab.dir().join("installed.raw");
    let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
    half_written(&mut installer, &installed);
    site.server.process().kill().unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
}

/// Minutes: a client counts as asleep only after a while.
mod long {
    use super::*;

    #[test]
    fn an_image_is_published_without_a_client_that_sleeps() {
        let (mut site, image) = prepared("asleep", 3, 48);
        half_scattered(&site, &image);
        site.agents[1].process().kill().unwrap();
        let detail = eventually("the image to be published", 3 * SOON, || {
            let detail = site.server.image(NAME)?;
            Ok(detail.redundancy.is_some().then_some(detail))
        })
        .unwrap();
        assert!(!detail.scatter.complete, "a part of it sleeps");
        let installed = site.lab.dir().join("installed.raw");
        site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
        assert_eq!(first_difference(&image, &installed).unwrap(), None);
        run_again(&mut site, 1);
        site.wait_scattered(NAME).unwrap();
    }

    #[test]
    fn one_that_sleeps_is_waited_for_and_one_that_is_away_for_a_week_is_replaced() {
        let (mut site, image) = scattered("away", 5, 32);
        let all = site.server.agents().unwrap();
        let (gone, left) = (4, [0, 1, 2, 3]);
        site.agents[gone].process().kill().unwrap();
        let kept = site.agents[gone].state_dir().to_owned();
        let at = |site: &mut Site, offset: &str| {
            site.server.process().terminate().unwrap();
            for index in left {
                site.agents[index].process().terminate().unwrap();
                let agent = &site.agents[index];
                let (host, state) = (agent.host().clone(), agent.state_dir().to_owned());
                site.agents[index] =
                    Agent::run_with_clock(&site.lab, &host, &state, offset).unwrap();
            }
            site.server.restart_with_clock(&site.lab, offset).unwrap();
        };
        let others = |site: &Site| -> Vec<u64> {
            let agents = site.server.agents().unwrap();
            let segments = |id: &str| agents.iter().find(|agent| agent.id == id).unwrap().segments;
            all.iter().map(|agent| segments(&agent.id)).collect()
        };
        let before = others(&site);

        // Three days later it sleeps: nobody takes its share.
        at(&mut site, "+3d");
        site.server.process().wait_for_line("the fleet was planned for anew", 2 * SOON).unwrap();
        let promise = site.server.image(NAME).unwrap().redundancy.unwrap();
        assert!(promise.contains("on 5 clients"), "{promise}");
        assert_eq!(others(&site), before, "a client that sleeps costs nothing");

        at(&mut site, "+8d");
        eventually("its share to be made anew", 3 * SOON, || {
            let detail = site.server.image(NAME)?;
            let anew = detail.redundancy.is_some_and(|promise| promise.contains("on 4 clients"));
            Ok((anew && detail.scatter.complete).then_some(()))
        })
        .unwrap();
        // Without the server, and without one of those that are left.
        let installed = site.lab.dir().join("installed.raw");
        site.agents[left[0]].host().shape(MegabitsPerSecond(40)).unwrap();
        site.agents[left[3]].host().shape(MegabitsPerSecond(5)).unwrap();
        let mut installer = site.install_to_file(left[0], NAME, &installed).unwrap();
        half_written(&mut installer, &installed);
        site.agents[left[3]].process().kill().unwrap();
        site.server.process().kill().unwrap();
        installer.wait_success(INSTALL).unwrap();
        assert_eq!(first_difference(&image, &installed).unwrap(), None);

        // It comes back after all, and is one of five again.
        let host = site.agents[gone].host().clone();
        site.agents[left[3]] = Agent::run_with_clock(
            &site.lab,
            &site.agents[left[3]].host().clone(),
            site.agents[left[3]].state_dir(),
            "+8d",
        )
        .unwrap();
        site.agents[gone] = Agent::run_with_clock(&site.lab, &host, &kept, "+8d").unwrap();
        site.server.restart_with_clock(&site.lab, "+8d").unwrap();
        eventually("all five to hold their part", 3 * SOON, || {
            let detail = site.server.image(NAME)?;
            let five = detail.redundancy.is_some_and(|promise| promise.contains("on 5 clients"));
            Ok((five && detail.scatter.complete).then_some(()))
        })
        .unwrap();
    }
}

#[test]
fn one_whose_storage_file_comes_back_from_an_old_copy_says_what_it_has_and_fetches_the_rest() {
    let (mut site, _) = scattered("old-copy", 3, 24);
    let state = site.agents[1].state_dir().to_owned();
    let (file, copy) = (dsf(&state), site.lab.dir().join("last-week.dsf"));
    site.agents[1].process().terminate().unwrap();
    fs::copy(&file, &copy).unwrap();
    run_again(&mut site, 1);
    // A week passes: one image goes, another comes.
    let wanted = Synthetic { size_mib: 64, files_mib: 32, seed: 77 };
    let newer = synthetic_ext4(&site.lab.dir().join("newer.raw"), wanted).unwrap().path;
    site.add_image(&newer, "newer").unwrap();
    site.wait_scattered("newer").unwrap();
    let then = slots(&state);
    site.server.run(&["image", "remove", NAME]).unwrap();
    eventually("the old image to be forgotten", SOON, || {
        let now = slots(&state);
        let forgets = then.iter().any(|old| now.iter().all(|slot| slot.id != old.id));
        Ok((forgets && site.server.image(NAME).is_err()).then_some(()))
    })
    .unwrap();
    site.agents[1].process().terminate().unwrap();
    let held: Vec<_> = slots(&state).into_iter().map(|slot| slot.id).collect();
    fs::copy(&copy, &file).unwrap();
    let mut forgotten = slots(&state);
    forgotten.retain(|slot| !held.contains(&slot.id));
    assert!(!forgotten.is_empty(), "nothing has changed since the copy");

    run_again(&mut site, 1);
    eventually(
        "the client to hold what it is to hold, and nothing that was forgotten",
        SOON,
        || {
            let now = slots(&state);
            let settled = now.iter().all(|slot| slot.right)
                && forgotten.iter().all(|old| now.iter().all(|slot| slot.id != old.id))
                && site.agents[1].status().is_ok_and(|status| status.missing == 0);
            Ok(settled.then_some(()))
        },
    )
    .unwrap();
    site.wait_scattered("newer").unwrap();
    // Its share counts: without the server and another client it takes this one.
    let installed = site.lab.dir().join("installed.raw");
    site.agents[0].host().shape(MegabitsPerSecond(40)).unwrap();
    site.agents[2].host().shape(MegabitsPerSecond(5)).unwrap();
    let mut installer = site.install_to_file(0, "newer", &installed).unwrap();
    half_written(&mut installer, &installed);
    site.agents[2].process().kill().unwrap();
    site.server.process().kill().unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&newer, &installed).unwrap(), None);
}

#[test]
fn clocks_that_are_wrong_by_days_are_told_of_and_stop_nobody() {
    const THREE_DAYS: i64 = 3 * 86_400;
    let (mut site, image) = prepared("clocks", 4, 32);
    for (index, offset) in [(1, "-3d"), (2, "+3d")] {
        site.agents[index].process().terminate().unwrap();
        let agent = &site.agents[index];
        let (host, state) = (agent.host().clone(), agent.state_dir().to_owned());
        site.agents[index] = Agent::run_with_clock(&site.lab, &host, &state, offset).unwrap();
    }
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    let agents = site.server.agents().unwrap();
    assert!(agents.iter().all(|agent| agent.segments > 0), "{agents:?}");
    let wrong: Vec<i64> = agents.iter().filter_map(|agent| agent.clock_ahead).collect();
    let is_about = |days: i64| wrong.iter().any(|ahead| (ahead - days).abs() < 60);
    assert!(wrong.len() == 2 && is_about(-THREE_DAYS) && is_about(THREE_DAYS), "{wrong:?}");
    let listed = site.server.run(&["agent", "list"]).unwrap();
    assert!(
        listed.contains("clock 3 days behind") && listed.contains("clock 3 days ahead"),
        "{listed}"
    );

    let installed = site.lab.dir().join("installed.raw");
    site.agents[0].host().shape(MegabitsPerSecond(40)).unwrap();
    let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
    half_written(&mut installer, &installed);
    site.server.process().kill().unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
}
