//! Small real operating systems as disk images, made without a virtual machine and without root
//! devices: folder → ext4 (`mkfs.ext4 -d`) → GPT → GRUB for BIOS and UEFI put in place by hand.
//!
//! ```text
//!   LBA 0      protective MBR with GRUB's boot.img around the partition table
//!   LBA 2048   BIOS boot partition, 1 MiB: GRUB's core.img, raw
//!   LBA 4096   EFI system partition, 40 MiB, FAT32: EFI/BOOT/BOOTX64.EFI
//!   LBA 86016  root, ext4: system, /boot/grub/grub.cfg
//! ```
//!
//! Making one takes 5 to 60 s, so they are cached under a name that holds the hash of the recipe's
//! own source: a changed recipe is another image, and nothing ever needs to be invalidated.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cairn_core::id::Hasher;

use crate::{paths, tool};

mod compare;
mod disk;
mod grub;
mod mutate;
mod synthetic;
mod tree;

pub use compare::{Difference, first_difference};
pub use mutate::{Mutation, Percent, mutate};
pub use synthetic::{Synthetic, synthetic_ext4};

/// What a system of ours prints when it is up, on the serial line and the screen.
pub const LOGIN_PROMPT: &str = "cairn-demo login:";

/// Every source file whose change makes another image.
const RECIPE: [&str; 3] =
    [include_str!("image/tree.rs"), include_str!("image/disk.rs"), include_str!("image/grub.rs")];

/// Which system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Debian's cloud kernel and busybox as init: 132 MB, at its login in seconds even under
    /// emulation. Finds its root on virtio or NVMe (the cloud kernel has no AHCI).
    Tiny,
    /// Debian 12 with systemd, udev and the cloud kernel, about 460 MB. The same disks.
    Small,
}

/// What an image has beside its variant.
#[derive(Debug, Clone, Default)]
struct Extras<'a> {
    /// Package files that are installed, with what they depend on.
    packages: &'a [PathBuf],
    /// Bytes of the root file system that are free beside the usual quarter.
    room: u64,
}

/// A raw disk image and where its root file system lies.
#[derive(Debug, Clone)]
pub struct Image {
    pub path: PathBuf,
    /// Position of the ext4 file system in bytes: 0 for an image without partitions.
    pub root_offset: u64,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
        }
    }

    fn fingerprint(self, extras: &Extras<'_>) -> Result<String> {
        let mut hash = Hasher::default();
        for source in RECIPE {
            hash.update(&source.len().to_le_bytes());
            hash.update(source.as_bytes());
        }
        hash.update(self.name().as_bytes());
        for package in extras.packages {
            let bytes = fs::read(package).with_context(|| format!("read {}", package.display()))?;
            hash.update(&bytes.len().to_le_bytes());
            hash.update(&bytes);
        }
        hash.update(&extras.room.to_le_bytes());
        let digest = hex::encode(hash.finish());
        Ok(digest[..16].to_owned())
    }

    /// The image, made now if it is not in the cache.
    ///
    /// # Errors
    /// Not root, a tool is missing, or Debian's mirror cannot be reached.
    pub fn image(self) -> Result<Image> {
        self.cached(self.name(), &Extras::default())
    }

    fn cached(self, name: &str, extras: &Extras<'_>) -> Result<Image> {
        let cache = paths::cache();
        fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
        let path = cache.join(format!("{name}-{}.raw", self.fingerprint(extras)?));
        let image = Image { path, root_offset: disk::ROOT_OFFSET };
        // Of two programs that want it at once, one makes it and the other waits.
        let lock = cache.join(format!("{name}.lock"));
        let lock = File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
        lock.lock().context("wait for the other program that makes this image")?;
        if !image.path.exists() {
            self.make(&image.path, extras).with_context(|| format!("make the {name} image"))?;
            forget_other_recipes(&cache, name, &image.path)?;
        }
        Ok(image)
    }

    fn make(self, path: &Path, extras: &Extras<'_>) -> Result<()> {
        let cache = path.parent().context("name the cache")?;
        let work = tempfile::Builder::new()
            .prefix("making-")
            .tempdir_in(cache)
            .context("make a working folder")?;
        let tree = work.path().join("tree");
        match self {
            Self::Tiny => tree::tiny(&tree, work.path())?,
            Self::Small => tree::small(&tree, extras.packages)?,
        }
        let made = work.path().join("disk.raw");
        disk::make(&made, &tree, work.path(), extras.room)?;
        grub::install(&made, disk::layout(), work.path())?;
        // On disk before it has its name: a name in the cache always means a whole image.
        File::open(&made).and_then(|file| file.sync_all()).context("write the image")?;
        fs::rename(&made, path).context("put the image into the cache")
    }
}

/// The Small system with package files installed, and so many bytes free beside the usual quarter. Only the
/// image of the newest packages is kept.
///
/// # Errors
/// As of [`Variant::image`], or a package cannot be installed.
pub fn small_with_packages(packages: &[PathBuf], room: u64) -> Result<Image> {
    Variant::Small.cached("packaged", &Extras { packages, room })
}

/// Images of earlier recipes would pile up. A program that has one open keeps it until it closes it.
fn forget_other_recipes(cache: &Path, name: &str, newest: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).context("list the cache")? {
        let path = entry.context("list the cache")?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&format!("{name}-")) && file.ends_with(".raw") && path != newest {
            fs::remove_file(&path).context("remove an image of an earlier recipe")?;
        }
    }
    Ok(())
}

impl Image {
    /// Length in bytes.
    ///
    /// # Errors
    /// It is not there.
    pub fn size(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.path);
        Ok(metadata.with_context(|| format!("look at {}", self.path.display()))?.len())
    }

    /// A copy whose UEFI loader lies where only a boot entry leads, as in a system that Debian's installer made.
    ///
    /// # Errors
    /// It cannot be written, or mtools is not installed.
    pub fn without_fallback_loader(&self, path: &Path) -> Result<Self> {
        let [from, to] = [self.path.as_os_str(), path.as_os_str()];
        tool::run("cp", ["--sparse=always".as_ref(), from, to])?;
        grub::move_loader(path, disk::layout())?;
        Ok(Self { path: path.to_owned(), ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_never_share_a_cache_entry() {
        let folder = tempfile::tempdir().unwrap();
        let package = [folder.path().join("some.deb")];
        let fingerprint = |variant: Variant, packages, room| {
            variant.fingerprint(&Extras { packages, room }).unwrap()
        };
        assert_ne!(fingerprint(Variant::Tiny, &[], 0), fingerprint(Variant::Small, &[], 0));
        assert_eq!(fingerprint(Variant::Tiny, &[], 0), fingerprint(Variant::Tiny, &[], 0));
        assert_ne!(fingerprint(Variant::Small, &[], 0), fingerprint(Variant::Small, &[], 1));
        fs::write(&package[0], "one").unwrap();
        let one = fingerprint(Variant::Small, &package, 0);
        fs::write(&package[0], "two").unwrap();
        assert_ne!(one, fingerprint(Variant::Small, &package, 0));
        assert_ne!(one, fingerprint(Variant::Small, &[], 0));
    }
}
