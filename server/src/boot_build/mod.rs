//! `cairn-server boot build`: the kernel and the initramfs that targets boot.
//!
//! The initramfs holds four things: `cairn-agent` as `/init`, busybox (modprobe, udhcpc, ip), the drivers that
//! real machines need to reach network and disk, and the tables by which modprobe finds them.
//!
//! Invariants: both programs are static, there is no loader in the payload; the payload never grows beyond
//! [`MAX_PAYLOAD_BYTES`]; a file that is being served is replaced by renaming, never rewritten, and
//! `boot.json` is the last of the three to change.

mod cpio;
mod elf;
mod kernel;
mod modules;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use self::cpio::{Archive, Node};
pub(crate) use self::kernel::KernelSource;
use self::modules::Module;

/// The most that kernel and initramfs take together: firmware loads them over a slow protocol, three at a time.
pub(crate) const MAX_PAYLOAD_BYTES: u64 = 45_000_000;
/// Names in the output folder; the boot scripts ask for them.
pub(crate) const KERNEL_FILE: &str = "vmlinuz";
pub(crate) const INITRD_FILE: &str = "initrd.img";
pub(crate) const RECORD_FILE: &str = "boot.json";

/// Beyond this zstd takes much longer for little.
const ZSTD_LEVEL: i32 = 15;
const BUSYBOX: &str = "/bin/busybox";
/// Folders of the running system, empty in the archive.
const FOLDERS: &[&str] =
    &["bin", "dev", "etc", "lib", "lib/modules", "proc", "run", "sbin", "sys", "tmp"];

/// What to build from and where to.
#[derive(Clone, Debug)]
pub(crate) struct BootBuildOptions {
    /// The folder that gets the three files.
    pub(crate) out: PathBuf,
    /// Where kernel packages are kept and unpacked.
    pub(crate) cache: PathBuf,
    pub(crate) kernel: KernelSource,
    /// The static `cairn-agent`; looked for beside this program and in the build's folder when absent.
    pub(crate) agent: Option<PathBuf>,
}

/// What was built: `boot.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootPayload {
    /// As `uname -r` says it.
    pub(crate) kernel: String,
    /// Version of the program that built it; agent and server are released together.
    pub(crate) version: String,
    pub(crate) agent_sha256: String,
    pub(crate) modules: usize,
    pub(crate) vmlinuz: PayloadFile,
    pub(crate) initrd: PayloadFile,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PayloadFile {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Builds the boot payload.
///
/// # Errors
/// With what to install or to name when a part is missing, and with the sizes when the payload is too large.
pub(crate) fn run(options: BootBuildOptions) -> Result<BootPayload> {
    let BootBuildOptions { out, cache, kernel, agent } = options;
    let agent = static_program(&agent_path(agent)?, AGENT_ADVICE)?;
    let busybox = static_program(Path::new(BUSYBOX), "`apt-get install busybox-static`")?;
    let kernel = kernel::find(&kernel, &cache)?;
    let vmlinuz = fs::read(&kernel.vmlinuz)
        .with_context(|| format!("read kernel {}", kernel.vmlinuz.display()))?;
    let modules = modules::collect(&kernel.modules)?;
    let initrd =
        initramfs(&kernel.version, &agent, &busybox, &modules).context("write initramfs")?;
    let payload = BootPayload {
        kernel: kernel.version,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_sha256: hex::encode(cairn_core::id::sha256(&agent)),
        modules: modules.len(),
        vmlinuz: PayloadFile::of(&vmlinuz)?,
        initrd: PayloadFile::of(&initrd)?,
    };
    let sum = payload.vmlinuz.bytes + payload.initrd.bytes;
    if sum > MAX_PAYLOAD_BYTES {
        bail!(
            "the payload would be {sum} bytes (kernel {}, initramfs {}), more than {MAX_PAYLOAD_BYTES}; \
             use a smaller kernel, or an agent built with `--release` and stripped",
            payload.vmlinuz.bytes,
            payload.initrd.bytes
        );
    }
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let record = serde_json::to_vec_pretty(&payload).context("describe the payload")?;
    for (name, data) in [(KERNEL_FILE, &vmlinuz), (INITRD_FILE, &initrd), (RECORD_FILE, &record)] {
        replace(&out.join(name), data)?;
    }
    Ok(payload)
}

/// What was built into a folder, if anything was.
///
/// # Errors
/// When the record is there but cannot be read.
pub(crate) fn built(out: &Path) -> Result<Option<BootPayload>> {
    let path = out.join(RECORD_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("parse {}", path.display()))
}

impl PayloadFile {
    fn of(data: &[u8]) -> Result<Self> {
        let bytes = u64::try_from(data.len()).context("count the bytes of a boot file")?;
        Ok(Self { bytes, sha256: hex::encode(cairn_core::id::sha256(data)) })
    }
}

const AGENT_ADVICE: &str = "build it with `cargo rustc --release -p cairn-agent \
    --bin cairn-agent -- -C target-feature=+crt-static -C strip=symbols` and name it with --agent";

/// The agent that was named, else the first one in the places where a build or a package puts it.
fn agent_path(named: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named);
    }
    let this = std::env::current_exe().context("find this program's folder")?;
    let folder = this.parent().unwrap_or(Path::new("/"));
    let places = [
        PathBuf::from("/usr/lib/cairn/cairn-agent"),
        folder.join("../lib/cairn/cairn-agent"),
        folder.join("cairn-agent"),
    ];
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.with_context(|| format!("there is no agent to put into the payload; {AGENT_ADVICE}"))
}

