//! The agent's Debian package, which the server offers to machines that are to become clients.
//!
//! The file may come, go or be replaced while the server runs: an upgrade of the package `cairn-boot` does that. So it is
//! looked at each time, and hashed again when it changed.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use cairn_core::id::Hasher;

const BUFFER: usize = 256 << 10;

/// Knows where the package is, and its digest.
#[derive(Clone, Debug)]
pub(crate) struct AgentPackage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Of the file as it was hashed last.
    hashed: Mutex<Option<(Version, String)>>,
}

/// Differs when a file was replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// The package, open.
#[derive(Debug)]
pub(crate) struct OpenPackage {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// SHA-256 in hex.
    pub(crate) sha256: String,
}

impl AgentPackage {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(Arc::new(Inner { path, hashed: Mutex::default() }))
    }

    /// Opens the package and knows its digest; none when there is no package.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    pub(crate) async fn open(&self) -> anyhow::Result<Option<OpenPackage>> {
        let inner = Arc::clone(&self.0);
        let opened = tokio::task::spawn_blocking(move || inner.open()).await;
        opened
            .context("hash the agent's package")?
            .with_context(|| format!("read the agent's package {}", self.0.path.display()))
    }

    /// Its SHA-256 in hex, for a command that is printed; none, with a word in the log, also when it cannot be read.
    pub(crate) async fn sha256(&self) -> Option<String> {
        match self.open().await {
            Ok(package) => package.map(|package| package.sha256),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the agent's package is not offered");
                None
            }
        }
    }
}

impl Inner {
    fn open(&self) -> io::Result<Option<OpenPackage>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let found = file.metadata()?;
        let version = Version {
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        let known = self.hashed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sha256 = match known.filter(|(hashed, _)| *hashed == version) {
            Some((_, sha256)) => sha256,
            None => {
                let sha256 = hash(&mut file)?;
                file.rewind()?;
                let hashed = Some((version, sha256.clone()));
                *self.hashed.lock().unwrap_or_else(PoisonError::into_inner) = hashed;
                sha256
            }
        };
        Ok(Some(OpenPackage { file, bytes: version.bytes, sha256 }))
    }
}

fn hash(file: &mut File) -> io::Result<String> {
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finish())),
            read => hasher.update(&buffer[..read]),
        }
    }
}
