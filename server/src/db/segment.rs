//! Segments: what exists, and which versions use it.

use std::str::FromStr;

use cairn_array::wire::SegmentClass;
use cairn_core::{
    id::{ImageId, SegmentId, VersionId},
    units::Generation,
};
use sqlx::{Sqlite, Transaction, sqlite::SqliteRow};

use super::{Columns as _, Db, DbError, Result, UnknownWord, integer};

/// A segment without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    pub id: SegmentId,
    pub bytes: u32,
    pub class: SegmentClass,
}

struct Class(SegmentClass);

impl FromStr for Class {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "data" => Ok(Self(SegmentClass::Data)),
            "parity" => Ok(Self(SegmentClass::Parity)),
            _ => Err(UnknownWord),
        }
    }
}

pub(super) const fn class_word(class: SegmentClass) -> &'static str {
    match class {
        SegmentClass::Data => "data",
        SegmentClass::Parity => "parity",
    }
}

pub(super) fn segment(row: &SqliteRow) -> Result<SegmentRow> {
    Ok(SegmentRow {
        id: SegmentId(row.id("id")?),
        bytes: row.small("bytes")?,
        class: row.word::<Class>("class")?.0,
    })
}

pub(super) async fn add_segments(
    transaction: &mut Transaction<'static, Sqlite>,
    image: ImageId,
    segments: &[SegmentRow],
) -> Result<()> {
    for segment in segments {
        sqlx::query(
            "INSERT INTO segment (id, image, bytes, class) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(segment.id.as_bytes().as_slice())
        .bind(image.as_bytes().as_slice())
        .bind(segment.bytes)
        .bind(class_word(segment.class))
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

impl Db {
    /// Every segment there is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn all_segments(&self) -> Result<Vec<SegmentId>> {
        sqlx::query("SELECT id FROM segment")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| row.id("id").map(SegmentId))
            .collect()
    }

    /// Adds segments to an image; those already there stay as they are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_segments_of_image(
        &self,
        image: ImageId,
        segments: &[SegmentRow],
    ) -> Result<()> {
        let mut transaction = self.write().await?;
        add_segments(&mut transaction, image, segments).await?;
        Ok(transaction.commit().await?)
    }

    /// The data segments that any ready version of an image uses, each once, in the order in which versions came
    /// and their manifests name them: what stripes are made of.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn live_segments_of_image(&self, image: ImageId) -> Result<Vec<SegmentRow>> {
        sqlx::query(
            "SELECT segment.id, segment.bytes, segment.class,
                    min(version.number * 4294967296 + version_segment.position) AS place
             FROM version JOIN version_segment ON version_segment.version = version.id
             JOIN segment ON segment.id = version_segment.segment
             WHERE version.image = $1 AND version.state = 'ready'
             GROUP BY segment.id ORDER BY place",
        )
        .bind(image.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(segment)
        .collect()
    }

    /// The data segments of a version in the order of its manifest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn segments_of_version(&self, version: VersionId) -> Result<Vec<SegmentRow>> {
        sqlx::query(
            "SELECT segment.id, segment.bytes, segment.class FROM version_segment
             JOIN segment ON segment.id = version_segment.segment
             WHERE version_segment.version = $1 ORDER BY version_segment.position",
        )
        .bind(version.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(segment)
        .collect()
    }

    /// All segments of an image, data and parity, live or not.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn segments_of_image(&self, image: ImageId) -> Result<Vec<SegmentRow>> {
        sqlx::query("SELECT id, bytes, class FROM segment WHERE image = $1 ORDER BY id")
            .bind(image.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(segment)
            .collect()
    }

    /// The image a segment belongs to.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn image_of_segment(&self, id: SegmentId) -> Result<Option<ImageId>> {
        sqlx::query("SELECT image FROM segment WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?
            .map(|row| row.id("image").map(ImageId))
            .transpose()
    }

    /// Whether a target that installs `version` may have this segment: data of that version, or parity of any image
    /// that shares data with it.
    pub(crate) async fn segment_serves_version(
        &self,
        id: SegmentId,
        version: VersionId,
    ) -> Result<bool> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM version_segment WHERE version = $2 AND segment = $1)
                 OR EXISTS (SELECT 1 FROM segment WHERE id = $1
                   AND image IN (SELECT image FROM version WHERE id = $2))",
        )
        .bind(id.as_bytes().as_slice())
        .bind(version.as_bytes().as_slice())
        .fetch_one(&self.pool)
        .await?)
    }

    /// Forgets segments, and with them who holds them and is to hold them. Those that a version uses stay.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_segments(&self, ids: &[SegmentId]) -> Result<()> {
        let mut transaction = self.write().await?;
        for id in ids {
            sqlx::query(
                "DELETE FROM segment WHERE id = $1
                 AND NOT EXISTS (SELECT 1 FROM version_segment WHERE segment = $1)",
            )
            .bind(id.as_bytes().as_slice())
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// The data segments of an image that only versions being taken apart still use: bytes that may leave the store.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unused_data_segments(&self, image: ImageId) -> Result<Vec<SegmentId>> {
        sqlx::query(
            "SELECT id FROM segment WHERE image = $1 AND class = 'data'
             AND NOT EXISTS (SELECT 1 FROM version_segment
               JOIN version ON version.id = version_segment.version AND version.state <> 'removing'
               WHERE version_segment.segment = segment.id)",
        )
        .bind(image.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| row.id("id").map(SegmentId))
        .collect()
    }

    /// Keeps the signed stripe map of an image in place of an older one; says whether it was newer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_stripe_map(
        &self,
        image: ImageId,
        number: Generation,
        signed: &[u8],
    ) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO stripe_map (image, number, signed) VALUES ($1, $2, $3)
             ON CONFLICT (image) DO UPDATE SET number = excluded.number, signed = excluded.signed
             WHERE excluded.number > stripe_map.number",
        )
        .bind(image.as_bytes().as_slice())
        .bind(integer(number.0))
        .bind(signed)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The signed stripe map of an image.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripe_map_of_image(&self, image: ImageId) -> Result<Option<Vec<u8>>> {
        Ok(sqlx::query_scalar("SELECT signed FROM stripe_map WHERE image = $1")
            .bind(image.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?)
    }

    /// The signed stripe maps of all images whose segments a version uses.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripe_maps_of_version(&self, version: VersionId) -> Result<Vec<Vec<u8>>> {
        Ok(sqlx::query_scalar(
            "SELECT signed FROM stripe_map WHERE image IN (
               SELECT image FROM version WHERE id = $1
               UNION SELECT segment.image FROM version_segment
               JOIN segment ON segment.id = version_segment.segment
               WHERE version_segment.version = $1)",
        )
        .bind(version.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?)
    }

    /// Keeps what the planner promised for an image, in words.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_promise_of_image(&self, image: ImageId, promise: &str) -> Result<()> {
        sqlx::query("UPDATE image SET promise = $2 WHERE id = $1")
            .bind(image.as_bytes().as_slice())
            .bind(promise)
            .execute(&self.pool)
            .await
            .map_err(DbError::from)?;
        Ok(())
    }
}
