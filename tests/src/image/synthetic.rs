//! Raw ext4 images of a few MiB for tests that need a file system but not a system.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{Image, disk};

/// What goes into the image.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    /// Size of the file system in MiB, at least 8.
    pub size_mib: u32,
    /// How much of it files fill, in MiB.
    pub files_mib: u32,
    /// Which bytes: the same seed makes the same files.
    pub seed: u64,
}

/// Makes an ext4 image without partitions at `path`. Every other file is random, the rest is text
/// that compresses about four times, so that the whole behaves like a system's files.
///
/// # Errors
/// The files do not fit, or `mkfs.ext4` is missing.
pub fn synthetic_ext4(path: &Path, wanted: Synthetic) -> Result<Image> {
    let folder = path.parent().context("name the image's folder")?;
    let work = tempfile::tempdir_in(folder).context("make a working folder")?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree).context("make a folder")?;
    for file in 0..wanted.files_mib {
        let mut bytes = Pseudorandom::new(wanted.seed, file.into());
        let content = if file % 2 == 0 { bytes.take(1 << 20) } else { text(&mut bytes, 1 << 20) };
        fs::write(tree.join(format!("file-{file:04}")), content).context("write a file")?;
    }
    let image = File::create(path).with_context(|| format!("make {}", path.display()))?;
    let size = u64::from(wanted.size_mib) << 20;
    image.set_len(size).context("size the image")?;
    disk::make_ext4(path, 0, size, &tree)?;
    Ok(Image { path: PathBuf::from(path), root_offset: 0 })
}

fn text(random: &mut Pseudorandom, length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 32);
    while text.len() < length {
        let word = random.next_u64();
        text.extend_from_slice(
            format!("host-{:03} = 10.77.{};\n", word % 1000, word >> 40 & 255).as_bytes(),
        );
    }
    text.truncate(length);
    text
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): the same on
/// every machine, fast in a debug build, and incompressible.
#[derive(Debug)]
pub(super) struct Pseudorandom(u64);

impl Pseudorandom {
    /// Streams of one seed have nothing to do with each other.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(
            Self(seed).next_u64()
                ^ Self(stream.wrapping_add(0x5ca1_ab1e)).next_u64().rotate_left(17),
        )
    }

    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
