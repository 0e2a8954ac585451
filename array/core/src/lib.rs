//! The pure core of Cairn's block array.
//!
//! Everything here decides or encodes; nothing here acts. There is no clock, no file, no socket and no
//! source of randomness: time, keys and entropy are arguments, so each function can be tested by calling it.
//!
//! ```text
//!   image ── manifest ── map pages ──► extents ──► segment ── frames ── blocks ◄── sparse, free
//!                                                     │
//!                              stripe map ◄── stripes ┘ ◄── layout ◄── placement, planner
//!                                   │
//!                                   └──► fetch ──► erasure
//! ```

pub mod announcement;
pub mod availability;
pub mod bundle;
pub mod bytes;
pub mod directory;
pub mod erasure;
pub mod ext4;
pub mod fetch;
pub mod free;
pub mod grant;
pub mod id;
pub mod layout;
pub mod loss;
pub mod manifest;
pub mod map;
pub mod nbd;
pub mod partition;
pub mod placement;
pub mod planner;
pub mod seal;
pub mod segment;
pub mod sign;
pub mod sparse;
pub mod stripe_map;
pub mod turns;
pub mod units;
pub mod volume;
pub mod waves;
