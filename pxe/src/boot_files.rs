//! The closed table of files that TFTP and HTTP give out, by name.
//!
//! Invariant: a name from outside is only ever looked up here, never joined to a folder, so it cannot escape anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::config::PayloadFiles;
use crate::decision::Disk;
use crate::dhcp::LOADERS;

/// The distribution's package that has the iPXE binaries, named in errors.
pub const IPXE_PACKAGE: &str = "ipxe";
/// Loaders are kept in memory; the largest in the package is about 1 MiB.
const GREATEST_LOADER: u64 = 16 << 20;
const GREATEST_NAME: usize = 255;

/// Name → content. Names are relative to the TFTP root and to `/boot/`.
#[derive(Debug, Default)]
pub struct BootFiles(BTreeMap<String, Source>);

#[derive(Debug)]
enum Source {
    Memory(Bytes),
    /// Opened anew for every request, so that a new payload is served without a restart, and a transfer in
    /// progress keeps the file it began with if the new one is renamed into place.
    Disk(PathBuf),
}

/// A file that was looked up, to read from any number of times.
#[derive(Debug)]
pub(crate) enum Opened {
    Memory(Bytes),
    Disk {
        file: File,
        size: u64,
        modified: u64,
    },
    /// What the caller of this crate reads.
    Remote(Arc<dyn Disk>),
}

#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    #[error("no such boot file")]
    Unknown,
    #[error("boot file {} is not there yet", path.display())]
    Absent { path: PathBuf },
    #[error("open boot file {}", path.display())]
    Open { path: PathBuf, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum LoadLoaderError {
    #[error("there is no {}; install the package `{IPXE_PACKAGE}`, or name the folder that has iPXE's binaries", path.display())]
    Absent { path: PathBuf },
    #[error("read iPXE binary {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is empty or larger than {GREATEST_LOADER} bytes: not an iPXE binary", path.display())]
    Size { path: PathBuf },
}

impl BootFiles {
    /// The first loaders, read from `ipxe_dir`, and the payload, which may come later.
    pub fn load(ipxe_dir: &Path, payload: &PayloadFiles) -> Result<Self, LoadLoaderError> {
        let mut files = Self::payload_only(payload);
        for name in LOADERS {
            let content = load_loader(&ipxe_dir.join(name))?;
            files.0.insert(name.to_owned(), Source::Memory(content));
        }
        Ok(files)
    }

    /// For a server that gives out no loaders: HTTP only.
    pub fn payload_only(payload: &PayloadFiles) -> Self {
        let disk = |name: &str, path: &PathBuf| (name.to_owned(), Source::Disk(path.clone()));
        Self(BTreeMap::from([disk("vmlinuz", &payload.kernel), disk("initrd", &payload.initrd)]))
    }

    /// Looks a name up as firmware spells it: `ipxe.efi`, `/ipxe.efi`, `//boot//ipxe.efi`, `boot\ipxe.efi`.
    pub(crate) fn open(&self, name: &str) -> Result<Opened, LookUpError> {
        let name = normalise(name).ok_or(LookUpError::Unknown)?;
        match self.0.get(&name).ok_or(LookUpError::Unknown)? {
            Source::Memory(content) => Ok(Opened::Memory(content.clone())),
            Source::Disk(path) => open_file(path),
        }
    }

    /// Whether kernel and initramfs are both there.
    pub(crate) fn payload_missing(&self) -> Option<&Path> {
        ["vmlinuz", "initrd"].into_iter().find_map(|name| match self.0.get(name) {
            Some(Source::Disk(path)) if !path.is_file() => Some(path.as_path()),
            _ => None,
        })
    }
}

impl Opened {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Memory(content) => content.len() as u64,
            Self::Disk { size, .. } => *size,
            Self::Remote(disk) => disk.size(),
        }
    }

    /// Changes when the content does; for `ETag`. None when nobody can say.
    pub(crate) fn version(&self) -> Option<u64> {
        match self {
            Self::Memory(content) => Some(content.len() as u64),
            Self::Disk { size, modified, .. } => Some(size ^ modified),
            Self::Remote(_) => None,
        }
    }

    /// The bytes from `offset`. Blocks on the disk: call it where that is fine.
    ///
    /// # Errors
    /// When the file is shorter than it was, besides what reading can fail with.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "boot file became shorter");
        match self {
            Self::Memory(content) => {
                let start = usize::try_from(offset).map_err(|_| short())?;
                let end =
                    start.checked_add(len).filter(|end| *end <= content.len()).ok_or_else(short)?;
                Ok(content.slice(start..end))
            }
            Self::Disk { file, .. } => {
                let mut buffer = vec![0; len];
                std::os::unix::fs::FileExt::read_exact_at(file, &mut buffer, offset)?;
                Ok(buffer.into())
            }
            Self::Remote(disk) => {
                let mut buffer = vec![0; len];
                disk.read_at(offset, &mut buffer)?;
                Ok(buffer.into())
            }
        }
    }
}

