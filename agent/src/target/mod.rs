//! Installing a machine: the same code for a blank one (from init of the boot payload) and for
//! `cairn-agent install` on a running system.
//!
//! ```text
//!   identity, disks ─► hello ─► code on the screen ─► ticket ─► manifest, stripe maps, directory
//!                                                                   │
//!                     report ◄── boot entry ◄── boot blocks last ◄── verify ◄── write ◄── choose the disk
//! ```
//!
//! Invariants: until the disk is chosen and found fit nothing is written; once the manifest is here the server may
//! vanish and the install still ends; a machine that was not approved gets nothing, whatever key it holds.

pub mod boot_entry;
pub mod disks;
pub mod flow;
pub mod identity;
pub mod inventory;
pub mod offline;
pub mod progress;
pub mod select;
mod storage;
mod swarm;
pub mod terminal;
mod ticket;

use cairn_array::wire::InstallProgress;

/// Where an install is shown: a terminal, or all consoles of a blank machine.
pub trait Screen: Clone + Send + Sync + 'static {
    /// A line that stays.
    fn say(&self, line: &str);
    /// Where the install stands; replaces the last such line where that is possible.
    fn show(&self, progress: &InstallProgress);
}
