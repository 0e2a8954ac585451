//! A client's life: joining, holding what it is assigned, serving members, faults, leaving.

use std::{
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use cairn_agent::daemon::Status;
use cairn_array::{
    peer::{FetchError, Source},
    tls::{Member, url},
    wire::{BadSegment, MemberState, SiteLine},
};
use cairn_core::{
    id::{AgentId, InstallId, SegmentId},
    units::Generation,
};

use crate::{
    agent, outcome,
    site::{AGENT, Shelf, Site},
};

const OTHER: AgentId = AgentId([0xb2; 16]);

/// A running agent; killed without warning when dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    /// Lets it end as it should.
    pub(crate) fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

pub(crate) fn start(state: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn-agent"));
    command.arg("--state-dir").arg(state).arg("run").stderr(Stdio::inherit());
    Running(command.spawn().expect("start cairn-agent"))
}

/// A site and a client that has joined it.
pub(crate) async fn joined(state: &Path) -> Site {
    let site = Site::start().await;
    let (code, said) = join(state, &site).await;
    assert_eq!(code, Some(0), "{said}");
    site
}

async fn join(state: &Path, site: &Site) -> (Option<i32>, String) {
    let (state, url, token) = (state.to_owned(), format!("https://{}", site.addr), site.token());
    tokio::task::spawn_blocking(move || {
        let join = ["join", &url, &token, "--lend", "64MiB", "--peer-listen", "127.0.0.1:0"];
        // Whatever else is on the disk of the tests.
        outcome(&state, &[&join[..], &["--reserve", "16MiB"]].concat())
    })
    .await
    .unwrap()
}

pub(crate) fn segment(byte: u8) -> Vec<u8> {
    (0..200_000_u32).map(|n| byte ^ n.to_le_bytes()[usize::from(byte) % 3]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_holds_what_it_is_assigned_and_serves_members_only() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let site = joined(&state).await;
    site.add_member(OTHER, None);
    let ids: Vec<SegmentId> = (1..=9).map(|byte| site.stock(&segment(byte))).collect();
    let first = site.assign(&ids, &[]);
    let running = start(&state);
    site.fulfilled(first).await;

    let from = Source::Peer(AGENT);
    let wanted = segment(3);
    let bytes = u32::try_from(wanted.len()).unwrap();
    for member in [Member::Agent(OTHER), Member::Target(InstallId([1; 16])), Member::Server] {
        let got = site.peer_client(&member).fetch(from, SegmentId::of(&wanted), bytes, None).await;
        assert_eq!(got.unwrap(), wanted, "{member:?}");
    }
    let stranger = site.peer_client(&Member::Agent(AgentId([0xc3; 16])));
    let refused = stranger.fetch(from, SegmentId::of(&wanted), bytes, None).await;
    assert!(matches!(refused, Err(FetchError::Refused(status)) if status.as_u16() == 403));

    // Killed at once after it was told of more: a new start says all that it holds, and goes on.
    let more: Vec<SegmentId> = (4..=14).map(|byte| site.stock(&segment(byte))).collect();
    let second = site.assign(&more, &[]);
    drop(running);
    site.change(|script| script.holdings.clear());
    let running = start(&state);
    site.fulfilled(second).await;
    site.told("a full list", |script| script.holdings.iter().any(|told| told.full)).await;

    let status = agent(&state, &["status", "--json"]);
    let status: Status = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((status.segments, status.missing, status.fulfilled), (11, 0, second));
    assert_eq!(status.state, Some(MemberState::Approved));
    let gone = site.peer_client(&Member::Agent(OTHER)).fetch(from, ids[0], bytes, None).await;
    assert!(matches!(gone, Err(FetchError::Missing)), "what is not assigned is dropped");
    let resident = resident_kib(&running.0);
    assert!(resident <= 64 << 10, "{resident} KiB resident");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_serves_other_bytes_is_reported_and_the_server_asked() {
    let folder = tempfile::tempdir().unwrap();
    let site = joined(folder.path()).await;
    let id = site.stock(&segment(1));
    let liar = Shelf::default();
    let wrong = Bytes::from(segment(2));
    liar.0.lock().unwrap().insert(id, wrong);
    site.start_peer(OTHER, liar).await;
    let number = site.assign(&[id], &[OTHER]);
    let _running = start(folder.path());
    site.fulfilled(number).await;
    let bad = BadSegment { segment: id, holder: Some(OTHER) };
    site.told("who lied", |script| script.holdings.iter().any(|told| told.bad.contains(&bad)))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_assignment_or_directory_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let site = joined(folder.path()).await;
    site.add_member(OTHER, None);
    let id = site.stock(&segment(1));
    for _ in 0..3 {
        site.assign(&[id], &[]);
    }
    let _running = start(folder.path());
    site.fulfilled(Generation(3)).await;
    // A server put back from a backup announces more than it gives, and gives what is long past.
    let synced = site.change(|script| {
        script.announced = Generation(9);
        script.assignment.number = Generation(2);
        script.assignment.segments.clear();
        script.directory.number = Generation(1);
        script.directory.members.clear();
        script.synced
    });
    site.told("several syncs", |script| script.synced >= synced + 3).await;
    let bytes = u32::try_from(segment(1).len()).unwrap();
    let got =
        site.peer_client(&Member::Agent(OTHER)).fetch(Source::Peer(AGENT), id, bytes, None).await;
    assert_eq!(got.unwrap(), segment(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_from_a_member_counts_when_it_is_newer_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let site = joined(folder.path()).await;
    site.add_member(OTHER, None);
    let id = site.stock(&segment(1));
    let number = site.assign(&[id], &[]);
    let running = start(folder.path());
    site.fulfilled(number).await;
    let at = |path: &str| url(&Member::Agent(AGENT), path);

    let stranger = site.client(None);
    let line: SiteLine =
        stranger.get(at("/peer/v1/site")).send().await.unwrap().json().await.unwrap();
    assert_eq!(line.agent, AGENT);
    let refused = stranger.get(at("/peer/v1/directory")).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let refused = stranger.post(at("/peer/v1/directory")).body(site.numbered(50)).send().await;
    assert_eq!(refused.unwrap().status(), 403);

    let member = site.client(Some(&Member::Agent(OTHER)));
    let foreign = {
        let mut signed = site.numbered(60);
        *signed.last_mut().unwrap() ^= 1;
        signed
    };
    let offered = member.post(at("/peer/v1/directory")).body(foreign).send().await.unwrap();
    assert_eq!(offered.status(), 400);
    // What comes later is looked at later: when the last has been taken, the old one between has not replaced anything.
    for number in [40, 3, 41] {
        offer(&member, site.numbered(number)).await;
    }
    holds(&site, 41).await;

    drop(running);
    let synced = site.script().synced;
    let _again = start(folder.path());
    site.told("a sync after the restart", |script| script.synced > synced).await;
    let member = site.client(Some(&Member::Agent(OTHER)));
    holds(&site, 41).await;
    for number in [40, 42] {
        offer(&member, site.numbered(number)).await;
    }
    holds(&site, 42).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_from_another_one_where_the_server_is_now() {
    let folder = tempfile::tempdir().unwrap();
    let site = joined(folder.path()).await;
    site.start_peer(OTHER, Shelf::default()).await;
    let id = site.stock(&segment(1));
    let number = site.assign(&[id], &[]);
    let _running = start(folder.path());
    site.fulfilled(number).await;
    site.move_server().await;
    let (synced, now) = {
        let script = site.script();
        (script.synced, script.directory.number.0)
    };
    // As long as nobody knows, nothing is lost: what it has is served.
    let bytes = u32::try_from(segment(1).len()).unwrap();
    let client = site.peer_client(&Member::Agent(OTHER));
    let got = client.fetch(Source::Peer(AGENT), id, bytes, None).await;
    assert_eq!(got.unwrap(), segment(1));
    let signed = site.numbered(now);
    site.change(|script| script.gossip = Some(signed));
    site.told("a sync at the new address", |script| script.synced > synced).await;
}

async fn offer(member: &reqwest::Client, signed: Vec<u8>) {
    let path = url(&Member::Agent(AGENT), "/peer/v1/directory");
    let offered = member.post(path).body(signed).send().await.unwrap();
    assert_eq!(offered.status(), 204);
}

/// Waits until the agent has the directory of this number, without an older one between, and gives it to members.
async fn holds(site: &Site, number: u64) {
    site.told("that it has the directory", |script| script.has == Generation(number)).await;
    assert!(!site.script().went_back, "an older directory replaced a newer one");
    let path = url(&Member::Agent(AGENT), "/peer/v1/directory");
    let given = site.client(Some(&Member::Agent(OTHER))).get(path).send().await.unwrap();
    assert_eq!(given.bytes().await.unwrap(), site.numbered(number));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_segment_is_not_served_but_reported_and_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let site = joined(folder.path()).await;
    let (id, whole) = (site.stock(&segment(5)), segment(5));
    let number = site.assign(&[id], &[]);
    let _running = start(folder.path());
    site.fulfilled(number).await;

    let path = folder.path().join("segments.dsf");
    let file = fs::read(&path).unwrap();
    let at = file.windows(64).position(|window| window == &whole[..64]).expect("it is in the file");
    let dsf = fs::OpenOptions::new().write(true).open(&path).unwrap();
    dsf.write_all_at(b"rot", u64::try_from(at).unwrap() + 1000).unwrap();

    let bytes = u32::try_from(whole.len()).unwrap();
    let client = site.peer_client(&Member::Server);
    let got = client.fetch(Source::Peer(AGENT), id, bytes, None).await;
    assert!(got.is_err() || got.is_ok_and(|bytes| bytes == whole), "rot is never served");
    let bad = BadSegment { segment: id, holder: Some(AGENT) };
    site.told("that it rotted", |script| {
        script.holdings.iter().any(|told| told.bad.contains(&bad))
    })
    .await;
    let again = |script: &crate::site::Script| {
        let rotted = script.holdings.iter().position(|told| told.bad.contains(&bad));
        rotted.is_some_and(|at| script.holdings[at..].iter().any(|told| told.stored.contains(&id)))
    };
    site.told("that it is here again", again).await;
    assert_eq!(client.fetch(Source::Peer(AGENT), id, bytes, None).await.unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_is_for_once_and_leaving_frees_everything() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let site = joined(&state).await;
    let (code, said) = join(&state, &site).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("has joined") && said.contains("cairn-agent leave"), "{said}");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    let (code, said) = outcome(&state, &["status"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is not running"), "{said}");

    let mut running = start(&state);
    site.told("a sync", |script| script.synced > 0).await;
    let (code, said) = outcome(&state, &["run"]);
    assert_eq!(code, Some(1), "a second one on the same folder");
    assert!(said.contains("another cairn-agent"), "{said}");
    let left = {
        let state = state.clone();
        tokio::task::spawn_blocking(move || outcome(&state, &["leave"])).await.unwrap()
    };
    assert_eq!(left.0, Some(0), "{}", left.1);
    assert_eq!(running.0.wait().unwrap().code(), Some(0), "the running agent ends by itself");
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_stops_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let site = joined(folder.path()).await;
    site.change(|script| script.state = MemberState::Revoked);
    let state = folder.path().to_owned();
    let (code, said) =
        tokio::task::spawn_blocking(move || outcome(&state, &["run"])).await.unwrap();
    assert_eq!(code, Some(1));
    assert!(said.contains("revoked") && said.contains("cairn-agent leave"), "{said}");
}

fn resident_kib(process: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
