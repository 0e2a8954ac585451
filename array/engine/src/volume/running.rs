//! A volume with the two threads that it lives by: one that syncs for all who wait, and one that seals.

use std::{
    fmt, io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{ChangeError, Medium, SealError, Volume, lock};

/// An idle volume's journal is sealed after this, so that it is soon as safe as its layout says.
const SEAL_AFTER: Duration = Duration::from_secs(5);
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
    /// A write or a sync failed: it takes no changes until it is opened again.
    Faulty,
}

/// Who waits for what.
#[derive(Default)]
struct Asked {
    syncs: Vec<Synced>,
    seal: bool,
    ending: bool,
}

/// See the module. Threads end, and what the journal has is sealed, when it is closed or dropped.
pub struct RunningVolume<M: Medium> {
    shared: Arc<Shared<M>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared<M> {
    volume: Volume<M>,
    asked: Mutex<Asked>,
    to_sync: Condvar,
    to_seal: Condvar,
    seal_asked: AtomicBool,
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
        let shared = Arc::new(Shared {
            volume,
            asked: Mutex::default(),
            to_sync: Condvar::new(),
            to_seal: Condvar::new(),
            seal_asked: AtomicBool::new(false),
        });
        let syncs = Arc::clone(&shared);
        let seals = Arc::clone(&shared);
        let sync = thread::Builder::new().name("volume-sync".into()).spawn(move || syncs.sync())?;
        let running = Self { shared, threads: Mutex::new(vec![sync]) };
        let seal = thread::Builder::new().name("volume-seal".into()).spawn(move || seals.seal())?;
        lock(&running.threads).push(seal);
        Ok(running)
    }

    /// Takes changes; see [`Volume::change`]. Waits while the journal is full.
    ///
    /// # Errors
    /// As [`Volume::change`].
    pub fn change(&self, changes: &[super::Change<'_>]) -> Result<(), ChangeError> {
        // Before it, too: a batch may be larger than what is left.
        self.shared.ask_to_seal();
        let done = self.shared.volume.change(changes);
        self.shared.ask_to_seal();
        done
    }

    /// Calls `done` once everything that was changed before is durable.
    pub(crate) fn sync_then(&self, done: Synced) {
        let mut asked = lock(&self.shared.asked);
        if asked.ending {
            drop(asked);
            done(false);
            return;
        }
        asked.syncs.push(done);
        drop(asked);
        self.shared.to_sync.notify_one();
    }

    /// How it does.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        if self.shared.volume.faulty.load(Ordering::Acquire) {
            VolumeState::Faulty
        } else if lock(&self.shared.volume.writer).store_full {
            VolumeState::StoreFull
        } else {
            VolumeState::Well
        }
    }

    /// Takes no changes any more and ends the threads. What the journal has stays there.
    pub fn abandon(&self) {
        self.shared.volume.give_up();
        self.close();
    }

    /// Takes no changes any more, seals what the journal has, and ends the threads.
    pub fn close(&self) {
        lock(&self.shared.volume.writer).closing = true;
        self.shared.volume.room.notify_all();
        lock(&self.shared.asked).ending = true;
        self.shared.to_sync.notify_all();
        self.shared.to_seal.notify_all();
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
    fn ask_to_seal(&self) {
        let full_enough = self.volume.pending() * 3 >= self.volume.ring.capacity;
        if full_enough && !self.seal_asked.swap(true, Ordering::AcqRel) {
            lock(&self.asked).seal = true;
            self.to_seal.notify_one();
        }
    }

    /// Syncs once for all who wait.
    fn sync(&self) {
        loop {
            let waiting = {
                let mut asked = lock(&self.asked);
                loop {
                    if !asked.syncs.is_empty() {
                        break std::mem::take(&mut asked.syncs);
                    }
                    if asked.ending {
                        return;
                    }
                    asked = self.to_sync.wait(asked).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let result = self.volume.sync();
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

    /// Waits until somebody asks, or the volume was left alone for a while. True when the volume is being closed.
    fn wait_to_seal(&self, failed: bool) -> bool {
        let mut asked = lock(&self.asked);
        // After a failure asking is no reason to try again at once.
        if failed && !asked.ending {
            asked = self
                .to_seal
                .wait_timeout(asked, AGAIN_AFTER)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        } else if !asked.seal && !asked.ending {
            asked = self
                .to_seal
                .wait_timeout(asked, SEAL_AFTER)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        asked.seal = false;
        self.seal_asked.store(false, Ordering::Release);
        asked.ending
    }

    /// True when it failed.
    fn seal_once(&self) -> bool {
        let result = self.volume.seal();
        if let Err(error) = &result {
            tracing::error!(
                volume = %self.volume.id,
                error = error as &dyn std::error::Error,
                "cannot seal what the journal has, it stays there"
            );
            lock(&self.volume.writer).store_full |= result.as_ref().is_err_and(SealError::is_full);
            // Who waits for room gets to know.
            self.volume.room.notify_all();
        }
        result.is_err()
    }
}
