//! Agents: joining, being approved, syncing, being revoked.

use cairn_array::{
    tls::{Fingerprint, KeyAndCsr, Papers, new_key_and_csr},
    wire::{Assignment, Holdings, ImageLine, JoinReply, MemberState, SyncReply},
};
use cairn_core::{directory::Directory, id::SegmentId};
use cairn_server::api::agent::Agent as AgentView;
use reqwest::StatusCode;

use crate::harness::{Agent, Caller, PATIENCE, Server, json, problem};

#[tokio::test]
async fn a_join_token_works_once_in_time_and_not_when_it_is_wrong() {
    let server = Server::start().await;
    let key = new_key_and_csr().unwrap();
    let refused = async |secret: &str| problem(server.try_join(secret, &key).await).await;

    let once = server.join_token(serde_json::json!({})).await;
    assert_eq!(server.try_join(&once.secret, &key).await.status(), StatusCode::OK);
    assert_eq!(refused(&once.secret).await, (403, "token_used".to_owned()));
    assert_eq!(refused(&"A".repeat(43)).await, (403, "token_unknown".to_owned()));

    let revoked = server.join_token(serde_json::json!({ "note": "revoked" })).await;
    let tokens: Vec<cairn_server::api::token::Token> =
        server.api().get("/api/v1/tokens").await.unwrap();
    let id = tokens.iter().find(|token| token.note == "revoked").unwrap().id;
    server.api().delete(&format!("/api/v1/tokens/{id}")).await.unwrap();
    assert_eq!(refused(&revoked.secret).await, (403, "token_revoked".to_owned()));
}

