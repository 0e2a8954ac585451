//! Installing an image version to a disk: plan → execute → verify → boot blocks last (DESIGN section 5).
//!
//! ```text
//!   map pages ─► compare with the disk ─► nothing differs: done, nothing was written
//!                        │ plan
//!                clear the boot blocks           from here on the disk does not boot
//!                zero what must be zero
//!                fetch segments ─► write
//!                flush, forget, compare again    the same comparison as the plan
//!                write the last blocks, then the first
//! ```
//!
//! Invariants: nothing is written before the disk was seen to fit; a disk boots only after all of it was read back
//! and found right; a second run fetches only what the first left out; memory does not grow with the image but by
//! 24 bytes for each run of blocks to write (256 KiB at most).

mod apply;
mod bottleneck;
mod disk;
mod fetcher;
mod plan;
mod reseal;
mod storage;
#[cfg(test)]
mod tests;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_core::{
    bytes::DecodeError,
    manifest::{Public, Secret, SegmentEntry},
    seal::SealKey,
    sign::VerifyingKey,
    units::{ByteCount, SegmentIndex},
};
use futures::{
    FutureExt as _,
    future::{Fuse, FusedFuture as _},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use apply::ApplyError;
use bottleneck::{AtWork, LOOK_EVERY, Looks};
pub use disk::{DiskError, OpenDiskError, TargetDisk};
pub use fetcher::{FetchStats, Fetcher, NoSource};
pub use storage::StoragePartition;

use crate::{
    map_reader::{MapError, pages_of},
    wire::{InstallPhase, InstallProgress, share},
};
use apply::{Held, apply, write_within};
use plan::{BootBlocks, Plan};
use reseal::DiskSource;

/// Map segments fetched at once, and kept for the second comparison while they are few.
const MAP_WINDOW: usize = 8;
const MAP_KEEP_BYTES: usize = 64 << 20;
/// Segments fetched and not yet written.
const WRITE_QUEUE: usize = 4;
/// Plain bytes written between two flushes.
const FLUSH_EVERY_BYTES: u64 = 64 << 20;
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Why an install ended early.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("the manifest is not this site's")]
    Manifest(#[source] DecodeError),
    #[error("the image's map cannot be read")]
    Map(#[from] MapError),
    #[error("the target disk has {size} bytes, the image needs {needed}: choose a larger disk")]
    TooSmall { size: ByteCount, needed: ByteCount },
    #[error(
        "the image needs {needed} bytes, the partition {} begins at byte {start}: use a smaller image, or delete that partition and with it what this machine lends",
        storage::NAME
    )]
    StorageInTheWay { start: ByteCount, needed: ByteCount },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    NoSource(#[from] NoSource),
    #[error(
        "what was written does not read back at byte {offset}: the disk is failing, replace it"
    )]
    Verify { offset: u64 },
    #[error("the install was cancelled")]
    Cancelled,
    #[error("a thread of the installer died")]
    Died,
}

/// An image version, opened.
#[derive(Debug)]
pub struct Image {
    pub public: Public,
    pub secret: Secret,
}

impl Image {
    /// Checks and opens a signed manifest.
    ///
    /// # Errors
    /// [`InstallError::Manifest`] when it is not signed by `signer` or not opened by `content_key`.
    pub fn open(
        manifest: &[u8],
        signer: &VerifyingKey,
        content_key: &SealKey,
    ) -> Result<Self, InstallError> {
        let public = Public::open(signer, manifest).map_err(InstallError::Manifest)?;
        let secret = public.open_secret(content_key).map_err(InstallError::Manifest)?;
        Ok(Self { public, secret })
    }
}

/// Installs `image` to `disk`. Reports about twice a second through `progress`.
///
/// # Errors
/// See [`InstallError`]. The disk does not boot then, unless it was right before; running again resumes.
pub async fn install(
    image: Arc<Image>,
    disk: TargetDisk,
    fetcher: Arc<Fetcher>,
    progress: watch::Sender<InstallProgress>,
    cancel: CancellationToken,
) -> Result<InstallProgress, InstallError> {
    if disk.size() < image.public.size {
        return Err(InstallError::TooSmall { size: disk.size(), needed: image.public.size });
    }
    if let Some(start) = disk.storage().map(StoragePartition::start)
        && start < image.public.size
    {
        return Err(InstallError::StorageInTheWay { start, needed: image.public.size });
    }
    let run = Arc::new(Run {
        image,
        disk: Arc::new(disk),
        fetcher,
        progress,
        started: Instant::now(),
        counters: Counters::default(),
        phase: Mutex::new(InstallPhase::Planning),
        maps: Mutex::new(Vec::new()),
        writers: AtWork::default(),
        looks: Looks::default(),
    });
    tokio::select! {
        result = run.all() => result?,
        () = run.report() => {}
        () = cancel.cancelled() => return Err(InstallError::Cancelled),
    }
    run.turn_to(InstallPhase::Done);
    Ok(run.snapshot())
}

