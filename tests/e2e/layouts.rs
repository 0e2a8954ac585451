//! Volumes whose segments clients hold too: each layout survives what it says.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use cairn_tests::{
    cairn::{Agent, Server, VolumeDetail, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    site::{NetworkBoot, Site, stores},
    tool,
};

use crate::content;

const NBD: &str = "nbd://127.0.0.1:10809";
const SOON: Duration = Duration::from_secs(60);
/// Bytes of the volumes that are tested.
const SIZE: usize = 48 << 20;

/// A file that does not shrink, with a hole in it.
fn noise(path: PathBuf, seed: u64) -> PathBuf {
    let file = content::noise(path, SIZE, seed);
    let hole = ["--punch-hole", "--offset", "20MiB", "--length", "1MiB"];
    tool::run("fallocate", [&hole[..], &[file.to_str().unwrap()]].concat()).unwrap();
    file
}

fn create(server: &Server, name: &str, layout: &str) -> anyhow::Result<String> {
    server.run(&["volume", "create", name, "--size", "48MiB", "--layout", layout])
}

fn write(site: &Site, name: &str, file: &Path) {
    content::write(site.server.host(), name, file);
}

fn read(site: &Site, name: &str) -> PathBuf {
    content::read(site.server.host(), name, site.lab.dir().join(format!("{name}.read")))
}

/// A site with a volume of this layout that clients hold, and what is in it.
fn volume(name: &str, clients: u8, layout: &str) -> (Site, PathBuf, VolumeDetail) {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    site.join(clients, "512MiB").unwrap();
    create(&site.server, "v", layout).unwrap();
    let file = noise(site.lab.dir().join("content"), 7);
    write(&site, "v", &file);
    let detail = site.wait_volume_scattered("v").unwrap();
    (site, file, detail)
}

/// The files of segments in the store, with their bytes.
fn segments(store: &Path) -> BTreeMap<PathBuf, u64> {
    let folders = fs::read_dir(store.join("segments")).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap());
    files.map(|entry| entry.unwrap()).map(|it| (it.path(), it.metadata().unwrap().len())).collect()
}

/// Bytes in the store, without those of the bundle.
fn in_store(site: &Site) -> u64 {
    let all = segments(&site.server.data_dir().join("store")).values().sum::<u64>();
    all - site.server.status().unwrap().bundle.bytes
}

fn operator(site: &Site, index: usize, args: &[&str]) -> Command {
    let agent = &site.agents[index];
    let mut command = agent.host().command(&[binary("cairn-agent").unwrap().to_str().unwrap()]);
    command.args(args).arg("--state-dir").arg(agent.state_dir());
    command.arg("--recovery-key").arg(site.server.data_dir().join("recovery-key.txt"));
    command
}

#[test]
fn clients_read_a_mirror_alone() {
    let (mut site, file, detail) = volume("mirror-alone", 3, "mirror");
    let redundancy = detail.redundancy.unwrap();
    let promised = "Either the server or any of the 3 clients may be lost, not both.";
    assert!(redundancy.contains(promised), "{redundancy}");
    // What clients hold is the data, once.
    let held = detail.scatter.unwrap().held_bytes;
    assert!((47 << 20..49 << 20).contains(&held), "{held}");
    site.wait_for_stand_ins(&[0, 1, 2]).unwrap();
    site.server.process().kill().unwrap();

    let listed = tool::finish(&mut operator(&site, 0, &["volume", "list"])).unwrap();
    assert!(listed.contains('v') && listed.contains("48 MiB"), "{listed}");
    let copy = site.lab.dir().join("copy");
    let words = ["volume", "read", "v", copy.to_str().unwrap()];
    tool::finish(&mut operator(&site, 1, &words)).unwrap();
    assert_eq!(first_difference(&file, &copy).unwrap(), None);
    let again = tool::finish(&mut operator(&site, 1, &words)).unwrap_err();
    assert!(format!("{again:#}").contains("File exists"), "{again:#}");
    let none = tool::finish(&mut operator(&site, 0, &["volume", "serve", "w"])).unwrap_err();
    assert!(format!("{none:#}").contains("they hold: v"), "{none:#}");

    // As a block device, for whoever is on that machine.
    let mut serving = operator(&site, 2, &["volume", "serve", "v"]);
    let mut serving = serving.stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(serving.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("read-only at nbd://127.0.0.1:10809/v"), "{ready}");
    let uri = format!("{NBD}/v");
    let compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", file.to_str().unwrap(), &uri];
    tool::finish(&mut site.agents[2].host().command(&compare)).unwrap();
    let change = ["qemu-io", "-f", "raw", "-c", "write 0 4k", &uri];
    assert!(tool::finish(&mut site.agents[2].host().command(&change)).is_err());
    tool::finish(Command::new("kill").arg(serving.id().to_string())).unwrap();
    assert!(serving.wait().unwrap().success());
}

