//! Segments in the controller's store, read a part at a time.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use cairn_core::id::SegmentId;
use quick_cache::sync::Cache;
use rustix::io::{Errno, ReadWriteFlags};

use super::{MediumError, SegmentReader, Wait};
use crate::store::Store;

/// Segments whose files are kept open.
const FILES: usize = 256;

/// See the module. Calls block, as [`Wait`] says.
#[derive(Debug)]
pub struct StoreSegments {
    store: Arc<Store>,
    files: Cache<SegmentId, Arc<File>>,
}

impl StoreSegments {
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, files: Cache::new(FILES) }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Lets go of a segment that is deleted.
    pub(super) fn close(&self, id: SegmentId) {
        self.files.remove(&id);
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
        let operation = "read";
        let failed = |source| MediumError::Segment { operation, source };
        let Some(file) = self.file(id, wait).map_err(failed)? else { return Ok(false) };
        read(&file, offset, into, wait).map_err(failed)
    }
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
