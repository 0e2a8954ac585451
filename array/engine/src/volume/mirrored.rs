//! A journal that clients keep too: a flush is answered once one of them has all that it made durable here.
//!
//! ```text
//!   flush ─► sync here ─► wanted ──► feeds, one for each client ──► kept ─► the flush is answered
//! ```
//!
//! Invariants: no flush is answered before clients know the root that the volume was opened as; what is sent is durable here; what a client lacks to read on from the last root that clients know is in the
//! journal until they know a newer one.

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use cairn_core::{
    units::BLOCK_BYTES,
    volume::{
        Durability,
        tail::{Attempt, Head, MAX_PIECE_BLOCKS},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ChangeError, Medium, OpenError, Volume, Wait, lock, open::opened, running::Shared};
use crate::random;

/// How far clients are.
#[derive(Debug)]
pub(super) struct Mirroring {
    /// Positions before this are durable here.
    synced: watch::Sender<u64>,
    /// Positions before this are with a client.
    kept: Mutex<u64>,
    /// With `kept`.
    news: Condvar,
    /// A root that clients know covers the positions before this.
    known: AtomicU64,
    /// They must know a root that covers the positions before this: what the journal has there may have gaps, where it was
    /// sealed before it was flushed.
    opened: u64,
    /// Clients that have all that was flushed.
    holders: AtomicUsize,
    ended: CancellationToken,
}

impl Mirroring {
    /// Of a volume that is opened as of a root which covers the positions before `opened`.
    pub(super) fn new(known: u64, opened: u64) -> Self {
        Self {
            synced: watch::Sender::new(0),
            kept: Mutex::new(0),
            news: Condvar::new(),
            known: AtomicU64::new(known),
            opened,
            holders: AtomicUsize::new(0),
            ended: CancellationToken::new(),
        }
    }

    pub(super) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        // With the lock, so that nobody begins to wait after this.
        let kept = lock(&self.kept);
        self.ended.cancel();
        drop(kept);
        self.news.notify_all();
    }

    fn want(&self, upto: u64) {
        self.synced.send_if_modified(|synced| {
            let more = upto > *synced;
            *synced = upto.max(*synced);
            more
        });
    }

    /// Whether clients have what is before `upto`, and can make something of it.
    fn has(&self, kept: u64, upto: u64) -> bool {
        kept >= upto && self.known() >= self.opened
    }

    /// Waits until a client has what is before `upto`.
    fn wait(&self, upto: u64) -> Result<(), ChangeError> {
        self.want(upto);
        let lacking = |kept: &mut u64| !self.has(*kept, upto) && !self.ended.is_cancelled();
        let kept = self.news.wait_while(lock(&self.kept), lacking);
        let kept = *kept.unwrap_or_else(PoisonError::into_inner);
        if self.has(kept, upto) { Ok(()) } else { Err(ChangeError::Closing) }
    }
}

impl<M: Medium> Volume<M> {
    /// Makes every change that was taken so far durable, and, when clients keep the journal too, waits until one has it.
    pub(super) fn sync_and_mirror(&self) -> Result<(), ChangeError> {
        let upto = lock(&self.writer).cursor.position;
        self.sync()?;
        self.mirroring.as_ref().map_or(Ok(()), |mirroring| mirroring.wait(upto))
    }

    /// Clients know this root now, and with it can do without what the journal has before it.
    ///
    /// # Errors
    /// [`OpenError::Root`] when it is not one of this volume's.
    pub fn clients_know(&self, root: &[u8]) -> Result<(), OpenError> {
        let Some(mirroring) = &self.mirroring else { return Ok(()) };
        let verifier = self.keys.signer.verifying_key();
        let (_, secret) = opened(root, self.id, &verifier, &self.keys.content_key)?;
        {
            // With the lock, so that nobody who saw the old one begins to wait after this.
            let _kept = lock(&mirroring.kept);
            mirroring.known.fetch_max(secret.cursor.position, Ordering::AcqRel);
        }
        mirroring.news.notify_all();
        self.free_journal(&lock(&self.writer));
        Ok(())
    }

    /// When a flush is answered.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.mirroring.as_ref().map_or(Durability::Local, |_| Durability::Mirrored)
    }

    /// How many clients have all that was flushed; none when none is to.
    pub fn tail_holders(&self) -> Option<usize> {
        Some(self.mirroring.as_ref()?.holders.load(Ordering::Acquire))
    }
}

