//! The owner of a client's disk comes first.

use std::{fs, path::Path, time::Duration};

use cairn_tests::{
    cairn::{Agent, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    site::{NetworkBoot, Site},
    small_disk::SmallDisk,
};

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 128 * MIB;
const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "lab";

/// What the kernel says of a laptop's power.
fn power(folder: &Path, plugged_in: bool) {
    let (online, status) = if plugged_in { ("1", "Charging") } else { ("0", "Discharging") };
    for (file, text) in [
        ("AC/type", "Mains"),
        ("AC/online", online),
        ("BAT0/type", "Battery"),
        ("BAT0/status", status),
    ] {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
}

#[test]
fn on_its_battery_a_client_stores_nothing_and_nobody_waits_for_it() {
    let mut site = Site::start("battery", NetworkBoot::Off).unwrap();
    site.join(4, "512MiB").unwrap();
    let supplies = site.lab.dir().join("power");
    power(&supplies, false);
    let (host, state) = (site.agents[3].host().clone(), site.agents[3].state_dir().to_owned());
    site.agents[3].process().terminate().unwrap();
    site.agents[3] = Agent::run_with_power(&site.lab, &host, &state, &supplies).unwrap();
    let rest = |site: &Site, wanted: bool| {
        eventually("the server to know of the client's power", SOON, || {
            let resting = site.server.agents()?.iter().filter(|agent| agent.rests).count();
            Ok((resting == usize::from(wanted)).then_some(()))
        })
        .unwrap();
    };
    rest(&site, true);
    let said = site.agents[3].command(&["status"]).unwrap();
    assert!(said.contains("paused     the machine runs on its battery"), "{said}");
    // Of the boot files it may have some.
    let before = site.agents[3].status().unwrap().segments;
    let wanted = Synthetic { size_mib: 64, files_mib: 40, seed: 8 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    // The others take their part, and the one that rests holds nothing of it.
    eventually("the others to hold their part", SOON, || {
        let settled = |index: usize| -> anyhow::Result<bool> {
            let status = site.agents[index].status()?;
            Ok(status.segments > 0 && status.missing == 0)
        };
        Ok((settled(0)? && settled(1)? && settled(2)?).then_some(()))
    })
    .unwrap();
    assert_eq!(site.agents[3].status().unwrap().segments, before);
    let installed = site.lab.dir().join("installed.raw");
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);

    // It is plugged in, and takes its share.
    power(&supplies, true);
    rest(&site, false);
    eventually("it to take its share and to say no more of its battery", SOON, || {
        let status = site.agents[3].status()?;
        let settled = status.segments > before && status.missing == 0;
        let said = site.agents[3].command(&["status"])?;
        Ok((settled && !said.contains("battery")).then_some(()))
    })
    .unwrap();
    // Unplugged again it serves nothing of what it has by now.
    power(&supplies, false);
    rest(&site, true);
    for index in [0, 1, 2] {
        site.agents[index].process().kill().unwrap();
    }
    let sent = site.agents[3].host().traffic().unwrap().0;
    let again = site.lab.dir().join("again.raw");
    site.install_to_file(0, NAME, &again).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &again).unwrap(), None);
    let sent = site.agents[3].host().traffic().unwrap().0 - sent;
    assert!(sent < MIB, "{sent} bytes were sent from the battery");
}

#[test]
fn the_owner_fills_his_disk_and_the_client_gives_way_without_asking() {
    let mut site = Site::start("owner-first", NetworkBoot::Off).unwrap();
    let disk = SmallDisk::mount(&site.lab.dir().join("owners-disk"), 512).unwrap();
    site.join(3, "512MiB").unwrap();
    site.join_at(&disk.path().join("client4"), &["256MiB", "--reserve", "128MiB"]).unwrap();
    let wanted = Synthetic { size_mib: 192, files_mib: 150, seed: 8 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    let before = site.agents[3].status().unwrap();
    assert!(before.segments > 8, "{before:?}");
    assert_eq!(before.lend, 256 * MIB);

    // The server is not there to be asked.
    site.server.process().kill().unwrap();
    let missing = 32 * MIB;
    let file = disk.fill("video.mkv", disk.available().unwrap() - RESERVE + missing).unwrap();
    eventually("the owner's reserve to be free again", SOON, || {
        Ok((disk.available()? >= RESERVE).then_some(()))
    })
    .unwrap();
    let gave_way = eventually("the client to say so", SOON, || {
        let now = site.agents[3].status()?;
        Ok((now.lend < before.lend && now.segments < before.segments).then_some(now))
    })
    .unwrap();

    // What was given up is restored elsewhere, and nothing of it comes back to the full disk.
    site.server.restart(&site.lab, &[]).unwrap();
    eventually("the server to know what is lent now", SOON, || {
        let agents = site.server.agents()?;
        Ok(agents.iter().any(|agent| agent.lend <= gave_way.lend).then_some(()))
    })
    .unwrap();
    site.wait_scattered(NAME).unwrap();
    assert!(disk.available().unwrap() >= RESERVE);
    let after = site.wait_settled(3).unwrap();
    assert!(after.lend <= gave_way.lend, "{gave_way:?} {after:?}");
    let installed = site.lab.dir().join("installed.raw");
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);

    // The disk is empty again: it grows back by an eighth, a minute later.
    fs::remove_file(file).unwrap();
    let grown = eventually("the storage file to grow", 2 * SOON, || {
        let now = site.agents[3].status()?;
        Ok((now.lend > after.lend).then_some(now))
    });
    assert!(grown.unwrap().lend < before.lend, "slowly");
}
