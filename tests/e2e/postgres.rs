//! A site whose database is on a PostgreSQL server.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_tests::{
    cairn::{Server, binary, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    postgres::Postgres,
    process::{Process, Program},
    site::Site,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn image(site: &Site, seed: u64) -> PathBuf {
    let wanted = Synthetic { size_mib: 48, files_mib: 24, seed };
    let path = site.lab.dir().join(format!("image{seed}.raw"));
    synthetic_ext4(&path, wanted).unwrap().path
}

fn exports(site: &Site, name: &str, image: &Path) {
    let file = site.lab.dir().join("export.raw");
    site.server.run(&["image", "export", name, file.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(image, &file).unwrap(), None);
    fs::remove_file(file).unwrap();
}

/// `cairn-server` with these words on the server's machine.
fn program(site: &Site, words: &[&str], environment: &[(&'static str, String)]) -> Process {
    let mut program =
        Program::new("program", binary("cairn-server").unwrap()).args(words).on(site.server.host());
    for (key, value) in environment {
        program = program.env(key, value);
    }
    program.start().unwrap()
}

fn succeeds(site: &Site, words: &[&str], environment: &[(&'static str, String)]) -> String {
    let mut process = program(site, words, environment);
    process.wait_success(SOON).unwrap();
    process.transcript().text(0)
}

fn refused(site: &Site, words: &[&str], environment: &[(&'static str, String)]) -> String {
    let mut process = program(site, words, environment);
    assert!(!process.wait(SOON).unwrap().success());
    process.transcript().text(0)
}

/// What the database has of the site, as people see it.
fn seen(site: &Site) -> Vec<Value> {
    let lists: [&[&str]; 3] = [&["image", "list"], &["volume", "list"], &["token", "list"]];
    let mut seen: Vec<Value> = lists.map(|words| site.server.json(words).unwrap()).into();
    for agent in site.server.agents().unwrap() {
        seen.push(serde_json::json!([agent.id, agent.state, agent.segments]));
    }
    seen
}

fn is_as_it_was(site: &Site, before: &[Value]) {
    let mut last = Vec::new();
    let same = eventually("the site to be as it was", SOON, || {
        last = seen(site);
        Ok((last == before).then_some(()))
    });
    same.unwrap_or_else(|error| panic!("{error:#}: {last:#?} for {before:#?}"));
}

#[test]
fn a_site_moves_to_postgresql_which_goes_away_and_comes_back_and_home_again() {
    let mut lab = cairn_tests::netns::Lab::new("postgres").unwrap();
    let elsewhere = lab.host("database", 3).unwrap();
    let mut postgres = Postgres::start_on(&elsewhere).unwrap();
    let url = postgres.create("site").unwrap();
    let host = lab.host("server", 1).unwrap();
    let data_dir = lab.dir().join("server");
    let server = Server::first_start(&lab, &host, &data_dir, &[]).unwrap();
    let mut site = Site { agents: Vec::new(), server, dhcpd: None, lab };
    site.join(2, "256MiB").unwrap();
    let first = image(&site, 1);
    site.add_image(&first, "first").unwrap();
    site.wait_scattered("first").unwrap();
    site.server.run(&["volume", "create", "v", "--size", "24MiB"]).unwrap();
    let before = seen(&site);

    // Moved while nobody uses it, and never in two places.
    let data = data_dir.to_str().unwrap();
    let to_postgres = ["move", "--data-dir", data, "--database", &url];
    let said = refused(&site, &to_postgres, &[]);
    assert!(said.contains("another cairn-server uses"), "{said}");
    assert!(site.server.process().terminate().unwrap().success());
    let said = succeeds(&site, &to_postgres, &[]);
    assert!(said.contains("rows are in postgres://postgres@10.77.0.3:5432/site"), "{said}");
    let said = refused(&site, &["serve", "--data-dir", data], &[]);
    assert!(said.contains("was moved to postgres://"), "{said}");
    let said = refused(&site, &to_postgres, &[]);
    assert!(said.contains("was moved to postgres://"), "{said}");
    site.server.set_environment(vec![("CAIRN_DATABASE", url.clone())]);
    site.server.restart(&site.lab, &[]).unwrap();
    is_as_it_was(&site, &before);
    exports(&site, "first", &first);

    // One server has it; one that is killed lets go of it.
    let other = site.lab.dir().join("other");
    let words = [
        "serve",
        "--data-dir",
        other.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--boot-listen",
        "127.0.0.1:0",
        "--nbd",
        "127.0.0.1:0",
        "--database",
        &url,
    ];
    let said = refused(&site, &words, &[]);
    assert!(said.contains("another server uses this database"), "{said}");
    assert!(!said.contains("p%40ss"), "{said}");
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();

    // Without PostgreSQL the server says so, and goes on when it is back.
    postgres.kill().unwrap();
    let error = format!("{:#}", site.server.run(&["image", "list"]).unwrap_err());
    assert!(error.contains("the database does not answer"), "{error}");
    site.server.process().wait_for_line("postgres://postgres@10.77.0.3:5432/site", SOON).unwrap();
    postgres.restart().unwrap();
    site.server.process().wait_for_line("the database answers again", SOON).unwrap();
    let second = image(&site, 2);
    eventually("an image to be added", SOON, || Ok(site.add_image(&second, "second").ok()))
        .unwrap();
    site.wait_scattered("second").unwrap();

    // A backup has a copy of it, and so has a database at home.
    let backup = site.lab.dir().join("backup");
    site.server.run(&["backup", backup.to_str().unwrap()]).unwrap();
    assert!(fs::metadata(&backup).unwrap().len() > 10_000);
    let before = seen(&site);
    assert!(site.server.process().terminate().unwrap().success());
    let home = format!("sqlite:{data}/cairn.db");
    let back = ["move", "--data-dir", data, "--from", &url, "--database", &home];
    succeeds(&site, &back, &[]);
    site.server.set_environment(Vec::new());
    site.server.restart(&site.lab, &[]).unwrap();
    is_as_it_was(&site, &before);
    exports(&site, "second", &second);
}
