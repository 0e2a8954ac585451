//! Who is no member, or no more, and what a target may not have.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use cairn_array::tls::{self, Member, NameTable, Papers, Trust};
use cairn_core::id::{AgentId, SegmentId};
use cairn_tests::{
    cairn::{Agent, Server, eventually},
    netns::Host,
    site::{NetworkBoot, Site},
};

use super::{SOON, scattered, slots};

/// Somebody who shows papers from `host` and trusts one site.
pub(super) struct Caller {
    host: Host,
    client: reqwest::Client,
}

impl Caller {
    pub(super) fn new(
        host: &Host,
        papers: &Papers,
        trust: &str,
        members: &[(Member, SocketAddr)],
    ) -> Self {
        let names = Arc::new(NameTable::default());
        members.iter().for_each(|(member, addr)| names.set(*member, *addr));
        let client = tls::client(&Trust::Ca(trust.to_owned()), Some(papers), names).unwrap();
        Self { host: host.clone(), client }
    }

    /// The status and body of the answer; none when there was no connection.
    pub(super) fn get(&self, member: Member, path: &str) -> Option<(u16, String)> {
        let url = tls::url(&member, path);
        let ask = async {
            let answer = self.client.get(url).send().await.ok()?;
            Some((answer.status().as_u16(), answer.text().await.unwrap_or_default()))
        };
        // Sockets belong to the namespace of the thread that opens them.
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(ask)
        };
        self.host.enter(ask).unwrap()
    }

    pub(super) fn segment(&self, holder: AgentId, id: SegmentId) -> Option<u16> {
        let (status, _) = self.get(Member::Agent(holder), &format!("/peer/v1/segment/{id}"))?;
        Some(status)
    }
}

pub(super) fn papers(state_dir: &Path) -> Papers {
    let read = |name| fs::read_to_string(state_dir.join(name)).unwrap();
    Papers {
        certificate_pem: read("certificate.pem"),
        key_pem: read("key.pem"),
        ca_pem: read("ca.pem"),
    }
}

pub(super) fn id_of(state_dir: &Path) -> AgentId {
    let text = fs::read(state_dir.join("agent.json")).unwrap();
    let membership: serde_json::Value = serde_json::from_slice(&text).unwrap();
    membership["agent"].as_str().unwrap().parse().unwrap()
}

pub(super) fn server_at(host: &Host) -> (Member, SocketAddr) {
    (Member::Server, SocketAddr::from((host.address(), 8440)))
}

pub(super) fn peer_at(agent: &Agent) -> (Member, SocketAddr) {
    let id = id_of(agent.state_dir());
    (Member::Agent(id), SocketAddr::from((agent.host().address(), 8442)))
}

#[test]
fn a_revoked_agent_is_refused_by_the_server_and_by_its_peers() {
    let (mut site, _) = scattered("revoked", 3, 8);
    let (holder, thief) = (&site.agents[0], &site.agents[1]);
    let (holder_id, thief_id) = (id_of(holder.state_dir()), id_of(thief.state_dir()));
    let own = papers(thief.state_dir());
    let members = [server_at(site.server.host()), peer_at(holder)];
    let caller = Caller::new(thief.host(), &own, &own.ca_pem, &members);
    let held = slots(holder.state_dir())[0].id;
    assert_eq!(caller.segment(holder_id, held), Some(200));
    assert_eq!(caller.get(Member::Server, "/agent/v1/images").unwrap().0, 200);

    site.server.run(&["agent", "revoke", &thief_id.to_string()]).unwrap();
    let (status, said) = caller.get(Member::Server, "/agent/v1/images").unwrap();
    assert_eq!(status, 403);
    assert!(said.contains("agent_revoked"), "{said}");
    // The peers hear of it by the next directory.
    eventually("the peer to refuse", SOON, || {
        Ok((caller.segment(holder_id, held) == Some(403)).then_some(()))
    })
    .unwrap();
    let ended = site.agents[1].process().wait(SOON).unwrap();
    assert_eq!(ended.code(), Some(1));
    assert!(site.agents[1].process().transcript().text(0).contains("revoked this agent"));
    // What it held is taken over by those who stay.
    let stay = site.agents.len() - 1;
    eventually("the image to be spread anew", SOON, || {
        let detail = site.server.image(super::NAME)?;
        let promise = detail.redundancy.unwrap_or_default();
        let anew = detail.scatter.complete && promise.contains(&format!("on {stay} clients"));
        Ok(anew.then_some(()))
    })
    .unwrap();
}

#[test]
fn an_agent_of_another_site_is_refused_by_peers_and_server() {
    let (mut site, _) = scattered("other-site", 1, 8);
    let host = site.lab.host("elsewhere", 60).unwrap();
    let folder = site.lab.dir().join("elsewhere-server");
    let elsewhere = Server::first_start(&site.lab, &host, &folder, &[]).unwrap();
    let host = site.lab.host("stranger", 61).unwrap();
    let token = elsewhere.first().join_token.clone();
    let stranger = Agent::join(&site.lab, &host, &elsewhere, &token, "64MiB").unwrap();
    let foreign = papers(stranger.state_dir());
    let ours = papers(site.agents[0].state_dir());
    let holder = id_of(site.agents[0].state_dir());
    let held = slots(site.agents[0].state_dir())[0].id;
    let members = [server_at(site.server.host()), peer_at(&site.agents[0])];
    // It believes our site; our site does not believe it. The same call with our own papers works.
    let caller = Caller::new(&host, &foreign, &ours.ca_pem, &members);
    assert_eq!(caller.segment(holder, held), None, "TLS ends it");
    assert_eq!(caller.get(Member::Server, "/agent/v1/images"), None, "TLS ends it");
    let caller = Caller::new(&host, &ours, &ours.ca_pem, &members);
    assert_eq!(caller.segment(holder, held), Some(200));
}

#[test]
fn a_join_token_is_good_once_and_a_made_up_one_never() {
    let mut site = Site::start("tokens", NetworkBoot::Off).unwrap();
    site.join(1, "64MiB").unwrap();
    let spent = site.server.first().join_token.clone();
    let fresh = site.server.join_token().unwrap();
    let host = site.lab.host("stranger", 50).unwrap();
    let join = |token: &str| Agent::join(&site.lab, &host, &site.server, token, "64MiB");
    let error = format!("{:#}", join(&spent).unwrap_err());
    assert!(error.contains("used"), "{error}");
    // The same token with another secret: the right server, the right form, nobody's token.
    let at = "cairn_join_".len();
    let other = if fresh[at..].starts_with('A') { "B" } else { "A" };
    let made_up = format!("{}{other}{}", &fresh[..at], &fresh[at + 1..]);
    let error = format!("{:#}", join(&made_up).unwrap_err());
    assert!(error.contains("token"), "{error}");
    assert_eq!(site.server.agents().unwrap().len(), 1, "no stranger became a member");
    join(&fresh).unwrap();
    assert_eq!(site.server.agents().unwrap().len(), 2);
}
