//! The question this crate asks its caller: what is this machine to do?

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::identity::{MacAddr, MachineUuid};

/// What a machine says about itself through iPXE. All of it is a claim: it selects and never authorises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineHint {
    /// Of the interface it boots from.
    pub mac: MacAddr,
    /// `None` when it has none, or an all-zero one.
    pub uuid: Option<MachineUuid>,
    pub serial: Option<String>,
    pub manufacturer: Option<String>,
    pub product: Option<String>,
    /// iPXE's build architecture: `i386`, `x86_64`.
    pub arch: Option<String>,
    pub platform: Platform,
}

/// The firmware iPXE runs on; how a machine is sent to its local disk depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootDecision {
    /// Boot the payload, whose init is the agent, with this kernel command line.
    Agent { cmdline: String },
    /// Go on to the machine's own disk.
    LocalDisk,
    /// Ask again in so many seconds; for instance until an administrator approved the machine.
    Wait { seconds: u32 },
}

pub type DecisionFuture<'a> = Pin<Box<dyn Future<Output = BootDecision> + Send + 'a>>;

/// A disk that loaders read over HTTP. Reads block.
pub trait Disk: std::fmt::Debug + Send + Sync {
    /// In bytes.
    fn size(&self) -> u64;

    /// Fills `into` from `offset` on; the range is within the disk.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()>;
}

pub type DiskFuture<'a> = Pin<Box<dyn Future<Output = Option<Arc<dyn Disk>>> + Send + 'a>>;

pub trait BootDecider: Send + Sync {
    fn decide(&self, hint: MachineHint) -> DecisionFuture<'_>;

    /// The disk at `/boot/disk/PATH`, for whoever knows its path.
    fn disk(&self, _path: String) -> DiskFuture<'_> {
        Box::pin(async { None })
    }
}