#[derive(Debug, Default)]
struct Counters {
    total: AtomicU64,
    already: AtomicU64,
    written: AtomicU64,
    /// Bytes of the disk compared with the map in the present phase.
    compared: AtomicU64,
}

struct Run {
    image: Arc<Image>,
    disk: Arc<TargetDisk>,
    fetcher: Arc<Fetcher>,
    progress: watch::Sender<InstallProgress>,
    started: Instant,
    counters: Counters,
    phase: Mutex<InstallPhase>,
    /// Map segments kept from the first comparison for the second.
    maps: Mutex<Vec<Bytes>>,
    writers: AtWork,
    looks: Looks,
}

/// How many segments are written at once.
fn writers() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, 4)
}

impl Run {
    async fn all(self: &Arc<Self>) -> Result<(), InstallError> {
        let plan = self.compare().await?;
        self.counters.already.store(plan.already, Ordering::Relaxed);
        if plan.is_done() {
            if let Some(swarm) = self.fetcher.swarm() {
                swarm.shelf().complete();
            }
            return Ok(());
        }
        let plan = Arc::new(plan);
        self.turn_to(InstallPhase::Writing);
        self.blocking({
            let plan = Arc::clone(&plan);
            move |run| run.prepare(&plan)
        })
        .await?;
        let held = self.execute(plan).await?;
        if let Some(swarm) = self.fetcher.swarm() {
            swarm.shelf().complete();
        }
        self.turn_to(InstallPhase::Verifying);
        self.blocking(|run| Ok(run.disk.settle()?)).await?;
        self.verify().await?;
        self.turn_to(InstallPhase::Finishing);
        self.blocking(move |run| run.finish(&held)).await
    }

    /// Compares the disk with the map, a window of map segments at a time.
    async fn compare(self: &Arc<Self>) -> Result<Plan, InstallError> {
        let mut plan = Plan::default();
        let entries: Vec<_> = self.image.public.map.iter().copied().zip(0_usize..).collect();
        for window in entries.chunks(MAP_WINDOW) {
            let segments = self.map_segments(window).await?;
            plan = self
                .blocking(move |run| {
                    for (bytes, number) in segments {
                        run.compare_segment(&mut plan, &bytes, number)?;
                    }
                    Ok(plan)
                })
                .await?;
        }
        self.blocking(move |run| {
            plan.seal(run.image.public.size, &run.disk)?;
            Ok(plan)
        })
        .await
    }

    fn compare_segment(
        &self,
        plan: &mut Plan,
        bytes: &[u8],
        number: usize,
    ) -> Result<(), InstallError> {
        let key =
            self.image.secret.map_keys.get(number).ok_or(InstallError::Map(MapError::Order))?;
        let pages = pages_of(bytes, &key.key, self.image.public.data.len())?;
        let boot = BootBlocks::of(self.image.public.size);
        Ok(plan.pages(&pages, &self.disk, boot, &self.counters.compared)?)
    }

    /// The map segments of a window in order, from memory or from the peers.
    async fn map_segments(
        &self,
        window: &[(SegmentEntry, usize)],
    ) -> Result<Vec<(Bytes, usize)>, InstallError> {
        let kept: Vec<_> = {
            let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
            window
                .iter()
                .map_while(|(_, number)| Some((maps.get(*number)?.clone(), *number)))
                .collect()
        };
        if kept.len() == window.len() {
            return Ok(kept);
        }
        let wanted: Vec<_> = window.iter().map(|(entry, _)| *entry).collect();
        let (sender, mut receiver) = mpsc::channel(MAP_WINDOW);
        self.fetcher.fetch_all(&wanted, sender).await?;
        let mut fetched = Vec::new();
        while let Ok((entry, bytes)) = receiver.try_recv() {
            fetched.extend(
                window
                    .iter()
                    .filter(|(e, _)| e.id == entry.id)
                    .map(|(_, number)| (bytes.clone(), *number)),
            );
        }
        fetched.sort_unstable_by_key(|(_, number)| *number);
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held: usize = maps.iter().map(Bytes::len).sum();
        for (bytes, number) in &fetched {
            held += bytes.len();
            if *number == maps.len() && held <= MAP_KEEP_BYTES {
                maps.push(bytes.clone());
            }
        }
        Ok(fetched)
    }

