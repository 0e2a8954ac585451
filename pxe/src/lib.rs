//! Network boot: DHCP, TFTP, boot files over plain HTTP, and the iPXE scripts in between.
//!
//! ```text
//!  firmware          cairn-pxe                                   caller
//!  ────────          ─────────                                   ──────
//!  DHCP DISCOVER ──► dhcp::respond      (pure) ─► OFFER
//!  TFTP RRQ      ──► tftp::Transfer     (pure) ─► snponly.efi / undionly.kpxe
//!  GET start.ipxe ─► ipxe::ask_script   (pure) ─► script
//!  GET menu.ipxe ──► MachineHint ───────────────────────────────► BootDecider
//!                    ipxe::script_for   (pure) ◄──────────────── BootDecision
//!  GET vmlinuz   ──► http, BootFiles
//! ```
//!
//! Invariants, as absences:
//! - This crate never decides what a machine boots: the [`BootDecider`] does.
//! - Nothing but `sockets.rs` opens a socket, and nothing in `dhcp` or `tftp` reads a clock.
//! - Nothing that arrives reaches a file name: names are looked up in the closed table [`BootFiles`].
//! - Nothing served here is a secret, but for disks, whose addresses are: DHCP, TFTP and plain HTTP are readable and forgeable by everybody on the net,
//!   and what a machine says about itself here selects, it never authorises.
//! - A packet that is malformed, or not for us, is never answered; it is counted in [`Counters`]. How far each machine came is in [`Trails`].

mod boot_files;
mod config;
mod counters;
mod decision;
pub mod dhcp;
mod http;
mod identity;
pub mod ipxe;
mod lease_file;
mod sockets;
pub mod tftp;
mod trail;
mod wake;

pub use boot_files::{BootFiles, IPXE_PACKAGE, LoadLoaderError, LookUpError};
pub use config::{DhcpMode, FullDhcp, InvalidConfig, PayloadFiles, PxeConfig};
pub use counters::{Counters, Record, Snapshot};
pub use decision::{
    BootDecider, BootDecision, DecisionFuture, Disk, DiskFuture, MachineHint, Platform,
};
pub use dhcp::LOADERS;
pub use http::router;
pub use identity::{MacAddr, MachineUuid, ParseIdentityError};
pub use sockets::{Bound, address_of_interface, bind, serve, survey, wake};
pub use trail::{Neighbour, Standing, Step, Stop, Told, Trail, Trails};
pub use wake::{MAGIC_PACKET_BYTES, magic_packet};
