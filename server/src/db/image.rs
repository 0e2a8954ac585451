//! Images and their versions.
//!
//! A version is `registering` (its bytes are coming in), `ready`, or `removing` (a job takes it apart). Only a ready
//! version is listed, deployed or exported.

use cairn_core::{
    id::{ImageId, VersionId},
    units::ByteCount,
};
use sqlx::any::AnyRow;

use super::{
    Columns as _, Db, DbError, Flag, Result, integer,
    segment::{SegmentRow, add_segments, add_version_segments},
    stripe_set::{self, Owner},
    violates, words,
};
use crate::moment::Moment;

words! {
    /// How the bytes of an image come in. Declared by whoever adds it, never guessed from the bytes.
    ImageFormat {
        Raw = "raw",
        RawZst = "raw.zst",
        Qcow2 = "qcow2",
        /// A raw image without its zeros on the way; see `cairn_core::sparse`.
        Sparse = "sparse",
    }
}

/// An image.
#[derive(Clone, Debug)]
pub struct ImageRow {
    pub id: ImageId,
    pub name: String,
    pub created: Moment,
    /// What may be lost without losing it, in the planner's words.
    pub promise: Option<String>,
}

/// A version that is ready.
#[derive(Clone, Debug)]
pub struct VersionRow {
    pub id: VersionId,
    pub image: ImageId,
    pub name: String,
    pub number: u32,
    pub format: ImageFormat,
    pub size: ByteCount,
    pub stored: ByteCount,
    pub added: ByteCount,
    pub created: Moment,
    /// age, for the server and the recovery key.
    pub content_key: Vec<u8>,
}

/// A version whose registration began.
#[derive(Clone, Copy, Debug)]
pub struct NewVersion {
    pub image: ImageId,
    pub version: VersionId,
    pub number: u32,
}

/// Why no registration begins.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("another registration of this name is under way")]
    Busy,
    #[error(transparent)]
    Db(#[from] DbError),
}

/// What a finished registration is kept as.
#[derive(Clone, Copy, Debug)]
pub struct Registered<'a> {
    pub size: ByteCount,
    /// Sealed bytes of all segments.
    pub stored: ByteCount,
    /// Sealed bytes of the segments that no older version had.
    pub added: ByteCount,
    pub content: [u8; 32],
    /// age, for the server and the recovery key.
    pub content_key: &'a [u8],
    /// In the order of the manifest.
    pub segments: &'a [SegmentRow],
}

const READY: &str =
    "SELECT version.*, image.name FROM version JOIN image ON image.id = version.image
    WHERE version.state = 'ready'";

fn image(row: &AnyRow) -> Result<ImageRow> {
    Ok(ImageRow {
        id: ImageId(row.id("id")?),
        name: row.text("name")?,
        created: row.moment("created")?,
        promise: row.maybe_text("promise")?,
    })
}

fn version(row: &AnyRow) -> Result<VersionRow> {
    Ok(VersionRow {
        id: VersionId(row.id("id")?),
        image: ImageId(row.id("image")?),
        name: row.text("name")?,
        number: row.small("number")?,
        format: row.word("format")?,
        size: row.size("size")?,
        stored: row.size("stored")?,
        added: row.size("added")?,
        created: row.moment("created")?,
        content_key: sqlx::Row::try_get(row, "content_key")?,
    })
}

impl Db {
    /// Begins the next version of the image `name`, and the image when it is the first. Both get random ids.
    ///
    /// # Errors
    /// [`BeginError::Busy`] when another registration of this name is under way.
    pub async fn begin_version(
        &self,
        name: &str,
        format: ImageFormat,
        now: Moment,
    ) -> Result<NewVersion, BeginError> {
        // Sparse is a way to send a raw image, nothing that is left of it.
        let format = if format == ImageFormat::Sparse { ImageFormat::Raw } else { format };
        let id = || cairn_array::random::array::<16>().map_err(DbError::Random);
        let (image, version) = (ImageId(id()?), VersionId(id()?));
        let mut transaction = self.write().await?;
        sqlx::query(
            "INSERT INTO image (id, name, created) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        )
        .bind(image.as_bytes().as_slice())
        .bind(name)
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        let row = sqlx::query(
            "INSERT INTO version (id, image, number, state, format, created)
             SELECT $4, image.id,
               (SELECT coalesce(max(number), 0) + 1 FROM version WHERE image = image.id), 'registering', $2, $3
             FROM image WHERE name = $1 RETURNING id, image, number",
        )
        .bind(name)
        .bind(format.word())
        .bind(now.0)
        .bind(version.as_bytes().as_slice())
        .fetch_one(&mut *transaction)
        .await
        .map_err(|error| {
            if violates(&error, "version", "image") {
                BeginError::Busy
            } else {
                DbError::Sql(error).into()
            }
        })?;
        let new = NewVersion {
            image: ImageId(row.id("image")?),
            version: VersionId(row.id("id")?),
            number: row.small("number")?,
        };
        stripe_set::add(&mut *transaction, Owner::Image(new.image)).await?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok(new)
    }

    /// Makes a registered version ready, with its segments.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish_version(&self, new: NewVersion, done: Registered<'_>) -> Result<()> {
        let mut transaction = self.write().await?;
        add_segments(&mut transaction, new.image.into(), done.segments).await?;
        add_version_segments(&mut transaction, new.version, done.segments.iter().map(|row| row.id))
            .await?;
        sqlx::query(
            "UPDATE version SET state = 'ready', size = $2, stored = $3, added = $4, content = $5, content_key = $6
             WHERE id = $1",
        )
        .bind(new.version.as_bytes().as_slice())
        .bind(integer(done.size.0))
        .bind(integer(done.stored.0))
        .bind(integer(done.added.0))
        .bind(done.content.as_slice())
        .bind(done.content_key)
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Forgets a registration that did not end well, and its image when that has no version left.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn abandon_version(&self, id: VersionId) -> Result<()> {
        self.forget_version_in(id, "registering").await
    }

    /// Forgets a version that was taken apart, with the segments that only it used, and its image when that has no
    /// version left. The bytes of those segments are gone by then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_version(&self, id: VersionId) -> Result<()> {
        self.forget_version_in(id, "removing").await
    }

