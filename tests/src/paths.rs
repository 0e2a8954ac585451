//! Where things lie: all of it below the workspace's target folder, so that one `rm -r target`
//! leaves nothing behind.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The workspace this crate was built from.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The target folder: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The folder of Cairn's programs: `CAIRN_BIN_DIR`, or the build that demo and tests share.
pub fn binaries() -> PathBuf {
    match env::var_os("CAIRN_BIN_DIR") {
        Some(dir) => workspace().join(dir),
        None => target().join("debug"),
    }
}

/// Kernel and initramfs for blank machines: `CAIRN_PAYLOAD_DIR`, or those of the build that demo and tests share.
pub fn boot_payload() -> PathBuf {
    match env::var_os("CAIRN_PAYLOAD_DIR") {
        Some(dir) => workspace().join(dir),
        None => cache().join("boot/dev"),
    }
}

/// The Debian packages: `CAIRN_PACKAGES_DIR`, or where `cargo xtask package` puts them.
pub fn packages() -> PathBuf {
    match env::var_os("CAIRN_PACKAGES_DIR") {
        Some(dir) => workspace().join(dir),
        None => target().join("packages"),
    }
}

/// What is expensive to make and stays valid between runs: bootable images.
pub fn cache() -> PathBuf {
    target().join("cairn-cache")
}

/// The working folders of labs, one each.
pub fn labs() -> PathBuf {
    target().join("cairn-lab")
}

/// QEMU for a PC: the one that `cargo xtask setup` unpacked, or the installed one.
pub fn qemu() -> PathBuf {
    const NAME: &str = "qemu-system-x86_64";
    let unpacked = target().join("tools/qemu").join(NAME);
    if unpacked.exists() { unpacked } else { NAME.into() }
}
