//! The DSF behind a mailbox: one thread owns the writer, any number of async tasks use handles.
//!
//! The thread takes as many waiting puts as it finds (up to [`PUTS_PER_BATCH`]) through one pair of syncs,
//! so that a scatter is bound by the disk's bandwidth and not by its sync latency. Reads do not pass
//! through the mailbox. Everything is bounded: the mailbox, the batch, the checks and reads at once; so
//! memory is at most about `2 × 8 + 4 + 8` segments.

use std::{io, sync::Arc};

use bytes::Bytes;
use cairn_core::id::SegmentId;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    checked::CheckedSegment,
    engine::{Dsf, Fault, Put, PutError, ResizeError, Stored},
    layout::SlotCount,
    reader::{DsfReader, GetError, Scrubbed, SlotFault},
    resize::Resized,
    slot::SegmentClass,
    table::{Held, Stats},
};

/// Puts that share one pair of syncs.
pub(super) const PUTS_PER_BATCH: usize = 8;
/// Commands that wait; a put beyond them makes its sender wait.
const MAILBOX: usize = 8;
/// Segments hashed at once before they are put.
const CHECKS_AT_ONCE: usize = 4;
/// Segments read at once.
const READS_AT_ONCE: usize = 8;

/// Why the owner did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandleError {
    #[error(transparent)]
    Faulted(#[from] Fault),
    #[error("the storage file is closed")]
    Closed,
}

enum Command {
    Put {
        put: Put,
        reply: oneshot::Sender<Result<Stored, PutError>>,
    },
    Remove {
        ids: Vec<SegmentId>,
        reply: oneshot::Sender<Result<SlotCount, Fault>>,
    },
    SetClass {
        ids: Vec<SegmentId>,
        class: SegmentClass,
        reply: oneshot::Sender<Result<(), Fault>>,
    },
    HealHeaders {
        ids: Vec<SegmentId>,
        reply: oneshot::Sender<Result<(), Fault>>,
    },
    Evict {
        count: SlotCount,
        below: SegmentClass,
        reply: oneshot::Sender<Result<Vec<Held>, Fault>>,
    },
    Resize {
        capacity: SlotCount,
        reply: oneshot::Sender<Result<Resized, ResizeError>>,
    },
    Stop,
}

/// The thread that owns a DSF.
#[derive(Debug)]
pub struct DsfOwner {
    thread: std::thread::JoinHandle<()>,
    commands: mpsc::Sender<Command>,
}

/// A way to the DSF for async tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DsfHandle {
    commands: mpsc::Sender<Command>,
    reader: DsfReader,
    checks: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

impl DsfOwner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(dsf: Dsf) -> io::Result<(Self, DsfHandle)> {
        let (commands, mailbox) = mpsc::channel(MAILBOX);
        let handle = DsfHandle {
            commands: commands.clone(),
            reader: dsf.reader(),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
        };
        let thread = std::thread::Builder::new().name("dsf".into()).spawn(|| run(dsf, mailbox))?;
        Ok((Self { thread, commands }, handle))
    }

    /// Ends the thread once it has done what came before; later commands get `Closed`. The file is
    /// closed (and its lock free) when the last handle is gone too.
    pub async fn stop(self) {
        // A closed mailbox means that the thread has ended already.
        if self.commands.send(Command::Stop).await.is_err() {
            tracing::debug!("the owner of the storage file had ended");
        }
        if let Some(Err(panic)) = blocking(move || self.thread.join()).await {
            std::panic::resume_unwind(panic);
        }
    }
}

impl DsfHandle {
    /// Stores a segment; durable when it returns.
    ///
    /// # Errors
    /// [`PutError`]: not the bytes of `id`, no slot, disk full, disk failed.
    pub async fn put(
        &self,
        id: SegmentId,
        bytes: Bytes,
        class: SegmentClass,
    ) -> Result<Stored, PutError> {
        let segment = {
            let Ok(_permit) = self.checks.acquire().await else { return Err(PutError::Closed) };
            blocking(move || CheckedSegment::check(id, bytes)).await.ok_or(PutError::Closed)??
        };
        self.put_checked(segment, class).await
    }

    /// As [`Self::put`], for bytes that were checked on their way in.
    ///
    /// # Errors
    /// [`PutError`], except that the bytes are right.
    pub async fn put_checked(
        &self,
        segment: CheckedSegment,
        class: SegmentClass,
    ) -> Result<Stored, PutError> {
        let put = Put { segment, class };
        self.ask(|reply| Command::Put { put, reply }).await.unwrap_or(Err(PutError::Closed))
    }

    /// A segment's bytes, checked.
    ///
    /// # Errors
    /// [`GetError`]: not held, or rotten.
    pub async fn get(&self, id: SegmentId) -> Result<Bytes, GetError> {
        let Ok(_permit) = self.reads.acquire().await else { return Err(GetError::Closed) };
        let reader = self.reader.clone();
        blocking(move || reader.get(id)).await.unwrap_or(Err(GetError::Closed))
    }

