//! Segments in the controller's store, read a part at a time: from files where they are files, else from the last few that
//! were fetched whole.

use std::{
    fmt,
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use bytes::Bytes;
use cairn_core::id::SegmentId;
use quick_cache::sync::Cache;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::runtime::Handle;

use super::{MediumError, SegmentReader, Wait};
use crate::store::{Store, StoreError};

/// Segments whose files are kept open.
const FILES: usize = 256;
/// Segments from a bucket or from elsewhere that are kept: at most 64 MiB.
const FETCHED: usize = 16;

/// Whoever has segments that the store lacks.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// A segment's bytes, checked. What the store should have is there again by then. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when nobody is to have it, others when it cannot be had now.
    fn segment(&self, id: SegmentId) -> io::Result<Bytes>;
}

/// See the module. Calls block, as [`Wait`] says.
#[derive(Debug)]
pub struct StoreSegments {
    store: Arc<Store>,
    runtime: Handle,
    files: Cache<SegmentId, Arc<File>>,
    elsewhere: Option<Arc<dyn Elsewhere>>,
    /// The last that came from a bucket, or from elsewhere.
    fetched: Cache<SegmentId, Bytes>,
}

impl StoreSegments {
    /// Of a store whose calls run on `runtime`.
    #[must_use]
    pub fn new(store: Arc<Store>, elsewhere: Option<Arc<dyn Elsewhere>>, runtime: Handle) -> Self {
        let (files, fetched) = (Cache::new(FILES), Cache::new(FETCHED));
        Self { store, runtime, files, elsewhere, fetched }
    }

    pub(super) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Lets go of a segment that is deleted.
    pub(super) fn close(&self, id: SegmentId) {
        self.files.remove(&id);
        self.fetched.remove(&id);
    }

    /// Gets a segment that is no file from the store. Who wants the same waits for the first.
    fn load(&self, id: SegmentId) -> io::Result<Bytes> {
        if !self.store.has_remote() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.fetched.get_or_insert_with(&id, || {
            let loaded = self.runtime.block_on(self.store.get_segment(id));
            loaded.map_err(|error| match error {
                StoreError::NotFound { .. } => io::ErrorKind::NotFound.into(),
                error => io::Error::other(error),
            })
        })
    }

    /// Gets a segment from elsewhere. Who wants the same waits for the first.
    fn fetch(&self, id: SegmentId) -> io::Result<Bytes> {
        let elsewhere = self.elsewhere.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let bytes = self.fetched.get_or_insert_with(&id, || elsewhere.segment(id))?;
        self.files.remove(&id);
        Ok(bytes)
    }

    fn file(&self, id: SegmentId, wait: Wait) -> io::Result<Option<Arc<File>>> {
        if let Some(file) = self.files.get(&id) {
            return Ok(Some(file));
        }
        if wait == Wait::Never {
            return Ok(None);
        }
        let file = Arc::new(self.store.open_segment(id)?);
        self.files.insert(id, Arc::clone(&file));
        Ok(Some(file))
    }
}

impl SegmentReader for StoreSegments {
    fn read_segment(
        &self,
        id: SegmentId,
        offset: u64,
        into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, MediumError> {
        let failed = |source| MediumError::Segment { operation: "read", source };
        if let Some(bytes) = self.fetched.get(&id) {
            return copy(&bytes, offset, into).map(|()| true).map_err(failed);
        }
        let result = match self.file(id, wait) {
            Ok(None) => return Ok(false),
            Ok(Some(file)) => read(&file, offset, into, wait),
            Err(error) if error.kind() == io::ErrorKind::NotFound && wait != Wait::Never => {
                self.load(id).and_then(|bytes| copy(&bytes, offset, into)).map(|()| true)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(done) => Ok(done),
            Err(_) if wait == Wait::Never => Ok(false),
            Err(here) => {
                let bytes = self.fetch(id).map_err(|elsewhere| {
                    // That it is nowhere says less than what is wrong with it here.
                    let nowhere = elsewhere.kind() == io::ErrorKind::NotFound;
                    failed(if nowhere { here } else { elsewhere })
                })?;
                copy(&bytes, offset, into).map(|()| true).map_err(failed)
            }
        }
    }

    fn renew(&self, id: SegmentId) -> Result<bool, MediumError> {
        let failed = |source| MediumError::Segment { operation: "renew", source };
        match self.fetch(id) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }
}

fn copy(bytes: &[u8], offset: u64, into: &mut [u8]) -> io::Result<()> {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let part = bytes.get(from..).and_then(|rest| rest.get(..into.len()));
    into.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok(())
}

/// Fills `into`; false when not all of it is in memory and it must not wait.
pub(super) fn read(file: &File, offset: u64, into: &mut [u8], wait: Wait) -> io::Result<bool> {
    if wait == Wait::AsLongAsItTakes {
        return file.read_exact_at(into, offset).map(|()| true);
    }
    let length = into.len();
    let mut parts = [IoSliceMut::new(into)];
    match rustix::io::preadv2(file, &mut parts, offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read == length),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
