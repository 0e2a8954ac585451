//! The file itself: opening it safely, and the few calls that change it.
//!
//! Invariants: only a regular file of this user that nobody else can read is opened, never through a
//! symlink, and only by one process at a time. A DSF appears under its name complete or not at all.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use cairn_core::{bytes::DecodeError, units::ByteCount};
use rustix::{
    fs::{
        self, Advice, AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags,
    },
    io::Errno,
};

use super::layout::SlotIndex;
#[cfg(test)]
use super::tests::record::{Op, Recorder};

/// Why a DSF cannot be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    #[error("does not exist")]
    Missing,
    #[error("exists already")]
    Exists,
    #[error("is a symbolic link")]
    Symlink,
    #[error("is not a regular file")]
    NotAFile,
    #[error("its folder is not a folder")]
    FolderNotAFolder,
    #[error("belongs to user {uid}, not to the one running this")]
    Foreign { uid: u32 },
    #[error("is open to other users (mode {mode:o}); allowed is {allowed:o}")]
    TooOpen { mode: u32, allowed: u32 },
    #[error("its folder is open to other users (mode {mode:o}); allowed is 700")]
    FolderTooOpen { mode: u32 },
    #[error("is in use by another process")]
    InUse,
    #[error("the disk is full")]
    Full,
    #[error("has no readable superblock")]
    Superblock(#[source] DecodeError),
    #[error("slot {slot} was written by a newer program")]
    Slot { slot: SlotIndex, source: DecodeError },
    #[error("cannot {operation}")]
    Io { operation: &'static str, source: io::Error },
}

/// Whether the owner's disk (or quota) is full, as opposed to broken.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn failed(operation: &'static str) -> impl FnOnce(Errno) -> OpenFault {
    move |errno| match io::Error::from(errno) {
        full if is_full(&full) => OpenFault::Full,
        source => OpenFault::Io { operation, source },
    }
}

#[derive(Debug)]
pub(super) struct DiskFile {
    pub(super) file: File,
    #[cfg(test)]
    pub(super) recorder: Option<Recorder>,
}

impl Drop for DiskFile {
    /// Closing is not enough: a program that another thread starts just now has this descriptor too, and the lock with
    /// it, until it is executed.
    fn drop(&mut self) {
        // Only a descriptor that is no file could refuse.
        fs::flock(&self.file, FlockOperation::Unlock).ok();
    }
}

