//! `cairn-agent volume`: the volumes that clients hold, read without the server, as of their last checkpoint; those whose
//! durability is `mirrored` as of the last flush that was answered.
//!
//! Invariant: every block is checked: segments by their id, frames by their seal, and what names them by the site's
//! signature.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use cairn_array::{
    install::Fetcher,
    nbd::{self, Export, Exports, Visitor},
    peer::tails,
    random,
    volume::{MediumError, OpenError, SegmentReader, Snapshot, TailRing, Wait},
};
use cairn_core::{
    id::SegmentId,
    manifest::SegmentEntry,
    units::{BLOCK_BYTES, BlockIndex, ByteCount},
    volume::Durability,
};
use comfy_table::{CellAlignment, Table, presets};
use quick_cache::sync::Cache;
use rustix::fs::MemfdFlags;
use serde::Serialize;
use tokio::{net::TcpListener, runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    dark::{self, Opener},
    home::Home,
    lan::Looking,
    signals::stop_signals,
    size,
};

/// Segments that are kept: at most 64 MiB.
const SEGMENTS: usize = 16;
/// Complaints that wait to be shown.
const COMPLAINTS: usize = 64;
/// Bytes that are read at once.
const CHUNK: u64 = 4 << 20;
/// Chunks that are read at once.
const READERS: usize = 4;
/// Stretches that are looked up at once.
const STRETCHES: usize = 1024;

/// A volume that clients hold.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    /// Bytes.
    pub size: ByteCount,
}

/// A volume as clients have it.
type Checkpoint = Snapshot<ClientSegments>;

/// Segments that clients hold.
#[derive(Debug)]
pub struct ClientSegments {
    fetcher: Fetcher,
    /// Sealed bytes of each.
    lengths: HashMap<SegmentId, u32>,
    kept: Cache<SegmentId, Bytes>,
    looking: Looking,
    runtime: Handle,
}

impl ClientSegments {
    fn fetch(&self, id: SegmentId) -> std::io::Result<Bytes> {
        let bytes = *self.lengths.get(&id).ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::NotFound, "no stripe map names it")
        })?;
        let entry = SegmentEntry { id, bytes };
        self.runtime.block_on(async {
            if let Ok(bytes) = self.ask(&entry).await {
                return Ok(bytes);
            }
            // Who has it may be elsewhere than the directory says.
            self.looking.found().await;
            self.ask(&entry).await
        })
    }

    async fn ask(&self, entry: &SegmentEntry) -> std::io::Result<Bytes> {
        let (sender, mut receiver) = mpsc::channel(1);
        let fetched = self.fetcher.fetch_all(std::slice::from_ref(entry), sender);
        let (fetched, found) = tokio::join!(fetched, receiver.recv());
        fetched.map_err(std::io::Error::other)?;
        let (_, bytes) = found.ok_or(std::io::ErrorKind::NotFound)?;
        Ok(bytes)
    }
}

impl SegmentReader for ClientSegments {
    fn read_segment(
        &self,
        id: SegmentId,
        offset: u64,
        into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, MediumError> {
        let failed = |source| MediumError::Segment { operation: "fetch", source };
        let bytes = match (self.kept.get(&id), wait) {
            (Some(bytes), _) => bytes,
            (None, Wait::Never) => return Ok(false),
            // Who wants the same waits for the first.
            (None, Wait::AsLongAsItTakes) => {
                self.kept.get_or_insert_with(&id, || self.fetch(id)).map_err(failed)?
            }
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = bytes.get(from..).and_then(|rest| rest.get(..into.len()));
        let part = part.ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))?;
        into.copy_from_slice(part);
        Ok(true)
    }
}

/// The volumes that the clients hold.
///
/// # Errors
/// When the recovery key is not this site's, or too few clients answer.
pub async fn list(home: &Home, recovery_key: &Path) -> Result<Vec<Line>> {
    let opener = Opener::RecoveryKey(recovery_key.to_owned());
    let (catalog, _) = dark::open(home, &opener).await?;
    let line = |volume: &dark::Volume| Line { name: volume.name.clone(), size: volume.size };
    Ok(catalog.volumes.iter().map(line).collect())
}

