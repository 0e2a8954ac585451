//! Who uses a bucket: an object in it that its user writes anew every few seconds.
//!
//! The kernel locks a folder; a bucket has no locks, but takes a write only where the object is still the one that was seen
//! (`If-Match`, `If-None-Match`: RFC 9110, section 13.1). Who finds the object watches it: if it stays the same for
//! [`TERM`], its user is dead. Who could not write it anew for [`HOLD`], which is less, writes nothing more to the bucket.
//! Both measure a span of time on their own clock, so the clocks need not agree.
//!
//! The object `cairn-user`, 24 bytes; all that is asked of it is to differ each time it is written:
//!
//! | Bytes | |
//! |---|---|
//! | 0..16 | random, of this opening |
//! | 16..24 | how often it was written, little-endian |
//!
//! It keeps two servers that were started on one bucket by mistake apart. It does not fence single writes: one that was
//! under way when its server lost the bucket may still arrive.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion, path::Path as ObjectPath,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::device::DeviceFault;

const OBJECT: &str = "cairn-user";

/// How often it is written anew.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// As long as one call may take.
const CALL: Duration = Duration::from_secs(2);
/// Whose last writing anew began so long ago stops using the bucket.
const HOLD: Duration = Duration::from_secs(6);
/// What stays the same for so long is of a user that is dead.
const TERM: Duration = Duration::from_secs(8);

/// The use of a bucket. It ends when this is dropped; the next user waits for [`TERM`] then, unless it was released.
#[derive(Debug)]
pub(super) struct Lease {
    state: Arc<Mutex<State>>,
    renewing: Mutex<Option<JoinHandle<()>>>,
    end: DropGuard,
}

#[derive(Debug)]
struct State {
    /// When the last writing that went through began.
    renewed: Instant,
    taken_over: bool,
}

/// What is written anew.
struct Claim {
    backend: Arc<dyn ObjectStore>,
    opening: [u8; 16],
    writes: u64,
    seen: Option<UpdateVersion>,
}

/// What came of writing it.
enum Written {
    Done,
    /// It is another's now.
    Anothers,
}

impl Lease {
    /// Takes the bucket, once whoever used it is known to be dead.
    pub(super) async fn take(backend: Arc<dyn ObjectStore>) -> Result<Self, DeviceFault> {
        let opening = crate::random::array().map_err(|error| DeviceFault::Io {
            operation: "draw random bytes",
            source: io::Error::other(error),
        })?;
        let mut claim = Claim { backend, opening, writes: 0, seen: None };
        if let Some(before) = claim.read().await? {
            let began = Instant::now();
            claim.seen = Some(before.clone());
            while began.elapsed() < TERM {
                sleep(RENEW_EVERY / 2).await;
                match claim.read().await? {
                    Some(now) if now.e_tag == before.e_tag => {}
                    Some(_) => return Err(DeviceFault::InUse),
                    // Its user let go of it.
                    None => {
                        claim.seen = None;
                        break;
                    }
                }
            }
        }
        let renewed = Instant::now();
        match claim.write().await? {
            Written::Done => {}
            Written::Anothers => return Err(DeviceFault::InUse),
        }
        let state = Arc::new(Mutex::new(State { renewed, taken_over: false }));
        let end = CancellationToken::new();
        let renewing = tokio::spawn(renew(claim, Arc::clone(&state), end.clone()));
        Ok(Self { state, renewing: Mutex::new(Some(renewing)), end: end.drop_guard() })
    }

    /// Whether the bucket may be used.
    pub(super) fn check(&self) -> io::Result<()> {
        let state = lock(&self.state);
        if state.taken_over {
            return Err(io::Error::other("another server uses the bucket now: stop one of them"));
        }
        if state.renewed.elapsed() > HOLD {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the bucket does not answer"));
        }
        Ok(())
    }

