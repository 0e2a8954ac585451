//! Starts servers and speaks to them as administrator, agent and target.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cairn_array::{
    pace::Rates,
    tls::{self, KeyAndCsr, Member, NameTable, Papers, Token, Trust, new_key_and_csr},
    wire::{
        DiskLine, Firmware, HelloReply, Inventory, JoinReply, JoinRequest, MachineIdentity,
        SyncReply, SyncRequest, TargetHello, TicketReply, WIRE_VERSION,
    },
};
use cairn_core::units::{ByteCount, Generation};
use cairn_server::{
    api::{error::Problem, token::NewTokenReply},
    cli::client::Client,
    config::ServeOptions,
    db::DatabaseAddress,
    first_start::FirstStart,
    serve,
};
use cairn_tests::postgres::fresh_database;
use clap::Parser;
use reqwest::{Method, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: ServeOptions,
}

/// The options of a server on loopback, on ports that the system chooses.
pub(crate) fn options(data_dir: &Path) -> ServeOptions {
    let folder = data_dir.to_str().unwrap();
    let words = [
        "serve",
        "--data-dir",
        folder,
        "--listen",
        "127.0.0.1:0",
        "--boot-listen",
        "127.0.0.1:0",
        "--nbd",
        "127.0.0.1:0",
    ];
    let mut options = Line::parse_from(words).options;
    options.database = Some(database(data_dir));
    options
}

/// Where the server of this folder keeps its database: in the folder, or in a database of its own of the PostgreSQL server
/// that the tests are to use.
pub(crate) fn database(folder: &Path) -> DatabaseAddress {
    let kept = folder.join("test-database");
    if let Ok(url) = std::fs::read_to_string(&kept) {
        return url.parse().unwrap();
    }
    match fresh_database().unwrap() {
        Some(url) => {
            std::fs::write(kept, &url).unwrap();
            url.parse().unwrap()
        }
        None => DatabaseAddress::Sqlite(folder.join("cairn.db")),
    }
}

