//! Targets that install the same image together: each serves what it has verified so far.
//!
//! ```text
//!   fetcher ── verified ──► shelf ──► neighbours ask for segments, and hear what there is
//!      ▲                      │ not in memory any more
//!      │ who has what         └──────► sealed again from the disk that is being written
//!   neighbours ◄── `have` streams of the others
//! ```
//!
//! What a neighbour announces is a list that only grows, in the order in which it verified: 32 bytes an id, all zero for "I have
//! all that I want". It is a stream so that an announcement costs nobody a request.
//!
//! Invariants: only what was checked against its id is announced; what is kept in memory is bounded; an announcement that is not
//! of this image is ignored, and nobody announces more than the image has.

mod neighbours;
mod shelf;
mod swarms;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

use axum::Router;
use cairn_core::id::SegmentId;

pub use neighbours::{Heard, Neighbours};
pub use shelf::{Reseal, Shelf};
pub use swarms::Swarms;

use crate::{
    pace::Pace,
    peer::{self, PeerClient},
    tls::Member,
};

/// One target's part in the swarm.
#[derive(Debug)]
pub struct Swarm {
    shelf: Shelf,
    neighbours: Neighbours,
}

impl Swarm {
    /// A target that wants segments among `image`, and asks others through `peers`.
    #[must_use]
    pub fn new(image: HashSet<SegmentId>, peers: PeerClient) -> Self {
        Self { shelf: Shelf::new(), neighbours: Neighbours::new(image, peers) }
    }

    /// The same, with so much in memory at most.
    #[cfg(test)]
    fn keeping(mut self, most: usize) -> Self {
        self.shelf = Shelf::keeping(most);
        self
    }

    #[must_use]
    pub const fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    #[must_use]
    pub const fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// What this target serves: to other targets of the site, at this pace.
    pub fn routes(&self, pace: Pace) -> Router {
        let admits = Arc::new(|member: &Member| matches!(member, Member::Target(_)));
        peer::routes(self.shelf.clone(), admits.clone(), pace)
            .merge(shelf::routes(&self.shelf, admits))
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.neighbours.stop();
    }
}