/// What is to be sent next.
#[derive(Debug)]
pub enum Cut {
    /// A sealed piece, and the position behind it.
    Piece { bytes: Vec<u8>, end: u64 },
    /// The client has all that is before this.
    Nothing { upto: u64 },
    /// The journal has moved on: what the client has is to be begun anew.
    Freed,
}

/// What one client is to keep of a journal.
pub struct TailFeed<M: Medium> {
    shared: Arc<Shared<M>>,
    mirroring: Arc<Mirroring>,
    synced: watch::Receiver<u64>,
}

impl<M: Medium> fmt::Debug for TailFeed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TailFeed(..)")
    }
}

impl<M: Medium> Clone for TailFeed<M> {
    fn clone(&self) -> Self {
        let (shared, mirroring) = (Arc::clone(&self.shared), Arc::clone(&self.mirroring));
        Self { shared, mirroring, synced: self.synced.clone() }
    }
}

/// Counts as a client that has all until it is dropped.
#[derive(Debug)]
pub struct TailHolder(Arc<Mirroring>);

impl Drop for TailHolder {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<M: Medium> TailFeed<M> {
    pub(super) fn new(shared: Arc<Shared<M>>) -> Option<Self> {
        let mirroring = Arc::clone(shared.volume.mirroring.as_ref()?);
        // What was found in the journal when it was opened is durable, too.
        mirroring.want(lock(&shared.volume.writer).cursor.position);
        let synced = mirroring.synced.subscribe();
        Some(Self { shared, mirroring, synced })
    }

    /// Nobody sends it to clients any more: flushes that wait for them fail.
    pub fn end(&self) {
        self.mirroring.end();
    }

    /// Fires when the volume is closed, or nobody sends its journal any more.
    #[must_use]
    pub fn ended(&self) -> &CancellationToken {
        &self.mirroring.ended
    }

    /// Positions before this are durable.
    #[must_use]
    pub fn synced(&self) -> u64 {
        *self.synced.borrow()
    }

    /// Waits until there is more than there was when this was asked last.
    pub async fn more(&mut self) {
        if self.synced.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Positions before this are not needed: clients know a root that covers them.
    #[must_use]
    pub fn needed(&self) -> u64 {
        self.shared.volume.tail.load(Ordering::Acquire)
    }

    /// The next piece of an attempt that came up to `from`, or, without, its first. Blocks.
    ///
    /// # Errors
    /// When the journal cannot be read, or the system gives no random bytes.
    pub fn cut(&self, attempt: Attempt, from: Option<u64>) -> anyhow::Result<Cut> {
        let volume = &self.shared.volume;
        let (synced, needed) = (self.synced(), self.needed());
        let first = from.unwrap_or(needed);
        if first < needed {
            return Ok(Cut::Freed);
        }
        let count = synced.saturating_sub(first).min(MAX_PIECE_BLOCKS.into());
        if count == 0 {
            return Ok(Cut::Nothing { upto: first });
        }
        let head = Head {
            volume: volume.id,
            attempt,
            first,
            blocks: u32::try_from(count)?,
            capacity: volume.ring.capacity,
            needed,
            whole: first + count == synced,
            salt: random::array()?,
        };
        let mut blocks = vec![0; head.blocks as usize * BLOCK_BYTES];
        let here = count.min(volume.ring.until_end(first));
        let (before, after) = blocks.split_at_mut(usize::try_from(here)? * BLOCK_BYTES);
        volume.medium.read_journal(volume.ring.offset(first), before, Wait::AsLongAsItTakes)?;
        if !after.is_empty() {
            let start = volume.ring.offset(first + here);
            volume.medium.read_journal(start, after, Wait::AsLongAsItTakes)?;
        }
        // Space is written again only after this moved on.
        if self.needed() > first {
            return Ok(Cut::Freed);
        }
        let bytes = head.seal(&volume.keys.content_key, &blocks)?;
        Ok(Cut::Piece { bytes, end: head.end() })
    }

    /// A client has all that is before `upto`, from what is needed on.
    pub fn keeps(&self, upto: u64) {
        let mut kept = lock(&self.mirroring.kept);
        *kept = upto.max(*kept);
        drop(kept);
        self.mirroring.news.notify_all();
    }

    /// Counts a client as one that has all, until what is returned is dropped.
    #[must_use]
    pub fn count(&self) -> TailHolder {
        self.mirroring.holders.fetch_add(1, Ordering::AcqRel);
        TailHolder(Arc::clone(&self.mirroring))
    }
}
