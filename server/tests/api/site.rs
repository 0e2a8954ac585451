//! Starting: the first time, again, twice at once, and with secrets that are not as they must be.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use cairn_server::serve;
use tokio_util::sync::CancellationToken;

use crate::harness::{Server, options, read};

async fn refusal(folder: &Path) -> String {
    let started = Box::pin(serve::start(options(folder), CancellationToken::new())).await;
    format!("{:#}", started.unwrap_err())
}

#[tokio::test]
async fn the_first_start_shows_its_secrets_once() {
    let server = Server::start().await;
    let first = server.first_start.clone().unwrap();
    assert_eq!(first.password.len(), 23);
    let join = &first.join.join;
    assert!(join.starts_with("cairn-agent join https://127.0.0.1:"), "{join}");
    assert!(join.contains(" cairn_join_") && join.ends_with(" --lend 20GiB"), "{join}");
    let recovery = fs::read_to_string(&first.recovery_file).unwrap();
    assert!(recovery.contains("offline") && recovery.contains("AGE-SECRET-KEY-1"));
    let run = read(server.folder.path(), "run/server.json");
    assert!(run.contains(&format!("https://{}", server.bound)), "{run}");
    let folder = server.stop().await;

    let again = Server::start_in(folder).await;
    assert!(again.first_start.is_none());
    let status: cairn_server::api::status::Status =
        again.api().get("/api/v1/status").await.unwrap();
    assert_eq!(status.agents.approved, 0);
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let server = Server::start().await;
    let said = refusal(server.folder.path()).await;
    assert!(said.contains("another cairn-server") && said.contains("--data-dir"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn a_secret_that_is_missing_empty_or_exposed_keeps_the_server_down() {
    let folder = Server::start().await.stop().await;
    let path = folder.path().join("secrets/signing.key");
    let good = fs::read(&path).unwrap();

    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let said = refusal(folder.path()).await;
    assert!(said.contains("signing.key") && said.contains("chmod 600"), "{said}");

    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "").unwrap();
    assert!(refusal(folder.path()).await.contains("is empty"));

    fs::remove_file(&path).unwrap();
    assert!(refusal(folder.path()).await.contains("restore it from your backup"));

    fs::write(&path, good).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    Server::start_in(folder).await.stop().await;
}

#[tokio::test]
async fn the_command_lines_token_is_made_anew_when_it_is_gone() {
    let folder = Server::start().await.stop().await;
    fs::remove_file(folder.path().join("secrets/cli-token")).unwrap();
    let server = Server::start_in(folder).await;
    let agents: Vec<cairn_server::api::agent::Agent> =
        server.api().get("/api/v1/agents").await.unwrap();
    assert!(agents.is_empty());
}