/// Volumes for people.
#[must_use]
pub fn render(volumes: &[Line]) -> String {
    if volumes.is_empty() {
        return "the clients hold no volume; `cairn-server volume create --layout mirror` makes one that they do\n"
            .to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "SIZE"]);
    for volume in volumes {
        table.add_row([volume.name.clone(), size::show(volume.size)]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

async fn open(home: &Home, recovery_key: &Path, name: &str) -> Result<Checkpoint> {
    let opener = Opener::RecoveryKey(recovery_key.to_owned());
    let (catalog, clients) = dark::open(home, &opener).await?;
    let volume = catalog.volume(name)?;
    let (root, id, durability) = (volume.root.clone(), volume.id, volume.durability);
    let content_key = volume.content_key.clone();
    let verifier = catalog.signing_key;
    let maps: Vec<_> = catalog.stripe_maps.into_iter().map(|map| map.map).collect();
    let shards = maps.iter().flat_map(|map| &map.stripes).flat_map(|stripe| &stripe.data);
    let lengths = shards.map(|shard| (shard.id, shard.bytes)).collect();
    let (complain, mut complaints) = mpsc::channel(COMPLAINTS);
    tokio::spawn(async move {
        while let Some(complaint) = complaints.recv().await {
            tracing::warn!(?complaint, "a client serves wrong");
        }
    });
    // In memory: what was opened is not written to a disk.
    let file = rustix::fs::memfd_create("journal", MemfdFlags::CLOEXEC);
    let ring = TailRing::new(id, File::from(file.context("make room for the journal")?));
    let holders: &[_] = match durability {
        Durability::Local => &[],
        Durability::Mirrored => &clients.members,
    };
    let tail = tails::gather(&clients.peers, holders, id, &content_key, ring).await;
    let (tail, _) = tail.context("put the journal together")?;
    let seed = u64::from_le_bytes(random::array()?);
    let fetcher = Fetcher::new(clients.peers, maps, clients.members, seed, complain);
    let (kept, runtime, looking) = (Cache::new(SEGMENTS), Handle::current(), clients.looking);
    let segments = ClientSegments { fetcher, lengths, kept, looking, runtime };
    let opened = tokio::task::spawn_blocking(move || {
        let checkpoint = Snapshot::open(segments, &root, id, &verifier, &content_key)?;
        checkpoint.with_tail(tail).map_err(OpenError::from)
    });
    opened.await.context("wait for a thread")?.with_context(|| format!("open {name}"))
}

/// Writes a volume to a new file; what it does not store are holes.
///
/// # Errors
/// When it cannot be read whole; the file is there then, without what is missing.
pub async fn read(home: &Home, recovery_key: &Path, name: &str, file: &Path) -> Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let made = made.with_context(|| format!("make the file {}", file.display()))?;
    let volume = open(home, recovery_key, name).await?;
    let copied = tokio::task::spawn_blocking(move || copy(&volume, &made));
    copied.await.context("wait for a thread")?.with_context(|| format!("read {name}"))
}

fn copy(volume: &Checkpoint, file: &File) -> Result<()> {
    let size = volume.size().0;
    file.set_len(size).context("give the file its size")?;
    let next = AtomicU64::new(0);
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                loop {
                    let offset = next.fetch_add(CHUNK, Ordering::Relaxed);
                    if offset >= size {
                        return;
                    }
                    let end = size.min(offset + CHUNK);
                    if let Err(error) = copy_part(volume, file, offset..end, &mut buffer) {
                        next.store(size, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err)?;
    file.sync_all().context("make the file durable")
}

/// Copies what is stored of a part.
fn copy_part(
    volume: &Checkpoint,
    file: &File,
    part: std::ops::Range<u64>,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let mut at = part.start;
    while at < part.end {
        let blocks = (part.end - at) / BLOCK_BYTES as u64;
        let first = BlockIndex(at / BLOCK_BYTES as u64);
        let stretches = volume.stretches(first, blocks, STRETCHES);
        anyhow::ensure!(!stretches.is_empty(), "the volume does not say what is at {at}");
        for stretch in stretches {
            let length = stretch.blocks * BLOCK_BYTES as u64;
            if stretch.stored {
                buffer.resize(usize::try_from(length)?, 0);
                volume.read(at, buffer, Wait::AsLongAsItTakes)?;
                file.write_all_at(buffer, at).context("write the file")?;
            }
            at += length;
        }
    }
    Ok(())
}

/// One volume, for whoever is on this machine.
struct Served {
    name: String,
    volume: Arc<Checkpoint>,
}

impl Exports for Served {
    fn names(&self, visitor: Visitor) -> Vec<String> {
        match visitor {
            Visitor::Local => vec![self.name.clone()],
            Visitor::Remote(_) => Vec::new(),
        }
    }

    fn find(&self, name: &str, visitor: Visitor) -> Option<Arc<dyn Export>> {
        let known = matches!(visitor, Visitor::Local) && (name == self.name || name.is_empty());
        let export: Arc<dyn Export> = Arc::<Checkpoint>::clone(&self.volume);
        known.then_some(export)
    }
}

/// Serves a volume read-only by NBD on this machine, until it is told to stop. `tell` is told where, once it serves.
///
/// # Errors
/// When it cannot be opened, or the address is taken.
pub async fn serve(
    home: &Home,
    recovery_key: &Path,
    name: &str,
    listen: SocketAddr,
    tell: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    anyhow::ensure!(
        listen.ip().is_loopback(),
        "what is opened with the recovery key is served on this machine only: listen on 127.0.0.1 or ::1"
    );
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}: choose another with --listen"))?;
    let bound = listener.local_addr().context("read the address that was bound")?;
    let volume = Arc::new(open(home, recovery_key, name).await?);
    let stopped = stop_signals()?;
    let stop = CancellationToken::new();
    let served = Arc::new(Served { name: name.to_owned(), volume });
    let serving = tokio::spawn(nbd::serve(listener, served, None, stop.clone()));
    tell(bound)?;
    stopped.await?;
    stop.cancel();
    serving.await.context("wait for NBD")?
}