#[test]
fn what_the_store_loses_of_a_swarm_comes_back_from_clients() {
    let (mut site, file, detail) = volume("swarm-store", 4, "swarm");
    let redundancy = detail.redundancy.unwrap();
    assert!(
        redundancy.contains("The server and any 2 of the 4 clients may be lost"),
        "{redundancy}"
    );
    // Opened anew, so that nothing is known of what is gone.
    site.server.process().terminate().unwrap();
    let store = site.server.data_dir().join("store");
    let files = segments(&store);
    let large: Vec<_> = files.iter().filter(|(_, bytes)| **bytes > 3 << 20).collect();
    assert!(large.len() >= 11, "{files:?}");
    for (number, (path, bytes)) in large.iter().enumerate() {
        if number % 2 == 0 {
            fs::remove_file(path).unwrap();
        } else {
            // Rot, in every frame.
            let damaged = fs::File::options().write(true).open(path).unwrap();
            for at in (0..**bytes).step_by(64 << 10) {
                damaged.write_all_at(b"rot", at + 40).unwrap();
            }
        }
    }
    // And two clients of four.
    site.agents[0].process().kill().unwrap();
    site.agents[1].process().kill().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    assert_eq!(first_difference(&file, &read(&site, "v")).unwrap(), None);
    // What nobody reads is found by the scrub.
    for (number, path) in segments(&store).keys().enumerate() {
        if number % 3 == 0 {
            fs::remove_file(path).unwrap();
        } else if number % 3 == 1 {
            fs::write(path, "rot").unwrap();
        }
    }
    let scrub = || site.server.run(&["store", "scrub"]).unwrap();
    let first = scrub();
    let damaged: u64 = first.split(' ').nth(4).unwrap().parse().unwrap();
    assert!(damaged >= 1 && first.contains(&format!("{damaged} of them are back")), "{first}");
    eventually("the scrub to find nothing more", SOON, || {
        Ok(scrub().contains("checked; 0 were damaged").then_some(()))
    })
    .unwrap();
    // By now the store has all of it again.
    site.agents[2].process().kill().unwrap();
    site.agents[3].process().kill().unwrap();
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    assert_eq!(first_difference(&file, &read(&site, "v")).unwrap(), None);
    // The whole store is lost while all clients are off: as soon as they are on, the volume is there.
    site.server.process().kill().unwrap();
    for path in segments(&store).keys() {
        fs::remove_file(path).unwrap();
    }
    site.server.restart(&site.lab, &[]).unwrap();
    assert_eq!(site.server.volume("v").unwrap().state, "unavailable");
    for index in 0..3 {
        let agent = &site.agents[index];
        let (host, state) = (agent.host().clone(), agent.state_dir().to_owned());
        site.agents[index] = Agent::run(&site.lab, &host, &state).unwrap();
    }
    eventually("the volume to be opened", SOON, || {
        Ok((site.server.volume("v")?.state == "well").then_some(()))
    })
    .unwrap();
    assert_eq!(first_difference(&file, &read(&site, "v")).unwrap(), None);
}

