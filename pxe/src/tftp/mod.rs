//! TFTP, read-only: what firmware needs to get its first loader.
//!
//! # The packets (RFC 1350; options RFC 2347, blksize RFC 2348, timeout and tsize RFC 2349, windowsize RFC 7440)
//!
//! | packet | bytes                                                                                     |
//! |--------|-------------------------------------------------------------------------------------------|
//! | RRQ    | 2: opcode 1 · file name · 0 · mode · 0 · then any number of option name · 0 · value · 0     |
//! | WRQ    | 2: opcode 2 · …; always refused                                                           |
//! | DATA   | 2: opcode 3 · 2: block, from 1, wraps to 0 · 0 to blksize bytes; a short one is the last  |
//! | ACK    | 2: opcode 4 · 2: block                                                                    |
//! | ERROR  | 2: opcode 5 · 2: code · message · 0                                                       |
//! | OACK   | 2: opcode 6 · option name · 0 · value · 0 …                                               |
//!
//! A transfer has a port of its own; the shell in `sockets.rs` opens it and moves packets between it and [`Transfer`].
//!
//! ```text
//!          options asked for                 ACK 0                      last block acknowledged
//!  RRQ ──────────────────────► Negotiating ──────────► Sending ────────────────────────────────► Ended(Complete)
//!   └── none ───────────────────────────────────────────►│ ▲ timeout, gap: window again
//!                                    ERROR, or silence ──┴─┘──────────────────────────────────► Ended(…)
//! ```
//!
//! # Why not `async-tftp`
//!
//! It brings a second executor and reactor; its transfer sockets cannot be bound to the boot interface; it takes any number
//! of transfers at once; it cannot tell a size probe from a failure (UEFI first asks with `tsize=0` and answers the OACK with
//! ERROR 8, then asks again in earnest); and, having its sockets inside, it cannot be run against a lossy net in a test
//! or fuzzed.

mod packet;
#[cfg(test)]
mod tests;
mod transfer;

pub use packet::{ErrorCode, Malformed, Packet, ReadRequest};
pub use transfer::{End, Transfer, Transmit};

/// The port TFTP servers listen on.
pub const SERVER_PORT: u16 = 69;