/// A program that runs without a loader.
fn static_program(path: &Path, advice: &str) -> Result<Vec<u8>> {
    let program = fs::read(path).with_context(|| format!("read {}; {advice}", path.display()))?;
    let dynamic = elf::wants_interpreter(&program)
        .with_context(|| format!("read {} as a program; {advice}", path.display()))?;
    ensure!(
        !dynamic,
        "{} is linked dynamically and cannot start in an empty initramfs; {advice}",
        path.display()
    );
    Ok(program)
}

fn initramfs(
    version: &str,
    agent: &[u8],
    busybox: &[u8],
    modules: &BTreeMap<String, Module>,
) -> Result<Vec<u8>> {
    let built = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let packed = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    // The agent takes the time of its own file as "it cannot be earlier than this".
    let mut archive = Archive::new(packed, u32::try_from(built)?);
    for folder in FOLDERS {
        archive.add(folder, Node::Directory)?;
    }
    // Before devtmpfs is mounted the kernel gives init this console.
    archive.add("dev/console", Node::Character { major: 5, minor: 1 })?;
    archive.add("dev/null", Node::Character { major: 1, minor: 3 })?;
    archive.add("init", Node::File { data: agent, executable: true })?;
    archive.add("bin/busybox", Node::File { data: busybox, executable: true })?;
    archive.add("bin/sh", Node::Symlink("busybox"))?;
    // The kernel itself calls this one when a driver asks for another.
    archive.add("sbin/modprobe", Node::Symlink("../bin/busybox"))?;
    let root = format!("lib/modules/{version}");
    archive.add(&root, Node::Directory)?;
    let mut folders = BTreeSet::new();
    for module in modules.values() {
        for (end, _) in module.path.match_indices('/') {
            if folders.insert(&module.path[..end]) {
                archive.add(&format!("{root}/{}", &module.path[..end]), Node::Directory)?;
            }
        }
        let file = Node::File { data: &module.data, executable: false };
        archive.add(&format!("{root}/{}", module.path), file)?;
    }
    let dependencies = modules::dependency_table(modules);
    let aliases = modules::alias_table(modules);
    for (name, text) in [("modules.dep", dependencies), ("modules.alias", aliases)] {
        let file = Node::File { data: text.as_bytes(), executable: false };
        archive.add(&format!("{root}/{name}"), file)?;
    }
    Ok(archive.finish()?.finish()?)
}

/// Writes beside and renames, so that a reader sees the old file or the new one.
fn replace(path: &Path, data: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&partial)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_agent_is_refused_with_the_command_that_builds_a_static_one() {
        let this = std::env::current_exe().unwrap();
        let error = static_program(&this, AGENT_ADVICE).unwrap_err().to_string();
        assert!(error.contains("linked dynamically"), "{error}");
        assert!(error.contains("+crt-static"), "{error}");
    }

    #[test]
    fn what_was_built_is_on_record() {
        let out = tempfile::tempdir().unwrap();
        assert_eq!(built(out.path()).unwrap(), None);
        let payload = BootPayload {
            kernel: "6.1.0".to_owned(),
            version: "0.1.0".to_owned(),
            agent_sha256: String::new(),
            modules: 3,
            vmlinuz: PayloadFile::of(b"kernel").unwrap(),
            initrd: PayloadFile::of(b"initramfs").unwrap(),
        };
        replace(&out.path().join(RECORD_FILE), &serde_json::to_vec(&payload).unwrap()).unwrap();
        assert_eq!(built(out.path()).unwrap(), Some(payload));
    }
}
