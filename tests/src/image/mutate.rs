//! The second version of an image: some of its files changed, as an update changes them.
//!
//! An update writes new files and removes the old ones, so the new content lies in other blocks and
//! its neighbours stay where they were. That is done here with debugfs on the file system itself, in
//! place in the partition. Only files that a boot does not read are changed, so the second version
//! boots too.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Image, synthetic::Pseudorandom};
use crate::tool;

/// A share of all file bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u8);

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    pub image: PathBuf,
    pub files: usize,
    pub changed_bytes: u64,
    /// Bytes of all regular files, changed or not.
    pub file_bytes: u64,
}

/// Folders whose files no boot of ours reads.
const SPARED_BY_BOOT: [&str; 9] = [
    "usr/share",
    "usr/lib/modules",
    "usr/lib/python3",
    "usr/lib/locale",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "var/lib/dpkg/info",
    "var/cache",
    "file-",
];

/// Makes `output`: `image` with at least `percent` of its file bytes in changed files.
///
/// # Errors
/// `output` cannot be written, or the image has too few files that may change.
pub fn mutate(image: &Image, percent: Percent, seed: u64, output: &Path) -> Result<Mutation> {
    let folder = output.parent().context("name the folder of the output")?;
    let work = tempfile::tempdir_in(folder).context("make a working folder")?;
    tool::run("cp", ["--sparse=always".as_ref(), image.path.as_os_str(), output.as_os_str()])?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree).context("make a folder")?;
    let device = format!("{}?offset={}", output.display(), image.root_offset);
    tool::run("debugfs", ["-R", &format!("rdump / {}", tree.display()), &device])?;

    let mut files = Vec::new();
    list(&tree, &tree, &mut files)?;
    let file_bytes = files.iter().map(|file| file.length).sum();
    let wanted = u64::div_ceil(file_bytes * u64::from(percent.0), 100);
    let chosen = choose(files, wanted, seed);
    let changed_bytes = chosen.iter().map(|file| file.length).sum();
    ensure!(
        changed_bytes >= wanted,
        "change {} % of the file bytes: only {changed_bytes} of {file_bytes} may change",
        percent.0
    );
    let mut script = String::new();
    for (index, file) in chosen.iter().enumerate() {
        let new = work.path().join(format!("new-{index}"));
        let mut bytes = fs::read(tree.join(&file.path)).context("read a file")?;
        change(&mut bytes, seed);
        fs::write(&new, bytes).context("write a file")?;
        let (path, mode) = (file.path.display(), file.mode);
        // `write` takes the mode from umask and source; the original's is set again after it.
        script.push_str(&format!("rm \"/{path}\"\nwrite {} \"/{path}\"\n", new.display()));
        script.push_str(&format!("sif \"/{path}\" mode 0{mode:o}\n"));
    }
    let script_path = work.path().join("script");
    fs::write(&script_path, script).context("write debugfs's script")?;
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-w", "-f"]).arg(&script_path).arg(&device);
    tool::finish(&mut debugfs)?;
    // debugfs reports nothing by its exit code: the checker says whether the result is sound.
    tool::run("e2fsck", ["-f", "-n", &device]).context("check the changed file system")?;
    Ok(Mutation { image: output.to_owned(), files: chosen.len(), changed_bytes, file_bytes })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    path: PathBuf,
    length: u64,
    mode: u32,
    may_change: bool,
}

fn list(root: &Path, folder: &Path, files: &mut Vec<Candidate>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path = entry.context("list the tree")?.path();
        let metadata = fs::symlink_metadata(&path).context("look at a file")?;
        if metadata.is_dir() {
            list(root, &path, files)?;
        } else if metadata.is_file() {
            let path = path.strip_prefix(root).context("name a file")?.to_owned();
            let name = path.to_string_lossy();
            let may_change = SPARED_BY_BOOT.iter().any(|prefix| name.starts_with(prefix))
                && (metadata.uid(), metadata.gid()) == (0, 0)
                && !name.contains(['"', '\n']);
            let length = metadata.len();
            files.push(Candidate { path, length, mode: metadata.mode(), may_change });
        }
    }
    Ok(())
}

/// Files in an order of the seed's, until they have `wanted` bytes.
fn choose(mut files: Vec<Candidate>, wanted: u64, seed: u64) -> Vec<Candidate> {
    files.retain(|file| file.may_change && file.length > 0);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut random = Pseudorandom::new(seed, 0);
    let mut chosen = Vec::new();
    let mut bytes = 0;
    while bytes < wanted && !files.is_empty() {
        let count = u64::try_from(files.len()).unwrap_or(u64::MAX);
        let index = usize::try_from(random.next_u64() % count).unwrap_or_default();
        let file = files.swap_remove(index);
        bytes += file.length;
        chosen.push(file);
    }
    chosen
}

/// Changes a byte in every 256, so no block stays what it was and compression stays about as good as
/// it was, as between two builds of one program.
fn change(bytes: &mut [u8], seed: u64) {
    let mut random = Pseudorandom::new(seed, 1);
    for piece in bytes.chunks_mut(256) {
        let [at, value, ..] = random.next_u64().to_le_bytes();
        let at = usize::from(at) % piece.len();
        piece[at] ^= value | 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn a_second_version_shares_what_did_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Synthetic { size_mib: 64, files_mib: 40, seed: 7 };
        let first = synthetic_ext4(&dir.path().join("first.raw"), wanted).unwrap();
        let output = dir.path().join("second.raw");
        let mutation = mutate(&first, Percent(10), 3, &output).unwrap();
        assert_eq!((mutation.files, mutation.changed_bytes), (4, 4 << 20));
        assert_eq!(mutation.file_bytes, 40 << 20);
        let blocks = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            bytes.chunks(4096).map(<[u8]>::to_vec).collect::<std::collections::HashSet<_>>()
        };
        let (old, new) = (blocks(&first.path), blocks(&output));
        let fresh = new.difference(&old).count();
        assert!((1024..1100).contains(&fresh), "{fresh} new blocks for 1024 changed ones");
    }
}
