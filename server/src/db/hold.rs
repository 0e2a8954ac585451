//! That one server at a time uses a PostgreSQL database.
//!
//! It is a lock of a session that is kept for that alone: it goes when the server's process does, or its machine, which
//! PostgreSQL asks after every few seconds. A server whose session was cut off, because PostgreSQL was restarted say, takes
//! the lock again; when another one has it by then, it stops.

use std::{sync::Arc, time::Duration};

use sqlx::{AnyConnection, Connection as _, Executor as _, any::AnyConnectOptions};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{DatabaseAddress, DbError, Flag, Result, pool::connect};

/// How often the session is looked at, and how long PostgreSQL may take to answer.
const LOOK: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);
/// How long the session of a server that is no more may have the lock, and how often we try.
const LAST_SESSION: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A lost machine is noticed within 8 seconds, whether an answer was on its way to it or not.
const SESSION: &str = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 8000";
/// Another number than that of the lock of who writes.
const LOCK: &str = "SELECT pg_try_advisory_lock(2)";

/// The lock, where there is one.
#[derive(Clone, Debug)]
pub(super) struct Hold(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    address: DatabaseAddress,
    /// None while it is lost.
    session: Mutex<Option<AnyConnection>>,
}

impl Hold {
    pub(super) const fn none() -> Self {
        Self(None)
    }

    pub(super) async fn take(address: &DatabaseAddress) -> Result<Self> {
        let session = Mutex::new(Some(lock_soon(address).await?));
        Ok(Self(Some(Arc::new(Held { address: address.clone(), session }))))
    }

    pub(super) async fn release(&self) {
        let Some(held) = &self.0 else { return };
        let session = held.session.lock().await.take();
        // When it cannot say goodbye it is cut off, which is as good.
        if let Some(session) = session
            && let Err(error) = session.close().await
        {
            tracing::debug!(%error, "close the session that holds the database");
        }
    }

    /// Looks after the lock until `stop`.
    pub(super) async fn watch(&self, stop: &CancellationToken) -> Result<()> {
        let Some(held) = &self.0 else {
            stop.cancelled().await;
            return Ok(());
        };
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            held.look().await?;
        }
        Ok(())
    }
}

impl Held {
    async fn look(&self) -> Result<()> {
        let mut session = self.session.lock().await;
        if let Some(found) = session.as_mut() {
            if matches!(timeout(ANSWER, found.ping()).await, Ok(Ok(()))) {
                return Ok(());
            }
            tracing::warn!(database = %self.address, "the database does not answer");
            *session = None;
        }
        let options = self.address.options()?;
        match lock(&options).await {
            Ok(new) => {
                tracing::info!(database = %self.address, "the database answers again");
                *session = Some(new);
                Ok(())
            }
            Err(DbError::InUse) => Err(DbError::InUse),
            Err(error) => {
                tracing::debug!(%error, database = %self.address, "the database does not answer");
                Ok(())
            }
        }
    }
}

/// A server that was killed just now has it for a moment still, one whose machine was lost for longer.
async fn lock_soon(address: &DatabaseAddress) -> Result<AnyConnection> {
    let options = address.options()?;
    let deadline = Instant::now() + LAST_SESSION;
    loop {
        match lock(&options).await {
            Err(DbError::InUse) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
            ended => return ended,
        }
    }
}

async fn lock(options: &AnyConnectOptions) -> Result<AnyConnection> {
    let mut session = connect(options).await?;
    session.execute(SESSION).await?;
    let Flag(locked) = sqlx::query_scalar(LOCK).fetch_one(&mut session).await?;
    if locked { Ok(session) } else { Err(DbError::InUse) }
}
