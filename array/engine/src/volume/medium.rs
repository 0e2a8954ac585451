//! What a volume stands on: its journal, the store's segments, and the one document that says where all of it is.
//!
//! Two kinds exist: the controller's disks ([`super::disk`]), and memory that forgets what was not made durable, for tests.

use std::io::{self, IoSlice};

use bytes::Bytes;
use cairn_core::id::{SegmentId, SnapshotId};

use crate::{dsf::CheckedSegment, store::StoreError};

/// Whether a read may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only what is in memory.
    Never,
    AsLongAsItTakes,
}

/// A medium did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    #[error("cannot {operation} the journal")]
    Journal { operation: &'static str, source: io::Error },
    #[error("cannot {operation} a segment")]
    Segment { operation: &'static str, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl MediumError {
    /// Whether there is no room: others may make some.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Full { .. }),
            Self::Journal { source, .. } | Self::Segment { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
        }
    }

    /// Whether a segment is not there: it was cleaned away since it was looked up, or it is lost.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::NotFound { .. }),
            Self::Segment { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Journal { .. } => false,
        }
    }
}

/// Which of a volume's roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootName {
    /// What the volume is.
    Live,
    /// What it was.
    Snapshot(SnapshotId),
}

/// Where segments are read from.
pub trait SegmentReader: Send + Sync + 'static {
    /// Reads a part of a segment; false when it would have to wait.
    ///
    /// # Errors
    /// [`MediumError::Segment`], [`MediumError::Store`].
    fn read_segment(
        &self,
        id: SegmentId,
        offset: u64,
        into: &mut [u8],
        wait: Wait,
    ) -> Result<bool, MediumError>;

    /// What was read of a segment is damaged: gets it from somewhere else, to be read again. False when it is nowhere else.
    ///
    /// # Errors
    /// [`MediumError::Segment`].
    fn renew(&self, _id: SegmentId) -> Result<bool, MediumError> {
        Ok(false)
    }
}

/// See the module. All calls may block, except reads with [`Wait::Never`].
pub trait Medium: SegmentReader {
    /// Reads the journal's file; false when it would have to wait.
    ///
    /// # Errors
    /// [`MediumError::Journal`].
    fn read_journal(&self, offset: u64, into: &mut [u8], wait: Wait) -> Result<bool, MediumError>;

    /// Reads the journal's file from the disk itself, so that what was lost is seen to be lost.
    ///
    /// # Errors
    /// [`MediumError::Journal`].
    fn replay_journal(&self, offset: u64, into: &mut [u8]) -> Result<(), MediumError> {
        self.read_journal(offset, into, Wait::AsLongAsItTakes).map(|_| ())
    }

    /// Writes the parts one after the other. Durable after [`Self::sync_journal`].
    ///
    /// # Errors
    /// [`MediumError::Journal`].
    fn write_journal(&self, offset: u64, parts: &[IoSlice<'_>]) -> Result<(), MediumError>;

    /// Makes the journal durable.
    ///
    /// # Errors
    /// [`MediumError::Journal`]: what was written is in doubt.
    fn sync_journal(&self) -> Result<(), MediumError>;

    /// Stores a segment. Durable after [`Self::sync_store`].
    ///
    /// # Errors
    /// [`MediumError::Store`].
    fn put_segment(&self, segment: &CheckedSegment) -> Result<(), MediumError>;

    /// Deletes a segment when it is there.
    ///
    /// # Errors
    /// [`MediumError::Store`].
    fn delete_segment(&self, id: SegmentId) -> Result<(), MediumError>;

    /// Replaces a root in one step. Durable after [`Self::sync_store`].
    ///
    /// # Errors
    /// [`MediumError::Store`].
    fn put_root(&self, name: RootName, root: Bytes) -> Result<(), MediumError>;

    /// A root; none when there is none.
    ///
    /// # Errors
    /// [`MediumError::Store`].
    fn root(&self, name: RootName) -> Result<Option<Bytes>, MediumError>;

    /// Deletes a root when it is there. Durable after [`Self::sync_store`].
    ///
    /// # Errors
    /// [`MediumError::Store`].
    fn delete_root(&self, name: RootName) -> Result<(), MediumError>;

    /// Makes segments and roots durable.
    ///
    /// # Errors
    /// [`MediumError::Store`]: what was stored or deleted is in doubt.
    fn sync_store(&self) -> Result<(), MediumError>;
}
