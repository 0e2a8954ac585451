//! Fetching one assigned segment: from whoever holds it, the server last, checked before it is stored.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn_array::{
    dsf::{DsfHandle, PutError, SegmentClass as SlotClass, Stored},
    peer::{FetchError, PeerClient, Source},
    wire::{AssignedSegment, BadSegment, SegmentClass},
};
use cairn_core::id::{AgentId, SegmentId};

/// A peer that could not be reached is asked last for so long.
const SULK: Duration = Duration::from_secs(30);
/// The most sources that are tried for one segment before the server.
const MAX_SOURCES: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    me: AgentId,
    dsf: DsfHandle,
    peers: PeerClient,
    /// When each silent peer was last tried. Never held across an await.
    silent: Arc<Mutex<HashMap<AgentId, Instant>>>,
}

/// What became of a segment.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) id: SegmentId,
    pub(super) outcome: Outcome,
    /// Sources that gave other bytes.
    pub(super) bad: Vec<BadSegment>,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// So many bytes were written: none when it was here already.
    Stored(u32),
    /// The guest writes nothing for the time being, and why.
    NotNow(&'static str),
    /// Nobody gave it; why the last one did not.
    Unavailable(String),
    NoRoom(PutError),
    /// The DSF is out of service.
    Broken(PutError),
}

impl Fetched {
    pub(super) const fn not_now(id: SegmentId, why: &'static str) -> Self {
        Self { id, outcome: Outcome::NotNow(why), bad: Vec::new() }
    }
}

impl Fetcher {
    pub(super) fn new(me: AgentId, dsf: DsfHandle, peers: PeerClient) -> Self {
        Self { me, dsf, peers, silent: Arc::default() }
    }

    pub(super) async fn fetch(&self, segment: &AssignedSegment) -> Fetched {
        let id = segment.id;
        let mut bad = Vec::new();
        let mut outcome = Outcome::Unavailable("no source was tried".to_owned());
        for source in self.order(segment) {
            match self.peers.fetch(source, id, segment.bytes, None).await {
                Ok(bytes) => {
                    let class = match segment.class {
                        SegmentClass::Data => SlotClass::Data,
                        SegmentClass::Parity => SlotClass::Parity,
                    };
                    outcome = match self.dsf.put(id, bytes, class).await {
                        Ok(Stored::New) => Outcome::Stored(segment.bytes),
                        Ok(Stored::Already) => Outcome::Stored(0),
                        Err(error @ (PutError::Full | PutError::NoFreeSlot { .. })) => {
                            Outcome::NoRoom(error)
                        }
                        Err(error) => Outcome::Broken(error),
                    };
                    break;
                }
                Err(error) => {
                    self.note(source, &error);
                    if matches!(error, FetchError::Bad) {
                        let holder = match source {
                            Source::Peer(agent) => Some(agent),
                            Source::Target(_) | Source::Server => None,
                        };
                        bad.push(BadSegment { segment: id, holder });
                    }
                    outcome = Outcome::Unavailable(describe(source, &error));
                }
            }
        }
        Fetched { id, outcome, bad }
    }

    /// Peers in an order of this segment's own, so that not all ask the same one; silent ones last, then the server.
    fn order(&self, segment: &AssignedSegment) -> Vec<Source> {
        let mut peers: Vec<AgentId> =
            segment.sources.iter().copied().filter(|source| *source != self.me).collect();
        let turn = usize::from(segment.id.0[0]) % peers.len().max(1);
        peers.rotate_left(turn);
        peers.truncate(MAX_SOURCES);
        {
            let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
            peers.sort_by_key(|peer| silent.get(peer).is_some_and(|since| since.elapsed() < SULK));
        }
        peers.into_iter().map(Source::Peer).chain([Source::Server]).collect()
    }

    fn note(&self, source: Source, error: &FetchError) {
        if let (Source::Peer(peer), FetchError::Unreachable(_) | FetchError::Stalled) =
            (source, error)
        {
            let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
            silent.retain(|_, since| since.elapsed() < SULK);
            silent.insert(peer, Instant::now());
        }
    }
}

fn describe(source: Source, error: &FetchError) -> String {
    format!("{source} {error}")
}
