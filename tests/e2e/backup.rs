//! A site that is put back from its backup.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cairn_array::wrap::Identity;
use cairn_tests::{
    cairn::{binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    process::{Process, Program},
    site::{NetworkBoot, Site},
    tool,
};

use crate::content;

const SOON: Duration = Duration::from_secs(60);
/// A client that had lost its server looks again within this.
const FOUND: Duration = Duration::from_secs(120);
const SIZE: usize = 24 << 20;

fn image(site: &Site, seed: u64) -> PathBuf {
    let wanted = Synthetic { size_mib: 64, files_mib: 24, seed };
    let path = site.lab.dir().join(format!("image{seed}.raw"));
    synthetic_ext4(&path, wanted).unwrap().path
}

/// Writes bytes of this seed to a volume, and returns the file with them.
fn fill(site: &Site, volume: &str, seed: u64) -> PathBuf {
    let file = content::noise(site.lab.dir().join(format!("content{seed}")), SIZE, seed);
    content::write(site.server.host(), volume, &file);
    file
}

fn has(site: &Site, volume: &str, file: &Path) {
    content::is_in(site.server.host(), volume, file);
}

fn exports(site: &Site, image: &Path) {
    let file = site.lab.dir().join("export.raw");
    site.server.run(&["image", "export", "lab", file.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(image, &file).unwrap(), None);
}

/// Takes the recovery key offline, as the administrator was told to.
fn take_key(site: &Site) -> PathBuf {
    let key = site.lab.dir().join("recovery-key.txt");
    fs::rename(site.server.data_dir().join("recovery-key.txt"), &key).unwrap();
    key
}

fn signal(process: &Process, signal: &str) {
    let mut kill = Command::new("kill");
    tool::finish(kill.args([signal, &process.pid().to_string()])).unwrap();
}

fn backup(site: &Site) -> PathBuf {
    let file = site.lab.dir().join("site.backup");
    site.server.run(&["backup", file.to_str().unwrap()]).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    file
}

fn restore(site: &Site, file: &Path, key: &Path) -> Process {
    Program::new("restore", binary("cairn-server").unwrap())
        .args(["restore".as_ref(), file.as_os_str(), "--recovery-key".as_ref(), key.as_os_str()])
        .args(["--data-dir".as_ref(), site.server.data_dir().as_os_str()])
        .on(site.server.host())
        .start()
        .unwrap()
}

fn refused(site: &Site, file: &Path, key: &Path) -> String {
    let mut restore = restore(site, file, key);
    assert!(!restore.wait(SOON).unwrap().success());
    restore.transcript().text(0)
}

fn restored(site: &Site, file: &Path, key: &Path) -> String {
    let mut restore = restore(site, file, key);
    restore.wait_success(SOON).unwrap();
    restore.transcript().text(0)
}

#[test]
fn a_site_that_burnt_down_is_back_from_its_backup_and_what_its_clients_hold() {
    let mut site = Site::start("backup-burnt", NetworkBoot::Off).unwrap();
    site.join(3, "512MiB").unwrap();
    let first = image(&site, 1);
    site.add_image(&first, "lab").unwrap();
    site.server.run(&["volume", "create", "v", "--size", "24MiB", "--layout", "swarm"]).unwrap();
    let content = fill(&site, "v", 5);
    site.wait_scattered("lab").unwrap();
    site.wait_volume_scattered("v").unwrap();
    let key = take_key(&site);

    // While an image comes in.
    let second = image(&site, 2);
    let mut adding = Program::new("adding", binary("cairn-server").unwrap())
        .args(["image", "add", second.to_str().unwrap(), "--name", "other", "--format", "raw"])
        .args(["--any-content"])
        .env("CAIRN_DATA_DIR", site.server.data_dir())
        .on(site.server.host())
        .start()
        .unwrap();
    signal(&adding, "-STOP");
    let file = backup(&site);
    signal(&adding, "-CONT");
    adding.wait_success(SOON).unwrap();
    site.wait_scattered("other").unwrap();
    site.wait_for_stand_ins(&[0, 1, 2]).unwrap();
    let heard = site.agents[0].directory().unwrap();
    let refusal = refused(&site, &file, &key);
    assert!(refusal.contains("another cairn-server uses"), "{refusal}");

    site.server.process().kill().unwrap();
    fs::remove_dir_all(site.server.data_dir()).unwrap();
    let foreign = site.lab.dir().join("foreign-key.txt");
    fs::write(&foreign, Identity::generate().to_secret_text()).unwrap();
    let refusal = refused(&site, &file, &foreign);
    assert!(refusal.contains("is it a backup of this key's site?"), "{refusal}");
    // One that was cut off is noticed, and leaves no site behind.
    let half = site.lab.dir().join("half.backup");
    let bytes = fs::read(&file).unwrap();
    fs::write(&half, &bytes[..bytes.len() - 100]).unwrap();
    let refusal = refused(&site, &half, &key);
    assert!(refusal.contains("half.backup"), "{refusal}");
    assert!(!site.server.data_dir().join("secrets").exists());

    let said = restored(&site, &file, &key);
    assert!(said.contains("are not in the store"), "{said}");
    site.server.restart(&site.lab, &[]).unwrap();
    let refusal = refused(&site, &file, &key);
    assert!(refusal.contains("another cairn-server uses"), "{refusal}");
    // Clients have heard newer directories than the backup has, and follow nevertheless.
    eventually("a client to hear the next directory", FOUND, || {
        let now = site.agents[0].directory()?;
        Ok((now > heard).then_some(()))
    })
    .unwrap();
    eventually("clients to give back what the store lacks", FOUND, || {
        Ok(site.server.run(&["store", "scrub"]).ok())
    })
    .unwrap();
    exports(&site, &first);
    has(&site, "v", &content);
    site.wait_scattered("lab").unwrap();
    let third = image(&site, 3);
    site.add_image(&third, "third").unwrap();
    site.wait_scattered("third").unwrap();
}

#[test]
fn a_lost_database_is_put_back_beside_a_store_and_journals_that_are_there() {
    let mut site = Site::start("backup-database", NetworkBoot::Off).unwrap();
    let image = image(&site, 1);
    site.add_image(&image, "lab").unwrap();
    site.server.run(&["volume", "create", "v", "--size", "24MiB"]).unwrap();
    fill(&site, "v", 5);
    let key = take_key(&site);
    let file = backup(&site);
    let content = fill(&site, "v", 6);
    site.server.process().kill().unwrap();
    let data_dir = site.server.data_dir().to_owned();
    let refusal = refused(&site, &file, &key);
    assert!(refusal.contains("has a site already"), "{refusal}");
    for name in ["cairn.db", "cairn.db-wal", "cairn.db-shm"] {
        fs::remove_file(data_dir.join(name)).unwrap();
    }
    fs::remove_dir_all(data_dir.join("secrets")).unwrap();
    let said = restored(&site, &file, &key);
    assert!(!said.contains("are not in the store"), "{said}");
    site.server.restart(&site.lab, &[]).unwrap();
    exports(&site, &image);
    has(&site, "v", &content);
}
