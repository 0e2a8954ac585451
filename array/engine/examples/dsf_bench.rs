//! How fast a DSF is on the disk under a folder: `dsf_bench [FOLDER]`.
//!
//! Prints the time to open one of 20 GiB with every slot in use (headers written through the library's
//! codec, payloads left sparse, page cache dropped) and the bandwidth of puts and gets of 4 MiB segments
//! through a handle, beside that of plain writes with the same number of syncs.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cairn_array::dsf::{
    Dsf, DsfHandle, DsfId, DsfOwner, SegmentClass, SlotCount, SlotHeader, SlotIndex,
};
use cairn_core::{id::SegmentId, units::ByteCount};
use futures::{StreamExt, TryStreamExt, stream};

const LENT: ByteCount = ByteCount(20 << 30);
const SEGMENTS: u32 = 128;
const SEGMENT_BYTES: u32 = 4 << 20;
const AT_ONCE: usize = 16;

fn main() -> Result<()> {
    let under = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(&under).context("make a folder for the benchmark")?;
    let load = std::fs::read_to_string("/proc/loadavg").context("read the load average")?;
    let mut out = std::io::stdout();
    writeln!(out, "folder {}, load average {}", under.display(), load.trim())?;

    let (slots, cold, warm) = open_full(&folder.path().join("open"))?;
    writeln!(out, "open, {slots} slots used: cold {cold:?}, again {warm:?}")?;

    let made = Instant::now();
    let segments: Vec<(SegmentId, Bytes)> = (0..SEGMENTS).map(segment).collect();
    writeln!(out, "(making and hashing {SEGMENTS} segments took {:?})", made.elapsed())?;
    let plain = plain_writes(&folder.path().join("plain"), &segments)?;
    writeln!(out, "plain writes, a sync each 8: {:.0} MB/s", rate(plain))?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let times =
        runtime.block_on(put_and_get(&folder.path().join("put/segments.dsf"), &segments))?;
    for (what, time) in times {
        writeln!(out, "{what}: {:.0} MB/s", rate(time))?;
    }
    Ok(())
}

fn rate(time: Duration) -> f64 {
    f64::from(SEGMENTS) * f64::from(SEGMENT_BYTES) / 1e6 / time.as_secs_f64()
}

/// Bytes that no disk can compress or deduplicate.
fn segment(name: u32) -> (SegmentId, Bytes) {
    let mut state = u64::from(name) + 1;
    let mut bytes = Vec::with_capacity(SEGMENT_BYTES as usize);
    while bytes.len() < SEGMENT_BYTES as usize {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    (SegmentId::of(&bytes), bytes.into())
}

fn open_full(folder: &Path) -> Result<(SlotCount, Duration, Duration)> {
    let path = folder.join("segments.dsf");
    let capacity = SlotCount::fitting(LENT);
    drop(Dsf::create(&path, DsfId([1; 16]), capacity)?);
    let file = File::options().write(true).open(&path).context("open the new file")?;
    for slot in (0..capacity.0).map(SlotIndex) {
        let id = SegmentId::of(&slot.0.to_le_bytes());
        let class = SegmentClass::Data;
        let header = SlotHeader { slot, id, length: SEGMENT_BYTES, class, checksum: 0 };
        file.write_all_at(&header.encode(), slot.header_at()).context("write a header")?;
    }
    forget_cache(&file)?;
    let cold = timed_open(&path, capacity)?;
    Ok((capacity, cold, timed_open(&path, capacity)?))
}

fn timed_open(path: &Path, used: SlotCount) -> Result<Duration> {
    let start = Instant::now();
    let dsf = Dsf::open(path)?;
    let time = start.elapsed();
    ensure!(dsf.reader().stats().used == used, "not every slot is in use");
    Ok(time)
}

fn forget_cache(file: &File) -> Result<()> {
    file.sync_all().context("sync the file")?;
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).context("drop cached pages")
}

fn plain_writes(path: &Path, segments: &[(SegmentId, Bytes)]) -> Result<Duration> {
    let file = File::create(path).context("create a plain file")?;
    let start = Instant::now();
    for (index, (_, bytes)) in (0_u64..).zip(segments) {
        file.write_all_at(bytes, index * u64::from(SEGMENT_BYTES)).context("write a segment")?;
        if index % 8 == 7 {
            file.sync_data().context("sync the file")?;
        }
    }
    Ok(start.elapsed())
}

async fn put_and_get(
    path: &Path,
    segments: &[(SegmentId, Bytes)],
) -> Result<[(&'static str, Duration); 3]> {
    let dsf = Dsf::create(path, DsfId([2; 16]), SlotCount(SEGMENTS))?;
    let (owner, handle) = DsfOwner::start(dsf).context("start the owner")?;

    let start = Instant::now();
    stream::iter(segments)
        .map(|(id, bytes)| handle.put(*id, bytes.clone(), SegmentClass::Data))
        .buffer_unordered(AT_ONCE)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let put = start.elapsed();

    let warm = get_all(&handle, segments).await?;
    forget_cache(&File::open(path).context("open the file")?)?;
    let cold = get_all(&handle, segments).await?;
    owner.stop().await;
    Ok([("put, 16 at once", put), ("get, cached", warm), ("get, from the disk", cold)])
}

async fn get_all(handle: &DsfHandle, segments: &[(SegmentId, Bytes)]) -> Result<Duration> {
    let start = Instant::now();
    stream::iter(segments)
        .map(|(id, _)| handle.get(*id))
        .buffer_unordered(AT_ONCE)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(start.elapsed())
}
