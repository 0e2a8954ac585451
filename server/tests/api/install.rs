//! The agent's package, and the commands that install it.

use cairn_array::tls::{Member, url};
use cairn_core::id::sha256;
use cairn_server::api::token::NewTokenReply;
use reqwest::{Method, StatusCode, header};
use tempfile::TempDir;

use crate::harness::{Server, options, problem};

async fn join_command(server: &Server) -> NewTokenReply {
    let wish = serde_json::json!({ "kind": "join" });
    server.api().post_json("/api/v1/tokens", &wish).await.unwrap()
}

#[tokio::test]
async fn the_package_is_served_and_its_digest_follows_the_file() {
    let folder = TempDir::new().unwrap();
    let mut options = options(folder.path());
    let file = folder.path().join("agent.deb");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    options.agent_package = Some(file.clone());
    let server = Server::start_as(options, folder).await;
    let first = &server.first_start.as_ref().unwrap().join;
    assert_eq!(first.fullest(), first.install.as_ref().unwrap());
    let client = server.client(None);
    let at = url(&Member::Server, "/install/agent.deb");
    for (bytes, replaced) in [(vec![7; 300_000], false), (vec![8; 500_000], true)] {
        if replaced {
            // As dpkg does it.
            let beside = file.with_extension("dpkg-new");
            std::fs::write(&beside, &bytes).unwrap();
            std::fs::rename(&beside, &file).unwrap();
        }
        let digest = hex::encode(sha256(&bytes));
        let got = client.get(&at).send().await.unwrap();
        assert_eq!(got.status(), StatusCode::OK);
        assert_eq!(got.headers()[header::ETAG], format!("\"{digest}\""));
        assert_eq!(got.headers()[header::CONTENT_LENGTH], bytes.len().to_string());
        assert!(got.bytes().await.unwrap() == bytes);
        let head = client.request(Method::HEAD, &at).send().await.unwrap();
        assert_eq!(head.headers()[header::CONTENT_LENGTH], bytes.len().to_string());
        let known = client.get(&at).header(header::IF_NONE_MATCH, format!("\"{digest}\""));
        assert_eq!(known.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
        let made = join_command(&server).await;
        let (short, full) = (made.command.unwrap(), made.install_command.unwrap());
        assert!(full.contains(&format!("echo \"{digest}  $f\" | sha256sum -c")), "{full}");
        assert!(full.ends_with(&format!(" && {short}")), "{full}");
    }
    std::fs::remove_file(&file).unwrap();
    let gone = client.get(&at).send().await.unwrap();
    assert_eq!(problem(gone).await, (404, "no_agent_package".to_owned()));
    let made = join_command(&server).await;
    assert_eq!(made.install_command, None);
    assert!(made.command.unwrap().ends_with(" --lend 20GiB"));
}

#[tokio::test]
async fn a_package_that_was_named_must_be_there() {
    let folder = TempDir::new().unwrap();
    let mut options = options(folder.path());
    options.agent_package = Some(folder.path().join("none.deb"));
    let stop = tokio_util::sync::CancellationToken::new();
    let refused = Box::pin(cairn_server::serve::start(options, stop)).await.unwrap_err();
    assert!(format!("{refused:#}").contains("none.deb"), "{refused:#}");
}
