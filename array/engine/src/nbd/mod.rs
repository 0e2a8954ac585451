//! The NBD server: volumes as disks of whoever speaks NBD. The protocol is `cairn_core::nbd`. (client.rs is the other end, of
//! a machine whose own disk is a volume.)
//!
//! ```text
//!   socket ─► reader thread: all requests that came ─► one change for all writes ─► replies, in one write
//!                  │ what would wait for a disk, large reads, flushes
//!                  ▼
//!              readers' pool, syncs ─► late thread ─► replies, as they come
//! ```
//!
//! Threads and blocking sockets, two of each connection: a request costs no task switch, and a batch one system call each
//! way. Invariants:
//! - What a client reads was written before that read was sent, or at the same time.
//! - A client that does not take its replies holds up its own connection only.
//! - A connection has at most 256 requests and 64 MiB of replies under way beyond the batch at hand; what is answered at once
//!   is sent whenever it comes to 4 MiB, and one request is as large as 32 MiB at most.

pub mod client;
mod connection;
mod late;
mod pool;
mod serve;
mod wire;

use std::{io, os::fd::AsFd, sync::Arc, time::Duration};

use cairn_core::nbd::reply::StatusRun;
use socket2::{SockRef, TcpKeepalive};

pub use serve::serve;

use crate::{tls::Member, volume::Change};

/// Requests of one connection that are answered late.
const LATE: usize = 256;
/// Bytes of their replies.
const LATE_BYTES: usize = 64 << 20;

/// Whoever says nothing for so long, not even that he lives, is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// Whoever does not take what is sent for so long is gone, or is better asked anew.
const NOT_TAKEN: Duration = Duration::from_secs(30);

/// Has the end of a connection noticed also when the machine at the other end lost its power.
fn notice_silence(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let pause = SILENCE / 3;
    let alive = TcpKeepalive::new().with_time(pause).with_interval(pause).with_retries(2);
    socket.set_tcp_keepalive(&alive)?;
    // What is under way is not covered by that.
    socket.set_tcp_user_timeout(Some(NOT_TAKEN))
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    #[error("the disk failed")]
    Io,
    #[error("there is no room")]
    Full,
    #[error("the export is being taken away")]
    Ending,
}

/// Told that what was changed before is durable, or that this is in doubt.
pub type Flushed = Box<dyn FnOnce(Result<(), ExportError>) + Send>;

/// What is served as a disk. Ranges are within [`Export::size`].
pub trait Export: Send + Sync + 'static {
    fn read_only(&self) -> bool;

    /// In bytes.
    fn size(&self) -> u64;

    /// Reads what needs no waiting; false when it would.
    ///
    /// # Errors
    /// [`ExportError`].
    fn read_now(&self, offset: u64, into: &mut [u8]) -> Result<bool, ExportError>;

    /// # Errors
    /// [`ExportError`].
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ExportError>;

    /// Takes changes, in this order; may wait for room.
    ///
    /// # Errors
    /// [`ExportError`]; some may have been taken.
    fn change(&self, changes: &[Change<'_>]) -> Result<(), ExportError>;

    /// Calls `done` once everything that was changed before is durable. Does not wait.
    fn flush(&self, done: Flushed);

    /// What of a range is stored, in order: all of it, or its beginning in `limit` runs.
    fn status(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusRun>;
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitor {
    /// Somebody on this machine.
    Local,
    /// By TLS; none without a certificate.
    Remote(Option<Member>),
}

/// What there is to be served.
pub trait Exports: Send + Sync + 'static {
    /// The names that a visitor may see.
    fn names(&self, visitor: Visitor) -> Vec<String>;

    /// An export that a visitor may use. It is in use as long as this is kept.
    fn find(&self, name: &str, visitor: Visitor) -> Option<Arc<dyn Export>>;
}

#[cfg(test)]
mod tests;
