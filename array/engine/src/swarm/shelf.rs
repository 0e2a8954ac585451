//! What a target has for its neighbours.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::{Bytes, BytesMut};
use cairn_core::{
    announcement::{self, Announcement},
    id::SegmentId,
};
use futures::stream;
use tokio::sync::watch;

use crate::{
    peer::{Admission, Found, SegmentSource},
    tls::{Member, Peer},
};

/// Sealed bytes kept in memory.
const KEEP_BYTES: usize = 256 << 20;
/// Announcements sent at once.
const WORDS_AT_ONCE: usize = 1024;

/// Makes sealed segments again from what was written to the disk.
pub trait Reseal: Send + Sync + 'static {
    /// The sealed bytes, when what the disk holds gives exactly those.
    fn reseal(&self, id: SegmentId) -> Option<Bytes>;
}

/// A handle: clones share what is on the shelf.
#[derive(Clone, Debug)]
pub struct Shelf(Arc<Inner>);

struct Inner {
    /// Bytes kept in memory.
    most: usize,
    kept: Mutex<Kept>,
    /// How many announcements there are.
    announced: watch::Sender<usize>,
    disk: OnceLock<Arc<dyn Reseal>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("announced", &self.announced).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Kept {
    /// In the order in which they were verified.
    announced: Vec<Announcement>,
    complete: bool,
    known: HashSet<SegmentId>,
    memory: HashMap<SegmentId, Bytes>,
    /// Those in memory, the oldest first.
    order: VecDeque<SegmentId>,
    bytes: usize,
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self::keeping(KEEP_BYTES)
    }

    /// A shelf that keeps at most so much in memory.
    pub(super) fn keeping(most: usize) -> Self {
        Self(Arc::new(Inner {
            most,
            kept: Mutex::default(),
            announced: watch::Sender::new(0),
            disk: OnceLock::new(),
        }))
    }

    /// Adds a segment that was checked, and announces it. The oldest leave the memory for it.
    pub fn put(&self, id: SegmentId, bytes: Bytes) {
        let mut kept = self.kept();
        if !kept.known.insert(id) {
            return;
        }
        kept.bytes += bytes.len();
        kept.memory.insert(id, bytes);
        kept.order.push_back(id);
        while kept.bytes > self.0.most
            && let Some(oldest) = kept.order.pop_front()
        {
            let length = kept.memory.remove(&oldest).map_or(0, |bytes| bytes.len());
            kept.bytes -= length;
        }
        self.announce(kept, Announcement::Has(id));
    }

    /// Announces what is not there.
    #[cfg(test)]
    pub(super) fn announce_only(&self, id: SegmentId) {
        let mut kept = self.kept();
        kept.known.insert(id);
        self.announce(kept, Announcement::Has(id));
    }

    /// Says that this target has all that it wants.
    pub fn complete(&self) {
        let mut kept = self.kept();
        if !std::mem::replace(&mut kept.complete, true) {
            self.announce(kept, Announcement::Complete);
        }
    }

    /// Where segments come from that left the memory; once.
    pub fn resealed_by(&self, disk: Arc<dyn Reseal>) {
        self.0.disk.set(disk).ok();
    }

    fn announce(&self, mut kept: std::sync::MutexGuard<'_, Kept>, word: Announcement) {
        kept.announced.push(word);
        let count = kept.announced.len();
        drop(kept);
        self.0.announced.send_replace(count);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The announcements from place `from` on.
    fn since(&self, from: usize) -> Bytes {
        let kept = self.kept();
        let new = kept.announced.get(from..).unwrap_or_default();
        let mut words = BytesMut::with_capacity(new.len().min(WORDS_AT_ONCE) * announcement::BYTES);
        new.iter().take(WORDS_AT_ONCE).for_each(|word| words.extend_from_slice(&word.to_bytes()));
        words.freeze()
    }

    /// All announcements, those to come included.
    fn announcements(&self) -> Body {
        let begin = (self.clone(), self.0.announced.subscribe(), 0);
        Body::from_stream(stream::unfold(begin, |(shelf, mut news, sent)| async move {
            loop {
                let words = shelf.since(sent);
                if !words.is_empty() {
                    let sent = sent + words.len() / announcement::BYTES;
                    return Some((Ok::<_, Infallible>(words), (shelf, news, sent)));
                }
                news.changed().await.ok()?;
            }
        }))
    }
}

impl SegmentSource for Shelf {
    async fn segment(&self, id: SegmentId, _: Member) -> anyhow::Result<Found> {
        let (known, kept) = {
            let kept = self.kept();
            (kept.known.contains(&id), kept.memory.get(&id).cloned())
        };
        if let Some(bytes) = kept {
            return Ok(Found::Here(bytes));
        }
        let Some(disk) = self.0.disk.get().filter(|_| known).cloned() else {
            return Ok(Found::NotHere);
        };
        let sealed = tokio::task::spawn_blocking(move || disk.reseal(id)).await?;
        Ok(sealed.map_or(Found::NotHere, Found::Here))
    }
}

pub(super) fn routes(shelf: &Shelf, admits: Admission) -> Router {
    Router::new().route("/peer/v1/have", get(have)).with_state((shelf.clone(), admits))
}

async fn have(
    State((shelf, admits)): State<(Shelf, Admission)>,
    peer: Option<Extension<Peer>>,
) -> Response {
    let member = peer.and_then(|Extension(peer)| peer.member);
    if member.is_some_and(|member| admits(&member)) {
        shelf.announcements().into_response()
    } else {
        (StatusCode::FORBIDDEN, "only targets of this site are served\n").into_response()
    }
}
