//! The owner of a client's disk comes first.

use std::{fs, time::Duration};

use cairn_tests::{
    cairn::eventually,
    image::{Synthetic, first_difference, synthetic_ext4},
    site::{NetworkBoot, Site},
    small_disk::SmallDisk,
};

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 128 * MIB;
const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "lab";

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