/// A server in a thread and runtime of its own, so that it can be killed whole.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) bound: SocketAddr,
    pub(crate) nbd: SocketAddr,
    pub(crate) boot: SocketAddr,
    pub(crate) first_start: Option<FirstStart>,
    pub(crate) ca_pem: String,
    api: Client,
    stop: CancellationToken,
    /// Kills it when the test is over.
    kill: DropGuard,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    pub(crate) async fn start_in(folder: TempDir) -> Self {
        let options = options(folder.path());
        Self::start_as(options, folder).await
    }

    /// With options of the test's own for this folder.
    pub(crate) async fn start_as(options: ServeOptions, folder: TempDir) -> Self {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (tell, told) = tokio::sync::oneshot::channel();
        let (stopper, killer) = (stop.clone(), kill.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            let result = runtime.block_on(async {
                let running = Box::pin(serve::start(options, stopper)).await?;
                let at = (running.bound, running.nbd, running.boot);
                tell.send((at, running.first_start.clone())).unwrap();
                tokio::select! {
                    result = running.run() => result,
                    () = killer.cancelled() => Ok(()),
                }
            });
            // What was running is dropped where it is, as by a kill.
            runtime.shutdown_timeout(Duration::ZERO);
            result
        });
        let Ok(((bound, nbd, boot), first_start)) = told.await else {
            panic!("{:#}", thread.join().unwrap().unwrap_err());
        };
        let token: Token = read(folder.path(), "secrets/cli-token").parse().unwrap();
        let api = Client::new(&format!("https://{bound}"), &token).unwrap();
        let ca_pem = read(folder.path(), "secrets/ca.pem");
        let thread = Some(thread);
        Self {
            folder,
            bound,
            nbd,
            boot,
            first_start,
            ca_pem,
            api,
            stop,
            kill: kill.drop_guard(),
            thread,
        }
    }

    /// Stops it as SIGTERM does.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap().unwrap();
        self.folder
    }

    /// Stops it without giving it time for anything.
    pub(crate) async fn kill(mut self) -> TempDir {
        drop(self.kill);
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap().unwrap();
        // Unlike those of a process, the threads of its volumes and connections take a moment to see it.
        let store = std::fs::File::open(self.folder.path().join("store")).unwrap();
        let lock = rustix::fs::FlockOperation::LockExclusive;
        let gone = tokio::task::spawn_blocking(move || rustix::fs::flock(&store, lock).unwrap());
        let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
        gone.expect("the killed server goes on").unwrap();
        self.folder
    }

    /// The administrator's client.
    pub(crate) const fn api(&self) -> &Client {
        &self.api
    }

    /// A client without a token, with or without a certificate.
    pub(crate) fn client(&self, papers: Option<&Papers>) -> reqwest::Client {
        let names = Arc::new(NameTable::default());
        names.set(Member::Server, self.bound);
        tls::client(&Trust::Ca(self.ca_pem.clone()), papers, names).unwrap()
    }

    /// Makes a join token; `extra` are further fields of the request.
    pub(crate) async fn join_token(&self, extra: serde_json::Value) -> Token {
        let mut request = serde_json::json!({ "kind": "join" });
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let made: NewTokenReply = self.api.post_json("/api/v1/tokens", &request).await.unwrap();
        assert!(made.command.unwrap().starts_with("cairn-agent join https://127.0.0.1:"));
        made.token.parse().unwrap()
    }

    pub(crate) async fn try_join(&self, secret: &str, key: &KeyAndCsr) -> Response {
        let request = JoinRequest {
            secret: secret.to_owned(),
            csr_pem: key.csr_pem.clone(),
            hostname: "client-1".to_owned(),
            lend: ByteCount(10 << 30),
            peer_port: 8442,
        };
        let call = self.client(None).post(tls::url(&Member::Server, "/agent/v1/join"));
        call.json(&request).send().await.unwrap()
    }

    /// Lets an agent join; it is approved when the token says so.
    pub(crate) async fn join(&self, auto_approve: bool) -> Agent {
        let token = self.join_token(serde_json::json!({ "auto_approve": auto_approve })).await;
        let key = new_key_and_csr().unwrap();
        let response = self.try_join(&token.secret, &key).await;
        assert_eq!(response.status(), StatusCode::OK);
        let reply: JoinReply = response.json().await.unwrap();
        let papers = Papers {
            certificate_pem: reply.certificate_pem.clone(),
            key_pem: key.key_pem,
            ca_pem: reply.ca_pem.clone(),
        };
        let client = self.client(Some(&papers));
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Agent { reply, caller: Caller { client, bearer: None }, clock, mac: None }
    }

    /// A machine says hello.
    pub(crate) async fn hello(&self, mac: &str, image: Option<&str>) -> Target {
        let key = new_key_and_csr().unwrap();
        self.hello_with(key, mac, image).await
    }

    pub(crate) async fn hello_with(
        &self,
        key: KeyAndCsr,
        mac: &str,
        image: Option<&str>,
    ) -> Target {
        let caller = Caller { client: self.client(None), bearer: None };
        let hello = hello(&key.csr_pem, mac, image);
        let response = caller.post("/target/v1/hello", &hello).await;
        assert_eq!(response.status(), StatusCode::OK);
        let reply: HelloReply = response.json().await.unwrap();
        let bearer = Some(reply.session.clone());
        Target { key, reply, caller: Caller { bearer, ..caller } }
    }

    /// Adds a small image that differs by its seed.
    pub(crate) async fn add_image(&self, name: &str, seed: u8) -> Vec<u8> {
        let image = image(seed);
        let path = format!("/api/v1/images/{name}/versions?format=raw&any_content=true");
        let request = self.api.request(Method::POST, &path).body(image.clone());
        self.api.send(request).await.unwrap();
        image
    }
}

