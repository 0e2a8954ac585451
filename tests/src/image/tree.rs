//! The file trees of the systems, as folders.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::disk::ROOT_UUID;
use crate::tool;

const RELEASE: &str = "bookworm";
/// In the order in which they must be loaded. ext4 is built into the cloud kernel.
const TINY_MODULES: [&str; 6] = [
    "virtio/virtio_ring.ko",
    "virtio/virtio.ko",
    "virtio/virtio_pci_legacy_dev.ko",
    "virtio/virtio_pci_modern_dev.ko",
    "virtio/virtio_pci.ko",
    "block/virtio_blk.ko",
];

/// busybox as init, Debian's cloud kernel, a login on the serial line and the screen.
pub(super) fn tiny(tree: &Path, work: &Path) -> Result<()> {
    let packages = work.join("packages");
    mmdebstrap(&packages, "extract", "linux-image-cloud-amd64,busybox-static", &[])?;
    let modules = only_entry(&packages.join("lib/modules"))?;
    let kernel =
        format!("vmlinuz-{}", modules.file_name().context("name the kernel")?.to_string_lossy());

    for folder in ["bin", "boot/grub", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/log"]
    {
        make_folder(&tree.join(folder))?;
    }
    symlink("bin", tree.join("sbin")).context("link /sbin")?;
    copy(&packages.join("bin/busybox"), &tree.join("bin/busybox"))?;
    for applet in
        ["sh", "init", "getty", "login", "mount", "hostname", "ls", "cat", "sync", "sha256sum"]
            .iter()
            .chain(&[
                "dmesg", "ps", "poweroff", "reboot", "uname", "df", "blkid", "dd", "grep", "vi",
            ])
    {
        symlink("busybox", tree.join("bin").join(applet)).context("link an applet")?;
    }
    copy(&packages.join("boot").join(kernel), &tree.join("boot/vmlinuz"))?;
    write(tree, "etc/passwd", "root::0:0:root:/root:/bin/sh\n")?;
    write(tree, "etc/group", "root:x:0:\ntty:x:5:\n")?;
    write(tree, "etc/hostname", "cairn-demo\n")?;
    write(
        tree,
        "etc/os-release",
        "PRETTY_NAME=\"Cairn demo (Debian 12 kernel, busybox)\"\nID=debian\n",
    )?;
    write(tree, "etc/issue", "Cairn demo \\n \\l\n\n")?;
    write(
        tree,
        "etc/inittab",
        "::sysinit:/bin/sh /etc/rc\n\
         ttyS0::respawn:/sbin/getty -L ttyS0 115200 vt100\n\
         tty1::respawn:/sbin/getty 0 tty1 linux\n\
         ::ctrlaltdel:/sbin/reboot\n",
    )?;
    write(
        tree,
        "etc/rc",
        "mount -t tmpfs run /run\n\
         mount -o remount,rw /\nhostname cairn-demo\n",
    )?;
    tiny_initramfs(&packages, &modules, &tree.join("boot/initrd.img"), work)?;
    grub_config(tree, "quiet loglevel=4")
}

/// Loads what the disk needs, finds the root by its UUID and hands over.
fn tiny_initramfs(packages: &Path, modules: &Path, initrd: &Path, work: &Path) -> Result<()> {
    let root = work.join("initramfs");
    for folder in ["bin", "dev", "proc", "sys", "root", "modules"] {
        make_folder(&root.join(folder))?;
    }
    copy(&packages.join("bin/busybox"), &root.join("bin/busybox"))?;
    let mut init = String::from(
        "#!/bin/busybox sh\nbusybox mount -t devtmpfs dev /dev\nbusybox mount -t proc proc /proc\n\
         busybox mount -t sysfs sys /sys\n",
    );
    for module in TINY_MODULES {
        let name = Path::new(module).file_name().context("name a module")?.to_string_lossy();
        copy(&modules.join("kernel/drivers").join(module), &root.join("modules").join(&*name))?;
        init.push_str(&format!("busybox insmod /modules/{name}\n"));
    }
    // A disk may appear after its driver. The device nodes come by themselves (devtmpfs).
    init.push_str(&format!(
        "for i in $(busybox seq 100); do\n\
         disk=$(busybox findfs UUID={ROOT_UUID}) && busybox mount -t ext4 -o ro $disk /root && break\n\
         busybox sleep 0.1\ndone\n\
         for fs in dev proc sys; do busybox mount -o move /$fs /root/$fs; done\n\
         [ -e /root/sbin/init ] && exec busybox switch_root /root /sbin/init\n\
         echo 'cairn-demo: no root file system'\nexec busybox sh\n"
    ));
    write(&root, "init", &init)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))
        .context("set modes")?;
    let names = tool::finish(Command::new("find").arg(".").current_dir(&root))?;
    let archive = format!("busybox cpio -o -H newc | gzip -1 >'{}'", initrd.display());
    let mut pack = Command::new("sh");
    pack.args(["-c", &archive]).current_dir(&root);
    tool::feed(&mut pack, names.as_bytes()).map(drop)
}

