//! A few threads for the jobs that cost: hashing, compressing, sealing. Results are awaited in order by their takers.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use cairn_core::{
    id::BlockHash,
    segment::{CompressedFrame, SegmentBuilder},
    units::BLOCK_BYTES,
};

use crate::{
    dsf::{CheckError, CheckedSegment},
    frame::FrameCompressor,
};

/// The pool is gone: a worker could not be started or died.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a worker thread ended early")]
pub(crate) struct WorkerGone;

enum Job {
    Hash(Bytes, SyncSender<Vec<BlockHash>>),
    Compress(Vec<Bytes>, SyncSender<std::io::Result<CompressedFrame>>),
    Seal(Box<SegmentBuilder>, SyncSender<Result<CheckedSegment, CheckError>>),
}

/// A handle for giving work. Work ahead is bounded by whoever holds the results' receivers.
#[derive(Clone)]
pub(crate) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts `count` threads; they end when the last handle is dropped.
    pub(crate) fn start(name: &str, count: usize) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..count)
            .map(|number| {
                let queue = Arc::clone(&queue);
                thread::Builder::new().name(format!("{name}-{number}")).spawn(move || work(&queue))
            })
            .collect::<Result<_, _>>()?;
        Ok((Self { jobs }, threads))
    }

    /// Hashes each block of `blocks`.
    pub(crate) fn hash(&self, blocks: Bytes) -> Result<Receiver<Vec<BlockHash>>, WorkerGone> {
        let (done, result) = mpsc::sync_channel(1);
        self.jobs.send(Job::Hash(blocks, done)).map_err(|_| WorkerGone)?;
        Ok(result)
    }

    /// Compresses a frame that lies in parts.
    pub(crate) fn compress(
        &self,
        plain: Vec<Bytes>,
    ) -> Result<Receiver<std::io::Result<CompressedFrame>>, WorkerGone> {
        let (done, result) = mpsc::sync_channel(1);
        self.jobs.send(Job::Compress(plain, done)).map_err(|_| WorkerGone)?;
        Ok(result)
    }

    /// Makes a segment of its frames.
    pub(crate) fn seal(
        &self,
        frames: SegmentBuilder,
    ) -> Result<Receiver<Result<CheckedSegment, CheckError>>, WorkerGone> {
        let (done, result) = mpsc::sync_channel(1);
        self.jobs.send(Job::Seal(Box::new(frames), done)).map_err(|_| WorkerGone)?;
        Ok(result)
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    let mut compressor = None;
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        // A taker that gave up has dropped its receiver: its result is not missed.
        match job {
            Err(_) => return,
            Ok(Job::Hash(blocks, done)) => {
                done.send(blocks.chunks(BLOCK_BYTES).map(BlockHash::of).collect()).ok();
            }
            Ok(Job::Seal(frames, done)) => {
                done.send(sealed(*frames)).ok();
            }
            Ok(Job::Compress(plain, done)) => {
                done.send(compress(&mut compressor, &plain)).ok();
            }
        }
    }
}

/// A segment of what was put into it.
pub(crate) fn sealed(frames: SegmentBuilder) -> Result<CheckedSegment, CheckError> {
    let mut bytes = Vec::new();
    frames.finish(&mut bytes);
    CheckedSegment::of(Bytes::from(bytes))
}

fn compress(
    kept: &mut Option<FrameCompressor>,
    plain: &[Bytes],
) -> std::io::Result<CompressedFrame> {
    let compressor = match kept {
        Some(compressor) => compressor,
        None => kept.insert(FrameCompressor::new()?),
    };
    match plain {
        [whole] => compressor.compress(whole),
        parts => compressor.compress(&parts.concat()),
    }
}
