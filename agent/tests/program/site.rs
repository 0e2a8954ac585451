//! The server's side of the conversation, by script: it can say what the real one never would (an older assignment,
//! the bytes of another segment) and keeps what it is told. Trust and transport are the real ones.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use cairn_array::{
    pace::{Pace, Rates},
    peer::{Found, PeerClient, SegmentSource, routes},
    tls::{self, Fingerprint, Member, NameTable, Papers, Token, TokenKind, Trust},
    wire::{
        AssignedSegment, Assignment, Holdings, JoinReply, JoinRequest, MemberState, SegmentClass,
        SyncReply, SyncRequest,
    },
};
use cairn_core::{
    directory::{Directory, MemberEntry},
    id::{AgentId, SegmentId, SiteId},
    sign::SigningKey,
    units::{ByteCount, Generation},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub(crate) const AGENT: AgentId = AgentId([0xa1; 16]);
const SITE: SiteId = SiteId([0x51; 16]);
/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server says next, and what it was told.
pub(crate) struct Script {
    pub(crate) state: MemberState,
    /// The number that sync names; the documents below may have others.
    pub(crate) announced: Generation,
    pub(crate) assignment: Assignment,
    pub(crate) directory: Directory,
    pub(crate) holdings: Vec<Holdings>,
    pub(crate) synced: u32,
    /// What the last sync said that is lent, and whether the agent stores.
    pub(crate) lend: ByteCount,
    pub(crate) stores: bool,
    /// The directory that the agent says it has, and whether that ever was an older one than before.
    pub(crate) has: Generation,
    pub(crate) went_back: bool,
    /// The directory that peers give when they are asked.
    pub(crate) gossip: Option<Vec<u8>>,
    peer_port: u16,
}

/// Segments by what they are asked for; under a wrong id for a peer that lies.
#[derive(Clone, Default)]
pub(crate) struct Shelf(pub(crate) Arc<Mutex<HashMap<SegmentId, Bytes>>>);

impl SegmentSource for Shelf {
    async fn segment(&self, id: SegmentId, _: Member) -> anyhow::Result<Found> {
        let found = self.0.lock().unwrap().get(&id).cloned();
        Ok(found.map_or(Found::NotHere, Found::Here))
    }
}

#[derive(Clone)]
pub(crate) struct Site {
    issuer: Arc<rcgen::Issuer<'static, rcgen::KeyPair>>,
    ca_pem: String,
    signer: Arc<SigningKey>,
    script: Arc<Mutex<Script>>,
    news: watch::Sender<u64>,
    pub(crate) store: Shelf,
    pub(crate) addr: SocketAddr,
    /// Ends the server at its first address.
    moved: CancellationToken,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        // Clones live in the handlers; the one in the test is the last to go that matters.
        if Arc::strong_count(&self.signer) <= 2 {
            self.stop.cancel();
        }
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let script = Script {
            state: MemberState::Approved,
            announced: Generation(0),
            assignment: Assignment { number: Generation(0), segments: vec![], recheck: vec![] },
            directory: Directory {
                authority: Vec::new(),
                bundle: Vec::new(),
                server: None,
                site: SITE,
                number: Generation(1),
                members: vec![],
                revoked: vec![],
            },
            holdings: vec![],
            synced: 0,
            lend: ByteCount(0),
            stores: true,
            has: Generation(0),
            went_back: false,
            gossip: None,
            peer_port: 0,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Self {
            issuer: Arc::new(rcgen::Issuer::new(params, key)),
            ca_pem,
            signer: Arc::new(SigningKey::from_seed(&[9; 32]).unwrap()),
            script: Arc::new(Mutex::new(script)),
            news: watch::channel(0).0,
            store: Shelf::default(),
            addr: listener.local_addr().unwrap(),
            moved: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        site.serve(listener, site.moved.clone());
        site
    }

    fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        let app = Router::new()
            .route("/agent/v1/join", post(join))
            .route("/agent/v1/sync", post(sync))
            .route("/agent/v1/directory", get(directory))
            .route("/agent/v1/assignment", get(assignment))
            .route("/agent/v1/holdings", post(holdings))
            .route("/agent/v1/leave", post(leave))
            .with_state(self.clone())
            .merge(routes(self.store.clone(), Arc::new(|_| true), Pace::default()));
        let tls = tls::server_tls(&self.papers(&Member::Server)).unwrap();
        tokio::spawn(tls::serve(listener, tls, app, stop));
    }

    /// The server goes to another address, which only the directory names.
    pub(crate) async fn move_server(&self) {
        self.moved.cancel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        self.serve(listener, self.stop.clone());
        self.change(|script| {
            script.directory.number.0 += 1;
            script.directory.server = Some(addr);
        });
    }

    /// A peer of the site that serves what is on the shelf.
    pub(crate) async fn start_peer(&self, agent: AgentId, shelf: Shelf) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = tls::server_tls(&self.papers(&Member::Agent(agent))).unwrap();
        let app = Router::new()
            .route("/peer/v1/directory", get(gossip))
            .with_state(self.clone())
            .merge(routes(shelf, Arc::new(|_| true), Pace::default()));
        tokio::spawn(tls::serve(listener, tls, app, self.stop.clone()));
        self.add_member(agent, Some(addr));
    }

    pub(crate) fn add_member(&self, agent: AgentId, addr: Option<SocketAddr>) {
        self.change(|script| {
            script.directory.number.0 += 1;
            script.directory.members.push(MemberEntry { agent, name: agent.to_string(), addr });
        });
    }

    pub(crate) fn papers(&self, member: &Member) -> Papers {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![member.dns_name()]).unwrap();
        let certificate_pem = params.signed_by(&key, &*self.issuer).unwrap().pem();
        Papers { certificate_pem, key_pem: key.serialize_pem(), ca_pem: self.ca_pem.clone() }
    }

    pub(crate) fn token(&self) -> String {
        let fingerprint = Fingerprint::of_pem(&self.ca_pem).unwrap();
        Token::random(TokenKind::Join, fingerprint).unwrap().to_string()
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Changes what the server says; a held sync is answered.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        let outcome = change(&mut self.script());
        self.news.send_modify(|news| *news += 1);
        outcome
    }

    /// Puts a segment into the store.
    pub(crate) fn stock(&self, bytes: &[u8]) -> SegmentId {
        let id = SegmentId::of(bytes);
        self.store.0.lock().unwrap().insert(id, Bytes::copy_from_slice(bytes));
        id
    }

    /// Assigns segments that are in the store under the next number.
    pub(crate) fn assign(&self, ids: &[SegmentId], sources: &[AgentId]) -> Generation {
        let store = self.store.0.lock().unwrap();
        let segment = |id: &SegmentId| AssignedSegment {
            id: *id,
            bytes: u32::try_from(store[id].len()).unwrap(),
            class: SegmentClass::Data,
            sources: sources.to_vec(),
        };
        let segments = ids.iter().map(segment).collect();
        self.change(|script| {
            let number = Generation(script.announced.0 + 1);
            script.announced = number;
            script.assignment = Assignment { number, segments, recheck: vec![] };
            number
        })
    }

    /// Waits until what was told satisfies `enough`.
    pub(crate) async fn told(&self, what: &str, enough: impl Fn(&Script) -> bool) {
        let mut news = self.news.subscribe();
        let wait = news.wait_for(|_| enough(&self.script()));
        let told = tokio::time::timeout(PATIENCE, wait).await.is_ok_and(|waited| waited.is_ok());
        assert!(told, "{what}; told so far: {:?}", self.script().holdings);
    }

    /// Waits until the agent has said that it fulfils the assignment.
    pub(crate) async fn fulfilled(&self, number: Generation) {
        let fulfils =
            |script: &Script| script.holdings.iter().any(|told| told.fulfils == Some(number));
        self.told(&format!("assignment {number} is fulfilled"), fulfils).await;
    }

    /// A client of the agent under test, with the papers of `member`.
    pub(crate) fn peer_client(&self, member: &Member) -> PeerClient {
        PeerClient::new(self.client(Some(member)))
    }

    /// As [`Self::peer_client`], for any path; without a member a stranger's.
    pub(crate) fn client(&self, member: Option<&Member>) -> reqwest::Client {
        let names = NameTable::default();
        names
            .set(Member::Agent(AGENT), SocketAddr::from(([127, 0, 0, 1], self.script().peer_port)));
        let papers = member.map(|member| self.papers(member));
        tls::client(&Trust::Ca(self.ca_pem.clone()), papers.as_ref(), names.into()).unwrap()
    }

    /// The present directory with another number, as this site signs it.
    pub(crate) fn numbered(&self, number: u64) -> Vec<u8> {
        let directory = self.script().directory.clone();
        Directory { number: Generation(number), ..directory }.seal(&self.signer)
    }

    fn certify(&self, csr_pem: &str, member: &Member) -> String {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        request.params = rcgen::CertificateParams::new(vec![member.dns_name()]).unwrap();
        request.signed_by(&*self.issuer).unwrap().pem()
    }
}