#[test]
fn clients_hold_the_parity_of_a_servers_devices() {
    let mut site = Site::start_with_stores("client-parity", &["one", "two"]).unwrap();
    let devices = [site.lab.dir().join("one"), site.lab.dir().join("two")];
    let refused = create(&site.server, "v", "client-parity").unwrap_err();
    assert!(format!("{refused:#}").contains("join one with"), "{refused:#}");
    site.join(3, "512MiB").unwrap();
    create(&site.server, "v", "client-parity").unwrap();
    let file = noise(site.lab.dir().join("content"), 9);
    write(&site, "v", &file);
    let detail = site.wait_volume_scattered("v").unwrap();
    let redundancy = detail.redundancy.unwrap();
    let promised = "Any 1 of the server's 2 devices may be lost, while all of the 3 clients live";
    assert!(redundancy.contains(promised), "{redundancy}");
    let scatter = detail.scatter.unwrap();
    // One parity for two of data, and some for what has no partner on the other device.
    let share = scatter.held_bytes as f64 / detail.stored as f64;
    assert!((0.5..0.85).contains(&share), "{share}");

    // A device is lost: the server is started without it.
    site.server.process().terminate().unwrap();
    assert!(segments(&devices[0]).len() >= 5 && segments(&devices[1]).len() >= 5);
    fs::remove_dir_all(&devices[1]).unwrap();
    site.server.restart(&site.lab, &stores(&devices[..1]).unwrap()).unwrap();
    assert_eq!(first_difference(&file, &read(&site, "v")).unwrap(), None);
    // What it had is on the other by now.
    for agent in &mut site.agents {
        agent.process().kill().unwrap();
    }
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &stores(&devices[..1]).unwrap()).unwrap();
    assert_eq!(first_difference(&file, &read(&site, "v")).unwrap(), None);
}

#[test]
fn a_server_with_parity_only_reads_from_clients_and_rebuilds_what_one_has_lost() {
    let (mut site, file, detail) = volume("server-parity", 3, "server-parity");
    let redundancy = detail.redundancy.unwrap();
    assert!(
        redundancy.contains("of the 3 clients may be lost, while the server lives"),
        "{redundancy}"
    );
    let held = detail.scatter.unwrap().held_bytes;
    assert!((47 << 20..49 << 20).contains(&held), "{held}");
    // The data have left the store: two thirds as much of parity is there, and pages.
    let in_store = in_store(&site);
    assert!(in_store < 50 << 20, "{in_store}");
    for dead in [None, Some(1), Some(2)] {
        if let Some(dead) = dead {
            site.agents[dead].process().kill().unwrap();
        }
        site.server.process().terminate().unwrap();
        site.server.restart(&site.lab, &[]).unwrap();
        assert_eq!(first_difference(&file, &read(&site, "v")).unwrap(), None, "{dead:?}");
    }
    // One more than promised: it says so, at once.
    site.agents[0].process().kill().unwrap();
    site.server.process().terminate().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    let uri = format!("{NBD}/v");
    let words = ["nbdcopy", &uri, "null:"];
    let refused = tool::finish(&mut site.server.host().command(&words)).unwrap_err();
    assert!(format!("{refused:#}").contains("Input/output error"), "{refused:#}");
    site.server
        .process()
        .wait_for_line("its stripe has [0-9] of the [0-9] segments", SOON)
        .unwrap();
}

#[test]
fn what_is_overwritten_leaves_the_store_and_the_clients_and_so_does_a_volume() {
    let mut site = Site::start("spread-life", NetworkBoot::Off).unwrap();
    site.join(3, "512MiB").unwrap();
    site.wait_for_stand_ins(&[0, 1, 2]).unwrap();
    let held = |site: &Site, index: usize| site.agents[index].status().unwrap().segments;
    let without: Vec<_> = (0..3).map(|index| held(&site, index)).collect();
    create(&site.server, "v", "swarm").unwrap();
    let file = noise(site.lab.dir().join("content"), 7);
    write(&site, "v", &file);
    let before = site.wait_volume_scattered("v").unwrap();
    for seed in 20..23 {
        let file = noise(site.lab.dir().join("content"), seed);
        write(&site, "v", &file);
        site.wait_volume_scattered("v").unwrap();
    }
    let after = site.server.volume("v").unwrap();
    let bytes = |detail: &VolumeDetail| detail.scatter.as_ref().unwrap().wanted_bytes;
    // Where a checkpoint falls into what is written, a stripe ends early: that is some hundredths, up or down.
    let (once, twice) = (bytes(&before) * 5 / 4, bytes(&before) * 7 / 4);
    assert!(bytes(&after) < once, "{before:?} {after:?}");
    let in_store = in_store(&site);
    assert!(in_store < 50 << 20, "{in_store}");
    // A snapshot keeps what it names, also with the clients.
    site.server.run(&["volume", "snapshot", "v", "s"]).unwrap();
    let file = noise(site.lab.dir().join("content"), 30);
    write(&site, "v", &file);
    let both = site.wait_volume_scattered("v").unwrap();
    assert!(bytes(&both) > twice, "{before:?} {both:?}");
    site.server.run(&["volume", "delete-snapshot", "v", "s"]).unwrap();
    eventually("the snapshot's segments to go", SOON, || {
        let now = site.server.volume("v")?;
        Ok((bytes(&now) < once).then_some(()))
    })
    .unwrap();
    site.server.run(&["volume", "delete", "v"]).unwrap();
    for index in 0..3 {
        site.wait_settled(index).unwrap();
    }
    eventually("the store to be empty", SOON, || {
        Ok((self::in_store(&site) < 1 << 20).then_some(()))
    })
    .unwrap();
    eventually("clients to hold nothing of it", SOON, || {
        Ok((0..3).all(|index| held(&site, index) == without[index]).then_some(()))
    })
    .unwrap();
}

