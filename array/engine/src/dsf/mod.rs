//! The distributed storage file (DSF): the part of its own disk that a client lends, as one file.
//!
//! ```text
//! 0        64 KiB     1 MiB                                        + 1 GiB + 1 MiB
//! ├ super ─┼─ super ──┼─ group 0 ──────────────────────────────────┼─ group 1 ── …
//! │ block  │  copy    │ 256 headers │ 256 payloads of 4 MiB each   │
//! └────────┴──────────┴─ 4 KiB each ┴── one segment per slot ──────┴─
//!
//!            reserve            payload, sync, header, sync
//!   free ──────────────► busy ─────────────────────────────► used
//!    ▲                    │ ▲                                  │
//!    └── punch ◄──────────┘ └──────── header cleared, sync ◄───┘
//! ```
//!
//! Why like this:
//! - A slot holds a whole segment, so there is no allocator and no fragmentation to manage, and the
//!   headers alone say everything: there is no second database that could disagree with them.
//! - The headers of 256 slots lie together: opening reads 1 MiB per GiB in one sequential piece (20
//!   reads for 20 GiB, where headers beside their payloads would be 5,120 seeks). They are not one
//!   table at the front of the file because its size would fix the largest DSF for ever; a group more
//!   or less is all that growing and shrinking takes.
//! - The number of slots is the file's length, so the superblock is written once and never again.
//!
//! Invariants:
//! - A header never reaches the disk before its payload is durable, and a payload is never overwritten
//!   or punched before the clearing of its header is durable. So at any instant of a crash each valid
//!   header has its whole payload.
//! - An acknowledged put is durable; an acknowledged removal never comes back.
//! - A free slot keeps no space of the disk (except its header).
//! - Bytes that do not hash to their [`SegmentId`](cairn_core::id::SegmentId) are neither stored nor returned.
//! - After a failed sync nothing is written any more: what the kernel dropped cannot be known.
//! - Nobody but the file's owner can read it; two processes never have it open.

mod checked;
mod disk;
mod engine;
mod layout;
mod owner;
mod reader;
mod resize;
mod slot;
mod superblock;
mod table;

pub use checked::{CheckError, CheckedSegment};
pub use disk::OpenFault;
pub use engine::{Dsf, Fault, OpenError, Put, PutError, ResizeError, Stored};
pub use layout::{MAX_SLOTS, SLOT_HEADER_BYTES, SLOTS_PER_GROUP, SlotCount, SlotIndex};
pub use owner::{DsfHandle, DsfOwner, HandleError};
pub use reader::{BadSlot, DsfReader, GetError, PayloadFault, Scrubbed, SlotFault};
pub use resize::Resized;
pub use slot::{SegmentClass, SlotHeader};
pub use superblock::{DsfId, Superblock};
pub use table::{Held, Stats};

#[cfg(test)]
mod tests;
