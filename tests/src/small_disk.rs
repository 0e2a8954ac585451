//! A disk of a client's own: a small ext4 file system that a test can fill without filling anybody else's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::tool;

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mount: PathBuf,
    image: PathBuf,
}

impl SmallDisk {
    /// Makes a file system of `mib` MiB and mounts it at `mount`, which is made, private to its owner.
    ///
    /// # Errors
    /// The system refuses, for want of root or of a loop device.
    pub fn mount(mount: &Path, mib: u64) -> Result<Self> {
        let image = mount.with_extension("disk");
        let file = File::create(&image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(mib << 20).context("size the disk")?;
        tool::run("mkfs.ext4", ["-q".as_ref(), "-m0".as_ref(), image.as_os_str()])?;
        fs::create_dir(mount).with_context(|| format!("create {}", mount.display()))?;
        let loop_option = ["-o".as_ref(), "loop".as_ref()];
        tool::run("mount", loop_option.into_iter().chain([image.as_os_str(), mount.as_os_str()]))?;
        Ok(Self { mount: mount.to_owned(), image })
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn available(&self) -> Result<u64> {
        let system = rustix::fs::statvfs(&self.mount).context("look at the small disk")?;
        Ok(system.f_bavail * system.f_frsize)
    }

    /// What its owner does: a file that takes so many bytes at once.
    ///
    /// # Errors
    /// The disk is full.
    pub fn fill(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.mount.join(name);
        let file = File::create(&path).context("create the owner's file")?;
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, bytes).context("fill the small disk")?;
        Ok(path)
    }
}

impl Drop for SmallDisk {
    #[expect(
        clippy::print_stderr,
        reason = "a test has no other way to say that it leaves something behind"
    )]
    fn drop(&mut self) {
        // Lazily: a process of the test may still be ending.
        if let Err(error) = tool::run("umount", ["-l".as_ref(), self.mount.as_os_str()]) {
            eprintln!("lab: {error:#}");
        }
        drop(fs::remove_file(&self.image));
    }
}
