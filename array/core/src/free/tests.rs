//! Against real file systems: made by `mkfs.ext4`, thinned out by `debugfs`, judged by `dumpe2fs` (package
//! e2fsprogs), on disks partitioned by `sfdisk` (package fdisk).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn run(program: &str, args: &[&str], stdin: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (packages e2fsprogs, fdisk): {error}"));
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that are neither zero nor alike.
fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}

/// A file system in use: 60 files, two thirds of which were deleted again.
fn used_file_system(mkfs: &[&str], mib: usize) -> (Vec<u8>, HashSet<u64>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let mut deletions = String::new();
    for n in 0..60_u32 {
        let bytes = mib * 11_000 + 3000 * usize::try_from(n % 7).unwrap();
        std::fs::write(files.join(format!("file{n}")), noise(n, bytes)).unwrap();
        if n % 3 > 0 {
            writeln!(deletions, "rm file{n}").unwrap();
        }
    }
    let image = dir.path().join("image");
    let (image, files) = (image.to_str().unwrap(), files.to_str().unwrap());
    let size = format!("{mib}M");
    let args = [mkfs, &["-F", "-q", "-d", files, image, &size]].concat();
    run("mkfs.ext4", &args, "");
    run("debugfs", &["-w", "-f", "-", image], &deletions);
    let (free, block) = free_blocks(image);
    (std::fs::read(Path::new(image)).unwrap(), free, block)
}

/// What `dumpe2fs` says: the free blocks, and the size of one.
fn free_blocks(image: &str) -> (HashSet<u64>, usize) {
    let report = run("dumpe2fs", &[image], "");
    let value =
        |line: &str, name: &str| line.trim().strip_prefix(name).map(|v| v.trim().to_owned());
    let block = report.lines().find_map(|line| value(line, "Block size:")).unwrap();
    let mut free = HashSet::new();
    // The superblock's summary has the same name and a count; the lists of the groups are indented.
    for list in
        report.lines().filter(|l| l.starts_with(' ')).filter_map(|l| value(l, "Free blocks:"))
    {
        for range in list.split(", ").filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            free.extend(first.parse::<u64>().unwrap()..=last.parse().unwrap());
        }
    }
    (free, block.parse().unwrap())
}

/// What the filter called free, fed as the registration does: without zero blocks.
fn freed(image: &[u8], keep_zeros: bool) -> HashSet<u64> {
    let mut filter = FreeFilter::new(ByteCount(image.len() as u64));
    let (blocks, _) = image.as_chunks::<BLOCK_BYTES>();
    let passing =
        (0..).zip(blocks).filter(|(_, bytes)| keep_zeros || bytes.iter().any(|b| *b != 0));
    passing
        .filter(|(at, bytes)| filter.observe(BlockIndex(*at), bytes) == Use::Free)
        .map(|(at, _)| at)
        .collect()
}

struct Score {
    /// Non-zero image blocks that are wholly free.
    garbage: usize,
    found: usize,
}

/// Checks that nothing used is called free, and counts.
fn score(image: &[u8], start: u64, file_system: usize, free: &HashSet<u64>, block: usize) -> Score {
    let freed = freed(image, false);
    let per = (BLOCK_BYTES / block) as u64;
    let end = start + (file_system / BLOCK_BYTES) as u64;
    let really = |at: u64| {
        (start..end).contains(&at)
            && ((at - start) * per..(at - start + 1) * per).all(|b| free.contains(&b))
    };
    assert!(freed.iter().all(|at| really(*at)), "a block in use was called free");
    let (blocks, _) = image.as_chunks::<BLOCK_BYTES>();
    let garbage: Vec<_> = (0..)
        .zip(blocks)
        .filter(|(at, bytes)| really(*at) && bytes.iter().any(|byte| *byte != 0))
        .map(|(at, _)| at)
        .collect();
    let found = garbage.iter().filter(|at| freed.contains(at)).count();
    Score { garbage: garbage.len(), found }
}

#[test]
fn deleted_files_are_found_in_every_kind_of_ext4() {
    for (mkfs, mib) in [
        (&["-b", "4096"][..], 64),
        (&["-b", "4096", "-g", "4096"], 96),
        (&["-b", "2048"], 96),
        (&["-b", "1024"], 48),
        (&["-b", "4096", "-g", "4096", "-O", "^64bit,^metadata_csum"], 64),
        (&["-b", "4096", "-g", "4096", "-O", "^flex_bg"], 64),
        (&["-b", "1024", "-O", "^flex_bg,^uninit_bg,^metadata_csum,^64bit"], 48),
        (&["-b", "4096", "-O", "^has_journal,^resize_inode"], 64),
    ] {
        let (image, free, block) = used_file_system(mkfs, mib);
        let Score { garbage, found } = score(&image, 0, image.len(), &free, block);
        assert!(garbage > 1000, "{mkfs:?}: only {garbage} free blocks hold anything");
        assert!(found * 100 >= garbage * 95, "{mkfs:?}: {found} of {garbage} found");
    }
}

