//! Partitions and file systems in a raw image file, without a loop device.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::tool;

pub(super) const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
const BIOS_OFFSET: u64 = MIB;
const ESP_OFFSET: u64 = 2 * MIB;
const ESP_SIZE: u64 = 40 * MIB;
/// Where the root file system lies in the image.
pub(super) const ROOT_OFFSET: u64 = ESP_OFFSET + ESP_SIZE;
/// Behind the last partition: room for the backup of the partition table.
const TAIL: u64 = MIB;
/// Nobody installs into a full file system, and an image is mostly free space.
const SMALLEST_ROOT: u64 = 88 * MIB;

pub(super) const ROOT_UUID: &str = "ca1717de-0000-4000-8000-0000000c0ffe";
const DISK_UUID: &str = "ca1717de-0000-4000-8000-00000000d15c";

/// Where the boot loaders go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) bios_offset: u64,
    pub(super) bios_size: u64,
    pub(super) esp_offset: u64,
}

pub(super) fn layout() -> Layout {
    Layout { bios_offset: BIOS_OFFSET, bios_size: ESP_OFFSET - BIOS_OFFSET, esp_offset: ESP_OFFSET }
}

/// Makes the image with its root file system from `tree`, `room` bytes larger than usual, and an empty EFI
/// system partition.
pub(super) fn make(image: &Path, tree: &Path, work: &Path, room: u64) -> Result<()> {
    let root_size = root_size(tree)? + room.next_multiple_of(MIB);
    let file = File::create(image).with_context(|| format!("make {}", image.display()))?;
    file.set_len(ROOT_OFFSET + root_size + TAIL).context("size the image")?;
    drop(file);
    partition(image, root_size)?;
    make_ext4(image, ROOT_OFFSET, root_size, tree)?;
    make_fat(image, work)
}

fn root_size(tree: &Path) -> Result<u64> {
    let used =
        tool::run("du", ["--summarize".as_ref(), "--block-size=1M".as_ref(), tree.as_os_str()])?;
    let used: u64 = used
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()
        .context("read what du printed")?;
    Ok((used * MIB * 5 / 4 + 64 * MIB).next_multiple_of(MIB).max(SMALLEST_ROOT))
}

fn partition(image: &Path, root_size: u64) -> Result<()> {
    let part = |offset: u64, size: u64, kind: &str, name: &str| {
        format!("start={}, size={}, type={kind}, name={name}\n", offset / SECTOR, size / SECTOR)
    };
    let mut table = format!("label: gpt\nlabel-id: {DISK_UUID}\n");
    table += &part(
        BIOS_OFFSET,
        ESP_OFFSET - BIOS_OFFSET,
        "21686148-6449-6E6F-744E-656564454649",
        "bios",
    );
    table += &part(ESP_OFFSET, ESP_SIZE, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "esp");
    table += &part(ROOT_OFFSET, root_size, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "root");
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(image);
    tool::feed(&mut sfdisk, table.as_bytes()).map(drop)
}

/// Makes an ext4 of `size` bytes at `offset` of `image`, filled from `tree`.
pub(super) fn make_ext4(image: &Path, offset: u64, size: u64, tree: &Path) -> Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "cairn-demo", "-U", ROOT_UUID, "-d"])
        .arg(tree)
        .args(["-E", &format!("offset={offset},hash_seed={ROOT_UUID},root_owner=0:0")])
        .arg(image)
        .arg(format!("{}k", size / 1024));
    tool::finish(&mut mkfs).map(drop)
}

fn make_fat(image: &Path, work: &Path) -> Result<()> {
    let esp = work.join("esp.fat");
    fs::write(&esp, []).context("make the EFI system partition")?;
    let sectors = (ESP_SIZE / SECTOR).to_string();
    tool::run(
        "mformat",
        [
            "-i",
            &format!("{}@@{ESP_OFFSET}", image.display()),
            "-T",
            &sectors,
            "-h",
            "255",
            "-s",
            "63",
        ]
        .into_iter()
        .chain(["-F", "-c", "1", "-v", "CAIRN", "-N", "ca171701", "::"]),
    )
    .map(drop)
}
