//! What a DSF did to its file, in order, so that a test can crash it after any of its writes.

use std::{
    io,
    sync::{Arc, Mutex},
};

use cairn_core::id::SegmentId;

/// One call that changed the file, or what the caller was told between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dsf) enum Op {
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    Punch {
        offset: u64,
        length: u64,
    },
    SetLength {
        length: u64,
    },
    Sync,
    /// A removal began: from here on it may be gone.
    MayGo(SegmentId),
    /// A put began: from here on it may be there.
    MayCome(SegmentId),
    Stored(SegmentId),
    Removed(SegmentId),
}

#[derive(Clone, Debug, Default)]
pub(in crate::dsf) struct Recorder {
    ops: Arc<Mutex<Vec<Op>>>,
    /// How many more syncs succeed.
    syncs_left: Option<Arc<Mutex<u32>>>,
}

impl Recorder {
    /// A recorder whose file fails to sync after `syncs` more.
    pub(in crate::dsf) fn failing_after(syncs: u32) -> Self {
        Self { syncs_left: Some(Arc::new(Mutex::new(syncs))), ..Self::default() }
    }

    pub(in crate::dsf) fn record(&self, op: Op) -> io::Result<()> {
        if op == Op::Sync
            && let Some(left) = &self.syncs_left
        {
            let mut left = left.lock().unwrap();
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("injected"))?;
        }
        self.ops.lock().unwrap().push(op);
        Ok(())
    }

    pub(in crate::dsf) fn ops(&self) -> Vec<Op> {
        self.ops.lock().unwrap().clone()
    }
}
