//! Snapshots of volumes, as far as the database knows them.

use cairn_core::{
    id::{SnapshotId, VolumeId},
    units::ByteCount,
};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Result, integer, violates, volume::VolumeStage};
use crate::moment::Moment;

/// A snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotRow {
    pub id: SnapshotId,
    pub volume: VolumeId,
    pub name: String,
    pub size: ByteCount,
    pub stage: VolumeStage,
    pub created: Moment,
    /// The names of the volumes that began as it.
    pub clones: Vec<String>,
}

/// Why no snapshot is taken.
#[derive(Debug, thiserror::Error)]
pub enum AddSnapshotError {
    #[error("the volume has a snapshot of this name")]
    NameTaken,
    #[error(transparent)]
    Db(#[from] DbError),
}

fn snapshot(row: &AnyRow) -> Result<SnapshotRow> {
    Ok(SnapshotRow {
        id: SnapshotId(row.id("id")?),
        volume: VolumeId(row.id("volume")?),
        name: row.text("name")?,
        size: row.size("size")?,
        stage: row.word("state")?,
        created: row.moment("created")?,
        clones: Vec::new(),
    })
}

impl Db {
    /// Begins a snapshot.
    ///
    /// # Errors
    /// [`AddSnapshotError::NameTaken`].
    pub async fn add_snapshot(&self, row: &SnapshotRow) -> Result<(), AddSnapshotError> {
        self.run(sqlx::query(
            "INSERT INTO snapshot (id, volume, name, size, state, created) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(row.id.as_bytes().as_slice())
        .bind(row.volume.as_bytes().as_slice())
        .bind(&row.name)
        .bind(integer(row.size.0))
        .bind(row.stage.word())
        .bind(row.created.0))
        .await
        .map_err(|error| {
            if violates(&error, "snapshot", "name") {
                AddSnapshotError::NameTaken
            } else {
                DbError::Sql(error).into()
            }
        })?;
        Ok(())
    }

    /// All snapshots of all volumes, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRow>> {
        let rows = sqlx::query("SELECT * FROM snapshot ORDER BY created, name")
            .fetch_all(&self.pool)
            .await?;
        let mut snapshots = rows.iter().map(snapshot).collect::<Result<Vec<_>>>()?;
        let clones = sqlx::query(
            "SELECT name, snapshot FROM volume WHERE snapshot IS NOT NULL ORDER BY name",
        )
        .fetch_all(&self.pool)
        .await?;
        for clone in &clones {
            let origin = SnapshotId(clone.id("snapshot")?);
            if let Some(found) = snapshots.iter_mut().find(|snapshot| snapshot.id == origin) {
                found.clones.push(clone.text("name")?);
            }
        }
        Ok(snapshots)
    }

    /// Notes what becomes of a snapshot.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_snapshot_stage(&self, id: SnapshotId, stage: VolumeStage) -> Result<()> {
        self.run(
            sqlx::query("UPDATE snapshot SET state = $2 WHERE id = $1")
                .bind(id.as_bytes().as_slice())
                .bind(stage.word()),
        )
        .await?;
        Ok(())
    }

    /// Forgets a snapshot. Nothing of it is left by then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.run(sqlx::query("DELETE FROM snapshot WHERE id = $1").bind(id.as_bytes().as_slice()))
            .await?;
        Ok(())
    }
}
