//! A storage partition: made by one install, kept by all that follow.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cairn_tests::{
    cairn::eventually,
    image::{Synthetic, synthetic_ext4},
    netns::MegabitsPerSecond,
    site::{NetworkBoot, Site},
    tool,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const NAME: &str = "tables";
const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const DISK_MIB: u64 = 256;

/// A disk image with a GPT whose partitions are numbered with gaps, as vendors do; the first one is a file system.
fn image(site: &Site, name: &str, size_mib: u64, seed: u64) -> PathBuf {
    let path = site.lab.dir().join(name);
    let wanted = Synthetic { size_mib: 64, files_mib: 32, seed };
    let system = synthetic_ext4(&path.with_extension("ext4"), wanted).unwrap().path;
    File::create(&path).unwrap().set_len(size_mib * MIB).unwrap();
    let table = "label: gpt\n14 : start=2048, size=2048, name=first\n\
                 1 : start=4096, size=131072, name=system\n";
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(&path);
    tool::feed(&mut sfdisk, table.as_bytes()).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&fs::read(system).unwrap(), 2 * MIB)
        .unwrap();
    path
}

/// The partitions that sfdisk sees, which checks both tables: number, first sector, sectors, name, UUID.
fn partitions(disk: &Path) -> Vec<(u64, u64, u64, String, String)> {
    let verified = tool::run("sfdisk", ["--verify".as_ref(), disk.as_os_str()]).unwrap();
    assert!(verified.contains("No errors detected"), "{verified}");
    let told = tool::run("sfdisk", ["--json".as_ref(), disk.as_os_str()]).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let all = told["partitiontable"]["partitions"].as_array().unwrap();
    let one = |partition: &Value| {
        let text = |field: &str| partition[field].as_str().unwrap_or_default().to_owned();
        let node = text("node");
        let number = node.trim_start_matches(disk.to_str().unwrap()).trim_start_matches('p');
        let at = |field: &str| partition[field].as_u64().unwrap();
        (number.parse().unwrap(), at("start"), at("size"), text("name"), text("uuid"))
    };
    let mut all: Vec<_> = all.iter().map(one).collect();
    all.sort_unstable();
    all
}

fn bytes(file: &Path, from: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    File::open(file).unwrap().read_exact_at(&mut bytes, from).unwrap();
    bytes
}

fn assert_system(disk: &Path, image: &Path) {
    assert!(bytes(disk, MIB, 65 * MIB) == bytes(image, MIB, 65 * MIB), "another system");
}

#[test]
fn a_storage_partition_is_kept_by_every_install_also_by_one_that_is_cut_short() {
    let mut site = Site::start("storage", NetworkBoot::Off).unwrap();
    site.join(1, "1GiB").unwrap();
    let first = image(&site, "first.raw", 80, 1);
    site.add_image(&first, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    let host = site.lab.host("target", 40).unwrap();
    let disk = site.lab.dir().join("disk.raw");
    File::create(&disk).unwrap().set_len(DISK_MIB * MIB).unwrap();

    // Too large a one is refused before anything is written.
    let (mut installer, code) = site.waiting_target(&host, NAME, &disk).unwrap();
    let deploy = |code: &str, size: &str| {
        site.server.run(&["deploy", NAME, "--machine", code, "--storage", size]).unwrap();
    };
    deploy(&code, "200MiB");
    assert!(!installer.wait(INSTALL).unwrap().success());
    assert!(installer.transcript().text(0).contains("deploy with a smaller one"));
    assert_eq!(bytes(&disk, 0, MIB), vec![0; 1 << 20]);

    let mut installer = site.installer(&host, &disk.with_extension("state"), NAME, &disk).unwrap();
    deploy(&site.shown_code(&installer).unwrap(), "64MiB");
    installer.wait_success(INSTALL).unwrap();
    let made = partitions(&disk);
    let names: Vec<_> = made.iter().map(|(number, .., name, _)| (*number, name.as_str())).collect();
    assert_eq!(names, [(1, "system"), (14, "first"), (128, "cairn-storage")]);
    let (_, start, sectors, ..) = made[2];
    assert_eq!(sectors * 512, 64 * MIB);
    assert_system(&disk, &first);

    // What the client keeps there.
    let kept: Vec<u8> = (0..64 * MIB).map(|at| (at * 7 / 5 % 251) as u8).collect();
    File::options().write(true).open(&disk).unwrap().write_all_at(&kept, start * 512).unwrap();
    let second = image(&site, "second.raw", 80, 2);
    site.add_image(&second, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    host.shape(MegabitsPerSecond(20)).unwrap();
    let mut installer = site.install_again(&host, NAME, &disk).unwrap();
    eventually("the old table to be cleared", SOON, || {
        Ok((bytes(&disk, 512, 8) == [0; 8]).then_some(()))
    })
    .unwrap();
    installer.kill().unwrap();
    // Nothing boots from it, and the partition is not forgotten.
    assert_eq!(bytes(&disk, 0, 4096), [0; 4096]);
    let mut installer = site.install_again(&host, NAME, &disk).unwrap();
    installer.wait_success(INSTALL).unwrap();
    assert_eq!(partitions(&disk)[2], made[2]);
    assert_system(&disk, &second);
    assert!(bytes(&disk, start * 512, 64 * MIB) == kept, "what the client kept is gone");

    // An image that reaches into it is refused, and changes nothing.
    let large = image(&site, "large.raw", 220, 3);
    site.add_image(&large, "large").unwrap();
    let before = bytes(&disk, 0, DISK_MIB * MIB);
    let mut installer = site.install_again(&host, "large", &disk).unwrap();
    assert!(!installer.wait(INSTALL).unwrap().success());
    assert!(installer.transcript().text(0).contains("the partition cairn-storage begins at byte"));
    assert!(bytes(&disk, 0, DISK_MIB * MIB) == before, "something was written");
}
