//! One device of the store: a folder on a local disk, or a bucket, or whatever else `object_store` can reach.
//!
//! A device carries a mark, the object `cairn-store`. Without it a folder is not a device: an unmounted disk leaves an empty
//! folder behind, into which nothing must be written, and whose emptiness means nothing. One program at a time uses a
//! device: the kernel's lock on a folder, a [`Lease`] on a bucket.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cairn_core::units::ByteCount;
use futures::TryStreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, local::LocalFileSystem,
    path::Path as ObjectPath,
};
use rustix::{fs::FlockOperation, io::Errno};

use super::{
    lease::Lease,
    object::{StoreError, blocking},
};

const MARKER: &str = "cairn-store";
const MARKER_TEXT: &[u8] = b"A device of a Cairn store, format 1. Do not edit.\n";

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("store device {device}")]
pub struct OpenDeviceError {
    pub device: String,
    #[source]
    pub fault: DeviceFault,
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    #[error("does not exist: is its disk mounted?")]
    Missing,
    #[error("is not a folder")]
    NotAFolder,
    #[error("does not have the mark of a store: is its disk mounted, or its address another?")]
    Unmarked,
    #[error("was made by another version of this program")]
    Format,
    #[error("has other files in it, so no store is made there")]
    NotEmpty,
    #[error("belongs to user {uid}, not to the one running this")]
    Foreign { uid: u32 },
    #[error("is open to other users (mode {mode:o}); allowed is 700")]
    TooOpen { mode: u32 },
    #[error("is in use by another process")]
    InUse,
    #[error("cannot {operation}")]
    Io { operation: &'static str, source: io::Error },
    #[error("cannot be used")]
    Backend(#[source] object_store::Error),
}

/// A device, open: nobody else uses it as long as it lives.
#[derive(Debug)]
pub struct Device {
    name: String,
    backend: Arc<dyn ObjectStore>,
    kind: Kind,
    /// Bytes that were put here to stay since it was opened.
    taken: AtomicU64,
}

#[derive(Debug)]
enum Kind {
    Local(Arc<Local>),
    /// Its writes are durable when they are answered, and nobody says how much room there is.
    Remote(Lease),
}

#[derive(Debug)]
struct Local {
    root: PathBuf,
    /// Holds the lock, and stands for the file system when it is synced.
    folder: File,
    unsynced: OnceLock<Arc<io::Error>>,
}

impl Device {
    /// Makes a local device of a folder that is new or empty, and opens it.
    ///
    /// # Errors
    /// [`DeviceFault::NotEmpty`] when it has other files; [`DeviceFault`] for anything else in the way.
    pub fn create(root: &Path) -> Result<Self, OpenDeviceError> {
        make_local(root).map_err(in_device(root))?;
        Self::open(root)
    }

    /// Opens a local device, locks it, and removes what a killed process was writing.
    ///
    /// # Errors
    /// [`DeviceFault`]: missing, not marked as a store, not private, or in use.
    pub fn open(root: &Path) -> Result<Self, OpenDeviceError> {
        let local = open_local(root).map_err(in_device(root))?;
        let backend = LocalFileSystem::new_with_prefix(root)
            .map_err(|error| in_device(root)(DeviceFault::Backend(error)))?;
        Ok(Self {
            name: root.display().to_string(),
            backend: Arc::new(backend),
            kind: Kind::Local(Arc::new(local)),
            taken: AtomicU64::new(0),
        })
    }

    /// Opens a local device, or makes it when there is nothing: for the first start only, since later an
    /// empty folder is a disk that is not mounted.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::open`].
    pub fn open_or_create(root: &Path) -> Result<Self, OpenDeviceError> {
        if root.join(MARKER).exists() { Self::open(root) } else { Self::create(root) }
    }

    /// Makes a device behind any other backend that has nothing yet, and opens it.
    ///
    /// # Errors
    /// [`DeviceFault::NotEmpty`] when it has something; [`DeviceFault`] for anything else in the way.
    pub async fn create_remote(
        name: String,
        backend: Arc<dyn ObjectStore>,
    ) -> Result<Self, OpenDeviceError> {
        match make_remote(&*backend).await {
            Ok(()) => Self::open_remote(name, backend).await,
            Err(fault) => Err(OpenDeviceError { device: name, fault }),
        }
    }

    /// Opens a device behind any other backend. Its writes are durable when they are answered.
    ///
    /// # Errors
    /// [`DeviceFault`]: not marked as a store, in use, or not to be reached.
    pub async fn open_remote(
        name: String,
        backend: Arc<dyn ObjectStore>,
    ) -> Result<Self, OpenDeviceError> {
        match take_remote(&backend).await {
            Ok(lease) => {
                let kind = Kind::Remote(lease);
                Ok(Self { name, backend, kind, taken: AtomicU64::new(0) })
            }
            Err(fault) => Err(OpenDeviceError { device: name, fault }),
        }
    }

    /// What it is called in errors and listings: the folder, or the URL.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn is_remote(&self) -> bool {
        matches!(self.kind, Kind::Remote(_))
    }

    /// Bytes that were put here to stay since it was opened.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn backend(&self) -> &dyn ObjectStore {
        &*self.backend
    }

