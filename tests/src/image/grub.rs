//! Puts GRUB into an image for both firmwares, as grub-install would, without a device to install
//! to.
//!
//! BIOS: `boot.img` (sector 0) loads the first sector of `core.img` from the LBA in its pointer; that
//! sector loads the rest by its block list. Offsets are those of GRUB 2.06's
//! `include/grub/i386/pc/boot.h`:
//!
//! | where | offset | size | what |
//! |---|---|---|---|
//! | boot.img | 0x5c | 8 | LBA of core.img |
//! | boot.img | 0x66 | 2 | a jump that trusts the BIOS's drive number; two NOPs make it use only hard disks' |
//! | boot.img | 0x1b8 | 72 | disk signature and partition table: those of the image stay |
//! | core.img | 0x1f4 | 8 | LBA of its second sector |
//! | core.img | 0x1fc | 2 | how many sectors follow |
//! | core.img | 0x1fe | 2 | the segment to load them to, 0x820 |
//!
//! UEFI: one file, `EFI/BOOT/BOOTX64.EFI`, which firmware starts without a boot entry.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::disk::{Layout, ROOT_UUID, SECTOR};
use crate::tool;

const MODULES: [&str; 11] = [
    "part_gpt",
    "ext2",
    "search",
    "search_fs_uuid",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "echo",
    "test",
];
const BOOT_CODE: usize = 0x1b8;
const SECTOR_BYTES: usize = 512;
const LOAD_SEGMENT: u16 = 0x820;

pub(super) fn install(image: &Path, layout: Layout, work: &Path) -> Result<()> {
    let early = work.join("early.cfg");
    fs::write(
        &early,
        format!(
            "serial --unit=0 --speed=115200\nterminal_input serial console\n\
             terminal_output serial console\n\
             search --no-floppy --fs-uuid --set=root {ROOT_UUID}\n\
             set prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n"
        ),
    )
    .context("write GRUB's early configuration")?;
    install_bios(image, layout, &early, work).context("install GRUB for BIOS")?;
    install_uefi(image, layout, &early, work).context("install GRUB for UEFI")
}

fn install_bios(image: &Path, layout: Layout, early: &Path, work: &Path) -> Result<()> {
    let core = work.join("core.img");
    make_image("i386-pc", &core, early, &["biosdisk"])?;
    let mut core = fs::read(&core).context("read core.img")?;
    core.resize(core.len().next_multiple_of(SECTOR_BYTES), 0);
    let size = u64::try_from(core.len()).context("measure core.img")?;
    ensure!(size <= layout.bios_size, "core.img ({size} bytes) is larger than its partition");
    let lba = layout.bios_offset / SECTOR;
    let rest = u16::try_from(size / SECTOR - 1).context("count the sectors of core.img")?;
    patch(&mut core, 0x1f4, &(lba + 1).to_le_bytes())?;
    patch(&mut core, 0x1fc, &rest.to_le_bytes())?;
    patch(&mut core, 0x1fe, &LOAD_SEGMENT.to_le_bytes())?;

    let mut boot = fs::read("/usr/lib/grub/i386-pc/boot.img").context("read GRUB's boot.img")?;
    patch(&mut boot, 0x5c, &lba.to_le_bytes())?;
    patch(&mut boot, 0x66, &[0x90, 0x90])?;
    let mut file = File::options().write(true).open(image).context("open the image")?;
    file.write_all(boot.get(..BOOT_CODE).context("read GRUB's boot.img")?)
        .context("write boot.img")?;
    file.seek(SeekFrom::Start(layout.bios_offset)).context("seek to the BIOS boot partition")?;
    file.write_all(&core).context("write core.img")
}

fn install_uefi(image: &Path, layout: Layout, early: &Path, work: &Path) -> Result<()> {
    let loader = work.join("BOOTX64.EFI");
    make_image("x86_64-efi", &loader, early, &["efi_gop"])?;
    let fat = format!("{}@@{}", image.display(), layout.esp_offset);
    tool::run("mmd", ["-i", &fat, "::/EFI", "::/EFI/BOOT"])?;
    let mut copy = Command::new("mcopy");
    copy.args(["-i", &fat]).arg(&loader).arg("::/EFI/BOOT/BOOTX64.EFI");
    tool::finish(&mut copy).map(drop)
}

/// Moves the UEFI loader of `image` from the fallback path to a vendor's folder.
pub(super) fn move_loader(image: &Path, layout: Layout) -> Result<()> {
    let fat = format!("{}@@{}", image.display(), layout.esp_offset);
    tool::run("mmd", ["-i", &fat, "::/EFI/debian"])?;
    let [from, to] = ["::/EFI/BOOT/BOOTX64.EFI", "::/EFI/debian/grubx64.efi"];
    tool::run("mmove", ["-i", &fat, from, to]).map(drop)
}

fn make_image(format: &str, output: &Path, early: &Path, more: &[&str]) -> Result<()> {
    let mut command = Command::new("grub-mkimage");
    command
        .args(["--format", format, "--prefix", "/boot/grub", "--config"])
        .arg(early)
        .arg("--output")
        .arg(output)
        .args(MODULES)
        .args(more);
    tool::finish(&mut command).map(drop)
}

fn patch(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    let place = bytes.get_mut(at..at + value.len()).context("patch a file that is too short")?;
    place.copy_from_slice(value);
    Ok(())
}
