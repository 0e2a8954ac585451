use std::{net::SocketAddr, sync::Arc};

use axum::{Extension, Router, routing::get};
use cairn_core::id::{AgentId, InstallId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::Site;

async fn who(Extension(peer): Extension<Peer>) -> String {
    peer.member.map_or("nobody".to_owned(), |member| member.dns_name())
}

async fn start(papers: &Papers) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve(
        listener,
        server_tls(papers).unwrap(),
        Router::new().route("/who", get(who)),
        stop.clone(),
    ));
    (addr, stop)
}

async fn ask(
    trust: &Trust,
    papers: Option<&Papers>,
    addr: SocketAddr,
) -> Result<String, reqwest::Error> {
    let names = Arc::new(NameTable::default());
    names.set(Member::Server, addr);
    client(trust, papers, names)
        .unwrap()
        .get(url(&Member::Server, "/who"))
        .send()
        .await?
        .text()
        .await
}

#[tokio::test]
async fn both_ends_know_each_other_by_names_the_site_gave() {
    let site = Site::new();
    let (addr, stop) = start(&site.papers(&Member::Server.dns_name())).await;
    let agent = Member::Agent(AgentId([7; 16]));
    let papers = site.papers(&agent.dns_name());
    let trust = Trust::Ca(site.ca_pem.clone());
    assert_eq!(ask(&trust, Some(&papers), addr).await.unwrap(), agent.dns_name());
    assert_eq!(ask(&trust, None, addr).await.unwrap(), "nobody");
    assert_eq!(ask(&trust, Some(&site.papers("evil.example")), addr).await.unwrap(), "nobody");
    stop.cancel();
}

#[tokio::test]
async fn a_pinned_fingerprint_admits_the_site_and_no_other() {
    let site = Site::new();
    let (addr, stop) = start(&site.papers(&Member::Server.dns_name())).await;
    let right = Trust::Pinned(Fingerprint::of_pem(&site.ca_pem).unwrap());
    assert_eq!(ask(&right, None, addr).await.unwrap(), "nobody");
    let wrong = Trust::Pinned(Fingerprint::of_pem(&Site::new().ca_pem).unwrap());
    assert!(ask(&wrong, None, addr).await.unwrap_err().is_connect());
    stop.cancel();
}

#[tokio::test]
async fn another_ca_and_another_members_name_are_refused() {
    let site = Site::new();
    let stranger = Site::new();
    let (addr, stop) = start(&site.papers(&Member::Server.dns_name())).await;
    let trust = Trust::Ca(site.ca_pem.clone());
    let foreign = stranger.papers(&Member::Agent(AgentId([7; 16])).dns_name());
    assert!(ask(&trust, Some(&foreign), addr).await.is_err());
    assert!(ask(&Trust::Ca(stranger.ca_pem.clone()), None, addr).await.is_err());
    stop.cancel();

    let (impostor, stop) = start(&site.papers(&Member::Agent(AgentId([7; 16])).dns_name())).await;
    assert!(ask(&trust, None, impostor).await.unwrap_err().is_connect());
    stop.cancel();
}

#[tokio::test]
async fn a_ticket_that_has_expired_is_refused() {
    let site = Site::new();
    let (addr, stop) = start(&site.papers(&Member::Server.dns_name())).await;
    let trust = Trust::Ca(site.ca_pem.clone());
    let target = Member::Target(InstallId([3; 16])).dns_name();
    let now = time::OffsetDateTime::now_utc();
    let (good, late) = (now + time::Duration::HOUR, now - time::Duration::MINUTE);
    assert_eq!(ask(&trust, Some(&site.papers_until(&target, good)), addr).await.unwrap(), target);
    assert!(ask(&trust, Some(&site.papers_until(&target, late)), addr).await.is_err());
    stop.cancel();
    // Nor is a peer asked whose papers have expired.
    let (addr, stop) = start(&site.papers_until(&Member::Server.dns_name(), late)).await;
    assert!(ask(&trust, None, addr).await.unwrap_err().is_connect());
    stop.cancel();
}

#[tokio::test]
async fn papers_are_renewed_at_both_ends_while_they_are_shown() {
    let site = Site::new();
    let late = time::OffsetDateTime::now_utc() - time::Duration::MINUTE;
    let (server, agent) = (Member::Server.dns_name(), Member::Agent(AgentId([7; 16])).dns_name());
    let theirs = LivePapers::new(&site.papers_until(&server, late)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tls, app) = (live_server_tls(theirs.clone()).unwrap(), Router::new());
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, tls, app.route("/who", get(who)), stop.clone()));
    let ours = LivePapers::new(&site.papers_until(&agent, late)).unwrap();
    let names = Arc::new(NameTable::default());
    names.set(Member::Server, addr);
    let client = live_client(ours.clone(), names).unwrap();
    let ask = async || {
        let answer = client.get(url(&Member::Server, "/who")).send().await?;
        answer.text().await
    };
    assert!(ask().await.unwrap_err().is_connect(), "the server's are over");
    theirs.replace(&site.papers(&server)).unwrap();
    assert!(ask().await.is_err(), "the client's are over");
    let renewed = site.papers(&agent);
    // Those of another key are refused, and change nothing.
    let mut odd = renewed.clone();
    odd.key_pem = new_key_and_csr().unwrap().key_pem;
    assert!(ours.replace(&odd).is_err() && ask().await.is_err());
    ours.replace(&renewed).unwrap();
    assert_eq!(ask().await.unwrap(), agent);
    stop.cancel();
}

#[test]
fn a_key_that_is_there_is_requested_to_be_certified() {
    let key = new_key_and_csr().unwrap();
    let again = csr_of(&key.key_pem).unwrap();
    assert_eq!(public_key_of_csr(&again).unwrap(), key.public_key_der);
    assert!(csr_of("junk").is_err() && valid_until("junk").is_err());
}

#[test]
fn member_names_round_trip_and_nothing_else_parses() {
    for member in
        [Member::Server, Member::Agent(AgentId([1; 16])), Member::Target(InstallId([2; 16]))]
    {
        assert_eq!(Member::parse(&member.dns_name()), Some(member));
    }
    for name in [
        "",
        "cairn.internal",
        "agent.cairn.internal",
        "x.agent.cairn.internal",
        "server.cairn.internal.evil",
    ] {
        assert_eq!(Member::parse(name), None, "{name}");
    }
}

#[test]
fn tokens_round_trip_and_a_cut_one_is_refused() {
    let token = Token::random(TokenKind::Join, Fingerprint([9; 32])).unwrap();
    let text = token.to_string();
    assert_eq!(text.parse(), Ok(token));
    assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(BadToken));
    assert_eq!(text.replace("join", "root").parse::<Token>(), Err(BadToken));
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let request = new_key_and_csr().unwrap();
    assert_eq!(public_key_of_csr(&request.csr_pem).unwrap(), request.public_key_der);
    assert!(public_key_of_csr(&"x".repeat(100_000)).is_err());
    assert!(
        public_key_of_csr(
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"
        )
        .is_err()
    );
}
