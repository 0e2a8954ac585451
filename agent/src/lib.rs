//! `cairn-agent`: the client of a Cairn site, the installer, and init of the boot payload.
//!
//! ```text
//!   join ──► home ──► daemon (run)          a client: lends disk space, holds and serves segments
//!                └──► target (install)      an installer on a running system
//!   init ──► network ──► target             the same installer on a blank machine, as its first process
//! ```
//!
//! Decisions are pure (`daemon::difference`, `lending::sizer`, `target::select`, `init::cmdline`, `target::identity` over any root);
//! the rest is the shell around them.

pub mod cli;
pub mod daemon;
pub mod dark;
pub mod home;
pub mod idle_io;
pub mod images;
pub mod init;
pub mod join;
pub mod lan;
pub mod leave;
pub mod lend;
pub mod lending;
pub mod limits;
pub mod link;
pub mod place;
pub mod privilege;
pub mod signals;
pub mod stand_in;
pub mod target;
pub mod volume;

pub use cairn_array::size;