async fn join(State(site): State<Site>, Json(request): Json<JoinRequest>) -> Json<JoinReply> {
    Json(JoinReply {
        agent: AGENT,
        site: SITE,
        certificate_pem: site.certify(&request.csr_pem, &Member::Agent(AGENT)),
        ca_pem: site.ca_pem.clone(),
        signing_key: site.signer.verifying_key(),
        state: MemberState::Approved,
    })
}

/// The real server's words to a member that is none any more.
fn dismissed(state: MemberState) -> Option<Response> {
    let code = match state {
        MemberState::Pending | MemberState::Approved => return None,
        MemberState::Revoked => "agent_revoked",
        MemberState::Left => "agent_left",
    };
    let problem = serde_json::json!({ "code": code, "title": "Forbidden", "detail": "join again" });
    Some((StatusCode::FORBIDDEN, Json(problem)).into_response())
}

async fn sync(State(site): State<Site>, Json(request): Json<SyncRequest>) -> Response {
    let mut news = site.news.subscribe();
    let known = |script: &Script| {
        request.directory >= script.directory.number
            && request.assignment >= script.announced
            && script.state == MemberState::Approved
    };
    site.change(|script| {
        script.peer_port = request.peer_port;
        script.synced += 1;
        (script.lend, script.stores) = (request.lend, request.stores);
        script.went_back |= request.directory < script.has;
        script.has = request.directory;
    });
    // Held like the real one, but never for long.
    let wait = news.wait_for(|_| !known(&site.script()));
    drop(tokio::time::timeout(Duration::from_secs(5), wait).await);
    let script = site.script();
    dismissed(script.state).unwrap_or_else(|| {
        let reply = SyncReply {
            state: script.state,
            directory: script.directory.number,
            assignment: script.announced,
            want_holdings: false,
            limits: Rates::default(),
        };
        Json(reply).into_response()
    })
}

async fn directory(State(site): State<Site>) -> Vec<u8> {
    site.script().directory.seal(&site.signer)
}

async fn gossip(State(site): State<Site>) -> Response {
    let signed = site.script().gossip.clone();
    signed.map_or_else(|| StatusCode::NO_CONTENT.into_response(), IntoResponse::into_response)
}

async fn assignment(State(site): State<Site>) -> Json<Assignment> {
    Json(site.script().assignment.clone())
}

async fn holdings(State(site): State<Site>, Json(told): Json<Holdings>) -> StatusCode {
    site.change(|script| script.holdings.push(told));
    StatusCode::NO_CONTENT
}

async fn leave(State(site): State<Site>) -> StatusCode {
    site.change(|script| script.state = MemberState::Left);
    StatusCode::NO_CONTENT
}
