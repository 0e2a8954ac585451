//! Two servers of one site: when the one that serves is lost, the other takes its place.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::{Agent, Server, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::{Host, Lab},
    postgres::Postgres,
    process::Program,
    site::Site,
    tool,
};
use serde_json::Value;

use crate::buckets::{DEVICE, S3};

const URI: &str = "nbd://127.0.0.1:10809/v";
const SOON: Duration = Duration::from_secs(60);
const SIZE: usize = 24 << 20;
const MIB: u64 = 1 << 20;

fn on(host: &Host, words: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host.namespace()]).args(words);
    command
}

fn noise(path: PathBuf, mut state: u64) -> PathBuf {
    let words = (0..SIZE / 8).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state ^ (state >> 29)).to_le_bytes()
    });
    fs::write(&path, words.collect::<Vec<u8>>()).unwrap();
    path
}

/// Writes `value` to 64 KiB from `at` on and flushes, in the volume and in the file with what it is to be.
fn change(host: &Host, file: &Path, at: u64, value: u8) {
    let write = format!("write -P {value} {at} 64k");
    let words = ["qemu-io", "-f", "raw", "-c", &write, "-c", "flush", URI];
    tool::finish(&mut on(host, &words)).unwrap();
    let file = fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(&[value; 64 << 10], at).unwrap();
}

fn is_whole(site: &Site, file: &Path) {
    let read = site.lab.dir().join("read");
    let words = ["nbdcopy", URI, read.to_str().unwrap()];
    tool::finish(&mut on(site.server.host(), &words)).unwrap();
    assert_eq!(first_difference(file, &read).unwrap(), None);
}

fn volume(site: &Site, name: &str) -> Value {
    site.server.json(&["volume", "show", name]).unwrap()
}

/// A second server of the site, on a machine of its own, with the secrets of the first.
fn standby(site: &mut Site) -> Server {
    let host = site.lab.host("second", 2).unwrap();
    let data_dir = site.lab.dir().join("second");
    let without = Program::new("second", binary("cairn-server").unwrap())
        .args(["serve", "--standby", "--data-dir"])
        .args([&data_dir])
        .on(&host);
    let mut without = site.server.environment().iter().fold(without, |it, (k, v)| it.env(k, v));
    without = without.args(DEVICE);
    let mut without = without.start().unwrap();
    assert!(!without.wait(SOON).unwrap().success());
    let said = without.transcript().text(0);
    assert!(said.contains("copy the folder `secrets` of the other server"), "{said}");
    fs::create_dir_all(&data_dir).unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(site.server.data_dir().join("secrets")).arg(data_dir.join("secrets"));
    tool::finish(&mut copy).unwrap();
    site.server.standby(&site.lab, &host, &data_dir, &DEVICE).unwrap()
}

#[test]
fn a_standby_takes_the_place_of_a_server_that_is_lost_and_nothing_acknowledged_is() {
    let mut lab = Lab::new("standby").unwrap();
    let database = lab.host("database", 4).unwrap();
    let postgres = Postgres::start_on(&database).unwrap();
    let s3 = S3::start(&mut lab);
    let environment =
        [s3.environment(), vec![("CAIRN_DATABASE", postgres.create("site").unwrap())]].concat();
    let host = lab.host("server", 1).unwrap();
    let data_dir = lab.dir().join("server");
    let server = Server::first_start_in(&lab, &host, &data_dir, &DEVICE, environment).unwrap();
    let mut site = Site { agents: Vec::new(), server, dhcpd: None, lab };
    site.join(2, "512MiB").unwrap();
    let wanted = Synthetic { size_mib: 32, files_mib: 12, seed: 4 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, "lab").unwrap();
    let create = ["volume", "create", "v", "--size", "24MiB", "--layout", "swarm"];
    site.server.run(&[&create[..], &["--durability", "mirrored"]].concat()).unwrap();
    site.server.run(&["volume", "create", "local", "--size", "1MiB"]).unwrap();
    let file = noise(site.lab.dir().join("content"), 7);
    let copy = ["nbdcopy", "--flush", file.to_str().unwrap(), URI];
    tool::finish(&mut on(&host, &copy)).unwrap();
    site.wait_scattered("lab").unwrap();
    site.wait_volume_scattered("v").unwrap();
    let second = standby(&mut site);

    for (at, value) in (0_u8..10).enumerate() {
        change(&host, &file, at as u64 * 2 * MIB, value + 1);
    }
    site.server.process().kill().unwrap();
    let lost = Instant::now();
    second.wait_ready().unwrap();
    let first = std::mem::replace(&mut site.server, second);
    is_whole(&site, &file);
    let second_host = site.server.host().clone();
    change(&second_host, &file, MIB, 99);
    // Ten seconds of it are the bucket's: whoever wrote to it last may be there still.
    assert!(lost.elapsed() < Duration::from_secs(25), "{:?}", lost.elapsed());
    let export = site.lab.dir().join("export.raw");
    site.server.run(&["image", "export", "lab", export.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(&image, &export).unwrap(), None);
    // What was on the lost server only is named.
    let local = volume(&site, "local");
    assert_eq!(local["state"], "unavailable", "{local}");
    let reason = local["reason"].as_str().unwrap();
    assert!(reason.contains("on the server that used it last"), "{reason}");
    site.wait_volume_scattered("v").unwrap();

    // The first comes back, stands by, and takes over from the second and a client that are lost together. It has a journal
    // of its own, which is old.
    let first = first.standby(&site.lab, &host, &data_dir, &DEVICE).unwrap();
    change(&second_host, &file, 3 * MIB, 98);
    site.server.process().kill().unwrap();
    site.agents[0].process().kill().unwrap();
    first.wait_ready().unwrap();
    site.server = first;
    let waits = volume(&site, "v");
    let reason = waits["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("clients have the end of its journal and do not answer"), "{waits}");
    assert_eq!(volume(&site, "local")["state"], "well");
    let (client, state) = (site.agents[0].host().clone(), site.agents[0].state_dir().to_owned());
    site.agents[0] = Agent::run(&site.lab, &client, &state).unwrap();
    eventually("the volume to be opened", SOON, || {
        Ok((volume(&site, "v")["state"] == "well").then_some(()))
    })
    .unwrap();
    is_whole(&site, &file);
    change(&host, &file, 5 * MIB, 97);
    is_whole(&site, &file);

    // An orderly stop hands over, without waiting for the bucket.
    let second_data = site.lab.dir().join("second");
    let second = site.server.standby(&site.lab, &second_host, &second_data, &DEVICE).unwrap();
    assert!(site.server.process().terminate().unwrap().success());
    second.wait_ready().unwrap();
    site.server = second;
    is_whole(&site, &file);
}
