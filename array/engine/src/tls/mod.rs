//! Mutual TLS under the site's own CA (DESIGN section 6).
//!
//! A certificate speaks for one [`Member`], named by its only DNS name, which the server chose. Addresses are not
//! identity: a client connects to wherever [`NameTable`] says the member is, and checks the name.
//!
//! Invariants: no public CA is ever trusted; TLS 1.3 only; a name that is not of this site's form speaks for nobody.

mod addresses;
mod authority;
mod client;
mod key;
mod live;
mod member;
mod names;
mod service;
mod token;

pub use addresses::{InterfaceAddress, card_towards, interface_addresses, local_addresses};
pub use authority::{AGENT_LIFE, Authority, Certified, new_authority, valid_until};
pub use client::{Trust, client, client_config, client_of_strangers, live_client, url};
pub use key::{Fingerprint, KeyAndCsr, Papers, csr_of, new_key_and_csr, public_key_of_csr};
pub use live::LivePapers;
pub use member::Member;
pub use names::NameTable;
pub(crate) use service::member_of;
pub use service::{Peer, live_server_tls, serve, server_tls};
pub use token::{BadToken, Token, TokenKind};

/// HTTP/2 flow control for segment-sized bodies: with the defaults a 4 MiB body waits for the window four times.
pub(crate) mod window {
    pub(crate) const STREAM_BYTES: u32 = 16 << 20;
    pub(crate) const CONNECTION_BYTES: u32 = 64 << 20;
    pub(crate) const FRAME_BYTES: u32 = 1 << 20;
    /// What a connection holds to be sent: little, so that a sender knows when a body is sent and not only handed over.
    pub(crate) const SEND_BYTES: usize = 512 << 10;
    /// The same for the kernel, beyond what is under way.
    pub(crate) const NOT_SENT_BYTES: u32 = 256 << 10;
}

#[cfg(test)]
mod tests;