    /// An object's file, on a local device.
    pub(super) fn open_file(&self, path: &ObjectPath) -> io::Result<File> {
        match &self.kind {
            Kind::Local(local) => File::open(local.root.join(path.as_ref())),
            Kind::Remote(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The lock's descriptor, as a program that is just being started has it.
    #[cfg(test)]
    pub(super) fn inherited(&self) -> File {
        let Kind::Local(local) = &self.kind else { panic!("it has no lock") };
        local.folder.try_clone().unwrap()
    }

    /// Whether the device is still there.
    pub(super) async fn check(&self) -> Result<(), StoreError> {
        self.ask(Local::check).await.map(|_| ())
    }

    /// What can still be written; `None` where there is no such limit.
    pub(super) async fn free(&self) -> Result<Option<ByteCount>, StoreError> {
        self.ask(|local| local.check().and_then(|()| local.free())).await
    }

    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        let Kind::Local(local) = &self.kind else { return Ok(()) };
        let local = Arc::clone(local);
        blocking(move || local.sync())
            .await?
            .map_err(|source| StoreError::Unsynced { device: self.name.clone(), source })
    }

    /// Lets the next program have it at once. It cannot be used after that.
    pub(super) async fn release(&self) {
        match &self.kind {
            // The lock ends with the program.
            Kind::Local(_) => {}
            Kind::Remote(lease) => lease.release().await,
        }
    }

    /// What a local one answers; `None` of another that may be used.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Local) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        let answer = match &self.kind {
            Kind::Remote(lease) => lease.check().map(|()| None),
            Kind::Local(local) => {
                let local = Arc::clone(local);
                blocking(move || question(&local)).await?.map(Some)
            }
        };
        answer.map_err(|source| StoreError::Lost { device: self.name.clone(), source })
    }
}

impl Drop for Local {
    /// Closing is not enough: a program that another thread starts just now has this descriptor too, and the lock with
    /// it, until it is executed.
    fn drop(&mut self) {
        // Only a descriptor that is no file could refuse.
        rustix::fs::flock(&self.folder, FlockOperation::Unlock).ok();
    }
}

impl Local {
    fn check(&self) -> io::Result<()> {
        std::fs::metadata(self.root.join(MARKER)).map(drop)
    }

    fn free(&self) -> io::Result<ByteCount> {
        let status = rustix::fs::fstatvfs(&self.folder)?;
        Ok(ByteCount(status.f_bavail.saturating_mul(status.f_frsize)))
    }

    /// One sync of the whole file system instead of three per object: cheaper from the second object on.
    fn sync(&self) -> Result<(), Arc<io::Error>> {
        if let Some(error) = self.unsynced.get() {
            return Err(Arc::clone(error));
        }
        rustix::fs::syncfs(&self.folder).map_err(|errno| {
            let error = Arc::new(io::Error::from(errno));
            Arc::clone(self.unsynced.get_or_init(|| error))
        })
    }
}

