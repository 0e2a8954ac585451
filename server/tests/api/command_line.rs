//! The program itself against a running server: what it prints and how it exits.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::harness::{Server, image};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cairn-server");

async fn run(data: &Path, line: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(line).env("CAIRN_DATA_DIR", data).stdin(Stdio::null());
    command.output().await.unwrap()
}

async fn ok(data: &Path, line: &[&str]) -> String {
    let output = run(data, line).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{line:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

async fn refused(data: &Path, line: &[&str], code: i32) -> String {
    let output = run(data, line).await;
    assert_eq!(output.status.code(), Some(code), "{line:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn images_are_added_listed_shown_exported_and_removed() {
    let server = Server::start().await;
    let data = server.folder.path();
    let file = data.join("os.img");
    std::fs::write(&file, image(1)).unwrap();
    let file = file.to_str().unwrap();
    let added = ok(data, &["image", "add", file, "--name", "os", "--any-content"]).await;
    assert!(added.starts_with("os@1: disk of 1.00 MiB"), "{added}");
    let again = ok(data, &["image", "add", file, "--name", "os", "--any-content"]).await;
    assert!(again.contains("the same content is there already as os@1"), "{again}");
    assert!(ok(data, &["image", "list"]).await.contains("os"));
    let json = ok(data, &["image", "list", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["name"], "os");
    assert_eq!(json[0]["versions"][0]["size"], 1 << 20);
    assert!(ok(data, &["image", "show", "os"]).await.contains("VERSION"));

    let out = data.join("out.img");
    ok(data, &["image", "export", "os", out.to_str().unwrap()]).await;
    assert!(std::fs::read(&out).unwrap() == image(1));

    ok(data, &["image", "remove", "os"]).await;
    assert!(ok(data, &["image", "list"]).await.contains("no images"));
    let gone = refused(data, &["image", "show", "os"], 1).await;
    assert!(gone.contains("there is no image") && gone.contains("image list"), "{gone}");
}

#[tokio::test]
async fn volumes_and_their_snapshots_are_made_shown_and_deleted() {
    let server = Server::start().await;
    let data = server.folder.path();
    let made = ok(data, &["volume", "create", "disk", "--size", "4MiB"]).await;
    assert!(made.contains("4.00 MiB (4194304 bytes)"), "{made}");
    assert!(ok(data, &["volume", "snapshots", "disk"]).await.contains("no snapshots"));
    ok(data, &["volume", "snapshot", "disk", "clean"]).await;
    let clone = ok(data, &["volume", "create", "two", "--snapshot", "disk@clean"]).await;
    assert!(clone.contains("began as:     disk@clean"), "{clone}");
    let json = ok(data, &["volume", "snapshots", "disk", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["clones"][0]), (&"clean".into(), &"two".into()));
    let table = ok(data, &["volume", "snapshots", "disk"]).await;
    assert!(table.contains("clean") && table.contains("two"), "{table}");
    let kept = refused(data, &["volume", "delete-snapshot", "disk", "clean"], 1).await;
    assert!(kept.contains("two. Delete them first"), "{kept}");
    let careful = refused(data, &["volume", "rollback", "disk", "clean"], 1).await;
    assert!(careful.contains("would be lost"), "{careful}");
    ok(data, &["volume", "rollback", "disk", "clean", "--discard"]).await;
    let image = ["volume", "image", "disk@clean", "os", "--any-content"];
    assert!(ok(data, &image).await.starts_with("os@1: disk of 4.00 MiB"));
    ok(data, &["volume", "delete", "two"]).await;
    ok(data, &["volume", "delete-snapshot", "disk", "clean"]).await;
    ok(data, &["volume", "delete", "disk"]).await;
    assert!(ok(data, &["volume", "list"]).await.contains("no volumes"));
}

#[tokio::test]
async fn wrong_usage_and_failures_have_their_exit_codes() {
    let server = Server::start().await;
    let data = server.folder.path();
    refused(data, &["image", "frobnicate"], 2).await;
    refused(data, &["deploy", "os"], 2).await;
    let unknown = refused(data, &["deploy", "os", "--machine", "52:54:00:00:00:01"], 1).await;
    assert!(unknown.contains("image list"), "{unknown}");
    let unnamed = refused(data, &["image", "add", "/etc/hostname", "--name", "os"], 1).await;
    assert!(unnamed.contains("--format"), "{unnamed}");
    let nowhere = tempfile::tempdir().unwrap();
    let nobody = refused(nowhere.path(), &["status"], 1).await;
    assert!(nobody.contains("--server"), "{nobody}");
    let elsewhere = ["status", "--server", "https://127.0.0.1:1"];
    refused(data, &elsewhere, 2).await;
}

#[tokio::test]
async fn tokens_agents_machines_and_status_are_shown() {
    let server = Server::start().await;
    let data = server.folder.path();
    let agent = server.join(false).await;
    let id = agent.reply.agent.to_string();
    assert!(ok(data, &["agent", "list"]).await.contains("pending"));
    assert!(ok(data, &["agent", "approve", &id[..8]]).await.contains("approved"));
    let made = ok(data, &["token", "create", "--auto-approve", "--expires", "2h"]).await;
    assert!(made.starts_with("cairn-agent join https://"), "{made}");
    assert!(ok(data, &["token", "list"]).await.contains("used"));
    let target = server.hello("52:54:00:12:34:01", None).await;
    assert!(ok(data, &["machine", "list"]).await.contains(&target.reply.code));
    let said = ok(data, &["machine", "approve", &target.reply.code]).await;
    assert!(said.contains("is approved"), "{said}");
    let status = ok(data, &["status"]).await;
    assert!(status.contains("1 approved"), "{status}");
    let json: serde_json::Value =
        serde_json::from_str(&ok(data, &["status", "--json"]).await).unwrap();
    assert_eq!(json["agents"]["approved"], 1);
    // From elsewhere: the same with a URL and a token file.
    let (url, token) = (format!("https://{}", server.bound), data.join("secrets/cli-token"));
    let remote = ["status", "--server", &url, "--token-file", token.to_str().unwrap()];
    let nowhere = tempfile::tempdir().unwrap();
    assert!(ok(nowhere.path(), &remote).await.contains("1 approved"));
}

#[tokio::test]
async fn serve_says_when_it_is_ready_and_ends_at_sigterm() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let ports = ["--listen", "127.0.0.1:0", "--boot-listen", "127.0.0.1:0", "--nbd", "127.0.0.1:0"];
    for start in ["first", "second"] {
        let mut serving = Command::new(PROGRAM)
            .args(["serve", "--data-dir", folder])
            .args(ports)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(serving.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            said.push(line);
            if said.last().unwrap().starts_with("ready: https://127.0.0.1:") {
                break;
            }
        }
        let shown = said.iter().any(|line| line.contains("password"));
        assert_eq!(shown, start == "first", "{said:?}");
        assert!(ok(data.path(), &["status"]).await.contains("0 approved"));
        let pid =
            rustix::process::Pid::from_raw(serving.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(serving.wait().await.unwrap().code(), Some(0));
    }
}
