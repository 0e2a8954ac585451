//! A volume, or a snapshot of one, as an NBD export.

use cairn_core::{nbd::reply::StatusRun, units::BLOCK_BYTES};

use super::{
    Change, ChangeError, Medium, ReadError, RunningVolume, SegmentReader, Snapshot, Stretch, Wait,
    covering,
};
use crate::nbd::{Export, ExportError, Flushed};

fn of_read(error: &ReadError) -> ExportError {
    tracing::error!(error = error as &dyn std::error::Error, "read a volume");
    ExportError::Io
}

fn of_change(error: &ChangeError) -> ExportError {
    match error {
        ChangeError::StoreFull | ChangeError::NoRoom => ExportError::Full,
        ChangeError::Closing => ExportError::Ending,
        // It is said once when it begins.
        ChangeError::StoreFails | ChangeError::Faulty => ExportError::Io,
        error => {
            tracing::error!(error = error as &dyn std::error::Error, "change a volume");
            ExportError::Io
        }
    }
}

impl<M: Medium> Export for RunningVolume<M> {
    fn read_only(&self) -> bool {
        false
    }

    fn size(&self) -> u64 {
        (**self).size().0
    }

    fn read_now(&self, offset: u64, into: &mut [u8]) -> Result<bool, ExportError> {
        (**self).read(offset, into, Wait::Never).map_err(|error| of_read(&error))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ExportError> {
        let read = (**self).read(offset, into, Wait::AsLongAsItTakes);
        read.map(|_| ()).map_err(|error| of_read(&error))
    }

    fn change(&self, changes: &[Change<'_>]) -> Result<(), ExportError> {
        (**self).change(changes).map_err(|error| of_change(&error))
    }

    fn flush(&self, done: Flushed) {
        self.sync_then(Box::new(move |durable| done(durable.then_some(()).ok_or(ExportError::Io))));
    }

    fn status(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusRun> {
        let (first, blocks) = covering(offset, length.into());
        runs(offset, length, &self.stretches(first, blocks, limit))
    }
}

/// Snapshots do not change.
impl<S: SegmentReader> Export for Snapshot<S> {
    fn read_only(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        Self::size(self).0
    }

    fn read_now(&self, offset: u64, into: &mut [u8]) -> Result<bool, ExportError> {
        Self::read(self, offset, into, Wait::Never).map_err(|error| of_read(&error))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ExportError> {
        let read = Self::read(self, offset, into, Wait::AsLongAsItTakes);
        read.map(|_| ()).map_err(|error| of_read(&error))
    }

    fn change(&self, _: &[Change<'_>]) -> Result<(), ExportError> {
        Err(ExportError::Io)
    }

    fn flush(&self, done: Flushed) {
        done(Ok(()));
    }

    fn status(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusRun> {
        let (first, blocks) = covering(offset, length.into());
        runs(offset, length, &self.stretches(first, blocks, limit))
    }
}

/// What of a range is stored, by the stretches of the blocks that it touches.
fn runs(offset: u64, length: u32, stretches: &[Stretch]) -> Vec<StatusRun> {
    let end = offset + u64::from(length);
    let mut at = covering(offset, length.into()).0.byte_offset();
    let mut runs = Vec::new();
    for stretch in stretches {
        let next = at + stretch.blocks * BLOCK_BYTES as u64;
        let told = next.min(end).saturating_sub(at.max(offset));
        runs.push(StatusRun {
            length: u32::try_from(told).unwrap_or(u32::MAX),
            stored: stretch.stored,
        });
        at = next;
    }
    runs
}