/// One spelling of a name: no leading, doubled or trailing slashes, no backslashes, no leading `boot/`; `None` for what
/// can be no name of ours.
pub(crate) fn normalise(name: &str) -> Option<String> {
    if name.len() > GREATEST_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut parts: Vec<&str> =
        name.split(['/', '\\']).filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return None;
    }
    if parts.len() > 1 && parts.first() == Some(&"boot") {
        parts.remove(0);
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn open_file(path: &Path) -> Result<Opened, LookUpError> {
    let open = || -> io::Result<Opened> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let modified =
            metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let modified =
            modified.as_secs().wrapping_mul(1_000_000_007) ^ u64::from(modified.subsec_nanos());
        Ok(Opened::Disk { file, size: metadata.len(), modified })
    };
    open().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LookUpError::Absent { path: path.to_owned() },
        _ => LookUpError::Open { path: path.to_owned(), source },
    })
}

fn load_loader(path: &Path) -> Result<Bytes, LoadLoaderError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LoadLoaderError::Absent { path: path.to_owned() },
        _ => LoadLoaderError::Read { path: path.to_owned(), source },
    };
    let mut content = Vec::new();
    let read =
        File::open(path).map_err(failed)?.take(GREATEST_LOADER + 1).read_to_end(&mut content);
    let len = read.map_err(failed)? as u64;
    if len == 0 || len > GREATEST_LOADER {
        return Err(LoadLoaderError::Size { path: path.to_owned() });
    }
    Ok(content.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_firmware_uses_is_one_name() {
        for spelling in [
            "ipxe.efi",
            "/ipxe.efi",
            "//ipxe.efi",
            "boot/ipxe.efi",
            "\\boot\\ipxe.efi",
            "/boot//./ipxe.efi",
        ] {
            assert_eq!(normalise(spelling).as_deref(), Some("ipxe.efi"), "{spelling}");
        }
        assert_eq!(normalise("/grub/grub.cfg").as_deref(), Some("grub/grub.cfg"));
        assert_eq!(normalise("boot").as_deref(), Some("boot"));
    }

    #[test]
    fn a_name_that_climbs_is_no_name() {
        for name in
            ["../etc/passwd", "/boot/../../etc/passwd", "a\\..\\b", "", "/", "ipxe\n.efi", "ipxe\0"]
        {
            assert_eq!(normalise(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_missing_loader_names_the_package() {
        let folder = tempfile::tempdir().unwrap();
        let payload =
            PayloadFiles { kernel: folder.path().join("k"), initrd: folder.path().join("i") };
        let error = BootFiles::load(folder.path(), &payload).unwrap_err();
        assert!(matches!(error, LoadLoaderError::Absent { .. }));
        assert!(error.to_string().contains("install the package `ipxe`"), "{error}");
        std::fs::write(folder.path().join("undionly.kpxe"), b"").unwrap();
        assert!(matches!(
            BootFiles::load(folder.path(), &payload),
            Err(LoadLoaderError::Size { .. })
        ));
    }

    #[test]
    fn a_payload_that_comes_later_is_served_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let payload =
            PayloadFiles { kernel: folder.path().join("k"), initrd: folder.path().join("i") };
        let files = BootFiles::payload_only(&payload);
        assert!(matches!(files.open("vmlinuz"), Err(LookUpError::Absent { .. })));
        assert_eq!(files.payload_missing(), Some(payload.kernel.as_path()));
        std::fs::write(&payload.kernel, b"kernel").unwrap();
        assert_eq!(files.payload_missing(), Some(payload.initrd.as_path()));
        let opened = files.open("/boot/vmlinuz").unwrap();
        assert_eq!(opened.size(), 6);
        assert_eq!(opened.read_at(2, 3).unwrap().as_ref(), b"rne");
        assert!(opened.read_at(4, 3).is_err());
        assert!(matches!(files.open("k"), Err(LookUpError::Unknown)));
    }

    proptest! {
        #[test]
        fn a_normalised_name_is_relative_and_stable(name in "[a-z./\\\\ ]{0,30}") {
            if let Some(normal) = normalise(&name) {
                prop_assert!(!normal.starts_with('/') && !normal.split('/').any(|part| part == ".."));
                prop_assert!(!normal.contains("//") && !normal.contains('\\'));
            }
        }
    }
}