#[test]
fn the_volumes_of_a_server_that_burnt_down_are_back_as_of_their_last_checkpoints() {
    let mut site = Site::start("volumes-burnt", NetworkBoot::Off).unwrap();
    site.join(4, "512MiB").unwrap();
    let wanted = Synthetic { size_mib: 32, files_mib: 12, seed: 3 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, "lab").unwrap();
    let options = ["volume", "create", "clone", "--image", "lab", "--layout", "mirror"];
    site.server.run(&options).unwrap();
    let file = noise(site.lab.dir().join("content"), 5);
    for layout in ["swarm", "server-parity"] {
        create(&site.server, layout, layout).unwrap();
        write(&site, layout, &file);
    }
    let change = ["qemu-io", "-f", "raw", "-c", "write -P 7 1M 1M", &format!("{NBD}/clone")];
    tool::finish(&mut site.server.host().command(&change)).unwrap();
    site.wait_scattered("lab").unwrap();
    let names = ["clone", "swarm", "server-parity"];
    for name in names {
        site.wait_volume_scattered(name).unwrap();
    }
    let before = read(&site, "clone");
    site.wait_for_stand_ins(&[0, 1, 2, 3]).unwrap();
    site.server.process().kill().unwrap();
    let key = site.lab.dir().join("recovery-key.txt");
    fs::copy(site.server.data_dir().join("recovery-key.txt"), &key).unwrap();
    fs::remove_dir_all(site.server.data_dir()).unwrap();

    let host = site.lab.host("phoenix", 200).unwrap();
    let data_dir = site.lab.dir().join("phoenix");
    let peer = site.agents[0].host().address().to_string();
    let mut recover = host.command(&[binary("cairn-server").unwrap().to_str().unwrap(), "recover"]);
    recover.args(["--peer", &peer, "--recovery-key"]).arg(&key).arg("--data-dir").arg(&data_dir);
    let said = tool::finish(&mut recover).unwrap();
    assert!(names.iter().all(|name| said.contains(&format!("back:  volume {name}"))), "{said}");
    site.server = Server::first_start(&site.lab, &host, &data_dir, &[]).unwrap();
    let clone = site.lab.dir().join("clone.before");
    fs::rename(before, &clone).unwrap();
    assert_eq!(first_difference(&clone, &read(&site, "clone")).unwrap(), None);
    for name in ["swarm", "server-parity"] {
        assert_eq!(first_difference(&file, &read(&site, name)).unwrap(), None, "{name}");
    }
    // They are volumes like any other, and the image is still the clone's origin.
    let refused = site.server.run(&["image", "remove", "lab@1"]).unwrap_err();
    assert!(format!("{refused:#}").contains("clone"), "{refused:#}");
    let other = noise(site.lab.dir().join("other"), 6);
    write(&site, "swarm", &other);
    for name in names {
        site.wait_volume_scattered(name).unwrap();
    }
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    assert_eq!(first_difference(&other, &read(&site, "swarm")).unwrap(), None);
    assert_eq!(first_difference(&file, &read(&site, "server-parity")).unwrap(), None);
}
