//! QEMU beside what is installed, for machines where installing it would remove something.
//!
//! Seen where a newer `qemu-utils` comes from backports: it breaks the `qemu-system-common` of the release, so `apt-get`
//! offers to remove it. Here `apt-get` resolves and fetches as if the packages in the way were not there, on a copy of
//! dpkg's status file, and the packages are unpacked into a folder that `rm -r target` removes.
//!
//! ```text
//!   target/tools/qemu/root/usr/…             the packages' files; QEMU finds its own beside its program
//!   target/tools/qemu/qemu-system-x86_64     starts it with the libraries in there
//! ```

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{apt, step};
use crate::build;

const STATUS: &str = "/var/lib/dpkg/status";

fn folder() -> PathBuf {
    build::target().join("tools/qemu")
}

/// What starts QEMU. The lab looks for it here before it takes the installed one.
fn program() -> PathBuf {
    folder().join("qemu-system-x86_64")
}

pub(super) fn is_there() -> bool {
    program().exists()
}

/// Fetches `package` with all that it needs and unpacks it, as if the packages `in_the_way` were not installed.
pub(super) fn unpack(package: &str, in_the_way: &[String]) -> Result<()> {
    let (archives, root) = (folder().join("archives"), folder().join("root"));
    fs::create_dir_all(archives.join("partial")).context("make a folder for packages")?;
    let status = folder().join("status");
    let installed = fs::read_to_string(STATUS).context("read dpkg's status file")?;
    fs::write(&status, without(&installed, in_the_way)).context("copy dpkg's status file")?;
    let mut fetch = apt(&["install", "--yes", "--no-install-recommends", "--download-only"]);
    fetch.arg("-o").arg(format!("Dir::State::status={}", status.display()));
    fetch.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display()));
    // Its sandbox user may not write here.
    fetch.args(["-o", "APT::Sandbox::User=root", package]);
    step::succeed(&mut fetch)?;
    for entry in fs::read_dir(&archives).context("list the packages")? {
        let path = entry.context("list the packages")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            step::succeed(step::command("dpkg-deb").arg("--extract").args([&path, &root]))?;
        }
    }
    fs::remove_dir_all(&archives).context("remove the packages")?;
    write_program(&root).context("write what starts QEMU")
}

fn write_program(root: &Path) -> std::io::Result<()> {
    let root = root.display();
    let script = format!(
        "#!/bin/sh\n\
         LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu \\\n\
         exec {root}/usr/bin/qemu-system-x86_64 -L {root}/usr/share/qemu -L {root}/usr/share/seabios \\\n  \
         -L {root}/usr/lib/ipxe/qemu -L /usr/share/seabios -L /usr/lib/ipxe/qemu \"$@\"\n"
    );
    let new = folder().join("new");
    fs::write(&new, script)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(new, program())
}

/// A dpkg status file without the paragraphs of some packages.
fn without(status: &str, packages: &[String]) -> String {
    let is_one = |paragraph: &&str| {
        let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: "));
        !name.is_some_and(|name| packages.iter().any(|package| package == name))
    };
    let left: Vec<&str> = status.split("\n\n").filter(is_one).collect();
    left.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_in_the_way_leave_the_status_file() {
        let status = "Package: a\nStatus: x\n\nPackage: qemu-utils\nBreaks: b\n\nPackage: c\n";
        let left = without(status, &["qemu-utils".to_owned()]);
        assert_eq!(left, "Package: a\nStatus: x\n\nPackage: c\n");
    }
}