    /// Removes segments, durably; answers how many were held.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn remove(&self, ids: Vec<SegmentId>) -> Result<SlotCount, HandleError> {
        flatten(self.ask(|reply| Command::Remove { ids, reply }).await)
    }

    /// Says anew what segments are worth.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn set_class(
        &self,
        ids: Vec<SegmentId>,
        class: SegmentClass,
    ) -> Result<(), HandleError> {
        flatten(self.ask(|reply| Command::SetClass { ids, class, reply }).await)
    }

    /// Gives up to `count` segments worth less than `below` up, least valuable first, and says which.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn evict(
        &self,
        count: SlotCount,
        below: SegmentClass,
    ) -> Result<Vec<Held>, HandleError> {
        flatten(self.ask(|reply| Command::Evict { count, below, reply }).await)
    }

    /// Makes the DSF larger or smaller. Puts and removals wait meanwhile, reads do not.
    ///
    /// # Errors
    /// [`ResizeError`].
    pub async fn resize(&self, capacity: SlotCount) -> Result<Resized, ResizeError> {
        let answer = self.ask(|reply| Command::Resize { capacity, reply }).await;
        answer.unwrap_or(Err(ResizeError::Closed))
    }

    /// Checks the next `count` used slots against the disk. Damaged headers of good segments are
    /// written anew; rotten segments are for the caller to report and remove.
    ///
    /// # Errors
    /// [`HandleError`] when a header cannot be written.
    pub async fn scrub_step(&self, count: u32) -> Result<Scrubbed, HandleError> {
        let Ok(_permit) = self.reads.acquire().await else { return Err(HandleError::Closed) };
        let reader = self.reader.clone();
        let scrubbed =
            blocking(move || reader.scrub_step(count)).await.ok_or(HandleError::Closed)?;
        let damaged = scrubbed.bad.iter().filter(|bad| matches!(bad.fault, SlotFault::Header));
        let ids: Vec<SegmentId> = damaged.map(|bad| bad.id).collect();
        if !ids.is_empty() {
            flatten(self.ask(|reply| Command::HealHeaders { ids, reply }).await)?;
        }
        Ok(scrubbed)
    }

    #[must_use]
    pub fn contains(&self, id: SegmentId) -> bool {
        self.reader.contains(id)
    }

    /// Everything held, in file order. From memory: does not block.
    #[must_use]
    pub fn list(&self) -> Vec<Held> {
        self.reader.list()
    }

    /// From memory: does not block.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.reader.stats()
    }

    /// `None` when the owner has ended.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

fn flatten<T>(answer: Option<Result<T, Fault>>) -> Result<T, HandleError> {
    answer.ok_or(HandleError::Closed)?.map_err(HandleError::Faulted)
}

/// Runs on a thread that may block; `None` when the runtime is going down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

fn run(mut dsf: Dsf, mut mailbox: mpsc::Receiver<Command>) {
    let mut next = None;
    while let Some(command) = next.take().or_else(|| mailbox.blocking_recv()) {
        match command {
            Command::Put { put, reply } => {
                let mut batch = vec![put];
                let mut replies = vec![reply];
                next = gather(&mut mailbox, &mut batch, &mut replies);
                for (reply, outcome) in replies.into_iter().zip(dsf.put(&batch)) {
                    answer(reply, outcome);
                }
            }
            Command::Remove { ids, reply } => answer(reply, dsf.remove(&ids)),
            Command::SetClass { ids, class, reply } => answer(reply, dsf.set_class(&ids, class)),
            Command::HealHeaders { ids, reply } => answer(reply, dsf.heal_headers(&ids)),
            Command::Evict { count, below, reply } => answer(reply, dsf.evict(count, below)),
            Command::Resize { capacity, reply } => answer(reply, dsf.resize(capacity)),
            Command::Stop => break,
        }
    }
}

/// Takes the puts that wait already, up to the first command that is not one, which is returned.
fn gather(
    mailbox: &mut mpsc::Receiver<Command>,
    batch: &mut Vec<Put>,
    replies: &mut Vec<oneshot::Sender<Result<Stored, PutError>>>,
) -> Option<Command> {
    while batch.len() < PUTS_PER_BATCH {
        match mailbox.try_recv().ok()? {
            Command::Put { put, reply } => {
                batch.push(put);
                replies.push(reply);
            }
            other => return Some(other),
        }
    }
    None
}

/// Whoever asked may have gone; what it asked for is done all the same.
fn answer<T>(reply: oneshot::Sender<T>, outcome: T) {
    if reply.send(outcome).is_err() {
        tracing::debug!("nobody waits for this answer of the storage file any more");
    }
}
