//! What the others have: their announcements, for whoever schedules fetches.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn_core::{
    announcement::{Announcement, Listener},
    fetch::{Fetcher, Source},
    id::{InstallId, SegmentId},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    peer::{FetchError, PeerClient},
    wire::MAX_NEIGHBOURS,
};

/// Between two tries to hear a neighbour.
const RETRY: Duration = Duration::from_secs(2);
/// Who has not answered for so long is not waited for.
const UNREACHABLE: Duration = Duration::from_secs(3);

/// A handle: clones share what was heard.
#[derive(Clone, Debug)]
pub struct Neighbours(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    image: HashSet<SegmentId>,
    peers: PeerClient,
    known: Mutex<BTreeMap<InstallId, Known>>,
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct Known {
    /// In the order in which they were announced.
    has: Vec<SegmentId>,
    seen: HashSet<SegmentId>,
    complete: bool,
    is_there: bool,
    /// When it was last there; at first, when it was named.
    there: Instant,
    /// None once it was neither named nor there.
    listener: Option<JoinHandle<()>>,
}

/// What one scheduler was told already.
#[derive(Debug, Default)]
pub struct Heard(HashMap<InstallId, Told>);

#[derive(Debug, Default)]
struct Told {
    /// How many of its announcements.
    has: usize,
    complete: bool,
    /// That it went away, after it had announced something.
    gone: bool,
}

impl Neighbours {
    pub(super) fn new(image: HashSet<SegmentId>, peers: PeerClient) -> Self {
        let (known, news) = (Mutex::default(), watch::Sender::new(0));
        Self(Arc::new(Inner { image, peers, known, news }))
    }

    /// Changes whenever there is something to tell.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    /// Listens to these from now on, to at most [`MAX_NEIGHBOURS`]; who is not named any more and has gone is forgotten.
    pub fn set(&self, neighbours: &[InstallId]) {
        let mut known = self.known();
        for install in neighbours.iter().take(MAX_NEIGHBOURS) {
            let it = known.entry(*install).or_insert_with(|| Known {
                has: Vec::new(),
                seen: HashSet::new(),
                complete: false,
                is_there: false,
                there: Instant::now(),
                listener: None,
            });
            it.listener.get_or_insert_with(|| tokio::spawn(self.clone().listen(*install)));
        }
        for (install, it) in known.iter_mut() {
            if !neighbours.contains(install)
                && !it.is_there
                && let Some(listener) = it.listener.take()
            {
                listener.abort();
            }
        }
        drop(known);
        self.changed();
    }

    /// Whether somebody is there who still wants something.
    #[must_use]
    pub fn are_waiting(&self) -> bool {
        self.known().values().any(|it| it.is_there && !it.complete)
    }

    /// Those that are looked for and have not answered for a while, in the order of their ids.
    #[must_use]
    pub fn unreachable(&self) -> Vec<InstallId> {
        let known = self.known();
        let missed = known.iter().filter(|(_, it)| {
            it.listener.is_some() && !it.is_there && it.there.elapsed() > UNREACHABLE
        });
        missed.map(|(install, _)| *install).take(MAX_NEIGHBOURS).collect()
    }

    /// Tells a scheduler what it has not heard yet.
    pub fn tell(&self, heard: &mut Heard, scheduler: &mut Fetcher) {
        for (install, it) in self.known().iter() {
            let source = Source::Target(*install);
            let told = heard.0.entry(*install).or_default();
            if it.is_there && std::mem::take(&mut told.gone) {
                scheduler.on_heard(source);
            }
            if it.has.len() > told.has {
                scheduler.on_have(source, it.has.get(told.has..).unwrap_or_default());
                told.has = it.has.len();
            }
            if it.complete && !std::mem::replace(&mut told.complete, true) {
                scheduler.on_complete(source);
            }
            if !it.is_there && told.has > 0 && !std::mem::replace(&mut told.gone, true) {
                scheduler.on_gone(source);
            }
        }
    }

    /// How much all of them have announced.
    #[cfg(test)]
    pub(super) fn announced(&self) -> usize {
        self.known().values().map(|it| it.has.len()).sum()
    }

    /// Listens to nobody any more.
    pub(super) fn stop(&self) {
        self.known().values().filter_map(|it| it.listener.as_ref()).for_each(JoinHandle::abort);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstallId, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0.news.send_modify(|news| *news += 1);
    }

    async fn listen(self, install: InstallId) {
        loop {
            let ended = self.hear(install).await;
            tracing::debug!(%install, ?ended, "a neighbour is not heard any more");
            if let Some(it) = self.known().get_mut(&install)
                && std::mem::take(&mut it.is_there)
            {
                it.there = Instant::now();
            }
            self.changed();
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Listens until the neighbour goes away.
    async fn hear(&self, install: InstallId) -> Result<(), FetchError> {
        let mut stream = self.0.peers.have(Source::Target(install)).await?;
        if let Some(it) = self.known().get_mut(&install) {
            it.is_there = true;
        }
        self.changed();
        let mut listener = Listener::new(self.0.image.len());
        // HTTP/2 pings tell when it vanishes without a word.
        while let Some(piece) = stream.chunk().await.map_err(FetchError::Broken)? {
            let words = listener.hear(&piece).map_err(|_| FetchError::Bad)?;
            self.note(install, &words);
        }
        Ok(())
    }

    fn note(&self, install: InstallId, words: &[Announcement]) {
        if let Some(it) = self.known().get_mut(&install) {
            for word in words {
                match *word {
                    Announcement::Complete => it.complete = true,
                    Announcement::Has(id) if self.0.image.contains(&id) && it.seen.insert(id) => {
                        it.has.push(id);
                    }
                    Announcement::Has(_) => {}
                }
            }
        }
        self.changed();
    }
}
