//! The NBD protocol: bytes in, decisions and bytes out. The server's side, and of the client's what a machine needs whose
//! disk is a volume (client.rs, redo.rs).
//!
//! Source: the NBD project's `doc/proto.md`. Fixed newstyle only. All numbers are big-endian.
//!
//! ```text
//!   greeting ─► client flags ─► options … GO or EXPORT_NAME ─► requests and replies ─► DISC
//!               (handshake.rs)                                 (request.rs, reply.rs)
//! ```
//!
//! | greeting | size | | option | size | | option reply | size |
//! |---|---|---|---|---|---|---|---|
//! | "NBDMAGIC" | 8 | | "IHAVEOPT" | 8 | | 0x0003e889045565a9 | 8 |
//! | "IHAVEOPT" | 8 | | option | 4 | | option | 4 |
//! | handshake flags | 2 | | length of data | 4 | | kind of reply | 4 |
//! | | | | data | … | | length of data, data | 4 + … |
//!
//! | request | size | | simple reply | size | | structured reply | size |
//! |---|---|---|---|---|---|---|---|
//! | 0x25609513 | 4 | | 0x67446698 | 4 | | 0x668e33ef | 4 |
//! | flags | 2 | | error | 4 | | flags | 2 |
//! | command | 2 | | cookie | 8 | | kind | 2 |
//! | cookie | 8 | | | | | cookie | 8 |
//! | offset | 8 | | | | | length of payload, payload | 4 + … |
//! | length | 4 | | | | | | |

pub mod client;
pub mod handshake;
pub mod redo;
pub mod reply;
pub mod request;

/// The most bytes of one read or write.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The only meta context that is served.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The client does not speak the protocol: nothing can be said to it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the client does not speak fixed newstyle NBD")]
    Flags,
    #[error("an option does not begin as one")]
    OptionMagic,
    #[error("an option of {length} bytes is too long")]
    OptionLength { length: u32 },
    #[error("the client negotiates without end")]
    TooManyOptions,
    #[error("a request does not begin as one")]
    RequestMagic,
}