    /// Lets the next user have it at once.
    pub(super) async fn release(&self) {
        let renewing = lock(&self.renewing).take();
        self.end.token().cancel();
        if let Some(renewing) = renewing
            && renewing.await.is_err()
        {
            tracing::error!("the task that renews the use of a bucket panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn renew(mut claim: Claim, state: Arc<Mutex<State>>, end: CancellationToken) {
    loop {
        if end.run_until_cancelled(sleep(RENEW_EVERY)).await.is_none() {
            claim.let_go().await;
            return;
        }
        let began = Instant::now();
        match claim.write().await {
            Ok(Written::Done) => lock(&state).renewed = began,
            Ok(Written::Anothers) => {
                lock(&state).taken_over = true;
                tracing::error!("another server uses a bucket of the store now");
                return;
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                tracing::warn!(error = format!("{error:#}"), "renew the use of a bucket");
            }
        }
    }
}

impl Claim {
    /// The object as it is; `None` when nobody uses the bucket.
    async fn read(&self) -> Result<Option<UpdateVersion>, DeviceFault> {
        let found = call(self.backend.head(&ObjectPath::from(OBJECT))).await;
        match found {
            Ok(meta) => Ok(Some(UpdateVersion { e_tag: meta.e_tag, version: meta.version })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(DeviceFault::Backend(error)),
        }
    }

    async fn write(&mut self) -> Result<Written, DeviceFault> {
        self.writes += 1;
        let bytes = self.bytes();
        let mode = self.seen.clone().map_or(PutMode::Create, PutMode::Update);
        let path = ObjectPath::from(OBJECT);
        let payload = PutPayload::from_bytes(bytes.clone());
        let put = call(self.backend.put_opts(&path, payload, mode.into())).await;
        match put {
            Ok(put) => {
                self.seen = Some(UpdateVersion { e_tag: put.e_tag, version: put.version });
                Ok(Written::Done)
            }
            Err(
                object_store::Error::Precondition { .. }
                | object_store::Error::AlreadyExists { .. },
            ) => self.look_again().await,
            Err(error) => Err(DeviceFault::Backend(error)),
        }
    }

    /// Whether it is ours after all: a write whose answer got lost went through.
    async fn look_again(&mut self) -> Result<Written, DeviceFault> {
        let found = call(self.backend.get(&ObjectPath::from(OBJECT))).await;
        let found = found.map_err(DeviceFault::Backend)?;
        let seen =
            UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = call(found.bytes()).await.map_err(DeviceFault::Backend)?;
        if !bytes.starts_with(&self.opening) {
            return Ok(Written::Anothers);
        }
        self.seen = Some(seen);
        Ok(Written::Done)
    }

    /// At an orderly end. Whoever took the bucket over has another object there, so it is looked at first.
    async fn let_go(&self) {
        let path = ObjectPath::from(OBJECT);
        let let_go = async {
            let bytes = call(self.backend.get(&path)).await?;
            if call(bytes.bytes()).await?.starts_with(&self.opening) {
                call(self.backend.delete(&path)).await?;
            }
            Ok::<_, object_store::Error>(())
        };
        if let Err(error) = let_go.await {
            tracing::warn!(%error, "let go of a bucket: its next user waits for a few seconds");
        }
    }

    fn bytes(&self) -> Bytes {
        [self.opening.as_slice(), &self.writes.to_le_bytes()].concat().into()
    }
}

async fn call<T>(
    made: impl Future<Output = object_store::Result<T>>,
) -> Result<T, object_store::Error> {
    match timeout(CALL, made).await {
        Ok(answer) => answer,
        Err(late) => Err(object_store::Error::Generic { store: "bucket", source: Box::new(late) }),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn bucket() -> Arc<dyn ObjectStore> {
        Arc::new(InMemory::new())
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_uses_a_bucket() {
        let bucket = bucket();
        let first = Lease::take(Arc::clone(&bucket)).await.unwrap();
        let second = Lease::take(Arc::clone(&bucket)).await;
        assert!(matches!(second, Err(DeviceFault::InUse)), "{second:?}");
        sleep(10 * TERM).await;
        first.check().unwrap();
        first.release().await;
        let began = Instant::now();
        let third = Lease::take(bucket).await.unwrap();
        assert!(began.elapsed() < RENEW_EVERY, "it was free");
        third.check().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_user_is_followed_by_the_next_and_writes_nothing_more() {
        let bucket = bucket();
        let first = Lease::take(Arc::clone(&bucket)).await.unwrap();
        // It stands still, as in a virtual machine that is paused.
        lock(&first.renewing).as_ref().unwrap().abort();
        let began = Instant::now();
        let second = Lease::take(Arc::clone(&bucket)).await.unwrap();
        assert!(began.elapsed() >= TERM && began.elapsed() < 2 * TERM);
        let error = first.check().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "before the next one began");
        second.check().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_awake_again_sees_that_the_bucket_is_anothers_and_leaves_it() {
        let bucket = bucket();
        let first = Lease::take(Arc::clone(&bucket)).await.unwrap();
        let path = ObjectPath::from(OBJECT);
        bucket.put(&path, PutPayload::from_static(&[7; 24])).await.unwrap();
        sleep(2 * RENEW_EVERY).await;
        assert!(first.check().unwrap_err().to_string().contains("another server"));
        first.release().await;
        assert_eq!(bucket.get(&path).await.unwrap().bytes().await.unwrap().as_ref(), [7; 24]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_answer_got_lost_is_known_again() {
        let bucket = bucket();
        let mut claim =
            Claim { backend: Arc::clone(&bucket), opening: [1; 16], writes: 0, seen: None };
        assert!(matches!(claim.write().await.unwrap(), Written::Done));
        let before = claim.seen.clone();
        assert!(matches!(claim.write().await.unwrap(), Written::Done));
        claim.seen = before;
        assert!(matches!(claim.write().await.unwrap(), Written::Done));
        assert!(matches!(claim.write().await.unwrap(), Written::Done));
    }
}