impl DiskFile {
    /// Opens an existing DSF and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenFault> {
        let (folder, name) = open_folder(path)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = fs::openat(&folder, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => OpenFault::Missing,
            Errno::LOOP => OpenFault::Symlink,
            Errno::ISDIR | Errno::NXIO => OpenFault::NotAFile,
            other => failed("open the file")(other),
        })?;
        check_private(&fd)?;
        lock(&fd)?;
        Ok(Self::over(fd))
    }

    /// Makes a DSF whose first bytes `fill` writes. Its folder is made when there is none; the file
    /// gets its name last.
    pub(super) fn create(
        path: &Path,
        fill: impl FnOnce(&Self) -> io::Result<()>,
    ) -> Result<Self, OpenFault> {
        make_folder(path)?;
        let (folder, name) = open_folder(path)?;
        if fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(OpenFault::Exists);
        }
        let mut unfinished = name.to_owned();
        unfinished.push(".new");
        let file = Self::create_unfinished(&folder, &unfinished)?;
        let filled = fill(&file).and_then(|()| fs::fsync(&file.file).map_err(Into::into));
        if let Err(source) = filled {
            fs::unlinkat(&folder, &unfinished, AtFlags::empty())
                .map_err(failed("remove the unfinished file"))?;
            return Err(if is_full(&source) {
                OpenFault::Full
            } else {
                OpenFault::Io { operation: "write the superblock", source }
            });
        }
        fs::renameat_with(&folder, &unfinished, &folder, name, RenameFlags::NOREPLACE).map_err(
            |errno| match errno {
                Errno::EXIST => OpenFault::Exists,
                other => failed("name the file")(other),
            },
        )?;
        fs::fsync(&folder).map_err(failed("sync the folder"))?;
        Ok(file)
    }

    /// The file before it has its name. One that a crash left behind is taken and emptied, once the
    /// lock shows that nobody is at it and its name shows that it was not finished meanwhile.
    fn create_unfinished(folder: &OwnedFd, name: &std::ffi::OsStr) -> Result<Self, OpenFault> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("create the file"))?;
        lock(&fd)?;
        let opened = fs::fstat(&fd).map_err(failed("look at the file"))?;
        match fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if named.st_ino == opened.st_ino => {}
            Ok(_) | Err(_) => return Err(OpenFault::InUse),
        }
        fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(failed("restrict the file"))?;
        check_private(&fd)?;
        fs::ftruncate(&fd, 0).map_err(failed("empty the file"))?;
        Ok(Self::over(fd))
    }

    fn over(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            #[cfg(test)]
            recorder: None,
        }
    }

    pub(super) fn length(&self) -> io::Result<ByteCount> {
        self.file.metadata().map(|metadata| ByteCount(metadata.len()))
    }

    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        self.record(|| Op::Write { offset, bytes: bytes.to_vec() })?;
        self.file.write_all_at(bytes, offset)
    }

    /// Takes the blocks for a payload from the disk before it is written, so that a full disk is noticed
    /// here and not while written pages go out, where it cannot be told from a broken disk.
    pub(super) fn allocate(&self, slot: SlotIndex, length: u32) -> io::Result<()> {
        let flags = FallocateFlags::KEEP_SIZE;
        match fs::fallocate(&self.file, flags, slot.payload_at(), length.into()) {
            // This file system cannot; the write itself has to find out.
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => result.map_err(Into::into),
        }
    }

    /// Gives a range's space back to the disk; it reads as zeros then.
    pub(super) fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        #[cfg(test)]
        self.record(|| Op::Punch { offset, length })?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fs::fallocate(&self.file, flags, offset, length) {
            // The space stays taken, but nothing else goes wrong.
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => result.map_err(Into::into),
        }
    }

    /// Waits until everything written is on the disk, and with it the file's length.
    pub(super) fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        self.record(|| Op::Sync)?;
        fs::fdatasync(&self.file).map_err(Into::into)
    }

    pub(super) fn set_length(&self, length: ByteCount) -> io::Result<()> {
        #[cfg(test)]
        self.record(|| Op::SetLength { length: length.0 })?;
        self.file.set_len(length.0)
    }

    /// Drops clean cached pages, so that a scrub reads the disk and leaves the owner's cache alone.
    /// Advice only: where it is not taken, the scrub is merely less strict.
    pub(super) fn drop_cache(&self, offset: u64, length: u64) {
        if let Err(errno) =
            fs::fadvise(&self.file, offset, std::num::NonZeroU64::new(length), Advice::DontNeed)
        {
            tracing::debug!(%errno, "cached pages of the DSF were not dropped");
        }
    }

    #[cfg(test)]
    fn record(&self, op: impl FnOnce() -> Op) -> io::Result<()> {
        self.recorder.as_ref().map_or(Ok(()), |recorder| recorder.record(op()))
    }
}

/// The folder that the DSF is in, opened and found private.
fn open_folder(path: &Path) -> Result<(OwnedFd, &std::ffi::OsStr), OpenFault> {
    let name = path.file_name().ok_or(OpenFault::NotAFile)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = fs::open(folder_of(path), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => OpenFault::Missing,
        Errno::LOOP | Errno::NOTDIR => OpenFault::FolderNotAFolder,
        other => failed("open the folder")(other),
    })?;
    let status = fs::fstat(&folder).map_err(failed("look at the folder"))?;
    check_owner(status.st_uid)?;
    match Mode::from_raw_mode(status.st_mode).bits() {
        mode if mode & 0o077 == 0 => Ok((folder, name)),
        mode => Err(OpenFault::FolderTooOpen { mode }),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_folder(path: &Path) -> Result<(), OpenFault> {
    match fs::mkdir(folder_of(path), Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(failed("make the folder")(errno)),
    }
}

fn check_private(fd: &OwnedFd) -> Result<(), OpenFault> {
    let status = fs::fstat(fd).map_err(failed("look at the file"))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(OpenFault::NotAFile);
    }
    check_owner(status.st_uid)?;
    match Mode::from_raw_mode(status.st_mode).bits() {
        mode if mode & 0o077 == 0 => Ok(()),
        mode => Err(OpenFault::TooOpen { mode, allowed: 0o600 }),
    }
}

fn check_owner(uid: u32) -> Result<(), OpenFault> {
    if uid == rustix::process::geteuid().as_raw() {
        Ok(())
    } else {
        Err(OpenFault::Foreign { uid })
    }
}

fn lock(fd: impl AsFd) -> Result<(), OpenFault> {
    fs::flock(fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => OpenFault::InUse,
        other => failed("lock the file")(other),
    })
}
