use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use cairn_core::{id::InstallId, units::ByteCount};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    install::{Fetcher, Image, InstallError, TargetDisk, install},
    testing::{CONTENT_KEY, Fleet, Manner, Memory, Version, noise, signer, version},
    tls::{serve, server_tls},
    wire::{Complaint, InstallProgress},
};

/// A target with its service; what it installs, and where.
struct Target {
    swarm: Arc<Swarm>,
    peers: PeerClient,
    disk: PathBuf,
    stop: CancellationToken,
}

struct Room {
    folder: tempfile::TempDir,
    image: Vec<u8>,
    version: Version,
    fleet: Fleet,
}

fn install_id(n: u8) -> InstallId {
    InstallId([n; 16])
}

impl Room {
    /// Nobody but the server has the image.
    async fn new(image: Vec<u8>, server: Manner) -> Self {
        let mut store = Memory::default();
        let (version, _) = version(&image, None, &mut store);
        let fleet = Fleet::start(&version, &store, &[Manner::Dead], server).await;
        Self { folder: tempfile::tempdir().unwrap(), image, version, fleet }
    }

    async fn target(&self, n: u8, keep: usize) -> Target {
        let peers = PeerClient::new(self.fleet.client_of(install_id(n)));
        let image = self.version.public.segments().map(|entry| entry.id).collect();
        let swarm = Arc::new(Swarm::new(image, peers.clone()).keeping(keep));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let member = Member::Target(install_id(n));
        self.fleet.names.set(member, listener.local_addr().unwrap());
        let papers = self.fleet.site.papers(&member.dns_name());
        let stop = CancellationToken::new();
        let service = serve(
            listener,
            server_tls(&papers).unwrap(),
            swarm.routes(Pace::default()),
            stop.clone(),
        );
        tokio::spawn(service);
        let disk = self.folder.path().join(format!("disk-{n}"));
        Target { swarm, peers, disk, stop }
    }

    async fn install(
        &self,
        target: &Target,
        seed: u64,
    ) -> (Result<InstallProgress, InstallError>, Vec<Complaint>) {
        let (tell, mut complaints) = mpsc::channel(64);
        let fetcher = Fetcher::new(target.peers.clone(), vec![], vec![], seed, tell)
            .with_swarm(Arc::clone(&target.swarm));
        let image =
            Image::open(&self.version.signed, &signer().verifying_key(), &CONTENT_KEY).unwrap();
        let disk = TargetDisk::open(&target.disk, image.public.size).unwrap();
        let (progress, _) = watch::channel(InstallProgress::begin());
        let stop = CancellationToken::new();
        let done = install(Arc::new(image), disk, Arc::new(fetcher), progress, stop).await;
        let mut told = Vec::new();
        while let Ok(complaint) = complaints.try_recv() {
            told.push(complaint);
        }
        (done, told)
    }

    fn segments(&self) -> usize {
        self.version.public.segments().count()
    }

