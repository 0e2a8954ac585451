//! From the pipeline's thread into the store: a few writes at once, with back-pressure. What is written is flushed while more
//! is made: else all of it would wait for the disk at the end, with nothing to do meanwhile.

use std::sync::Arc;

use cairn_array::{
    dsf::CheckedSegment,
    register::SegmentSink,
    store::{Store, StoreError},
};
use cairn_core::id::SegmentId;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{Fuse, FusedFuture as _},
    stream,
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Segments written at once.
const AT_ONCE: usize = 4;
/// Segments stored between two flushes: 64 MiB or less.
const FLUSH_EVERY: usize = 16;

/// The pipeline's end.
pub(super) struct Storing {
    segments: mpsc::Sender<CheckedSegment>,
}

/// What came of storing.
pub(super) struct StoringEnd {
    /// Everything that may be in the store now.
    pub(super) segments: Vec<SegmentId>,
    /// Why it ended early, when it did.
    pub(super) error: Option<StoreError>,
}

/// The store ended early; [`StoringEnd`] says why.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store takes no more segments")]
struct StoreEnded;

impl Storing {
    /// Starts the task that writes. It ends when the sink is dropped, or at the first error.
    pub(super) fn start(store: Arc<Store>) -> (Self, JoinHandle<StoringEnd>) {
        let (segments, receiver) = mpsc::channel(AT_ONCE);
        (Self { segments }, tokio::spawn(write(store, receiver)))
    }
}

impl SegmentSink for Storing {
    fn put(&mut self, segment: CheckedSegment) -> anyhow::Result<()> {
        self.segments.blocking_send(segment).map_err(|_| StoreEnded.into())
    }
}

async fn write(store: Arc<Store>, receiver: mpsc::Receiver<CheckedSegment>) -> StoringEnd {
    let incoming = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|segment| (segment, receiver))
    });
    let mut writes = std::pin::pin!(
        incoming
            .map(|segment| {
                let store = Arc::clone(&store);
                async move { (segment.id(), store.put_checked(&segment).await) }
            })
            .buffer_unordered(AT_ONCE)
    );
    let mut end = StoringEnd { segments: Vec::new(), error: None };
    let mut flushing = std::pin::pin!(Fuse::terminated());
    let mut flushed = 0;
    loop {
        let result = tokio::select! {
            Some((id, result)) = writes.next() => {
                end.segments.push(id);
                result
            }
            result = &mut flushing, if !flushing.is_terminated() => result,
            else => break,
        };
        if let Err(error) = result {
            end.error = Some(error);
            break;
        }
        if flushing.is_terminated() && end.segments.len() >= flushed + FLUSH_EVERY {
            flushed = end.segments.len();
            flushing.set(store.flush().fuse());
        }
    }
    end
}
