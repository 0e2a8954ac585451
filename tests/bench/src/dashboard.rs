//! The dashboard and the API with a large site behind them: how long pages take, how heavy they are, how many reads a second, and
//! what it costs when many people look while much happens.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use cairn_array::wire::{InstallPhase, InstallProgress};
use cairn_core::units::ByteCount;
use futures::StreamExt as _;
use reqwest::{Client, StatusCode, header};
use tokio::task::JoinSet;

use super::{Figure, Wanted};
use cairn_tests::{
    cairn::binary,
    process::{Process, Program},
    tool,
};

const MACHINES: u32 = 1000;
const IMAGES: u32 = 200;
/// All that a server keeps.
const EVENTS: u32 = 100_000;
/// Loads of each page.
const LOADS: usize = 15;
const READERS: u32 = 16;
/// Seconds.
const READING: u32 = 10;
/// Pages that are open at once.
const OPEN: usize = 200;
/// Who tells of machines at once.
const WORKERS: u32 = 32;
const UPDATES_PER_SECOND: u32 = 1000;
const WATCHING: Duration = Duration::from_secs(10);
const START: Duration = Duration::from_secs(60);
pub(super) const PAGES: [&str; 8] =
    ["", "images", "machines", "deployments", "boot", "agents", "array", "settings"];

/// Fills the database of a server that is stopped.
const FILL: &str = r#"
import hashlib, json, os, sqlite3, sys, time
path, machines, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(path)
now = int(time.time() * 1000)
versions = [row[0] for row in db.execute("SELECT id FROM version ORDER BY number")]
disks = json.dumps([{"path": "/dev/sda", "size": 512110190592, "model": "SSD 860 EVO", "serial": "S3Z9NB0K", "wwn": None,
    "read_only": False, "removable": False, "rotational": False, "busy": False, "storage": None}])
db.execute("INSERT INTO deployment (version, disk, after, preapproved, at_once, created) VALUES (?, ?, ?, 0, 0, ?)",
    (versions[0], json.dumps({"by": "only"}), json.dumps("reboot"), now))
deployment = db.execute("SELECT max(id) FROM deployment").fetchone()[0]
progress = json.dumps({"phase": "done", "total": 1000, "from_peers": 900, "from_server": 100, "rebuilt": 0, "already": 0,
    "written": 2000, "milliseconds": 1000, "error": None})
db.execute("INSERT INTO deployment (version, disk, after, preapproved, at_once, created) VALUES (?, ?, ?, 0, 0, ?)",
    (versions[0], json.dumps({"by": "only"}), json.dumps("reboot"), now))
