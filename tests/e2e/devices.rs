//! A store that grows by a device.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::{Server, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::Lab,
    process::Program,
    site::Site,
    small_disk::SmallDisk,
};
use serde::Deserialize;

const SOON: Duration = Duration::from_secs(120);
const DISK_MIB: u64 = 384;

#[derive(Deserialize)]
struct Device {
    free: u64,
}

#[derive(Deserialize)]
struct Job {
    kind: String,
    state: String,
    attempts: u32,
}

fn rebalance(site: &Site) -> Option<Job> {
    let jobs: Vec<Job> = site.server.json(&["job", "list"]).unwrap();
    jobs.into_iter().find(|job| job.kind == "rebalance")
}

/// How many whole segments lie on a device: what is being written has another name.
fn segments(store: &Path) -> usize {
    let names = |folder: &Path| fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    names(&store.join("segments"))
        .flat_map(|folder| names(&folder))
        .filter(|file| file.extension().is_none())
        .count()
}

fn exports(site: &Site, image: &Path) {
    let file = site.lab.dir().join("export.raw");
    site.server.run(&["image", "export", "lab", file.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(image, &file).unwrap(), None);
    fs::remove_file(file).unwrap();
}

#[test]
fn segments_move_to_a_device_that_was_added_and_a_kill_meanwhile_costs_nothing() {
    let mut lab = Lab::new("devices").unwrap();
    let host = lab.host("server", 1).unwrap();
    let data_dir = lab.dir().join("server");
    let old = SmallDisk::mount(&lab.dir().join("old"), DISK_MIB).unwrap();
    let new = SmallDisk::mount(&lab.dir().join("new"), DISK_MIB).unwrap();
    let [old_store, new_store] = [&old, &new].map(|disk| disk.path().join("store"));
    let one = ["--store", old_store.to_str().unwrap()];
    let server = Server::first_start(&lab, &host, &data_dir, &one).unwrap();
    let mut site = Site { agents: Vec::new(), server, dhcpd: None, lab };
    let wanted = Synthetic { size_mib: 256, files_mib: 200, seed: 6 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, "lab").unwrap();
    let words = ["store", "add-device", new_store.to_str().unwrap()];
    site.server.run(&words).unwrap();
    assert!(site.server.process().terminate().unwrap().success());
    let both = [one[0], one[1], "--store", new_store.to_str().unwrap()];
    site.server.restart(&site.lab, &both).unwrap();

    // A kill in the middle: what moved is there, what did not goes on.
    let mut moving = Program::new("moving", binary("cairn-server").unwrap())
        .args(["store", "rebalance"])
        .env("CAIRN_DATA_DIR", &data_dir)
        .on(&host)
        .start()
        .unwrap();
    let begun = Instant::now();
    while segments(&new_store) < 2 {
        assert!(begun.elapsed() < SOON, "no segment moved: {}", moving.transcript().text(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    site.server.process().kill().unwrap();
    let [left, moved] = [&old_store, &new_store].map(|store| segments(store));
    assert!(moved < left, "all that shall move had moved: {moved}, and {left} are left");
    assert!(!moving.wait(SOON).unwrap().success());
    site.server.restart(&site.lab, &both).unwrap();
    exports(&site, &image);
    let done = eventually("the rest to move", SOON, || {
        Ok(rebalance(&site).filter(|job| job.state == "done"))
    });
    assert_eq!(done.unwrap().attempts, 2);

    let devices: Vec<Device> = site.server.json(&["store", "list"]).unwrap();
    let (least, most) =
        (devices[0].free.min(devices[1].free), devices[0].free.max(devices[1].free));
    assert!(most - least <= most / 10, "{least} and {most} bytes are free");
    exports(&site, &image);
    // There is nothing more to do, and a device without the other is not the image.
    site.server.run(&["store", "rebalance"]).unwrap();
    site.server.run(&["store", "scrub"]).unwrap();
}
