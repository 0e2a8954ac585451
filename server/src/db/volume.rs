//! Volumes, as far as the database knows them.

use cairn_core::{
    id::{AgentId, SnapshotId, VersionId, VolumeId},
    units::{ByteCount, Generation},
};
use sqlx::{Any, Executor, Row as _, any::AnyRow};

use super::{
    Columns as _, Db, DbError, Result, integer,
    stripe_set::{self, Owner},
    violates, words,
};
use crate::{moment::Moment, volumes::ServerId};

const GENERATION: &str = "controller_generation";

words! {
    /// What becomes of a volume, or of a snapshot.
    VolumeStage {
        /// It was not whole yet when it was last heard of.
        Creating = "creating",
        Ready = "ready",
        Removing = "removing",
    }
}

words! {
    /// Who holds a part of a volume's segments, beside its journal on the server.
    VolumeLayout {
        /// The server alone.
        Server = "server",
        /// The server holds the data, and the clients a whole copy of it.
        Mirror = "mirror",
        /// The server holds the data, and the clients the data and parity.
        Swarm = "swarm",
        /// The server holds the data, on several devices, and the clients the parity.
        ClientParity = "client-parity",
        /// The clients hold the data, and the server the parity.
        ServerParity = "server-parity",
    }
}

/// A volume.
#[derive(Clone, Debug)]
pub struct VolumeRow {
    pub id: VolumeId,
    pub name: String,
    pub size: ByteCount,
    pub stage: VolumeStage,
    /// age, for the server and the recovery key.
    pub content_key: Vec<u8>,
    pub origin: Option<Origin>,
    pub layout: VolumeLayout,
    /// What the planner promised for it, in words, when it was last placed.
    pub promise: Option<String>,
    pub created: Moment,
}

/// What a volume began as, and shares segments with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Version(VersionId),
    Snapshot(SnapshotId),
}

/// Why no volume is made.
#[derive(Debug, thiserror::Error)]
pub enum AddVolumeError {
    #[error("there is a volume of this name")]
    NameTaken,
    #[error(transparent)]
    Db(#[from] DbError),
}

fn volume(row: &AnyRow) -> Result<VolumeRow> {
    let version = row.maybe_id("origin")?.map(|id| Origin::Version(VersionId(id)));
    let snapshot = row.maybe_id("snapshot")?.map(|id| Origin::Snapshot(SnapshotId(id)));
    Ok(VolumeRow {
        id: VolumeId(row.id("id")?),
        name: row.text("name")?,
        size: row.size("size")?,
        stage: row.word("state")?,
        content_key: row.try_get("content_key")?,
        origin: version.or(snapshot),
        layout: row.word("layout")?,
        promise: row.maybe_text("promise")?,
        created: row.moment("created")?,
    })
}

/// Notes the generation of the last controller, so that the next is newer.
pub(super) async fn keep_generation(
    transaction: impl Executor<'_, Database = Any>,
    generation: Generation,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO setting (key, value) VALUES ($1, $2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )
    .bind(GENERATION)
    .bind(generation.0.to_le_bytes().as_slice())
    .execute(transaction)
    .await?;
    Ok(())
}

impl Db {
    /// Begins a volume.
    ///
    /// # Errors
    /// [`AddVolumeError::NameTaken`].
    pub async fn add_volume(&self, row: &VolumeRow) -> Result<(), AddVolumeError> {
        let (version, snapshot) = match row.origin {
            None => (None, None),
            Some(Origin::Version(id)) => (Some(id), None),
            Some(Origin::Snapshot(id)) => (None, Some(id)),
        };
        let mut transaction = self.write().await?;
        sqlx::query(
            "INSERT INTO volume (id, name, size, state, content_key, origin, snapshot, layout, created)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(row.id.as_bytes().as_slice())
        .bind(&row.name)
        .bind(integer(row.size.0))
        .bind(row.stage.word())
        .bind(row.content_key.as_slice())
        .bind(version.as_ref().map(|id| id.as_bytes().as_slice()))
        .bind(snapshot.as_ref().map(|id| id.as_bytes().as_slice()))
        .bind(row.layout.word())
        .bind(row.created.0)
        .execute(&mut *transaction)
        .await
        .map_err(|error| {
            if violates(&error, "volume", "name") {
                AddVolumeError::NameTaken
            } else {
                DbError::Sql(error).into()
            }
        })?;
        stripe_set::add(&mut *transaction, Owner::Volume(row.id)).await?;
        Ok(transaction.commit().await.map_err(DbError::from)?)
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn volumes(&self) -> Result<Vec<VolumeRow>> {
        sqlx::query("SELECT * FROM volume ORDER BY name")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(volume)
            .collect()
    }

    /// A volume.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn volume(&self, id: VolumeId) -> Result<Option<VolumeRow>> {
        let row = sqlx::query("SELECT * FROM volume WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(volume).transpose()
    }

    /// Notes what becomes of a volume.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_volume_stage(&self, id: VolumeId, stage: VolumeStage) -> Result<()> {
        self.run(
            sqlx::query("UPDATE volume SET state = $2 WHERE id = $1")
                .bind(id.as_bytes().as_slice())
                .bind(stage.word()),
        )
        .await?;
        Ok(())
    }

    /// The last root of a volume that clients are known to know.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn known_root(&self, id: VolumeId) -> Result<Option<Vec<u8>>> {
        let row = sqlx::query("SELECT root FROM known_root WHERE volume = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get("root")).transpose()?)
    }

    /// Notes that clients know a root of a volume.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_known_root(&self, id: VolumeId, root: &[u8]) -> Result<()> {
        self.run(
            sqlx::query(
                "INSERT INTO known_root (volume, root) VALUES ($1, $2)
                 ON CONFLICT (volume) DO UPDATE SET root = excluded.root",
            )
            .bind(id.as_bytes().as_slice())
            .bind(root),
        )
        .await?;
        Ok(())
    }