running = db.execute("SELECT max(id) FROM deployment").fetchone()[0]
db.execute("INSERT INTO machine_group (name, image, created) SELECT 'all', image, ? FROM version WHERE id = ?", (now, versions[0]))
for number in range(machines):
    machine = os.urandom(16)
    db.execute("INSERT INTO machine (id, name, uuid, serial, vendor, product, firmware, secure_boot, disks, created, seen, installed)"
        " VALUES (?, ?, ?, ?, 'Dell Inc.', 'OptiPlex 7010', 'uefi', 0, ?, ?, ?, ?)",
        (machine, f"pc-{number}", f"4c4c4544-0000-0000-0000-{number:012x}", f"SER{number}", disks, now, now,
         versions[number % len(versions)]))
    db.execute("INSERT INTO machine_mac (mac, machine) VALUES (?, ?)", (f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}", machine))
    db.execute("INSERT INTO install (id, deployment, machine, state, progress, created, started, ended)"
        " VALUES (?, ?, ?, 'done', ?, ?, ?, ?)", (os.urandom(16), deployment, machine, progress, now, now, now))
    install = os.urandom(16)
    db.execute("INSERT INTO install (id, deployment, machine, state, progress, created, started) VALUES (?, ?, ?, 'running', ?, ?, ?)",
        (install, running, machine, progress.replace("done", "writing"), now, now))
    db.execute("INSERT INTO target (hash, machine, public_key, code, state, address, install, created, seen)"
        " VALUES (?, ?, ?, ?, 'approved', '10.0.0.1:1', ?, ?, ?)", (hashlib.sha256(f"session-{number}".encode()).digest(), machine,
         os.urandom(91), f"{number:04}-AAAA", install, now, now))
    db.execute("INSERT INTO group_member (machine, in_group) VALUES (?, 'all')", (machine,))
first = now * 1000 - 10**12
db.executemany("INSERT INTO event (id, kind, payload) VALUES (?, 'machine-changed', '{}')", ((first + n,) for n in range(events)))
db.commit()
"#;

/// Reads one machine after the other.
const READS: &str = r#"
local machine = 0
request = function()
  machine = (machine + 7) % 1000
  return wrk.format("GET", string.format("/api/v1/machines/52:54:00:00:%02x:%02x", math.floor(machine / 256), machine % 256))
end
"#;

/// A server on loopback.
pub(super) struct Server {
    pub(super) url: String,
    process: Process,
    /// From its start on.
    ready: Duration,
}

impl Server {
    pub(super) fn start(data: &Path, password: &mut Option<String>) -> Result<Self> {
        let begun = Instant::now();
        let process = Program::new("cairn-server", binary("cairn-server")?)
            .args(["serve", "--listen", "127.0.0.1:0", "--boot-listen", "127.0.0.1:0"])
            .args(["--nbd", "127.0.0.1:0", "--data-dir"])
            .args([data])
            .start()?;
        if password.is_none() {
            let found = process.wait_for_line(r"with password (\S+)", START)?;
            *password = Some(found.groups[1].clone());
        }
        let url = process.wait_for_line(r"ready: (https://\S+)", START)?.groups[1].clone();
        Ok(Self { url, process, ready: begun.elapsed() })
    }

    /// Seconds of a processor that it has used.
    fn used(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))
            .context("read what the server used")?;
        // After the name, which may have spaces.
        let (_, rest) = stat.rsplit_once(')').context("read what the server used")?;
        let mut ticks = rest.split_whitespace().skip(11).map(str::parse::<u32>);
        let mut next = || anyhow::Ok(ticks.next().context("read what the server used")??);
        Ok(f64::from(next()? + next()?) / 100.0)
    }
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    // There is one already when another bench came first.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let folder = tempfile::tempdir().context("make a folder")?;
    let data = folder.path().join("data");
    let mut password = None;
    let mut server = Server::start(&data, &mut password)?;
    let password = password.context("the server prints a password")?;
    let token = fs::read_to_string(data.join("secrets/cli-token")).context("read the token")?;
    let mut headers = header::HeaderMap::new();
    let bearer = format!("Bearer {}", token.trim());
    headers.insert(header::AUTHORIZATION, bearer.parse().context("the token is plain")?);
    let api = client().default_headers(headers).build().context("make a client")?;
    runtime.block_on(add_images(&api, &server.url))?;
    server.process.terminate()?;
    let mut fill = Command::new("/usr/bin/python3");
    fill.args(["-c", FILL]).arg(data.join("cairn.db"));
    tool::finish(fill.args([MACHINES.to_string(), EVENTS.to_string()]))?;
    let server = Server::start(&data, &mut Some(String::new()))?;
    let mut figures =
        vec![Figure::new("start to ready", server.ready.as_secs_f64(), "s", Wanted::AtMost(1.0))];
    let session = browser(&runtime.block_on(sign_in(&server.url, &password))?)?;
    figures.extend(runtime.block_on(pages(&session, &server.url))?);
    figures.extend(reads(folder.path(), &server.url, token.trim())?);
    let targets = client().build().context("make a client")?;
    let alone = runtime.block_on(watched(&targets, &session, &server, 0))?;
    let watched = runtime.block_on(watched(&targets, &session, &server, OPEN))?;
    figures.push(Figure::new(
        "reports of machines a second",
        watched.1,
        "/s",
        Wanted::AtLeast(f64::from(UPDATES_PER_SECOND) * 0.98),
    ));
    figures.push(Figure::new("processors for that, nobody looks", alone.0, "", Wanted::Nothing));
    figures.push(Figure::new(
        "processors more with 200 pages open",
        watched.0 - alone.0,
        "",
        Wanted::AtMost(1.0),
    ));
    figures.push(Figure::new("parts of pages fetched a second", watched.2, "/s", Wanted::Nothing));
    Ok(figures)
}

fn client() -> reqwest::ClientBuilder {
    Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .redirect(reqwest::redirect::Policy::none())
}

async fn add_images(api: &Client, url: &str) -> Result<()> {
    for number in 0..IMAGES {
        let content: Vec<u8> = (0..1_u32 << 18)
            .flat_map(|word| (word.wrapping_mul(2_654_435_761) ^ number).to_le_bytes())
            .collect();
        let at = format!("{url}/api/v1/images/image-{number}/versions?format=raw&any_content=true");
        let answer = api.post(at).body(content).send().await.context("add an image")?;
        ensure!(answer.status() == StatusCode::CREATED, "add an image: {}", answer.status());
    }
    Ok(())
}

/// The cookie of a session.
pub(super) async fn sign_in(url: &str, password: &str) -> Result<String> {
    let plain = client().build().context("make a client")?;
    let wish = serde_json::json!({ "password": password });
    let answer = plain.post(format!("{url}/api/v1/session")).json(&wish).send().await;
    let answer = answer.context("sign in")?;
    let cookie = answer.headers().get(header::SET_COOKIE).context("no session came")?;
    let cookie = cookie.to_str().context("read the cookie")?;
    let (cookie, _) = cookie.split_once(';').context("read the cookie")?;
    Ok(cookie.to_owned())
}

/// A browser with a session.
fn browser(cookie: &str) -> Result<Client> {
    let mut headers = header::HeaderMap::new();
    headers.insert(header::COOKIE, cookie.parse().context("read the cookie")?);
    // Every browser has connections of its own.
    client().http1_only().default_headers(headers).build().context("make a client")
}

async fn get(client: &Client, url: &str) -> Result<String> {
    let answer = client.get(url).send().await.with_context(|| format!("get {url}"))?;
    ensure!(answer.status() == StatusCode::OK, "{url}: {}", answer.status());
    answer.text().await.with_context(|| format!("get {url}"))
}

