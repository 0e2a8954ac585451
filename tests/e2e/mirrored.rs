//! Volumes whose journal clients mirror: what was flushed is there when the server is gone.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cairn_tests::{
    cairn::{Agent, Server, binary, eventually},
    image::first_difference,
    process::Program,
    site::{NetworkBoot, Site},
    tool,
};

use crate::content;

const URI: &str = "nbd://127.0.0.1:10809/v";
const SOON: Duration = Duration::from_secs(60);
const SIZE: usize = 48 << 20;
const KIB: u64 = 1 << 10;

/// A site with a mirrored volume, and what is in it.
fn mirrored(name: &str, clients: u8) -> (Site, PathBuf) {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    site.join(clients, "512MiB").unwrap();
    let words = ["volume", "create", "v", "--size", "48MiB", "--layout", "swarm"];
    let words = [&words[..], &["--durability", "mirrored"]].concat();
    site.server.run(&words).unwrap();
    let file = content::noise(site.lab.dir().join("content"), SIZE, 7);
    content::write(site.server.host(), "v", &file);
    (site, file)
}

fn without_server(site: &Site, client: usize, key: &Path) -> PathBuf {
    let copy = site.lab.dir().join(format!("copy{client}"));
    let agent = &site.agents[client];
    let mut command = agent.host().command(&[binary("cairn-agent").unwrap().to_str().unwrap()]);
    command.args(["volume", "read", "v"]).arg(&copy);
    command.arg("--state-dir").arg(agent.state_dir()).arg("--recovery-key").arg(key);
    tool::finish(&mut command).unwrap();
    copy
}

#[test]
fn what_was_flushed_outlives_the_server_and_a_client_and_is_in_the_site_that_is_recovered() {
    let (mut site, file) = mirrored("mirrored-burnt", 4);
    site.wait_volume_scattered("v").unwrap();
    site.wait_for_stand_ins(&[0, 1, 2, 3]).unwrap();
    let key = site.lab.dir().join("recovery-key.txt");
    fs::rename(site.server.data_dir().join("recovery-key.txt"), &key).unwrap();
    // The last of these is acknowledged, and in no checkpoint.
    for (at, value) in (0_u8..20).enumerate() {
        content::change(site.server.host(), "v", &file, at as u64 * 700 * KIB, value + 1);
    }
    site.server.process().kill().unwrap();
    site.agents[0].process().kill().unwrap();
    let copy = without_server(&site, 1, &key);
    assert_eq!(first_difference(&file, &copy).unwrap(), None);

    fs::remove_dir_all(site.server.data_dir()).unwrap();
    let host = site.lab.host("phoenix", 200).unwrap();
    let data_dir = site.lab.dir().join("phoenix");
    let peer = site.agents[1].host();
    site.server = Server::recover(&site.lab, &host, &data_dir, &key, peer).unwrap();
    content::is_in(site.server.host(), "v", &file);
    // Clients keep what it flushes, too: they take it for the newer controller.
    content::change(&host, "v", &file, 5 * KIB * KIB, 99);
    site.server.process().kill().unwrap();
    let copy = without_server(&site, 2, &key);
    assert_eq!(first_difference(&file, &copy).unwrap(), None);
    // It finds its own journal again.
    site.server.restart(&site.lab, &[]).unwrap();
    content::change(&host, "v", &file, 6 * KIB * KIB, 98);
    content::is_in(site.server.host(), "v", &file);
}

#[test]
fn a_flush_waits_until_a_client_is_there_and_ends_when_one_comes() {
    let (mut site, file) = mirrored("mirrored-waits", 2);
    let detail = site.wait_volume_scattered("v").unwrap();
    assert_eq!(detail.tail_holders, Some(2));
    let refused =
        site.server.run(&["volume", "create", "w", "--size", "1MiB", "--durability", "mirrored"]);
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("choose another layout"), "{refused}");
    for agent in &mut site.agents {
        agent.process().kill().unwrap();
    }
    let mut writing = Program::new("writing", "qemu-io")
        .args(["-f", "raw", "-c", "write -P 9 1M 64k", "-c", "flush", URI])
        .on(site.server.host())
        .start()
        .unwrap();
    thread::sleep(Duration::from_secs(5));
    assert!(writing.ended().unwrap().is_none(), "no client has it, and it was answered");
    assert_eq!(site.server.volume("v").unwrap().tail_holders, Some(0));
    let said = site.server.run(&["volume", "show", "v"]).unwrap();
    assert!(said.contains("mirrored: no client has the journal, flushes wait for one"), "{said}");

    let (host, state) = (site.agents[1].host().clone(), site.agents[1].state_dir().to_owned());
    site.agents[1] = Agent::run(&site.lab, &host, &state).unwrap();
    writing.wait_success(SOON).unwrap();
    let changed = fs::File::options().write(true).open(&file).unwrap();
    changed.write_all_at(&[9; 64 << 10], 1 << 20).unwrap();
    let said = site.server.run(&["volume", "show", "v"]).unwrap();
    assert!(said.contains("mirrored: 1 client has the journal"), "{said}");
    // Writes go on for many times the journal, which is 16 MiB: what clients know is freed.
    for round in 0..3 {
        let next = content::noise(site.lab.dir().join("next"), SIZE, round);
        content::write(site.server.host(), "v", &next);
        fs::rename(next, &file).unwrap();
    }
    content::is_in(site.server.host(), "v", &file);
    // Once nothing of the journal is needed, clients keep nothing of it.
    eventually("the client to let go of the journal", SOON, || {
        let status = site.agents[1].status()?;
        Ok((status.tails == 0).then_some(()))
    })
    .unwrap();
    site.server.run(&["volume", "delete", "v"]).unwrap();
}