    fn assert_installed(&self, target: &Target) {
        assert!(fs::read(&target.disk).unwrap() == self.image);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_installs_later_gets_everything_from_those_before() {
    let room = Room::new(noise(6144, 1), Manner::Honest).await;
    let first = room.target(1, 64 << 20).await;
    room.install(&first, 1).await.0.unwrap();
    let second = room.target(2, 64 << 20).await;
    second.swarm.neighbours().set(&[install_id(1)]);
    heard(&second, room.segments()).await;
    let (done, complaints) = room.install(&second, 2).await;
    let done = done.unwrap();
    assert_eq!((done.from_server, complaints), (ByteCount(0), vec![]));
    assert!(done.from_peers.0 > 24 << 20, "{done:?}");
    room.assert_installed(&second);
    assert!(!first.swarm.neighbours().are_waiting(), "nobody was named to the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_left_the_memory_is_sealed_again_from_the_disk() {
    let room = Room::new(noise(6144, 2), Manner::Honest).await;
    let first = room.target(1, 0).await;
    room.install(&first, 1).await.0.unwrap();
    let second = room.target(2, 0).await;
    second.swarm.neighbours().set(&[install_id(1)]);
    heard(&second, room.segments()).await;
    let (done, _) = room.install(&second, 2).await;
    let done = done.unwrap();
    room.assert_installed(&second);
    // The map's segments are written to no disk, so only the server still has them.
    assert!(done.from_peers.0 > 23 << 20 && done.from_server.0 < 1 << 20, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_install_together_pass_on_what_they_have() {
    let room = Room::new(noise(12_288, 3), Manner::Honest).await;
    let targets = [
        room.target(1, 64 << 20).await,
        room.target(2, 64 << 20).await,
        room.target(3, 64 << 20).await,
    ];
    let all: Vec<_> = (1..=3).map(install_id).collect();
    for (target, me) in targets.iter().zip(&all) {
        let others: Vec<_> = all.iter().filter(|other| *other != me).copied().collect();
        target.swarm.neighbours().set(&others);
    }
    let (a, b, c) = tokio::join!(
        room.install(&targets[0], 1),
        room.install(&targets[1], 2),
        room.install(&targets[2], 3),
    );
    let mut from_peers = 0;
    for ((done, complaints), target) in [a, b, c].into_iter().zip(&targets) {
        from_peers += done.unwrap().from_peers.0;
        assert!(
            complaints.iter().all(|it| it.fault == cairn_core::fetch::Fault::Slow),
            "{complaints:?}"
        );
        room.assert_installed(target);
    }
    assert!(from_peers > 16 << 20, "{from_peers} of 144 MiB came from each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_and_a_boaster_are_told_of_and_the_install_goes_on() {
    use cairn_core::fetch::{Fault, Source};
    let room = Room::new(noise(6144, 4), Manner::Honest).await;
    let (liar, boaster) = (room.target(1, 64 << 20).await, room.target(2, 64 << 20).await);
    for entry in room.version.public.segments() {
        liar.swarm.shelf().put(entry.id, vec![7; entry.bytes as usize].into());
    }
    for entry in room.version.public.segments() {
        boaster.swarm.shelf().announce_only(entry.id);
    }
    let honest = room.target(3, 64 << 20).await;
    honest.swarm.neighbours().set(&[install_id(1), install_id(2)]);
    heard(&honest, 2 * room.segments()).await;
    let (done, complaints) = room.install(&honest, 3).await;
    done.unwrap();
    room.assert_installed(&honest);
    let about = |n: u8, fault: Fault| {
        complaints.iter().any(|it| it.source == Source::Target(install_id(n)) && it.fault == fault)
    };
    assert!(about(1, Fault::Damaged) && about(2, Fault::Empty), "{complaints:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_announces_more_than_the_image_has_is_not_listened_to() {
    let room = Room::new(noise(1024, 5), Manner::Honest).await;
    let flood = room.target(1, 0).await;
    for number in 0..100_000_u32 {
        flood.swarm.shelf().announce_only(SegmentId::of(&number.to_le_bytes()));
    }
    let target = room.target(2, 0).await;
    target.swarm.neighbours().set(&[install_id(1)]);
    let mut news = target.swarm.neighbours().news();
    news.changed().await.unwrap();
    let quiet = async {
        while target.swarm.neighbours().are_waiting() {
            news.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), quiet).await.unwrap();
    room.install(&target, 1).await.0.unwrap();
    room.assert_installed(&target);
}

/// Waits until so many announcements are in.
async fn heard(target: &Target, count: usize) {
    let mut news = target.swarm.neighbours().news();
    let all = async {
        while target.swarm.neighbours().announced() < count {
            news.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_and_is_named_again_is_heard_again() {
    let room = Room::new(noise(1024, 6), Manner::Honest).await;
    let target = room.target(2, 0).await;
    let ids: Vec<_> = room.version.public.segments().map(|entry| entry.id).collect();
    let first = room.target(1, 0).await;
    first.swarm.shelf().announce_only(ids[0]);
    target.swarm.neighbours().set(&[install_id(1)]);
    heard(&target, 1).await;
    drop(first);
    let mut news = target.swarm.neighbours().news();
    while target.swarm.neighbours().are_waiting() {
        news.changed().await.unwrap();
    }
    target.swarm.neighbours().set(&[]);
    let again = room.target(1, 0).await;
    again.swarm.shelf().announce_only(ids[1]);
    target.swarm.neighbours().set(&[install_id(1)]);
    heard(&target, 2).await;
}
