//! Tells a page what changed, at most twice a second, whatever happens.
//!
//! The stream carries no data: it names [`Topic`]s, and the browser fetches the parts that show them. Many events become one;
//! whoever was away, or too slow, is told that everything changed.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};

use crate::{app::App, events::Emitted};

/// The least time between two batches.
const PAUSE: Duration = Duration::from_millis(500);

/// What a part of a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Topic {
    Images = 1,
    Agents = 2,
    Machines = 4,
    Installs = 8,
}

/// A set of topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Topics(u8);

impl Topic {
    const ALL: [Self; 4] = [Self::Images, Self::Agents, Self::Machines, Self::Installs];

    const fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Agents => "agents",
            Self::Machines => "machines",
            Self::Installs => "installs",
        }
    }
}

impl Topics {
    const ALL: Self = Self(15);

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
            "machine-changed" | "machine-forgotten" => Self::of(&[Topic::Machines]),
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

struct Follower {
    events: Receiver<std::sync::Arc<Emitted>>,
    pending: Topics,
    /// When the next batch may go out.
    free: Instant,
}

impl Follower {
    /// Waits for the next batch; none when the server stops.
    async fn next(&mut self) -> Option<Topics> {
        loop {
            let due = self.pending != Topics::default();
            tokio::select! {
                () = tokio::time::sleep_until(self.free), if due => {
                    self.free = Instant::now() + PAUSE;
                    return Some(std::mem::take(&mut self.pending));
                }
                event = self.events.recv() => match event {
                    Ok(event) => self.pending = self.pending.with(Topics::of_event(&event.kind)),
                    Err(RecvError::Lagged(_)) => self.pending = Topics::ALL,
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

/// Batches of what changed; the first, at once, is everything.
fn follow(events: Receiver<std::sync::Arc<Emitted>>) -> impl Stream<Item = Topics> {
    let follower = Follower { events, pending: Topics::ALL, free: Instant::now() };
    stream::unfold(follower, |mut follower| async move {
        let topics = follower.next().await?;
        Some((topics, follower))
    })
}

pub(super) async fn listen(State(app): State<App>) -> Response {
    let stop = app.stop.clone().cancelled_owned();
    let events = follow(app.events.listen())
        .flat_map(|topics| stream::iter(topics.names()))
        // An event without data is dropped by browsers.
        .map(|name| Ok::<_, Infallible>(Event::default().event(name).data("1")))
        .take_until(stop);
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::broadcast;

    use super::*;

    fn event(kind: &str) -> Arc<Emitted> {
        Arc::new(Emitted { id: 1, kind: kind.to_owned(), payload: "{}".to_owned() })
    }

    fn names(topics: Topics) -> Vec<&'static str> {
        topics.names().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_events_becomes_two_batches_a_second() {
        let (sender, events) = broadcast::channel(1024);
        let mut batches = Box::pin(follow(events));
        assert_eq!(batches.next().await, Some(Topics::ALL));
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
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_too_slow_looks_at_everything_again() {
        let (sender, events) = broadcast::channel(2);
        let mut batches = Box::pin(follow(events));
        assert_eq!(batches.next().await, Some(Topics::ALL));
        for _ in 0..9 {
            sender.send(event("registering")).unwrap();
        }
        assert_eq!(batches.next().await, Some(Topics::ALL));
        drop(sender);
        assert_eq!(batches.next().await, None);
    }
}