    async fn forget_version_in(&self, id: VersionId, state: &str) -> Result<()> {
        let mut transaction = self.write().await?;
        let image: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT image FROM version WHERE id = $1 AND state = $2")
                .bind(id.as_bytes().as_slice())
                .bind(state)
                .fetch_optional(&mut *transaction)
                .await?;
        let Some(image) = image else { return Ok(()) };
        // Deployments of it have ended, or it could not be removed: their history goes with it.
        sqlx::query("DELETE FROM deployment WHERE version = $1")
            .bind(id.as_bytes().as_slice())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM version WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "DELETE FROM segment WHERE stripe_set = $1 AND class = 'data'
             AND NOT EXISTS (SELECT 1 FROM version_segment WHERE segment = segment.id)
             AND NOT EXISTS (SELECT 1 FROM version WHERE image = $1 AND state = 'registering')",
        )
        .bind(&image)
        .execute(&mut *transaction)
        .await?;
        let Flag(last) =
            sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM version WHERE image = $1)")
                .bind(&image)
                .fetch_one(&mut *transaction)
                .await?;
        if last {
            sqlx::query("DELETE FROM image WHERE id = $1")
                .bind(&image)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// The registrations that were under way when the server stopped, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn registrations_cut_short(&self) -> Result<Vec<VersionId>> {
        sqlx::query("SELECT id FROM version WHERE state = 'registering' ORDER BY created")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| row.id("id").map(VersionId))
            .collect()
    }

    /// The ready version of this image that has the same content.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn version_with_content(
        &self,
        image: ImageId,
        content: [u8; 32],
    ) -> Result<Option<u32>> {
        sqlx::query(
            "SELECT number FROM version WHERE image = $1 AND content = $2 AND state = 'ready' ORDER BY number",
        )
        .bind(image.as_bytes().as_slice())
        .bind(content.as_slice())
        .fetch_optional(&self.pool)
        .await?
        .map(|row| row.small("number"))
        .transpose()
    }

    /// All images that have a ready version, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn images(&self) -> Result<Vec<ImageRow>> {
        sqlx::query(
            "SELECT * FROM image WHERE EXISTS (SELECT 1 FROM version WHERE image = image.id AND state = 'ready')
             ORDER BY name",
        )
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(image)
        .collect()
    }

    /// The image of this name, when it has a ready version.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_named(&self, name: &str) -> Result<Option<ImageRow>> {
        sqlx::query(
            "SELECT * FROM image WHERE name = $1
             AND EXISTS (SELECT 1 FROM version WHERE image = image.id AND state = 'ready')",
        )
        .bind(name)
        .fetch_optional(&self.pool)
        .await?
        .as_ref()
        .map(image)
        .transpose()
    }

    /// All ready versions, by image name and number.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn versions(&self) -> Result<Vec<VersionRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("{READY} ORDER BY image.name, version.number")))
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(version)
            .collect()
    }

    /// A ready version of an image: the one of this number, or the one that its name stands for: that which was promoted, or
    /// the newest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn version_named(
        &self,
        name: &str,
        number: Option<u32>,
    ) -> Result<Option<VersionRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{READY} AND image.name = $1 AND ($2 IS NULL OR version.number = $2)
             ORDER BY CASE WHEN version.id = (SELECT promotion.version FROM promotion
               WHERE promotion.image = image.id ORDER BY step DESC LIMIT 1) THEN 0 ELSE 1 END, version.number DESC LIMIT 1"
        )))
        .bind(name)
        .bind(number.map(i64::from))
        .fetch_optional(&self.pool)
        .await?
        .as_ref()
        .map(version)
        .transpose()
    }

    /// The newest ready version of an image.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn newest_version(&self, name: &str) -> Result<Option<VersionRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "{READY} AND image.name = $1 ORDER BY version.number DESC LIMIT 1"
        )))
        .bind(name)
        .fetch_optional(&self.pool)
        .await?
        .as_ref()
        .map(version)
        .transpose()
    }

    /// A version by its id, when it is ready.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn version(&self, id: VersionId) -> Result<Option<VersionRow>> {
        sqlx::query(sqlx::AssertSqlSafe(format!("{READY} AND version.id = $1")))
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(version)
            .transpose()
    }

    /// Marks a version to be taken apart; says no when an install of it is not over, or when a registration may be
    /// building on its segments.
    pub(crate) async fn begin_removal(&self, id: VersionId) -> Result<bool> {
        let done = self.run(sqlx::query(
            "UPDATE version SET state = 'removing' WHERE id = $1 AND state = 'ready'
             AND NOT EXISTS (SELECT 1 FROM version AS other
               WHERE other.image = version.image AND other.state = 'registering')
             AND NOT EXISTS (SELECT 1 FROM install JOIN deployment ON deployment.id = install.deployment
               WHERE deployment.version = $1 AND install.state IN ('scheduled', 'ticketed', 'running'))",
        )
        .bind(id.as_bytes().as_slice()))
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The image of a version that is being taken apart; none once that is done.
    pub(crate) async fn image_of_removal(&self, id: VersionId) -> Result<Option<ImageId>> {
        sqlx::query("SELECT image FROM version WHERE id = $1 AND state = 'removing'")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?
            .map(|row| row.id("image").map(ImageId))
            .transpose()
    }
}
