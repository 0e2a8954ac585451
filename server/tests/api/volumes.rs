//! Volumes: made, used by real NBD clients, resized, cloned, deleted; after a stop, a kill, and a lost journal.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use cairn_server::api::volume::{Condition, Volume};
use cairn_tests::small_disk::SmallDisk;
use reqwest::{Method, StatusCode};
use serde_json::json as object;

use crate::harness::{Server, code, image, problem};

const MIB: u64 = 1 << 20;

/// A client of an export that stays until it is told to leave.
pub(crate) struct Client(std::process::Child);

impl Client {
    /// Connects one; it and the size that it saw.
    pub(crate) async fn stay(uri: &str) -> (Self, u64) {
        let program = "import nbd; h = nbd.NBD(); h.connect_uri('URI'); print(h.get_size(), flush=True); input()";
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", &program.replace("URI", uri)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        let told = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            told.read_line(&mut line).unwrap();
            line
        });
        (Self(child), told.await.unwrap().trim().parse().unwrap())
    }

    pub(crate) async fn leave(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        tokio::task::spawn_blocking(move || self.0.wait().unwrap()).await.unwrap();
    }
}

pub(crate) fn uri(server: &Server, name: &str) -> String {
    format!("nbd://{}/{name}", server.nbd)
}

/// Runs a client on a thread that may wait for it; it must do well.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}\n{out}{errors}");
    // qemu-io says in words that a pattern was not there.
    assert!(!out.contains("failed"), "{program} {arguments:?}\n{out}");
    out
}

pub(crate) async fn io(server: &Server, name: &str, commands: &[&str]) {
    let uri = uri(server, name);
    let words = commands.iter().flat_map(|command| ["-c", command]);
    // Snapshots are read-only, and have to be opened so.
    let options: &[&str] = if name.contains('@') { &["-r", "-f", "raw"] } else { &["-f", "raw"] };
    let arguments = options.iter().copied().chain(words).chain([&*uri]);
    run("qemu-io", &arguments.collect::<Vec<_>>()).await;
}

pub(crate) async fn create(server: &Server, request: serde_json::Value) -> anyhow::Result<Volume> {
    server.api().post_json("/api/v1/volumes", &request).await
}

pub(crate) async fn show(server: &Server, name: &str) -> Volume {
    server.api().get(&format!("/api/v1/volumes/{name}")).await.unwrap()
}

