//! Where the payload's kernel comes from: two paths that were given, a package file, what this machine has
//! installed, or a package that is downloaded.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Debian's name for "the newest generic kernel".
const META_PACKAGE: &str = "linux-image-amd64";
/// A driver that a generic kernel has and a cloud kernel has not.
const GENERIC_DRIVER: &str = "kernel/drivers/net/ethernet/intel/e1000e";

/// What the operator chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KernelSource {
    /// The newest generic kernel installed here, else the distribution's package.
    Distribution,
    /// A kernel and its `/lib/modules/VERSION`.
    Files { vmlinuz: PathBuf, modules: PathBuf },
    /// A kernel package.
    Package(PathBuf),
}

/// A kernel and the modules that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) version: String,
    pub(super) vmlinuz: PathBuf,
    /// The folder that has `kernel/` in it.
    pub(super) modules: PathBuf,
}

/// Finds the kernel; packages are unpacked below `cache`.
///
/// # Errors
/// When there is none, with the package to install.
pub(super) fn find(source: &KernelSource, cache: &Path) -> Result<Kernel> {
    match source {
        KernelSource::Files { vmlinuz, modules } => given(vmlinuz, modules),
        KernelSource::Package(package) => unpack(package, cache),
        KernelSource::Distribution => match newest(Path::new("/"))? {
            Some(kernel) => Ok(kernel),
            None => unpack(&download(cache)?, cache),
        },
    }
}

fn given(vmlinuz: &Path, modules: &Path) -> Result<Kernel> {
    ensure!(vmlinuz.is_file(), "there is no kernel at {}", vmlinuz.display());
    ensure!(
        modules.join("kernel").is_dir(),
        "{} is not a folder of kernel modules; name the one that has `kernel` in it, like /lib/modules/VERSION",
        modules.display()
    );
    let modules = fs::canonicalize(modules)
        .with_context(|| format!("resolve module folder {}", modules.display()))?;
    let version = modules.file_name().and_then(|name| name.to_str());
    let version = version.context("read the kernel's version from the module folder's name")?;
    Ok(Kernel {
        version: version.to_owned(),
        vmlinuz: vmlinuz.to_owned(),
        modules: modules.clone(),
    })
}

/// The newest kernel below a root that has the drivers real machines need.
fn newest(root: &Path) -> Result<Option<Kernel>> {
    let boot = root.join("boot");
    let mut kernels = Vec::new();
    let entries = match fs::read_dir(&boot) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("list {}", boot.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", boot.display()))?;
        let name = entry.file_name();
        let Some(version) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) else {
            continue;
        };
        // Since the merged /usr, packages ship either path.
        for modules in ["lib/modules", "usr/lib/modules"] {
            let modules = root.join(modules).join(version);
            if modules.join(GENERIC_DRIVER).is_dir() {
                let version = version.to_owned();
                kernels.push(Kernel { version, vmlinuz: entry.path(), modules });
                break;
            }
        }
    }
    Ok(kernels.into_iter().max_by(|a, b| by_version(&a.version, &b.version)))
}

fn unpack(package: &Path, cache: &Path) -> Result<Kernel> {
    let name = package.file_stem().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("read the name of package {}", package.display()))?;
    let root = cache.join(name);
    if !root.is_dir() {
        // Unpacked beside and renamed: a folder of this name is always whole.
        let partial = cache.join(format!("{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial)
                .with_context(|| format!("remove {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
        let mut command = Command::new("dpkg-deb");
        run(command.arg("-x").arg(package).arg(&partial), "unpack the kernel package")?;
        fs::rename(&partial, &root).with_context(|| format!("rename {}", partial.display()))?;
    }
    newest(&root)?.with_context(|| {
        format!(
            "{} has no generic kernel with modules; use the package that {META_PACKAGE} depends on",
            package.display()
        )
    })
}

fn download(cache: &Path) -> Result<PathBuf> {
    let advice = || {
        format!(
            "no generic kernel is installed here and its package cannot be had; `apt-get install {META_PACKAGE}`, \
             or name one with --kernel-deb, or with --vmlinuz and --modules"
        )
    };
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let depends = run(
        Command::new("apt-cache").args(["depends", META_PACKAGE]),
        "ask for the kernel package",
    )
    .with_context(advice)?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(advice)?;
    let package = format!("linux-image-{}", package.trim());
    if let Some(cached) = cached_package(cache, &package)? {
        return Ok(cached);
    }
    let mut command = Command::new("apt-get");
    run(
        command.args(["download", "-q", &package]).current_dir(cache),
        "download the kernel package",
    )
    .with_context(advice)?;
    cached_package(cache, &package)?.with_context(advice)
}

/// The package file of this name in the cache.
fn cached_package(cache: &Path, package: &str) -> Result<Option<PathBuf>> {
    let what = || format!("list {}", cache.display());
    for entry in fs::read_dir(cache).with_context(what)? {
        let entry = entry.with_context(what)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.strip_prefix(package).is_some_and(|rest| rest.starts_with('_'))
            && name.ends_with(".deb")
        {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn run(command: &mut Command, purpose: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{purpose}: start {program}"))?;
    ensure!(
        output.status.success(),
        "{purpose}: {program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Versions in the order of their age: runs of digits compare as numbers, all else as text.
fn by_version(a: &str, b: &str) -> Ordering {
    parts(a).cmp(&parts(b))
}

fn parts(version: &str) -> Vec<(u64, String)> {
    version
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let (number, text) = part.split_at(digits);
            (number.parse().unwrap_or(0), text.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_generic_kernel_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(newest(root.path()).unwrap(), None);
        fs::create_dir_all(root.path().join("boot")).unwrap();
        for (version, driver) in [
            ("6.1.0-9-amd64", GENERIC_DRIVER),
            ("6.1.0-42-amd64", GENERIC_DRIVER),
            ("6.12.1-cloud-amd64", "kernel/drivers/net"),
        ] {
            fs::write(root.path().join(format!("boot/vmlinuz-{version}")), "kernel").unwrap();
            fs::create_dir_all(root.path().join("lib/modules").join(version).join(driver)).unwrap();
        }
        let kernel = newest(root.path()).unwrap().unwrap();
        assert_eq!(kernel.version, "6.1.0-42-amd64");
        assert_eq!(kernel.vmlinuz, root.path().join("boot/vmlinuz-6.1.0-42-amd64"));
        assert_eq!(given(&kernel.vmlinuz, &kernel.modules).unwrap().version, kernel.version);
    }

    #[test]
    fn a_folder_without_modules_is_refused_with_advice() {
        let root = tempfile::tempdir().unwrap();
        let vmlinuz = root.path().join("vmlinuz");
        fs::write(&vmlinuz, "kernel").unwrap();
        let error = given(&vmlinuz, root.path()).unwrap_err().to_string();
        assert!(error.contains("/lib/modules/VERSION"), "{error}");
    }
}
