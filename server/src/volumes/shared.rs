//! Whose segments a volume must keep although they may not be its own any more: its snapshots', and its origin's.

use std::collections::HashSet;

use anyhow::Context as _;
use cairn_core::{
    id::{SegmentId, SnapshotId, VolumeId},
    manifest::SegmentEntry,
};

use crate::{
    app::App,
    db::{
        snapshot::SnapshotRow,
        volume::{Origin, VolumeRow},
    },
    register,
};

/// What a volume shares.
#[derive(Debug)]
pub(super) struct Shared {
    snapshots: Vec<(VolumeId, SnapshotId)>,
    /// Of the version it began as.
    segments: Vec<SegmentId>,
}

impl Shared {
    /// What `row` shares, of all snapshots that there are.
    pub(super) async fn of(
        app: &App,
        row: &VolumeRow,
        snapshots: &[SnapshotRow],
    ) -> anyhow::Result<Self> {
        let is_origin = |id| row.origin == Some(Origin::Snapshot(id));
        let counts = |snapshot: &&SnapshotRow| snapshot.volume == row.id || is_origin(snapshot.id);
        let segments = match row.origin {
            Some(Origin::Version(version)) => {
                let version = app.db.version(version).await.context("look for its image")?;
                let version = version.context("the image it began as is gone")?;
                let (public, _) = register::opened_parts(app, &version).await?;
                public.data.iter().map(|entry| entry.id).collect()
            }
            _ => Vec::new(),
        };
        let named = |snapshot: &SnapshotRow| (snapshot.volume, snapshot.id);
        Ok(Self { snapshots: snapshots.iter().filter(counts).map(named).collect(), segments })
    }

    /// All segments of it. Blocks.
    ///
    /// # Errors
    /// When one snapshot cannot say.
    pub(super) fn segments(
        &self,
        mut of_snapshot: impl FnMut(VolumeId, SnapshotId) -> anyhow::Result<Vec<SegmentEntry>>,
    ) -> anyhow::Result<HashSet<SegmentId>> {
        let mut all: HashSet<SegmentId> = self.segments.iter().copied().collect();
        for (volume, snapshot) in &self.snapshots {
            let of = of_snapshot(*volume, *snapshot);
            let of = of.with_context(|| format!("read the root of its snapshot {snapshot}"))?;
            all.extend(of.iter().map(|entry| entry.id));
        }
        Ok(all)
    }
}
