//! Raw ext4 images of a few MiB for tests that need a file system but not a system.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

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

/// SHA-256 in counter mode: the same on every machine and good enough to be incompressible.
#[derive(Debug)]
pub(super) struct Pseudorandom {
    seed: [u8; 16],
    counter: u64,
}

impl Pseudorandom {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut both = [0; 16];
        both[..8].copy_from_slice(&seed.to_le_bytes());
        both[8..].copy_from_slice(&stream.to_le_bytes());
        Self { seed: both, counter: 0 }
    }

    fn block(&mut self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.counter.to_le_bytes());
        self.counter += 1;
        hash.finalize().into()
    }

    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 32);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.block());
        }
        bytes.truncate(length);
        bytes
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        let block = self.block();
        let mut first = [0; 8];
        first.copy_from_slice(&block[..8]);
        u64::from_le_bytes(first)
    }
}
