//! The pure core of Cairn's block array.
//!
//! Everything here decides or encodes; nothing here acts. There is no clock, no file, no socket and no
//! source of randomness: time, keys and entropy are arguments, so each function can be tested by calling it.
//!
//! ```text
//!   image ── manifest ── map pages ──► extents ──► segment ── frames ── blocks
//!                                                     │
//!                              stripe map ◄── stripes ┘ ◄── placement ◄── planner
//! ```

pub mod bytes;

pub mod id;

pub mod sign;

pub mod units;

pub mod stripe_map;

pub mod erasure;

pub mod directory;
pub mod manifest;
pub mod map;
pub mod planner;
pub mod seal;
pub mod segment;

pub mod ext4;
pub mod fetch;
pub mod free;
pub mod layout;
pub mod partition;
pub mod placement;
pub mod sparse;