pub(crate) fn segments(folder: &Path) -> usize {
    let folders = std::fs::read_dir(folder.join("store/segments")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn a_volume_is_made_used_and_deleted() {
    let server = Server::start().await;
    let made = create(&server, object!({ "name": "disk", "size": 64 * MIB })).await.unwrap();
    assert_eq!((made.size, made.state, made.connections), (64 * MIB, Condition::Well, 0));
    for (request, wanted) in [
        (object!({ "name": "disk", "size": MIB }), "volume_exists"),
        (object!({ "name": "a/b", "size": MIB }), "bad_name"),
        (object!({ "name": "a" }), "no_size"),
        (object!({ "name": "a", "size": 0 }), "bad_size"),
        (object!({ "name": "a", "size": 4097 }), "bad_size"),
        (object!({ "name": "a", "size": u64::MAX / 4096 * 4096 }), "bad_size"),
        (object!({ "name": "a", "image": "none" }), "image_unknown"),
    ] {
        assert_eq!(code(create(&server, request).await), wanted);
    }
    io(&server, "disk", &["write -P 5 0 1M", "flush", "read -P 5 0 1M", "read -P 0 1M 1M"]).await;
    let listed: Vec<Volume> = server.api().get("/api/v1/volumes").await.unwrap();
    assert_eq!(listed.len(), 1);
    let (client, size) = Client::stay(&uri(&server, "disk")).await;
    assert_eq!(size, 64 * MIB);
    assert_eq!(show(&server, "disk").await.connections, 1);
    let delete = || server.api().delete("/api/v1/volumes/disk");
    assert_eq!(code(delete().await), "volume_in_use");
    client.leave().await;
    while show(&server, "disk").await.connections > 0 {
        tokio::task::yield_now().await;
    }
    delete().await.unwrap();
    assert_eq!(code(delete().await), "volume_unknown");
    assert_eq!(segments(server.folder.path()), 0);
    assert_eq!(std::fs::read_dir(server.folder.path().join("volumes")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_flushed_is_there_after_a_stop_and_after_a_kill() {
    let server = Server::start().await;
    create(&server, object!({ "name": "disk", "size": 64 * MIB })).await.unwrap();
    io(&server, "disk", &["write -P 5 0 1M", "write -P 6 3000 5000", "flush"]).await;
    let server = Server::start_in(server.stop().await).await;
    io(&server, "disk", &["read -P 5 8000 4k", "read -P 6 3000 5000", "write -P 7 9M 1M", "flush"])
        .await;
    // What a stop sealed is in segments.
    let stopped = show(&server, "disk").await;
    assert!(stopped.live >= MIB && stopped.stored > 0, "{stopped:?}");
    let server = Server::start_in(server.kill().await).await;
    io(&server, "disk", &["read -P 6 3000 5000", "read -P 7 9M 1M", "read -P 0 10M 1M"]).await;
    assert_eq!(show(&server, "disk").await.state, Condition::Well);
}

#[tokio::test]
async fn a_clone_begins_as_its_image_and_leaves_it_alone() {
    let server = Server::start().await;
    let content = server.add_image("os", 1).await;
    let file = server.folder.path().join("os.raw");
    std::fs::write(&file, &content).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        code(create(&server, object!({ "name": "c", "image": "os", "size": 4096 })).await),
        "smaller_than_origin"
    );
    let made = create(&server, object!({ "name": "c", "image": "os" })).await.unwrap();
    assert_eq!((made.size, made.origin.as_deref()), (MIB, Some("os@1")));
    let compare = |name: &'static str| {
        let uri = uri(&server, name);
        async move { run("qemu-img", &["compare", "-f", "raw", "-F", "raw", file, &uri]).await }
    };
    compare("c").await;
    io(&server, "c", &["write -P 9 4k 64k", "flush", "read -P 9 4k 64k"]).await;
    create(&server, object!({ "name": "d", "image": "os@1", "size": 2 * MIB })).await.unwrap();
    compare("d").await;
    let remove = || server.api().delete("/api/v1/images/os");
    assert_eq!(code(remove().await), "image_has_clones");
    let server = Server::start_in(server.stop().await).await;
    io(&server, "c", &["read -P 9 4k 64k"]).await;
    for name in ["c", "d"] {
        server.api().delete(&format!("/api/v1/volumes/{name}")).await.unwrap();
    }
    // The image is whole without them.
    let path = "/api/v1/images/os/versions/1/content";
    let response = server.api().send(server.api().request(Method::GET, path)).await.unwrap();
    assert!(response.bytes().await.unwrap() == image(1).as_slice());
    server.api().delete("/api/v1/images/os").await.unwrap();
}

#[tokio::test]
async fn sizes_change_and_what_is_cut_off_does_not_come_back() {
    let server = Server::start().await;
    create(&server, object!({ "name": "disk", "size": 8 * MIB })).await.unwrap();
    io(&server, "disk", &["write -P 5 0 8M", "flush"]).await;
    let resize = |size: u64, shrink: bool| {
        let request = server.api().request(Method::PATCH, "/api/v1/volumes/disk");
        request.json(&object!({ "size": size, "shrink": shrink })).send()
    };
    let refused = resize(4 * MIB, false).await.unwrap();
    assert_eq!(problem(refused).await, (409, "volume_would_shrink".to_owned()));
    assert_eq!(problem(resize(5, true).await.unwrap()).await.1, "bad_size");
    assert_eq!(resize(4 * MIB, true).await.unwrap().status(), StatusCode::OK);
    assert_eq!(resize(16 * MIB, false).await.unwrap().status(), StatusCode::OK);
    assert!(run("nbdinfo", &["--size", &uri(&server, "disk")]).await.contains("16777216"));
    io(&server, "disk", &["read -P 5 0 4M", "read -P 0 4M 12M"]).await;
    let server = Server::start_in(server.kill().await).await;
    assert_eq!(show(&server, "disk").await.size, 16 * MIB);
    io(&server, "disk", &["read -P 5 0 4M", "read -P 0 4M 12M"]).await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_opened_hinders_no_other() {
    let server = Server::start().await;
    for name in ["lost", "well"] {
        create(&server, object!({ "name": name, "size": 8 * MIB })).await.unwrap();
        io(&server, name, &["write -P 5 0 1M", "flush"]).await;
    }
    let folder = server.stop().await;
    let journals: Vec<_> = std::fs::read_dir(folder.path().join("volumes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(journals.len(), 2);
    std::fs::rename(&journals[0], folder.path().join("aside")).unwrap();
    let server = Server::start_in(folder).await;
    let listed: Vec<Volume> = server.api().get("/api/v1/volumes").await.unwrap();
    let (well, lost): (Vec<_>, Vec<_>) =
        listed.into_iter().partition(|volume| volume.state == Condition::Well);
    assert_eq!((well.len(), lost[0].state), (1, Condition::Unavailable));
    assert!(lost[0].reason.as_ref().unwrap().contains("journal"), "{:?}", lost[0].reason);
    io(&server, &well[0].name, &["read -P 5 0 1M"]).await;
    let lost = lost[0].name.clone();
    // Nothing of it was given up.
    let folder = server.stop().await;
    std::fs::rename(folder.path().join("aside"), &journals[0]).unwrap();
    let server = Server::start_in(folder).await;
    io(&server, &lost, &["read -P 5 0 1M"]).await;
}

#[tokio::test]
async fn a_volume_whose_journal_does_not_fit_is_refused_and_nothing_of_it_stays() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("volumes"), 64).unwrap();
    let server = Server::start_in(folder).await;
    let refused = create(&server, object!({ "name": "large", "size": 1024 * MIB })).await;
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("no room for its journal, which takes 128 MiB"), "{refused}");
    assert!(disk.available().unwrap() > 40 * MIB);
    // The name is free again, and what fits is made.
    create(&server, object!({ "name": "large", "size": 64 * MIB })).await.unwrap();
    io(&server, "large", &["write -P 5 0 1M", "flush"]).await;
    let folder = server.stop().await;
    drop(disk);
    drop(folder);
}