    /// Makes the disk unbootable, then zeros what must be zero.
    fn prepare(&self, plan: &Plan) -> Result<(), InstallError> {
        let size = self.disk.size();
        let kept = self.disk.storage().map(|storage| storage.alone(&self.disk)).transpose()?;
        if let Some((offset, table)) = &kept {
            // First: the table that names it now is cleared next.
            self.disk.write(*offset, table)?;
            self.disk.flush()?;
        }
        for (offset, length) in BootBlocks::of(self.image.public.size).disarm(size) {
            if kept.is_none() || offset + length < size.0 {
                self.disk.zero(offset, length)?;
            }
        }
        self.disk.settle()?;
        for (offset, length) in &plan.zeros {
            self.disk.zero(*offset, *length)?;
        }
        Ok(())
    }

    /// Fetches and writes all needs; the boot blocks come back.
    async fn execute(self: &Arc<Self>, plan: Arc<Plan>) -> Result<Held, InstallError> {
        let mut wanted: Vec<SegmentEntry> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for needs in plan.needs.chunk_by(|a, b| a.segment == b.segment) {
            let Some(index) = needs.first().map(|need| need.segment) else { continue };
            let entry = self
                .image
                .public
                .data
                .get(index.0 as usize)
                .ok_or(InstallError::Map(MapError::Order))?;
            wanted.push(*entry);
            places.insert(entry.id, index);
        }
        let total = wanted.iter().map(|entry| u64::from(entry.bytes)).sum();
        self.counters.total.store(total, Ordering::Relaxed);
        if let Some(swarm) = self.fetcher.swarm() {
            swarm.shelf().resealed_by(Arc::new(DiskSource {
                image: Arc::clone(&self.image),
                disk: Arc::clone(&self.disk),
                plan: Arc::clone(&plan),
                places: places.clone(),
            }));
        }
        let (sender, receiver) = mpsc::channel(WRITE_QUEUE);
        let fetch =
            async { self.fetcher.fetch_all(&wanted, sender).await.map_err(InstallError::from) };
        let ((), held) = tokio::try_join!(fetch, self.write_all(receiver, plan, places))?;
        Ok(held)
    }

    async fn write_all(
        self: &Arc<Self>,
        mut segments: mpsc::Receiver<(SegmentEntry, Bytes)>,
        plan: Arc<Plan>,
        places: std::collections::HashMap<cairn_core::id::SegmentId, SegmentIndex>,
    ) -> Result<Held, InstallError> {
        let mut held = Held::new();
        let mut writes = tokio::task::JoinSet::new();
        let parallel = writers();
        // What is written is flushed while more is fetched: else the disk would begin when the network has ended.
        let mut flush = std::pin::pin!(Fuse::terminated());
        let mut flushed = 0;
        loop {
            while writes.len() >= parallel {
                held.append(&mut joined(writes.join_next().await)?);
            }
            let received = tokio::select! {
                received = segments.recv() => received,
                result = &mut flush, if !flush.is_terminated() => {
                    let () = result?;
                    continue;
                }
            };
            let Some((entry, bytes)) = received else { break };
            let written = self.counters.written.load(Ordering::Relaxed);
            if flush.is_terminated() && written >= flushed + FLUSH_EVERY_BYTES {
                flushed = written;
                flush.set(self.blocking(|run| Ok(run.disk.flush()?)).fuse());
            }
            let Some(index) = places.get(&entry.id).copied() else { continue };
            let (run, plan) = (Arc::clone(self), Arc::clone(&plan));
            writes.spawn_blocking(move || run.write_segment(index, &bytes, &plan));
        }
        while !writes.is_empty() {
            held.append(&mut joined(writes.join_next().await)?);
        }
        if !flush.is_terminated() {
            flush.await?;
        }
        Ok(held)
    }

