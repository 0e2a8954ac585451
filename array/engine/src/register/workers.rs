//! A few threads for the two jobs that cost: hashing and compressing. Results are awaited in order by their takers.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use cairn_core::{id::BlockHash, segment::CompressedFrame, units::BLOCK_BYTES};

use crate::frame::FrameCompressor;

/// The pool is gone: a worker could not be started or died.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a worker thread ended early")]
pub(super) struct WorkerGone;

enum Job {
    Hash(Bytes, SyncSender<Vec<BlockHash>>),
    Compress(Vec<Bytes>, SyncSender<std::io::Result<CompressedFrame>>),
}

/// A handle for giving work. Work ahead is bounded by whoever holds the results' receivers.
#[derive(Clone)]
pub(super) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts `count` threads; they end when the last handle is dropped.
    pub(super) fn start(count: usize) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..count)
            .map(|number| {
                let queue = Arc::clone(&queue);
                thread::Builder::new()
                    .name(format!("register-{number}"))
                    .spawn(move || work(&queue))
            })
            .collect::<Result<_, _>>()?;
        Ok((Self { jobs }, threads))
    }

    /// Hashes each block of `blocks`.
    pub(super) fn hash(&self, blocks: Bytes) -> Result<Receiver<Vec<BlockHash>>, WorkerGone> {
        let (done, result) = mpsc::sync_channel(1);
        self.jobs.send(Job::Hash(blocks, done)).map_err(|_| WorkerGone)?;
        Ok(result)
    }

    /// Compresses a frame that lies in parts.
    pub(super) fn compress(
        &self,
        plain: Vec<Bytes>,
    ) -> Result<Receiver<std::io::Result<CompressedFrame>>, WorkerGone> {
        let (done, result) = mpsc::sync_channel(1);
        self.jobs.send(Job::Compress(plain, done)).map_err(|_| WorkerGone)?;
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
            Ok(Job::Compress(plain, done)) => {
                done.send(compress(&mut compressor, &plain)).ok();
            }
        }
    }
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
