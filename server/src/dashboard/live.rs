//! Tells pages what changed, at most twice a second, whatever happens.
//!
//! ```text
//!   events ─► [`watch`] ─► batches of topics, all pages at once ─► each fetches the parts that show them ─► [`Parts`]
//! ```
//!
//! The stream carries no data: it names [`Topic`]s, and the browser fetches the parts that show them. Many events become one;
//! whoever was away, or too slow, is told that everything changed. As all pages are told at the same moment, what one of them
//! is answered is good for the others.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{
        broadcast::{Receiver, Sender, channel, error::RecvError},
        watch,
    },
    time::Instant,
};

use crate::{api::error::ApiError, app::App, events::Emitted};

/// The least time between two batches.
const PAUSE: Duration = Duration::from_millis(500);
/// Batches that a page may be behind.
const BEHIND: usize = 16;
/// What was rendered is good for so long, if nothing is told: times in it grow old.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Parts that are kept: there are as many as there are filters that somebody looks through.
const KEPT_PARTS: usize = 64;

/// What a part of a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Topic {
    Images = 1,
    Agents = 2,
    Machines = 4,
    Installs = 8,
    Boot = 16,
}

/// A set of topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Topics(u8);

impl Topic {
    const ALL: [Self; 5] = [Self::Images, Self::Agents, Self::Machines, Self::Installs, Self::Boot];

    const fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Agents => "agents",
            Self::Machines => "machines",
            Self::Installs => "installs",
            Self::Boot => "boot",
        }
    }
}

impl Topics {
    const ALL: Self = Self(31);

    const fn of(topics: &[Topic]) -> Self {
        let mut set = 0;
        let mut next = topics;
        while let [topic, rest @ ..] = next {
            set |= *topic as u8;
            next = rest;
        }
        Self(set)
    }

    /// What an event of this kind changes; everything, when the kind is new to us.
    fn of_event(kind: &str) -> Self {
        match kind {
            // Who holds what changes with who is there.
            "agent-changed" | "agent-forgotten" | "segment-bad" => {
                Self::of(&[Topic::Agents, Topic::Images])
            }
            "image-changed" | "image-promised" | "registering" | "job-changed" | "job-progress" => {
                Self::of(&[Topic::Images])
            }
            "group-changed" | "machine-changed" | "machine-forgotten" => {
                Self::of(&[Topic::Machines])
            }
            "install-progress" => Self::of(&[Topic::Installs]),
            "deployment-changed" | "install-changed" => {
                Self::of(&[Topic::Installs, Topic::Machines])
            }
            _ => Self::ALL,
        }
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        Topic::ALL.into_iter().filter(move |topic| self.0 & *topic as u8 != 0).map(Topic::name)
    }
}

/// What tells pages, and what they are answered.
#[derive(Debug)]
pub(crate) struct Live {
    batches: Sender<Topics>,
    parts: Parts,
}

impl Default for Live {
    fn default() -> Self {
        Self { batches: channel(BEHIND).0, parts: Parts::default() }
    }
}

/// The parts of pages that were rendered since pages were told last.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// How often pages were told of something, or something was done on one.
    told: AtomicU64,
    rendered: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Rendered>>>>>,
}

#[derive(Clone, Debug)]
struct Rendered {
    /// Batches that had been told when it was begun.
    told: u64,
    begun: Instant,
    html: Arc<str>,
}

impl Parts {
    /// A part as it was rendered since pages were told last, by whoever asked for it first.
    async fn get<F>(&self, name: &str, render: F) -> Result<Arc<str>, ApiError>
    where
        F: Future<Output = Result<String, ApiError>>,
    {
        let place = {
            let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
            if rendered.len() >= KEPT_PARTS && !rendered.contains_key(name) {
                rendered.clear();
            }
            Arc::clone(rendered.entry(name.to_owned()).or_default())
        };
        let mut place = place.lock().await;
        let told = self.told.load(Ordering::Acquire);
        if let Some(found) = place.as_ref()
            && found.told == told
            && found.begun.elapsed() < GOOD_FOR
        {
            return Ok(Arc::clone(&found.html));
        }
        let begun = Instant::now();
        let html: Arc<str> = render.await?.into();
        *place = Some(Rendered { told, begun, html: Arc::clone(&html) });
        Ok(html)
    }
}

impl Live {
    /// See [`Parts::get`].
    pub(super) async fn part<F>(&self, name: &str, render: F) -> Result<Arc<str>, ApiError>
    where
        F: Future<Output = Result<String, ApiError>>,
    {
        self.parts.get(name, render).await
    }

    /// What was rendered is old: somebody did something on a page, and looks for it now.
    pub(super) fn outdate(&self) {
        self.parts.told.fetch_add(1, Ordering::AcqRel);
    }

    fn tell(&self, topics: Topics) {
        // First, so that whoever hears of it is not answered with what was before.
        self.outdate();
        // Nobody looking is no failure.
        drop(self.batches.send(topics));
    }
}

/// Tells pages what changed, until the server stops.
pub(crate) async fn watch(app: App) {
    let mut follower = Follower::new(app.events.listen(), app.boot.record.trails.watch());
    while let Some(Some(topics)) = app.stop.run_until_cancelled(follower.next()).await {
        app.live.tell(topics);
    }
}

struct Follower {
    events: Receiver<Arc<Emitted>>,
    /// A machine went on, on its way to the agent.
    boot: watch::Receiver<()>,
    pending: Topics,
    /// When the next batch may go out.
    free: Instant,
}