    fn write_segment(
        &self,
        index: SegmentIndex,
        bytes: &[u8],
        plan: &Plan,
    ) -> Result<Held, InstallError> {
        let _turn = self.writers.begin();
        let key = self
            .image
            .secret
            .data_keys
            .get(index.0 as usize)
            .ok_or(InstallError::Map(MapError::Order))?;
        let (written, held) =
            apply(bytes, key, plan.of_segment(index), &self.disk, self.image.public.size)?;
        self.counters.written.fetch_add(written, Ordering::Relaxed);
        Ok(held)
    }

    /// Nothing but the boot blocks may differ now.
    async fn verify(self: &Arc<Self>) -> Result<(), InstallError> {
        let plan = self.compare().await?;
        let boot = BootBlocks::of(self.image.public.size);
        let wrong = plan.needs.iter().flat_map(|need| {
            (need.to.0..need.to.0 + u64::from(need.blocks)).map(cairn_core::units::BlockIndex)
        });
        let wrong = wrong
            .into_iter()
            .find(|block| !boot.contains(*block))
            .map(cairn_core::units::BlockIndex::byte_offset);
        match wrong.or_else(|| plan.zeros.first().map(|(offset, _)| *offset)) {
            Some(offset) => Err(InstallError::Verify { offset }),
            None => Ok(()),
        }
    }

    /// Writes the boot blocks, the first one last and alone.
    fn finish(&self, held: &Held) -> Result<(), InstallError> {
        for (block, bytes) in held.iter().rev() {
            if block.0 == 0 {
                self.disk.settle()?;
            }
            write_within(block.byte_offset(), bytes, &self.disk, self.image.public.size)?;
        }
        self.disk.settle()?;
        for (block, bytes) in held {
            let mut back = vec![0; bytes.len()];
            plan::read_to_end(&self.disk, block.byte_offset(), &mut back)?;
            if back != *bytes {
                return Err(InstallError::Verify { offset: block.byte_offset() });
            }
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, InstallError> + Send + 'static,
    ) -> Result<T, InstallError> {
        let run = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&run)).await.map_err(|_| InstallError::Died)?
    }

    fn turn_to(&self, phase: InstallPhase) {
        self.counters.compared.store(0, Ordering::Relaxed);
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.progress.send_replace(self.snapshot());
    }

    /// Reports until dropped.
    async fn report(&self) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let bottleneck = self.looks.judge();
                    let snapshot = self.snapshot();
                    let writes = snapshot.phase == InstallPhase::Writing;
                    let bottleneck = bottleneck.filter(|_| writes);
                    self.progress.send_replace(InstallProgress { bottleneck, ..snapshot });
                }
                _ = looks.tick() => {
                    self.looks.look(self.writers.count(), self.disk.busy(), writers());
                }
            }
        }
    }

    fn snapshot(&self) -> InstallProgress {
        let stats = self.fetcher.stats();
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let total = ByteCount(self.counters.total.load(Ordering::Relaxed));
        let fetched = stats.from_peers.0 + stats.from_server.0 + stats.rebuilt.0;
        let (part, whole) = match phase {
            InstallPhase::Writing => (fetched, total.0),
            _ => (self.counters.compared.load(Ordering::Relaxed), self.image.public.size.0),
        };
        InstallProgress {
            phase,
            total,
            percent: Some(percent(phase, part, whole)),
            from_peers: stats.from_peers,
            from_server: stats.from_server,
            rebuilt: stats.rebuilt,
            already: ByteCount(self.counters.already.load(Ordering::Relaxed)),
            written: ByteCount(self.counters.written.load(Ordering::Relaxed)),
            milliseconds: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            bottleneck: None,
            error: None,
        }
    }
}

/// Share of the whole install when `part` of `whole` of a phase is done. Reading the disk takes about a fifth of the time
/// that filling it takes.
const fn phase_share(phase: InstallPhase) -> (u8, u8) {
    match phase {
        InstallPhase::Planning => (0, 5),
        InstallPhase::Writing => (5, 75),
        InstallPhase::Verifying => (80, 19),
        InstallPhase::Finishing | InstallPhase::Failed => (99, 0),
        InstallPhase::Done => (100, 0),
    }
}

fn percent(phase: InstallPhase, part: u64, whole: u64) -> u8 {
    let (before, most) = phase_share(phase);
    before + share(part, whole, most)
}

fn joined(
    done: Option<Result<Result<Held, InstallError>, tokio::task::JoinError>>,
) -> Result<Held, InstallError> {
    match done {
        None => Ok(Held::new()),
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(InstallError::Died),
    }
}