fn in_device(root: &Path) -> impl FnOnce(DeviceFault) -> OpenDeviceError {
    move |fault| OpenDeviceError { device: root.display().to_string(), fault }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> DeviceFault {
    move |source| DeviceFault::Io { operation, source }
}

fn make_local(root: &Path) -> Result<(), DeviceFault> {
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(|source| {
        match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => DeviceFault::NotAFolder,
            _ => DeviceFault::Io { operation: "make the folder", source },
        }
    })?;
    for entry in std::fs::read_dir(root).map_err(failed("list the folder"))? {
        let name = entry.map_err(failed("list the folder"))?.file_name();
        // A fresh file system has its own folder; ours are there when an earlier creation was cut short.
        if !["lost+found", "segments", "blobs"].iter().any(|ours| name == *ours) {
            return Err(DeviceFault::NotEmpty);
        }
    }
    check_owner(&std::fs::metadata(root).map_err(failed("look at the folder"))?)?;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
        .map_err(failed("restrict the folder"))?;
    for folder in folders() {
        let folder = root.join(folder);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make folders"))?;
    }
    let folder = File::open(root).map_err(failed("open the folder"))?;
    rustix::fs::syncfs(&folder).map_err(io::Error::from).map_err(failed("sync the folders"))?;
    // The marker is last: a device is whole or none.
    std::fs::write(root.join(MARKER), MARKER_TEXT).map_err(failed("mark the folder"))?;
    rustix::fs::syncfs(&folder).map_err(io::Error::from).map_err(failed("sync the mark"))
}

async fn make_remote(backend: &dyn ObjectStore) -> Result<(), DeviceFault> {
    // Ours are there when another server lost the mark, which is worth a look.
    let mut there = backend.list(None);
    if there.try_next().await.map_err(DeviceFault::Backend)?.is_some() {
        return Err(DeviceFault::NotEmpty);
    }
    let mark = PutPayload::from_static(MARKER_TEXT);
    match backend.put_opts(&ObjectPath::from(MARKER), mark, PutMode::Create.into()).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => Err(DeviceFault::NotEmpty),
        Err(error) => Err(DeviceFault::Backend(error)),
    }
}

async fn take_remote(backend: &Arc<dyn ObjectStore>) -> Result<Lease, DeviceFault> {
    read_mark(&**backend).await?;
    Lease::take(Arc::clone(backend)).await
}

pub(super) async fn read_mark(backend: &dyn ObjectStore) -> Result<(), DeviceFault> {
    let mark = match backend.get(&ObjectPath::from(MARKER)).await {
        Err(object_store::Error::NotFound { .. }) => return Err(DeviceFault::Unmarked),
        mark => mark.map_err(DeviceFault::Backend)?,
    };
    let text = mark.bytes().await.map_err(DeviceFault::Backend)?;
    if text == MARKER_TEXT { Ok(()) } else { Err(DeviceFault::Format) }
}

fn folders() -> impl Iterator<Item = String> {
    let segments = (0..=u8::MAX).map(|first| format!("segments/{first:02x}"));
    std::iter::once("blobs".to_owned()).chain(segments)
}

fn open_local(root: &Path) -> Result<Local, DeviceFault> {
    let folder = File::open(root).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DeviceFault::Missing,
        _ => DeviceFault::Io { operation: "open the folder", source },
    })?;
    let status = folder.metadata().map_err(failed("look at the folder"))?;
    if !status.is_dir() {
        return Err(DeviceFault::NotAFolder);
    }
    match std::fs::read(root.join(MARKER)) {
        Ok(text) if text == MARKER_TEXT => {}
        Ok(_) => return Err(DeviceFault::Format),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(DeviceFault::Unmarked),
        Err(source) => return Err(DeviceFault::Io { operation: "read its mark", source }),
    }
    check_owner(&status)?;
    match status.mode() & 0o777 {
        mode if mode & 0o077 == 0 => {}
        mode => return Err(DeviceFault::TooOpen { mode }),
    }
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(DeviceFault::InUse),
        Err(errno) => return Err(failed("lock the folder")(errno.into())),
    }
    for folder in folders() {
        remove_unfinished(&root.join(folder)).map_err(failed("tidy the folder"))?;
    }
    Ok(Local { root: root.to_owned(), folder, unsynced: OnceLock::new() })
}

fn check_owner(status: &std::fs::Metadata) -> Result<(), DeviceFault> {
    match status.uid() {
        uid if uid == rustix::process::geteuid().as_raw() => Ok(()),
        uid => Err(DeviceFault::Foreign { uid }),
    }
}

/// `object_store` writes to `NAME#1` and renames; what a kill left of that is nobody's.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path())?;
        } else if is_unfinished(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_unfinished(name: &str) -> bool {
    let number = name.rsplit_once('#').map_or("", |(_, number)| number);
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}
