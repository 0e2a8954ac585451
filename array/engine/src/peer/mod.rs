//! Segments between members: who holds some, and who fetches them. Server, agents and targets serve the same paths.
//!
//! | path | answer |
//! |---|---|
//! | `GET /peer/v1/turn` | the number of a turn, held until one is free; 429 when that takes too long |
//! | `DELETE /peer/v1/turn/{n}` | 204: the turn is given back |
//! | `GET /peer/v1/segment/{id}?turn=N` | the sealed bytes; 404 not here; 409 another target gets it just now; 429 busy; 503 nothing is served for the time being |
//! | `GET /peer/v1/have` | targets only: ids of 32 bytes as they are verified, without end; all zero: nothing more is wanted |
//! | `PUT /peer/v1/tail/{volume}` | agents only, from the server: 204, a piece of a journal's tail is durable; 409 `gap` or `overtaken`; 507 no room |
//! | `DELETE /peer/v1/tail/{volume}?generation=N&number=N` | agents only, from the server: 204, the tail is gone |
//! | `GET /peer/v1/tail/{volume}` | agents only, to members: pieces, one after the other; none when there is no such tail |
//!
//! Targets take turns, since many of them ask at once (`turns.rs`); what agents fetch is bounded by their number of fetches.
//!
//! Invariants: a segment is checked against its id before anybody gets it; nothing is read beyond its declared
//! length; a peer that sends nothing for `STALL` is given up.

mod client;
mod service;
pub mod tails;
mod turns;

pub use cairn_core::fetch::Source;
pub use client::{FetchError, PeerClient, TurnNumber};
pub use service::{Admission, Found, SegmentSource, routes};
