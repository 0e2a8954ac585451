//! Replies that come when they come: a thread of each connection writes them, so that nobody else waits for its client.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use super::{LATE, wire::Wire};

/// How many requests are under way.
#[derive(Default)]
struct UnderWay {
    count: Mutex<usize>,
    fewer: Condvar,
}

/// The thread, and how many requests it will have to answer.
pub(super) struct Late {
    sender: Sender<Vec<u8>>,
    under_way: Arc<UnderWay>,
    thread: JoinHandle<()>,
}

/// The right to one late reply. One that is dropped without it leaves its client without an answer: only a connection that
/// ends may do that.
pub(super) struct Promise {
    sender: Sender<Vec<u8>>,
    under_way: Arc<UnderWay>,
}

impl Late {
    pub(super) fn start(wire: Arc<Wire>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = thread::Builder::new().name("nbd-late".into());
        let thread = thread.spawn(move || write(&wire, &receiver))?;
        Ok(Self { sender, under_way: Arc::default(), thread })
    }

    /// Begins a request that is answered late; waits while too many are under way.
    pub(super) fn promise(&self) -> Promise {
        let mut count = self.under_way.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= LATE {
            count = self.under_way.fewer.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        *count += 1;
        Promise { sender: self.sender.clone(), under_way: Arc::clone(&self.under_way) }
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
    pub(super) fn keep(self, reply: Vec<u8>) {
        // Nobody takes it when the connection has ended.
        self.sender.send(reply).ok();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        *self.under_way.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.under_way.fewer.notify_one();
    }
}

fn write(wire: &Wire, replies: &Receiver<Vec<u8>>) {
    let mut broken = false;
    while let Ok(mut reply) = replies.recv() {
        while let Ok(next) = replies.try_recv() {
            reply.extend_from_slice(&next);
        }
        if !broken && wire.write_all(&reply).is_err() {
            // The reader of this connection sees it, too.
            wire.shut();
            broken = true;
        }
    }
}
