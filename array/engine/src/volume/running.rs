//! A volume with the two threads that it lives by: one that syncs for all who wait, and one that seals.

use std::{
    fmt, io,
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Asked, Medium, StoreHealth, TailFeed, Volume, lock};

/// What a journal has is sealed this often, asked or not.
const SEAL_EVERY: Duration = Duration::from_secs(5);
/// How long until a store that was full, or failed, is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Told that what was changed before is durable, or (false) that it is in doubt.
pub(crate) type Synced = Box<dyn FnOnce(bool) + Send>;

/// How a volume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    Well,
    /// The store has no room: what is in the journal stays there.
    StoreFull,
    /// The store does not do what it shall: what is in the journal stays there.
    StoreFails,
    /// A write or a sync failed: it takes no changes until it is opened again.
    Faulty,
}

/// Who waits for a sync.
#[derive(Default)]
struct Syncs {
    waiting: Vec<Synced>,
    ending: bool,
}

/// See the module. Threads end, and what the journal has is sealed, when it is closed or dropped.
pub struct RunningVolume<M: Medium> {
    shared: Arc<Shared<M>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

pub(super) struct Shared<M> {
    pub(super) volume: Volume<M>,
    syncs: Mutex<Syncs>,
    to_sync: Condvar,
}

impl<M: Medium> fmt::Debug for RunningVolume<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunningVolume(..)")
    }
}

impl<M: Medium> std::ops::Deref for RunningVolume<M> {
    type Target = Volume<M>;

    fn deref(&self) -> &Volume<M> {
        &self.shared.volume
    }
}

impl<M: Medium> RunningVolume<M> {
    /// Starts the threads of an open volume.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(volume: Volume<M>) -> io::Result<Self> {
        volume.attended.store(true, Ordering::Release);
        let shared = Arc::new(Shared { volume, syncs: Mutex::default(), to_sync: Condvar::new() });
        let syncs = Arc::clone(&shared);
        let seals = Arc::clone(&shared);
        let sync = thread::Builder::new().name("volume-sync".into()).spawn(move || syncs.sync())?;
        let running = Self { shared, threads: Mutex::new(vec![sync]) };
        let seal = thread::Builder::new().name("volume-seal".into()).spawn(move || seals.seal())?;
        lock(&running.threads).push(seal);
        Ok(running)
    }

    /// Calls `done` once everything that was changed before is durable.
    pub(crate) fn sync_then(&self, done: Synced) {
        let mut syncs = lock(&self.shared.syncs);
        if syncs.ending {
            drop(syncs);
            done(false);
            return;
        }
        syncs.waiting.push(done);
        drop(syncs);
        self.shared.to_sync.notify_one();
    }

    /// What clients are to keep of its journal, when they are to.
    #[must_use]
    pub fn tail_feed(&self) -> Option<TailFeed<M>> {
        TailFeed::new(Arc::clone(&self.shared))
    }

    /// How it does.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        if self.faulty.load(Ordering::Acquire) {
            return VolumeState::Faulty;
        }
        match lock(&self.writer).store {
            StoreHealth::Well => VolumeState::Well,
            StoreHealth::Full => VolumeState::StoreFull,
            StoreHealth::Fails => VolumeState::StoreFails,
        }
    }

    /// Takes no changes any more and ends the threads. What the journal has stays there.
    pub fn abandon(&self) {
        self.give_up();
        self.close();
    }

    /// Takes no changes any more, seals what the journal has, and ends the threads.
    pub fn close(&self) {
        lock(&self.writer).closing = true;
        self.room.notify_all();
        lock(&self.shared.syncs).ending = true;
        self.shared.to_sync.notify_all();
        lock(&self.asked).ending = true;
        self.to_seal.notify_all();
        if let Some(mirroring) = &self.mirroring {
            mirroring.end();
        }
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!("a thread of a volume panicked");
            }
        }
    }
}

impl<M: Medium> Drop for RunningVolume<M> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<M: Medium> Shared<M> {
    /// Syncs once for all who wait.
    fn sync(&self) {
        loop {
            let waiting = {
                let syncs = lock(&self.syncs);
                let idle = |syncs: &mut Syncs| syncs.waiting.is_empty() && !syncs.ending;
                let mut syncs =
                    self.to_sync.wait_while(syncs, idle).unwrap_or_else(PoisonError::into_inner);
                if syncs.waiting.is_empty() {
                    return;
                }
                std::mem::take(&mut syncs.waiting)
            };
            let result = self.volume.sync_and_mirror();
            if let Err(error) = &result {
                tracing::error!(
                    volume = %self.volume.id,
                    error = error as &dyn std::error::Error,
                    "the journal is not durable"
                );
            }
            for done in waiting {
                done(result.is_ok());
            }
        }
    }

    fn seal(&self) {
        let mut failed = false;
        loop {
            let ending = self.wait_to_seal(failed);
            if self.volume.pending() > 0 && !self.volume.faulty.load(Ordering::Acquire) {
                failed = self.seal_once();
            }
            if ending {
                return;
            }
        }
    }

    /// Waits until somebody asks, or until it is time. True when the volume is being closed.
    fn wait_to_seal(&self, failed: bool) -> bool {
        let asked = lock(&self.volume.asked);
        // After a failure asking is no reason to try again at once.
        let patience = if failed { AGAIN_AFTER } else { SEAL_EVERY };
        let idle = |asked: &mut Asked| !asked.ending && (failed || !asked.seal);
        let waited = self.volume.to_seal.wait_timeout_while(asked, patience, idle);
        let (mut asked, _) = waited.unwrap_or_else(PoisonError::into_inner);
        asked.seal = false;
        asked.ending
    }

    /// True when it failed.
    fn seal_once(&self) -> bool {
        let Err(error) = self.volume.seal() else { return false };
        let health = if error.is_full() { StoreHealth::Full } else { StoreHealth::Fails };
        let before = std::mem::replace(&mut lock(&self.volume.writer).store, health);
        // Who waits for room gets to know.
        self.volume.room.notify_all();
        if before != health {
            tracing::error!(
                volume = %self.volume.id,
                error = &error as &dyn std::error::Error,
                "cannot seal what the journal has: it stays there, and this is tried again every second"
            );
        }
        true
    }
}
