//! The lab: a switched network of namespaces on one machine, with real processes, a real DHCP
//! server, real firmware and a real operating system in it.
//!
//! Cairn is about machines that boot over a network, and most of what can go wrong there is
//! between programs: broadcasts, firmware quirks, a process that dies at the wrong moment. So
//! nothing here is simulated. Whatever a test starts, it starts as a user would.
//!
//! ```text
//!   Lab ── switch namespace, bridge br0
//!    ├── Host "server"  10.77.0.1   eth0 ── Process cairn-server
//!    ├── Host "dhcp"    10.77.0.2   eth0 ── Dhcpd (dnsmasq)
//!    ├── Host "client1" 10.77.0.11  eth0 ── Process cairn-agent
//!    └── Tap  tap0                       ── Machine (QEMU: SeaBIOS or OVMF, blank disk)
//! ```
//!
//! Invariants: the root network namespace is never changed beyond the list of namespace names;
//! a process never outlives the program that started it; a lab never leaves namespaces behind,
//! and the next one sweeps up what a killed program left. Needs root and Debian's packages
//! (`cargo xtask setup`).

pub mod cairn;
pub mod demo;
pub mod dhcpd;
pub mod image;
pub mod netns;
pub mod paths;
pub mod portal;
pub mod postgres;
pub mod process;
pub mod qemu;
pub mod site;
pub mod small_disk;
pub mod stand_in;
pub mod tool;
pub mod transcript;