    /// Clients that have, or may have, the end of a volume's journal.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tail_holders(&self, id: VolumeId) -> Result<Vec<AgentId>> {
        sqlx::query("SELECT agent FROM tail_holder WHERE volume = $1 ORDER BY agent")
            .bind(id.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| Ok(AgentId(row.id("agent")?)))
            .collect()
    }

    /// Notes that a client is about to have the end of a volume's journal.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_tail_holder(&self, id: VolumeId, agent: AgentId) -> Result<()> {
        self.run(
            sqlx::query(
                "INSERT INTO tail_holder (volume, agent) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            )
            .bind(id.as_bytes().as_slice())
            .bind(agent.as_bytes().as_slice()),
        )
        .await?;
        Ok(())
    }

    /// Notes that nothing is lost of a volume's journal with this client.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_tail_holder(&self, id: VolumeId, agent: AgentId) -> Result<()> {
        self.run(
            sqlx::query("DELETE FROM tail_holder WHERE volume = $1 AND agent = $2")
                .bind(id.as_bytes().as_slice())
                .bind(agent.as_bytes().as_slice()),
        )
        .await?;
        Ok(())
    }

    /// The server that has a volume's journal; none: nobody has said so yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn journal_home(&self, id: VolumeId) -> Result<Option<ServerId>> {
        let row = sqlx::query("SELECT server FROM journal_home WHERE volume = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| Ok(ServerId(row.id("server")?))).transpose()
    }

    /// Notes which server has a volume's journal.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_journal_home(&self, id: VolumeId, server: ServerId) -> Result<()> {
        self.run(
            sqlx::query(
                "INSERT INTO journal_home (volume, server) VALUES ($1, $2)
                 ON CONFLICT (volume) DO UPDATE SET server = excluded.server",
            )
            .bind(id.as_bytes().as_slice())
            .bind(server.0.as_slice()),
        )
        .await?;
        Ok(())
    }

    /// Notes a volume's size.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_volume_size(&self, id: VolumeId, size: ByteCount) -> Result<()> {
        self.run(
            sqlx::query("UPDATE volume SET size = $2 WHERE id = $1")
                .bind(id.as_bytes().as_slice())
                .bind(integer(size.0)),
        )
        .await?;
        Ok(())
    }

    /// Forgets a volume. Nothing of it is left by then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_volume(&self, id: VolumeId) -> Result<()> {
        self.run(sqlx::query("DELETE FROM volume WHERE id = $1").bind(id.as_bytes().as_slice()))
            .await?;
        Ok(())
    }

    /// The names of the volumes that began as this version.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn clones_of_version(&self, version: VersionId) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar("SELECT name FROM volume WHERE origin = $1 ORDER BY name")
            .bind(version.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await?)
    }

    /// The generation of the last start; 0 before the first.
    pub(crate) async fn generation(&self) -> Result<Generation> {
        let kept = self.setting(GENERATION).await?;
        let kept = kept.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        Ok(Generation(kept.unwrap_or(0)))
    }

    /// The generation of the controller that starts now: one more than the last.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_generation(&self) -> Result<Generation> {
        let next = self.generation().await?.0 + 1;
        self.keep_setting(GENERATION, &next.to_le_bytes()).await?;
        Ok(Generation(next))
    }
}
