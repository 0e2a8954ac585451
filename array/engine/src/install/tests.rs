use std::{fs, sync::Arc};

use cairn_core::{
    fetch::{Limits, Source},
    units::ByteCount,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    peer::PeerClient,
    testing::{CONTENT_KEY, Fleet, Manner, Memory, Version, noise, signer, version},
    wire::Complaint,
};

/// An image of 24 MiB: noise, zeros between, a first block that looks like a boot sector.
fn image(seed: u8) -> Vec<u8> {
    let mut image = noise(6144, seed);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[8 << 20..12 << 20].fill(0);
    image
}

struct Bench {
    _folder: tempfile::TempDir,
    disk: std::path::PathBuf,
    version: Version,
    store: Memory,
}

impl Bench {
    fn new(image: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.img");
        let mut store = Memory::default();
        let (version, _) = version(image, None, &mut store);
        Self { _folder: folder, disk, version, store }
    }

    async fn fleet(&self, clients: &[Manner], server: Manner) -> Fleet {
        Fleet::start(&self.version, &self.store, clients, server).await
    }

    async fn install(
        &self,
        fleet: &Fleet,
    ) -> (Result<InstallProgress, InstallError>, Vec<Complaint>) {
        let (bad, mut reports) = mpsc::channel(64);
        let peers = PeerClient::new(fleet.client());
        // Two failures are enough here: the tests' dead clients stay dead.
        let limits = Limits { gone_after: 2, ..Limits::default() };
        let fetcher = Fetcher::new(peers, vec![fleet.map.clone()], fleet.agents.clone(), 7, bad)
            .with_limits(limits);
        let image =
            Image::open(&self.version.signed, &signer().verifying_key(), &CONTENT_KEY).unwrap();
        let disk = TargetDisk::open(&self.disk, image.public.size).unwrap();
        let (progress, _) = watch::channel(InstallProgress::begin());
        let done =
            install(Arc::new(image), disk, Arc::new(fetcher), progress, CancellationToken::new())
                .await;
        let mut bad = Vec::new();
        while let Ok(report) = reports.try_recv() {
            bad.push(report);
        }
        (done, bad)
    }
}

use Manner::{Dead, Empty, Honest, Lying};

#[tokio::test]
async fn a_healthy_fleet_serves_all_of_it_and_the_server_nothing() {
    let image = image(1);
    let bench = Bench::new(&image);
    let fleet = bench.fleet(&[Honest; 4], Honest).await;
    let done = bench.install(&fleet).await.0.unwrap();
    assert!(fs::read(&bench.disk).unwrap() == image);
    assert_eq!(
        (done.phase, done.from_server, done.rebuilt),
        (InstallPhase::Done, ByteCount(0), ByteCount(0))
    );
    assert_eq!(done.written, ByteCount(20 << 20));
    assert!(done.from_peers >= done.total);
}

#[tokio::test]
async fn dead_and_lying_clients_are_made_up_for_by_parity() {
    let image = image(2);
    let bench = Bench::new(&image);
    let fleet = bench.fleet(&[Honest, Dead, Honest, Lying], Dead).await;
    let (done, bad) = bench.install(&fleet).await;
    let done = done.unwrap();
    assert!(fs::read(&bench.disk).unwrap() == image);
    assert!(done.rebuilt > ByteCount(0));
    assert_eq!(done.from_server, ByteCount(0));
    assert!(
        !bad.is_empty() && bad.iter().all(|report| report.source == Source::Peer(fleet.agents[3])),
        "{bad:?}"
    );
}

#[tokio::test]
async fn the_server_helps_where_the_fleet_cannot() {
    let image = image(3);
    let bench = Bench::new(&image);
    let fleet = bench.fleet(&[Honest, Dead, Empty, Dead], Honest).await;
    let done = bench.install(&fleet).await.0.unwrap();
    assert!(fs::read(&bench.disk).unwrap() == image);
    assert!(done.from_server > ByteCount(0) && done.from_peers > ByteCount(0));
}

#[tokio::test]
async fn without_enough_sources_it_says_so_and_the_disk_does_not_boot() {
    let bench = Bench::new(&image(4));
    fs::write(&bench.disk, noise(7000, 9)).unwrap();
    let fleet = bench.fleet(&[Honest, Dead, Empty, Dead], Dead).await;
    let error = bench.install(&fleet).await.0.unwrap_err();
    assert!(matches!(error, InstallError::NoSource(_)), "{error}");
    let disk = fs::read(&bench.disk).unwrap();
    // Whether the map was to be had decides how far it came; in neither case is half a system bootable.
    assert!(disk == noise(7000, 9) || disk[..4096] == [0; 4096]);
}

#[tokio::test]
async fn a_second_run_fetches_only_what_is_wrong() {
    let image = image(5);
    let bench = Bench::new(&image);
    let fleet = bench.fleet(&[Honest; 3], Honest).await;
    bench.install(&fleet).await.0.unwrap();
    let again = bench.install(&fleet).await.0.unwrap();
    assert_eq!(
        (again.total, again.written, again.already),
        (ByteCount(0), ByteCount(0), ByteCount(20 << 20))
    );

    let mut spoilt = image.clone();
    spoilt[13 << 20] ^= 1;
    spoilt[9 << 20] = 7;
    fs::write(&bench.disk, &spoilt).unwrap();
    let mended = bench.install(&fleet).await.0.unwrap();
    assert!(fs::read(&bench.disk).unwrap() == image);
    // The block that rotted, and the boot blocks, which are cleared before anything else is written.
    assert_eq!(mended.written, ByteCount(4096 * (1 + 1 + 5)));
}

#[tokio::test]
async fn an_old_system_is_replaced_and_its_backup_partition_table_cleared() {
    let bench = Bench::new(&image(6));
    let old = noise(7000, 9);
    fs::write(&bench.disk, &old).unwrap();
    let fleet = bench.fleet(&[Honest; 3], Honest).await;
    bench.install(&fleet).await.0.unwrap();
    let disk = fs::read(&bench.disk).unwrap();
    assert!(disk[..24 << 20] == image(6));
    let end = old.len() - 5 * 4096;
    assert!(disk[24 << 20..end] == old[24 << 20..end], "what lies behind the image is not ours");
    assert!(disk[end..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_manifest_of_another_site_is_refused() {
    let bench = Bench::new(&noise(10, 1));
    let stranger = cairn_core::sign::SigningKey::from_seed(&[2; 32]).unwrap().verifying_key();
    let error = Image::open(&bench.version.signed, &stranger, &CONTENT_KEY).unwrap_err();
    assert!(matches!(error, InstallError::Manifest(DecodeError::Signature)));
    let error = Image::open(&bench.version.signed, &signer().verifying_key(), &SealKey([0; 32]))
        .unwrap_err();
    assert!(matches!(error, InstallError::Manifest(DecodeError::Unsealable)));
}

#[test]
fn what_is_no_disk_is_refused_before_a_byte_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| TargetDisk::open(path, ByteCount(4096)).unwrap_err();
    assert!(matches!(
        open(std::path::Path::new("/dev/no-such-disk")),
        OpenDiskError::Missing { .. }
    ));
    assert!(matches!(open(std::path::Path::new("/dev/null")), OpenDiskError::NotADisk { .. }));
    assert!(matches!(open(folder.path()), OpenDiskError::NotADisk { .. }));
}