/// Debian with systemd, without documentation and translations, with these package files and what they need.
pub(super) fn small(tree: &Path, ours: &[PathBuf]) -> Result<()> {
    let packages = "systemd-sysv,udev,dbus,login,linux-image-cloud-amd64,initramfs-tools,e2fsprogs,\
                    iproute2,iputils-ping,less,nano,wget";
    let leave_out = ["man", "doc", "locale", "info"]
        .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*"));
    let (_lent, include) = lend(ours)?;
    mmdebstrap(tree, "minbase", packages, &[leave_out.to_vec(), include].concat())?;
    write(tree, "etc/hostname", "cairn-demo\n")?;
    write(tree, "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 cairn-demo\n")?;
    write(tree, "etc/fstab", &format!("UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n"))?;
    // Empty: every machine makes its own at its first start.
    write(tree, "etc/machine-id", "")?;
    write(
        tree,
        "etc/systemd/network/80-dhcp.network",
        "[Match]\nType=ether\n[Network]\nDHCP=yes\n",
    )?;
    tool::run(
        "chroot",
        [tree.as_os_str(), "systemctl".as_ref(), "enable".as_ref(), "systemd-networkd".as_ref()],
    )?;
    // No password, as for every image that is meant to be looked at on a bench.
    tool::run("chroot", [tree.as_os_str(), "passwd".as_ref(), "-d".as_ref(), "root".as_ref()])?;
    make_folder(&tree.join("boot/grub"))?;
    let boot = tree.join("boot");
    for (kind, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let version = entries(&boot)?
            .into_iter()
            .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
            .find(|name| name.starts_with(kind))
            .with_context(|| format!("find {kind}* in /boot"))?;
        symlink(version, boot.join(name)).context("link the kernel")?;
    }
    grub_config(tree, "quiet systemd.show_status=true")
}

fn grub_config(tree: &Path, options: &str) -> Result<()> {
    // The last console is /dev/console: the serial line, which tests read.
    write(
        tree,
        "boot/grub/grub.cfg",
        &format!(
            "echo 'cairn-demo: starting'\n\
             linux /boot/vmlinuz root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200 {options}\n\
             initrd /boot/initrd.img\nboot\n"
        ),
    )
}

/// Options of mmdebstrap by which it installs package files: apt wants them at the same path inside and outside.
/// The folder lives as long as mmdebstrap runs.
fn lend(packages: &[PathBuf]) -> Result<(tempfile::TempDir, Vec<String>)> {
    let folder = tempfile::Builder::new()
        .prefix("cairn-packages-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .context("make a folder for packages")?;
    let shown = folder.path().display();
    let mut options = Vec::new();
    for package in packages {
        let name = package.file_name().context("name a package")?;
        let lent = folder.path().join(name);
        copy(package, &lent)?;
        options.push(format!("--include={}", lent.display()));
    }
    if !packages.is_empty() {
        options.push(format!("--setup-hook=mkdir -p \"$1{shown}\" && cp {shown}/* \"$1{shown}\""));
        options.push(format!("--customize-hook=rm -r \"$1{shown}\""));
    }
    Ok((folder, options))
}

fn mmdebstrap(tree: &Path, variant: &str, packages: &str, options: &[String]) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", &format!("--variant={variant}"), &format!("--include={packages}")])
        .args(options)
        .args([RELEASE.as_ref(), tree.as_os_str()]);
    tool::show(&mut command)
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    entries(folder)?.pop().with_context(|| format!("find something in {}", folder.display()))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("list {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make folder {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

fn write(tree: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(tree.join(name), text).with_context(|| format!("write /{name}"))
}