#[tokio::test]
async fn a_join_token_expires() {
    let server = Server::start().await;
    let token = server.join_token(serde_json::json!({ "expires_in": 1 })).await;
    // The token is looked at before the request: this does not spend it.
    let broken = KeyAndCsr { csr_pem: "junk".to_owned(), ..new_key_and_csr().unwrap() };
    let began = std::time::Instant::now();
    loop {
        match problem(server.try_join(&token.secret, &broken).await).await {
            (400, code) => assert_eq!(code, "bad_csr"),
            other => break assert_eq!(other, (403, "token_expired".to_owned())),
        }
        assert!(began.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_pending_agent_gets_nothing_until_it_is_approved() {
    let server = Server::start().await;
    let agent = server.join(false).await;
    assert_eq!(agent.reply.state, MemberState::Pending);
    for path in ["/agent/v1/assignment", "/agent/v1/directory", "/agent/v1/images"] {
        let (status, code) = problem(agent.caller.get(path).await).await;
        assert_eq!((status, code.as_str()), (403, "agent_pending"), "{path}");
    }
    let id = agent.reply.agent.to_string();
    // The sync is held, and ends when the administrator approves.
    let (synced, approved) = tokio::join!(agent.synced(0, 0), async {
        let seen = async || {
            let path = format!("/api/v1/agents/{id}");
            let agent: AgentView = server.api().get(&path).await.unwrap();
            agent.seen.is_some()
        };
        while !seen().await {}
        let path = format!("/api/v1/agents/{id}/approve");
        server.api().post::<AgentView>(&path).await.unwrap()
    });
    assert_eq!(synced.state, MemberState::Approved);
    assert_eq!(approved.state, "approved");
    assert_eq!(approved.address.as_deref(), Some("127.0.0.1:9442"));
    directory_names(&agent, synced).await;
    let assignment: Assignment = json(agent.caller.get("/agent/v1/assignment").await).await;
    assert!(assignment.segments.is_empty());
    let images: Vec<ImageLine> = json(agent.caller.get("/agent/v1/images").await).await;
    assert!(images.is_empty());
}

async fn directory_names(agent: &Agent, synced: SyncReply) {
    let signed = agent.caller.get("/agent/v1/directory").await.bytes().await.unwrap();
    let directory = Directory::open(&agent.reply.signing_key, &signed).unwrap();
    assert_eq!(directory.site, agent.reply.site);
    assert!(directory.number >= synced.directory);
    assert_eq!(directory.members.len(), 1);
    assert_eq!(directory.members[0].agent, agent.reply.agent);
    assert_eq!(directory.members[0].addr, Some("127.0.0.1:9442".parse().unwrap()));
}

#[tokio::test]
async fn holdings_are_asked_for_and_taken() {
    let server = Server::start().await;
    let agent = server.join(true).await;
    assert_eq!(agent.reply.state, MemberState::Approved);
    assert!(agent.synced(0, 0).await.want_holdings);
    let full = Holdings { full: true, stored: vec![SegmentId([7; 32])], ..Holdings::default() };
    let response = agent.caller.post("/agent/v1/holdings", &full).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let reply = agent.synced(0, 0).await;
    assert!(!reply.want_holdings);
    assert!(reply.directory.0 > 0);
}

#[tokio::test]
async fn who_says_that_it_has_done_all_and_lacks_something_is_asked_for_all_that_it_holds() {
    let server = Server::start().await;
    let agent = server.join(true).await;
    server.add_image("os", 1).await;
    // It had the segment all along, as it sees it, and so does not tell of it.
    let silent = async |number| {
        let holdings = Holdings { full: true, fulfils: Some(number), ..Holdings::default() };
        agent.caller.post("/agent/v1/holdings", &holdings).await;
    };
    let asked = async {
        let mut told = None;
        loop {
            let reply = agent.synced(0, u64::MAX).await;
            if reply.want_holdings && told.is_some() {
                return;
            }
            let assignment: Assignment = json(agent.caller.get("/agent/v1/assignment").await).await;
            if !assignment.segments.is_empty() && told != Some(assignment.number) {
                silent(assignment.number).await;
                told = Some(assignment.number);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("the server to ask for all of it");
}

async fn refused_everywhere(caller: &Caller, wanted: &str) {
    let segment = format!("/peer/v1/segment/{}", SegmentId([7; 32]));
    for path in ["/agent/v1/assignment", "/agent/v1/directory", "/agent/v1/images", &segment] {
        let (status, code) = problem(caller.get(path).await).await;
        assert_eq!((status, code.as_str()), (403, wanted), "{path}");
    }
    let holdings = caller.post("/agent/v1/holdings", &Holdings::default()).await;
    assert_eq!(problem(holdings).await, (403, wanted.to_owned()));
}

#[tokio::test]
async fn a_revoked_agent_is_refused_everywhere_on_open_connections_too() {
    let server = Server::start().await;
    let (agent, other) = (server.join(true).await, server.join(true).await);
    agent.synced(0, 0).await;
    let id = agent.reply.agent.to_string();
    let path = format!("/api/v1/agents/{id}/revoke");
    let view: AgentView = server.api().post(&path).await.unwrap();
    assert_eq!(view.state, "revoked");
    refused_everywhere(&agent.caller, "agent_revoked").await;
    assert_eq!(problem(agent.sync(0, 0).await).await, (403, "agent_revoked".to_owned()));
    // The others learn it from the directory.
    let signed = other.caller.get("/agent/v1/directory").await.bytes().await.unwrap();
    let directory = Directory::open(&other.reply.signing_key, &signed).unwrap();
    assert_eq!(directory.revoked, [agent.reply.agent]);
    assert!(!directory.is_member(&agent.reply.agent));
    // It cannot be approved back, only joined anew; forgotten, it is still refused.
    let approve = server.api().post::<AgentView>(&format!("/api/v1/agents/{id}/approve")).await;
    assert_eq!(crate::harness::code(approve), "agent_gone");
    server.api().delete(&format!("/api/v1/agents/{id}")).await.unwrap();
    refused_everywhere(&agent.caller, "agent_unknown").await;
}

#[tokio::test]
async fn an_agent_that_leaves_is_gone() {
    let server = Server::start().await;
    let agent = server.join(true).await;
    let response = agent.caller.post("/agent/v1/leave", &()).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    refused_everywhere(&agent.caller, "agent_left").await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_does_not_get_as_far_as_a_request() {
    let (server, other) = (Server::start().await, Server::start().await);
    let agent = other.join(true).await;
    let foreign = papers_of(&other).await;
    let client = server.client(Some(&foreign));
    let url = cairn_array::tls::url(&cairn_array::tls::Member::Server, "/agent/v1/assignment");
    let error = client.get(url).send().await.unwrap_err();
    assert!(error.is_connect() || error.is_request(), "{error:?}");
    // And a client of the other site does not talk to this one.
    assert_ne!(
        Fingerprint::of_pem(&server.ca_pem).unwrap(),
        Fingerprint::of_pem(&agent.reply.ca_pem).unwrap()
    );
    let response = agent.caller.get("/agent/v1/assignment").await;
    assert_eq!(response.status(), StatusCode::OK);
}

async fn papers_of(server: &Server) -> Papers {
    let token = server.join_token(serde_json::json!({ "auto_approve": true })).await;
    let key = new_key_and_csr().unwrap();
    let reply: JoinReply = json(server.try_join(&token.secret, &key).await).await;
    Papers {
        certificate_pem: reply.certificate_pem,
        key_pem: key.key_pem,
        // What the client trusts is its server's; what it shows is another's.
        ca_pem: reply.ca_pem,
    }
}

#[tokio::test]
async fn nobody_without_a_certificate_speaks_as_an_agent() {
    let server = Server::start().await;
    let stranger = Caller { client: server.client(None), bearer: None };
    for path in ["/agent/v1/assignment", "/agent/v1/directory", "/agent/v1/images"] {
        let (status, code) = problem(stranger.get(path).await).await;
        assert_eq!((status, code.as_str()), (401, "certificate_required"), "{path}");
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_until_it_is_right() {
    let server = Server::start().await;
    let mut agent = server.join(true).await;
    let path = format!("/api/v1/agents/{}", agent.reply.agent);
    let ahead = async || server.api().get::<AgentView>(&path).await.unwrap().clock_ahead;
    agent.synced(0, 0).await;
    assert_eq!(ahead().await, None);
    let right = agent.clock;
    agent.clock = right - 3 * 86_400;
    agent.synced(0, 0).await;
    let behind = ahead().await.unwrap();
    assert!((-3 * 86_400 - 60..=-3 * 86_400).contains(&behind), "{behind}");
    agent.clock = right;
    agent.synced(0, 0).await;
    assert_eq!(ahead().await, None);
}

#[tokio::test]
async fn agent_of_0_1_works_and_is_listed_as_old() {
    let server = Server::start().await;
    let agent = server.join(true).await;
    let path = format!("/api/v1/agents/{}", agent.reply.agent);
    let view = async || server.api().get::<AgentView>(&path).await.unwrap();
    agent.synced(0, 0).await;
    assert!(!view().await.old);
    let recorded =
        include_str!("../../../array/engine/fixtures/wire-0.1/agent-v1-sync.request.json");
    let recorded: serde_json::Value = serde_json::from_str(recorded).unwrap();
    let reply: SyncReply = json(agent.caller.post("/agent/v1/sync", &recorded).await).await;
    assert_eq!(reply.state, MemberState::Approved);
    let old = view().await;
    assert!(old.old && old.lend == 1 << 30);
}