impl Follower {
    fn new(events: Receiver<Arc<Emitted>>, boot: watch::Receiver<()>) -> Self {
        Self { events, boot, pending: Topics::default(), free: Instant::now() }
    }

    /// Waits for the next batch; none when the server stops.
    async fn next(&mut self) -> Option<Topics> {
        loop {
            let due = self.pending != Topics::default();
            tokio::select! {
                () = tokio::time::sleep_until(self.free), if due => {
                    self.free = Instant::now() + PAUSE;
                    return Some(std::mem::take(&mut self.pending));
                }
                Ok(()) = self.boot.changed() => self.pending = self.pending.with(Topics::of(&[Topic::Boot])),
                event = self.events.recv() => match event {
                    Ok(event) => self.pending = self.pending.with(Topics::of_event(&event.kind)),
                    Err(RecvError::Lagged(_)) => self.pending = Topics::ALL,
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

/// What one page is told; the first, at once, is everything.
fn told(batches: Receiver<Topics>) -> impl Stream<Item = Topics> {
    let later = stream::unfold(batches, |mut batches| async move {
        match batches.recv().await {
            Ok(topics) => Some((topics, batches)),
            Err(RecvError::Lagged(_)) => Some((Topics::ALL, batches)),
            Err(RecvError::Closed) => None,
        }
    });
    stream::once(std::future::ready(Topics::ALL)).chain(later)
}

pub(super) async fn listen(State(app): State<App>) -> Response {
    // Its page is newer than what others were answered before.
    app.live.outdate();
    let stop = app.stop.clone().cancelled_owned();
    let events = told(app.live.batches.subscribe())
        .flat_map(|topics| stream::iter(topics.names()))
        // An event without data is dropped by browsers.
        .map(|name| Ok::<_, Infallible>(Event::default().event(name).data("1")))
        .take_until(stop);
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

#[cfg(test)]
mod tests {

    use super::*;

    fn event(kind: &str) -> Arc<Emitted> {
        Arc::new(Emitted { id: 1, kind: kind.to_owned(), payload: "{}".to_owned() })
    }

    fn names(topics: Topics) -> Vec<&'static str> {
        topics.names().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_events_becomes_two_batches_a_second() {
        let (sender, events) = channel(1024);
        let boot = watch::channel(()).0;
        let mut batches = Follower::new(events, boot.subscribe());
        sender.send(event("agent-forgotten")).unwrap();
        assert_eq!(names(batches.next().await.unwrap()), ["images", "agents"]);
        let began = Instant::now();
        for _ in 0..500 {
            sender.send(event("install-progress")).unwrap();
        }
        sender.send(event("machine-changed")).unwrap();
        let batch = batches.next().await.unwrap();
        assert_eq!(names(batch), ["machines", "installs"]);
        assert_eq!(began.elapsed().as_millis() / 100, 5);
        // After a quiet time the next one goes out at once.
        tokio::time::advance(PAUSE * 2).await;
        let quiet = Instant::now();
        sender.send(event("agent-changed")).unwrap();
        assert_eq!(names(batches.next().await.unwrap()), ["images", "agents"]);
        assert!(quiet.elapsed() < Duration::from_millis(10));
        tokio::time::advance(PAUSE * 2).await;
        boot.send_replace(());
        assert_eq!(names(batches.next().await.unwrap()), ["boot"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_too_slow_looks_at_everything_again() {
        let (sender, events) = channel(2);
        let boot = watch::channel(()).0;
        let mut batches = Follower::new(events, boot.subscribe());
        for _ in 0..9 {
            sender.send(event("registering")).unwrap();
        }
        assert_eq!(batches.next().await, Some(Topics::ALL));
        drop(sender);
        assert_eq!(batches.next().await, None);
        let live = Live::default();
        let mut page = Box::pin(told(live.batches.subscribe()));
        assert_eq!(page.next().await, Some(Topics::ALL));
        for _ in 0..=BEHIND {
            live.tell(Topics::of(&[Topic::Images]));
        }
        assert_eq!(page.next().await, Some(Topics::ALL));
        assert_eq!(names(page.next().await.unwrap()), ["images"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_rendered_once_for_all_until_pages_are_told_again() {
        let (live, renders) = (Live::default(), AtomicU64::new(0));
        let render = async || {
            // Others ask meanwhile.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(renders.fetch_add(1, Ordering::AcqRel).to_string())
        };
        let ask = async |name: &str| live.part(name, render()).await.unwrap().to_string();
        let many = futures::future::join_all((0..50).map(|_| ask("machines"))).await;
        assert!(many.iter().all(|html| html == "0"), "{many:?}");
        assert_eq!(ask("images").await, "1");
        live.tell(Topics::ALL);
        assert_eq!(ask("machines").await, "2");
        live.outdate();
        assert_eq!(ask("machines").await, "3");
        tokio::time::advance(GOOD_FOR).await;
        assert_eq!(ask("machines").await, "4");
        // Told while it is rendered: the next one is rendered anew.
        tokio::time::advance(GOOD_FOR).await;
        let late = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            live.tell(Topics::ALL);
        };
        let (html, ()) = tokio::join!(ask("machines"), late);
        assert_eq!((html.as_str(), ask("machines").await.as_str()), ("5", "6"));
        for number in 0..2 * KEPT_PARTS {
            ask(&number.to_string()).await;
        }
        assert!(live.parts.rendered.lock().unwrap().len() <= KEPT_PARTS);
    }
}