#[test]
fn what_is_not_understood_is_kept_whole() {
    for mkfs in
        [&["-b", "4096", "-O", "^resize_inode,meta_bg"][..], &["-b", "4096", "-O", "bigalloc"]]
    {
        let (image, ..) = used_file_system(mkfs, 32);
        assert_eq!(freed(&image, false), HashSet::new(), "{mkfs:?}");
    }
    let (image, ..) = used_file_system(&["-b", "4096"], 32);
    assert!(!freed(&image, false).is_empty());
    // Mounted, with errors, with a journal to replay, an unknown feature, and orphans.
    for (at, value) in [(0x3a, 0), (0x3a, 3), (0x60, 0xc6), (0x63, 0x80), (0xe8, 1)] {
        let mut doubtful = image.clone();
        doubtful[1024 + at] = value;
        assert_eq!(freed(&doubtful, false), HashSet::new(), "byte {at:#x} = {value}");
    }
    // A group whose descriptor contradicts its bitmap.
    let mut doubtful = image;
    doubtful[4096 + 0x0c] ^= 1;
    assert_eq!(freed(&doubtful, false), HashSet::new());
}

#[test]
fn partitions_of_a_disk_are_looked_into() {
    let (file_system, free, block) = used_file_system(&["-b", "4096", "-g", "4096"], 48);
    let start = 16_384_usize;
    let mut disk = vec![0; start * 512 + file_system.len() + (4 << 20)];
    // Between the partitions lies something that nobody knows.
    disk[1 << 20..2 << 20].copy_from_slice(&noise(7, 1 << 20));
    disk[start * 512..][..file_system.len()].copy_from_slice(&file_system);
    let sectors = file_system.len() / 512;
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    for (label, first) in
        [("dos", "start=2048, size=2048, type=82"), ("gpt", "start=2048, size=2048")]
    {
        std::fs::write(&image, &disk).unwrap();
        let script = format!("label: {label}\n{first}\nstart={start}, size={sectors}\n");
        run("sfdisk", &["--quiet", image.to_str().unwrap()], &script);
        let disk = std::fs::read(&image).unwrap();
        let start = (start * 512 / BLOCK_BYTES) as u64;
        let Score { garbage, found } = score(&disk, start, file_system.len(), &free, block);
        assert!(garbage > 1000 && found * 100 >= garbage * 95, "{found} of {garbage} found");
    }
}

#[test]
fn zero_blocks_may_come_or_stay_away() {
    let (image, ..) = used_file_system(&["-b", "1024"], 24);
    let nonzero = |at: &u64| {
        let start = usize::try_from(*at).unwrap() * BLOCK_BYTES;
        image[start..start + BLOCK_BYTES].iter().any(|byte| *byte != 0)
    };
    let with: HashSet<_> = freed(&image, true).into_iter().filter(nonzero).collect();
    assert_eq!(with, freed(&image, false));
}

#[test]
fn blocks_out_of_order_are_kept() {
    let (image, ..) = used_file_system(&["-b", "4096"], 32);
    let (blocks, _) = image.as_chunks::<BLOCK_BYTES>();
    let mut filter = FreeFilter::new(ByteCount(image.len() as u64));
    let mut free = None;
    for (at, bytes) in (0..).map(BlockIndex).zip(blocks) {
        if filter.observe(at, bytes) == Use::Free {
            free = Some((at, bytes));
        }
    }
    let (at, bytes) = free.unwrap();
    assert_eq!(filter.observe(at, bytes), Use::Keep);
    assert_eq!(filter.observe(BlockIndex(u64::MAX), bytes), Use::Keep);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A superblock and descriptors full of lies: no panic, and never a block outside the file system.
    #[test]
    fn lies_are_survived(
        fields in prop::collection::vec((0..1024_usize, any::<u8>()), 0..12),
        descriptors in prop::collection::vec(any::<u8>(), 512),
        log in 0..3_u8, blocks in 20..4000_u32, group in 1..64_u32,
    ) {
        let mut image = noise(1, 64 * BLOCK_BYTES);
        image[..2 * BLOCK_BYTES].fill(0);
        let sb = &mut image[1024..2048];
        sb[4..8].copy_from_slice(&blocks.to_le_bytes());
        sb[0x14] = u8::from(log == 0);
        sb[0x18] = log;
        sb[0x20..0x24].copy_from_slice(&(group * 8).to_le_bytes());
        sb[0x38..0x3b].copy_from_slice(&[0x53, 0xef, 1]);
        sb[0x4c] = 1;
        fields.iter().for_each(|(at, value)| sb[*at] = *value);
        image[2048..2048 + 512].copy_from_slice(&descriptors);
        image[4096..4096 + 512].copy_from_slice(&descriptors);
        let end = u64::from(blocks) << log;
        for at in freed(&image, true) {
            prop_assert!(at * 4 < end || !fields.is_empty());
        }
    }
}
