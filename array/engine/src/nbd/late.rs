//! Replies that come when they come: a thread of each connection writes them, so that nobody else waits for its client.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use super::{LATE, LATE_BYTES, wire::Wire};

/// What is under way.
#[derive(Default)]
struct UnderWay {
    load: Mutex<Load>,
    less: Condvar,
}

/// Requests, and bytes of their replies.
#[derive(Default)]
struct Load {
    requests: usize,
    bytes: usize,
    /// Nobody takes replies any more.
    broken: bool,
}

/// The thread, and how many requests it will have to answer.
pub(super) struct Late {
    sender: Sender<Reply>,
    under_way: Arc<UnderWay>,
    thread: JoinHandle<()>,
}

/// The right to one late reply. One that is dropped without it leaves its client without an answer: only a connection that
/// ends may do that.
pub(super) struct Promise {
    sender: Sender<Reply>,
    under_way: Arc<UnderWay>,
    bytes: usize,
}

/// A reply on its way: it is under way until it is written.
struct Reply {
    bytes: Vec<u8>,
    _promise: Promise,
}

impl Late {
    pub(super) fn start(wire: Arc<Wire>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let under_way = Arc::<UnderWay>::default();
        let known = Arc::clone(&under_way);
        let thread = thread::Builder::new().name("nbd-late".into());
        let thread = thread.spawn(move || write(&wire, &receiver, &known))?;
        Ok(Self { sender, under_way, thread })
    }

    /// Begins a request that is answered late, with about so many bytes; waits while too much is under way.
    ///
    /// # Errors
    /// When the client takes no replies any more: what it still asks for would be read for nobody.
    pub(super) fn promise(&self, bytes: usize) -> io::Result<Promise> {
        let load = self.under_way.load.lock().unwrap_or_else(PoisonError::into_inner);
        // One alone may be as large as it is.
        let full = |load: &mut Load| {
            let much = load.requests >= LATE || (load.bytes > 0 && load.bytes + bytes > LATE_BYTES);
            much && !load.broken
        };
        let mut load =
            self.under_way.less.wait_while(load, full).unwrap_or_else(PoisonError::into_inner);
        if load.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        load.requests += 1;
        load.bytes += bytes;
        Ok(Promise { sender: self.sender.clone(), under_way: Arc::clone(&self.under_way), bytes })
    }

    /// Waits for what is under way, and ends the thread.
    pub(super) fn end(self) {
        let Self { sender, thread, .. } = self;
        drop(sender);
        if thread.join().is_err() {
            tracing::error!("a thread that answers an NBD client panicked");
        }
    }
}

impl Promise {
    /// Sends the reply. Does not wait.
    pub(super) fn keep(self, bytes: Vec<u8>) {
        let sender = self.sender.clone();
        // Nobody takes it when the connection has ended.
        sender.send(Reply { bytes, _promise: self }).ok();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut load = self.under_way.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.requests -= 1;
        load.bytes -= self.bytes;
        self.under_way.less.notify_one();
    }
}

/// Small replies that wait are written together.
const TOGETHER_BYTES: usize = 64 << 10;

fn write(wire: &Wire, replies: &Receiver<Reply>, under_way: &UnderWay) {
    let mut broken = false;
    while let Ok(Reply { mut bytes, _promise }) = replies.recv() {
        while bytes.len() < TOGETHER_BYTES
            && let Ok(next) = replies.try_recv()
        {
            bytes.extend_from_slice(&next.bytes);
        }
        if !broken && wire.write_all(&bytes).is_err() {
            // The reader of this connection sees it, too.
            wire.shut();
            broken = true;
            under_way.load.lock().unwrap_or_else(PoisonError::into_inner).broken = true;
            under_way.less.notify_one();
        }
    }
}
