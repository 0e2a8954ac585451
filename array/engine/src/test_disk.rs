//! A small disk of its own for a test, to be filled up or taken away.

use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs in a temporary folder; gone when dropped. Mounting needs root, as the whole test run does.
pub(crate) struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    pub(crate) fn mount(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=700")).unwrap();
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::NODEV, options.as_c_str())
            .expect("mounting a small disk (needs root)");
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Already taken away by the test, or still open somewhere: the mount goes either way.
        unmount(self.folder.path(), UnmountFlags::DETACH).unwrap_or(());
    }
}
