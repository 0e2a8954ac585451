//! Target disks that are too small, write-protected, in use, or gone in the middle.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use cairn_tests::{cairn::binary, process::Program, site::Site, tool};

use super::{INSTALL, NAME, Tmpfs, is_blank, scattered};

const MIB: u64 = 1 << 20;

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path, options: &[&str]) -> Self {
        let args = ["--find", "--show"].iter().chain(options).map(|arg| arg.as_ref());
        let name = tool::run("losetup", args.chain([file.as_os_str()])).unwrap();
        Self(PathBuf::from(name.trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = tool::run("losetup", ["--detach".as_ref(), self.0.as_os_str()]) {
            eprintln!("{error:#}");
        }
    }
}

/// A mount, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(device: &Path, folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        tool::run("mount", [device, folder]).unwrap();
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = tool::run("umount", [&self.0]) {
            eprintln!("{error:#}");
        }
    }
}

/// A file of `mib` MiB whose first block looks as if it could boot.
fn file(path: PathBuf, mib: u64) -> PathBuf {
    let file = File::create(&path).unwrap();
    file.set_len(mib * MIB).unwrap();
    file.write_all_at(&[0xeb; 4096], 0).unwrap();
    path
}

/// Installs to `disk`, which must fail with `reason`, said on the screen and to the server.
fn fails(site: &Site, disk: &Path, reason: &str) {
    let mut installer = site.install_to_file(0, NAME, disk).unwrap();
    let status = installer.wait(INSTALL).unwrap();
    let said = installer.transcript().text(0);
    assert_eq!(status.code(), Some(1), "{said}");
    installer.wait_for_line(&format!("^cairn-agent: .*{reason}"), INSTALL).unwrap();
    let deployments: Vec<serde_json::Value> = site.server.json(&["deployment", "list"]).unwrap();
    let install = &deployments[0]["installs"][0];
    assert_eq!(install["state"], "failed", "{install}");
    let told = install["error"].as_str().unwrap_or_default();
    assert!(
        said.contains(told) && !told.is_empty(),
        "{told:?} is not what the screen says: {said}"
    );
}

#[test]
fn one_that_cannot_be_used_is_refused_before_a_byte_is_written() {
    // The image has 32 MiB.
    let (site, _) = scattered("disks", 1, 16);
    let path = |name: &str| site.lab.dir().join(name);
    let untouched = |file: &Path| {
        let mut first = [0; 4096];
        File::open(file).unwrap().read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [0xeb; 4096], "{}", file.display());
    };

    let small = file(path("small"), 8);
    let device = Loop::over(&small, &[]);
    fails(&site, &device.0, "holds 8.0 MiB, the image needs 32 MiB; use a larger disk");
    drop(device);
    untouched(&small);

    let protected = file(path("protected"), 64);
    let device = Loop::over(&protected, &["--read-only"]);
    fails(&site, &device.0, "is read-only; remove its write protection");
    drop(device);
    untouched(&protected);

    let busy = file(path("busy"), 64);
    tool::run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), busy.as_os_str()]).unwrap();
    let device = Loop::over(&busy, &[]);
    let mounted = Mounted::at(&device.0, &path("mounted"));
    fs::write(mounted.0.join("precious"), "of the owner").unwrap();
    fails(&site, &device.0, "is in use: unmount its file systems");
    assert_eq!(fs::read_to_string(mounted.0.join("precious")).unwrap(), "of the owner");
    drop(mounted);
    drop(device);
    tool::run("fsck.ext4", ["-fn".as_ref(), busy.as_os_str()]).unwrap();

    let agent = &site.agents[0];
    let mut absent = Program::new("installer", binary("cairn-agent").unwrap())
        .args(["install", NAME, "--disk", "/dev/no-such-disk", "--state-dir"])
        .args([agent.state_dir()])
        .on(agent.host())
        .start()
        .unwrap();
    assert_eq!(absent.wait(INSTALL).unwrap().code(), Some(1), "nobody had to approve it");
    absent.wait_for_line("^cairn-agent: look at target disk /dev/no-such-disk", INSTALL).unwrap();
}

#[test]
fn one_that_fails_in_the_middle_is_told_and_does_not_boot() {
    let (site, _) = scattered("vanishing", 1, 16);
    // Both say 64 MiB and have 8.
    for kind in ["file", "device"] {
        let memory = Tmpfs::mount(&site.lab.dir().join(kind), "8m");
        let disk = file(memory.0.join("disk"), 64);
        match kind {
            "file" => fails(&site, &disk, "cannot write target disk .*No space left"),
            _ => {
                let device = Loop::over(&disk, &[]);
                fails(&site, &device.0, "cannot (write|flush|read) target disk");
            }
        }
        assert!(is_blank(&disk), "{kind}: half a system would boot");
    }
}
