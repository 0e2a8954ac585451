//! Clients that read from each other without the server, for operators who may.

use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command, time::Duration};

use anyhow::Result;
use cairn_tests::{
    cairn::{Agent, binary},
    image::{Synthetic, first_difference, synthetic_ext4},
    site::Site,
    tool,
};

use crate::stand_in::{NAME, dark_site};

/// A command of an agent's operator, on its machine.
fn operator(site: &Site, index: usize, args: &[&str], opener: &str, file: &Path) -> Result<String> {
    let agent = &site.agents[index];
    let mut command = Command::new("ip");
    command.args(["netns", "exec", agent.host().namespace()]);
    command.arg(binary("cairn-agent")?).args(args);
    command.arg("--state-dir").arg(agent.state_dir()).arg(opener).arg(file);
    tool::finish(&mut command)
}

fn refused(result: Result<String>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn an_operator_with_the_recovery_key_lists_and_reads_images_from_the_clients_alone() {
    let (mut site, image) = dark_site("dark", 4);
    site.server.process().kill().unwrap();
    site.agents[3].process().kill().unwrap();
    let key = site.server.data_dir().join("recovery-key.txt");
    let run = |args: &[&str]| operator(&site, 0, args, "--recovery-key", &key);
    let listed = run(&["images"]).unwrap();
    assert!(listed.contains("lab") && listed.contains("96 MiB"), "{listed}");
    let file = site.lab.dir().join("exported.raw");
    run(&["image", "export", NAME, file.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(&image, &file).unwrap(), None);
    let again = refused(run(&["image", "export", NAME, file.to_str().unwrap()]));
    assert!(again.contains("name another file"), "{again}");
    let none = refused(run(&["install", "office", "--disk", file.to_str().unwrap()]));
    assert!(none.contains("there is no image office"), "{none}");
    // What was changed on the disk is put right, and nothing else is fetched.
    fs::File::options().write(true).open(&file).unwrap().write_all_at(b"changed", 1 << 20).unwrap();
    run(&["install", NAME, "--disk", file.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(&image, &file).unwrap(), None);
}

#[test]
fn an_operator_with_a_grant_reads_what_it_names_until_it_expires() {
    let (mut site, image) = dark_site("grant", 3);
    let wanted = Synthetic { size_mib: 16, files_mib: 8, seed: 6 };
    let other = synthetic_ext4(&site.lab.dir().join("office.raw"), wanted).unwrap().path;
    site.add_image(&other, "office").unwrap();
    site.wait_scattered("office").unwrap();
    let agents = site.server.agents().unwrap();
    let file = |name: &str| site.lab.dir().join(name);
    let give = |name: &str, expires: &str| {
        let (to, id) = (file(name), agents[0].id.as_str());
        let to = to.to_str().unwrap();
        site.server.run(&["agent", "grant", id, NAME, "--expires", expires, "--file", to])
    };
    give("grant", "1h").unwrap();
    let over = refused(give("grant", "1h"));
    assert!(over.contains("File exists"), "{over}");
    give("short", "1s").unwrap();
    let never = refused(give("long", "9999d"));
    assert!(never.contains("a year at most") && !file("long").exists(), "{never}");
    site.wait_for_stand_ins(&[0, 1, 2]).unwrap();
    site.server.process().kill().unwrap();

    let run = |index: usize, args: &[&str], grant: &str| {
        operator(&site, index, args, "--grant", &site.lab.dir().join(grant))
    };
    let listed = run(0, &["images"], "grant").unwrap();
    assert!(listed.contains(NAME) && !listed.contains("office"), "{listed}");
    let exported = site.lab.dir().join("exported.raw");
    let exported = exported.to_str().unwrap();
    let none = refused(run(0, &["install", "office", "--disk", exported], "grant"));
    assert!(none.contains("there is no image office; there are: lab"), "{none}");
    run(0, &["image", "export", NAME, exported], "grant").unwrap();
    assert_eq!(first_difference(&image, exported.as_ref()).unwrap(), None);

    let others = refused(run(1, &["images"], "grant"));
    assert!(others.contains("each client needs its own"), "{others}");
    let expired = refused(run(0, &["images"], "short"));
    assert!(expired.contains("the grant has expired"), "{expired}");
    // Somebody makes it good for longer.
    let text = fs::read_to_string(site.lab.dir().join("short")).unwrap();
    let forged = text.replacen("AAAA", "AAAB", 1);
    assert_ne!(forged, text);
    fs::write(site.lab.dir().join("forged"), forged).unwrap();
    let forged = refused(run(0, &["images"], "forged"));
    assert!(forged.contains("not one that this site signed"), "{forged}");
}

#[test]
fn clients_that_have_other_addresses_than_the_directory_says_find_each_other_on_the_lan() {
    let (mut site, image) = dark_site("lan", 3);
    site.server.process().kill().unwrap();
    // All of them are given other addresses, and some those of others.
    for index in 0..3 {
        site.agents[index].process().terminate().unwrap();
    }
    let before: Vec<_> = site.agents.iter().map(|agent| agent.host().address()).collect();
    let [a, b, c, d] = before[2].octets();
    for (index, address) in [before[1], before[2], [a, b, c, d + 50].into()].into_iter().enumerate()
    {
        site.agents[index].host().readdress(address).unwrap();
    }
    for index in 0..3 {
        let agent = &site.agents[index];
        let (host, state) = (agent.host().clone(), agent.state_dir().to_owned());
        site.agents[index] = Agent::run(&site.lab, &host, &state).unwrap();
    }
    let found = "a client is found on the LAN elsewhere than where the directory says";
    for index in 0..3 {
        site.agents[index].process().wait_for_line(found, Duration::from_secs(30)).unwrap();
    }
    let key = site.server.data_dir().join("recovery-key.txt");
    let file = site.lab.dir().join("exported.raw");
    let args = ["image", "export", NAME, file.to_str().unwrap()];
    operator(&site, 0, &args, "--recovery-key", &key).unwrap();
    assert_eq!(first_difference(&image, &file).unwrap(), None);
}