/// A disk of 1 MiB whose first 256 KiB are noise.
pub(crate) fn image(seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut noise = std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let mut image: Vec<u8> = noise.by_ref().take(256 << 10).collect();
    image.resize(1 << 20, 0);
    image
}

pub(crate) fn hello(csr_pem: &str, mac: &str, image: Option<&str>) -> TargetHello {
    TargetHello {
        csr_pem: csr_pem.to_owned(),
        identity: MachineIdentity { macs: vec![mac.to_owned()], ..MachineIdentity::default() },
        disks: vec![DiskLine {
            path: "/dev/vda".to_owned(),
            size: ByteCount(8 << 30),
            model: None,
            serial: Some("disk-1".to_owned()),
            wwn: None,
            read_only: false,
            removable: false,
            rotational: false,
            busy: false,
            // A storage partition lets nobody pass: what an agent keeps there is not known.
            storage: Some(ByteCount(1 << 30)),
        }],
        firmware: Firmware::Uefi,
        secure_boot: false,
        image: image.map(str::to_owned),
        inventory: Inventory::default(),
    }
}

/// Somebody who calls the server.
pub(crate) struct Caller {
    pub(crate) client: reqwest::Client,
    pub(crate) bearer: Option<String>,
}

impl Caller {
    pub(crate) async fn get(&self, path: &str) -> Response {
        let request = self.client.get(tls::url(&Member::Server, path));
        self.send(request).await
    }

    pub(crate) async fn post<T: Serialize>(&self, path: &str, body: &T) -> Response {
        let request = self.client.post(tls::url(&Member::Server, path)).json(body);
        self.send(request).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Response {
        let request = match &self.bearer {
            Some(bearer) => request.bearer_auth(bearer),
            None => request,
        };
        tokio::time::timeout(PATIENCE, request.send()).await.expect("an answer in time").unwrap()
    }
}

pub(crate) struct Agent {
    pub(crate) reply: JoinReply,
    pub(crate) caller: Caller,
    /// What it says that its clock shows.
    pub(crate) clock: u64,
    /// Of the machine that it says it runs on.
    pub(crate) mac: Option<String>,
}

impl Agent {
    pub(crate) async fn sync(&self, directory: u64, assignment: u64) -> Response {
        let request = SyncRequest {
            stores: true,
            written_today: ByteCount(3 << 20),
            clock: self.clock,
            lend: ByteCount(10 << 30),
            used: ByteCount(0),
            peer_port: 9442,
            mac: self.mac.clone(),
            directory: Generation(directory),
            assignment: Generation(assignment),
            limits: Rates::default(),
            wire: WIRE_VERSION,
        };
        self.caller.post("/agent/v1/sync", &request).await
    }

    pub(crate) async fn synced(&self, directory: u64, assignment: u64) -> SyncReply {
        json(self.sync(directory, assignment).await).await
    }
}

pub(crate) struct Target {
    pub(crate) key: KeyAndCsr,
    pub(crate) reply: HelloReply,
    pub(crate) caller: Caller,
}

impl Target {
    pub(crate) async fn ticket(&self) -> TicketReply {
        json(self.caller.get("/target/v1/ticket").await).await
    }
}

/// A successful answer.
pub(crate) async fn json<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A problem document, checked to be one: its status and its code.
pub(crate) async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let text = response.text().await.unwrap();
    assert_eq!(kind, "application/problem+json", "{text}");
    let problem: Problem = serde_json::from_str(&text).unwrap();
    assert_eq!(problem.status, status);
    assert!(problem.detail.len() > 10, "a problem says what to do: {text}");
    (status, problem.code)
}

/// The code of the problem that an administrator's call ran into.
pub(crate) fn code<T: std::fmt::Debug>(result: anyhow::Result<T>) -> String {
    let error = result.unwrap_err();
    let refused = error.downcast_ref::<cairn_server::cli::client::Refused>();
    refused.unwrap_or_else(|| panic!("{error:#}")).problem.code.clone()
}

pub(crate) fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}
