//! Two servers of one site: when the one that serves is lost, the other takes its place.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::{Agent, Server, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    netns::Lab,
    postgres::Postgres,
    process::Program,
    site::Site,
    tool,
};
use serde_json::Value;

use crate::{
    buckets::{DEVICE, S3},
    content,
};

const SOON: Duration = Duration::from_secs(60);
const SIZE: usize = 24 << 20;
const MIB: u64 = 1 << 20;

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

/// A site in a bucket and a PostgreSQL, with a volume whose journal clients mirror and one that is the server's alone.
struct Doubled {
    site: Site,
    postgres: Postgres,
    _s3: S3,
    /// What is in the image, and in the mirrored volume.
    image: PathBuf,
    file: PathBuf,
}

fn doubled() -> Doubled {
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
    let file = content::noise(site.lab.dir().join("content"), SIZE, 7);
    content::write(&host, "v", &file);
    site.wait_scattered("lab").unwrap();
    site.wait_volume_scattered("v").unwrap();
    Doubled { site, postgres, _s3: s3, image, file }
}

#[test]
fn a_standby_takes_the_place_of_a_server_that_is_lost_and_nothing_acknowledged_is() {
    let Doubled { mut site, postgres, image, file, _s3 } = doubled();
    let (host, data_dir) = (site.server.host().clone(), site.server.data_dir().to_owned());
    let second = standby(&mut site);

    for (at, value) in (0_u8..10).enumerate() {
        content::change(&host, "v", &file, at as u64 * 2 * MIB, value + 1);
    }
    site.server.process().kill().unwrap();
    let lost = Instant::now();
    second.wait_ready().unwrap();
    let first = std::mem::replace(&mut site.server, second);
    content::is_in(site.server.host(), "v", &file);
    let second_host = site.server.host().clone();
    content::change(&second_host, "v", &file, MIB, 99);
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
    content::change(&second_host, "v", &file, 3 * MIB, 98);
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
    content::is_in(site.server.host(), "v", &file);
    content::change(&host, "v", &file, 5 * MIB, 97);
    content::is_in(site.server.host(), "v", &file);

    // An orderly stop hands over, without waiting for the bucket.
    let second_data = site.lab.dir().join("second");
    let second = site.server.standby(&site.lab, &second_host, &second_data, &DEVICE).unwrap();
    assert!(site.server.process().terminate().unwrap().success());
    second.wait_ready().unwrap();
    site.server = second;
    content::is_in(&second_host, "v", &file);

    // What a client had that is lost for good is not waited for, once the others have it.
    let first = site.server.standby(&site.lab, &host, &data_dir, &DEVICE).unwrap();
    content::change(&second_host, "v", &file, 7 * MIB, 96);
    let holders = || postgres.query("site", "SELECT count(*) FROM tail_holder");
    eventually("both clients to have it", SOON, || Ok((holders()?.trim() == "2").then_some(())))
        .unwrap();
    site.agents[0].process().kill().unwrap();
    content::change(&second_host, "v", &file, 8 * MIB, 95);
    eventually("the lost one to be struck off", SOON, || {
        Ok((holders()?.trim() == "1").then_some(()))
    })
    .unwrap();
    site.server.process().kill().unwrap();
    first.wait_ready().unwrap();
    site.server = first;
    content::is_in(&host, "v", &file);
}

#[test]
fn a_server_that_was_cut_off_acknowledges_nothing_once_another_has_its_volumes() {
    let Doubled { mut site, postgres: _postgres, _s3, file, .. } = doubled();
    let host = site.server.host().clone();
    let second = standby(&mut site);
    content::change(&host, "v", &file, MIB, 50);
    host.set_link(false).unwrap();
    // Its volumes are still served to who is on its machine.
    let mut writing = Program::new("writing", "qemu-io")
        .args(["-f", "raw", "-c", "write -P 9 2M 64k", "-c", "flush", "nbd://127.0.0.1:10809/v"])
        .on(&host)
        .start()
        .unwrap();
    second.wait_ready().unwrap();
    let mut first = std::mem::replace(&mut site.server, second);
    let second_host = site.server.host().clone();
    content::change(&second_host, "v", &file, 3 * MIB, 51);
    assert!(writing.ended().unwrap().is_none(), "no client can have it, and it was answered");

    // Once it is back it finds that it is no longer needed, and what it was asked to keep it did not.
    host.set_link(true).unwrap();
    assert!(!first.process().wait(SOON).unwrap().success());
    let said = first.process().transcript().text(0);
    assert!(said.contains("another server"), "{said}");
    assert!(!writing.wait(SOON).unwrap().success(), "a flush was answered");
    content::change(&second_host, "v", &file, 5 * MIB, 52);
    content::is_in(&second_host, "v", &file);
}