/// The bytes of an answer as a browser is sent it.
async fn sent(client: &Client, url: &str) -> Result<u64> {
    let request = client.get(url).header(header::ACCEPT_ENCODING, "gzip");
    let answer = request.send().await.with_context(|| format!("get {url}"))?;
    ensure!(answer.status() == StatusCode::OK, "{url}: {}", answer.status());
    Ok(answer.bytes().await.with_context(|| format!("get {url}"))?.len() as u64)
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
const fn number(count: u64) -> f64 {
    count as f64
}

/// The slowest page and the heaviest, with all that belongs to it.
async fn pages(session: &Client, url: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for page in PAGES {
        let at = format!("{url}/{page}");
        let mut took = Vec::new();
        let mut bytes = 0;
        for _ in 0..LOADS {
            let begun = Instant::now();
            bytes = sent(session, &at).await?;
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        took.sort_by(f64::total_cmp);
        let html = get(session, &at).await?;
        for part in html.split(['"', '\'']).filter(|part| part.starts_with("/static/")) {
            bytes += sent(session, &format!("{url}{part}")).await?;
        }
        let name = if page.is_empty() { "overview" } else { page };
        let median = took.get(LOADS / 2).copied().context("it was loaded")?;
        figures.push(Figure::new(
            &format!("page {name}, the median"),
            median,
            "ms",
            Wanted::AtMost(100.0),
        ));
        let kilobytes = number(bytes) / 1000.0;
        let what = format!("page {name}, with script and style");
        figures.push(Figure::new(&what, kilobytes, "kB", Wanted::AtMost(150.0)));
    }
    Ok(figures)
}

/// How often a machine is read in a second.
fn reads(folder: &Path, url: &str, token: &str) -> Result<Vec<Figure>> {
    let script = folder.join("reads.lua");
    fs::write(&script, READS).context("write a script")?;
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{READERS}"), &format!("-d{READING}s"), "-s"]).arg(&script);
    wrk.args(["-H", &format!("Authorization: Bearer {token}"), url]);
    let said = tool::finish(&mut wrk)?;
    let of = |name: &str| {
        let (_, rest) = said.split_once(name)?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    let a_second = of("Requests/sec:").with_context(|| format!("wrk said {said}"))?;
    let failed = of("Non-2xx or 3xx responses:").unwrap_or(0.0);
    Ok(vec![
        Figure::new(
            "reads of a machine a second, the reader beside it",
            a_second,
            "/s",
            Wanted::AtLeast(5000.0),
        ),
        Figure::new("of these failed", failed, "", Wanted::AtMost(0.0)),
    ])
}

/// Machines that install say how far they are and so many pages show it: the processors that the server takes, what is told a
/// second, parts fetched a second.
async fn watched(
    targets: &Client,
    session: &Client,
    server: &Server,
    open: usize,
) -> Result<(f64, f64, f64)> {
    let (fetched, changed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut looking = JoinSet::new();
    for _ in 0..open {
        let (session, url, fetched) = (session.clone(), server.url.clone(), fetched.clone());
        looking.spawn(async move { look(&session, &url, &fetched).await });
    }
    let mut changing = JoinSet::new();
    let begun = Instant::now();
    let before = server.used()?;
    let each = Duration::from_secs(1) * WORKERS / UPDATES_PER_SECOND;
    for worker in 0..WORKERS {
        let (targets, url, changed) = (targets.clone(), server.url.clone(), changed.clone());
        changing.spawn(async move {
            let mut pace = tokio::time::interval(each);
            let mut machine = worker;
            let progress = InstallProgress {
                phase: InstallPhase::Writing,
                total: ByteCount(1000),
                from_peers: ByteCount(450),
                from_server: ByteCount(50),
                rebuilt: ByteCount(0),
                already: ByteCount(0),
                written: ByteCount(500),
                milliseconds: 500,
                percent: None,
                bottleneck: None,
                error: None,
            };
            while begun.elapsed() < WATCHING {
                pace.tick().await;
                machine = (machine + WORKERS) % MACHINES;
                let at = format!("{url}/target/v1/progress");
                let told =
                    targets.post(at).bearer_auth(format!("session-{machine}")).json(&progress);
                let answer = told.send().await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    changed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    changing.join_all().await;
    let seconds = begun.elapsed().as_secs_f64();
    let used = server.used()? - before;
    looking.shutdown().await;
    let per_second = |count: &AtomicU64| number(count.load(Ordering::Relaxed)) / seconds;
    Ok((used / seconds, per_second(&changed), per_second(&fetched)))
}

/// A page of deployments that is open: it is told that something changed, and fetches its part.
async fn look(session: &Client, url: &str, fetched: &AtomicU64) -> Result<()> {
    let answer = session.get(format!("{url}/live")).send().await.context("listen")?;
    let mut told = answer.bytes_stream();
    while let Some(event) = told.next().await {
        if String::from_utf8_lossy(&event.context("listen")?).contains("event: installs") {
            get(session, &format!("{url}/parts/deployments")).await?;
            fetched.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}
