//! How full a file system is.

use std::{io, path::Path};

use cairn_core::units::ByteCount;
use serde::{Deserialize, Serialize};

/// Sizes of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub total: ByteCount,
    /// What a user who is not root can still write.
    pub available: ByteCount,
}

impl Space {
    /// Of the file system that `path` is on.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of(path: &Path) -> io::Result<Self> {
        let system = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(system.f_frsize));
        Ok(Self { total: bytes(system.f_blocks), available: bytes(system.f_bavail) })
    }
}
