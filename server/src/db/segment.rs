//! Segments: what exists, and which versions use it.

use std::str::FromStr;

use cairn_array::wire::SegmentClass;
use cairn_core::id::{ImageId, SegmentId, StripeSetId, VersionId};
use sqlx::any::AnyRow;

use super::{BATCH, Columns as _, Db, Flag, Result, Transaction, UnknownWord, places, sql};

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

pub(super) fn segment(row: &AnyRow) -> Result<SegmentRow> {
    Ok(SegmentRow {
        id: SegmentId(row.id("id")?),
        bytes: row.small("bytes")?,
        class: row.word::<Class>("class")?.0,
    })
}

pub(super) async fn add_segments(
    transaction: &mut Transaction,
    set: StripeSetId,
    segments: &[SegmentRow],
) -> Result<()> {
    for some in segments.chunks(BATCH) {
        let places = places(0, some.len(), 4);
        let text = format!(
            "INSERT INTO segment (id, stripe_set, bytes, class) VALUES {places} ON CONFLICT (id) DO NOTHING"
        );
        let mut statement = sqlx::query(sql(text));
        for segment in some {
            statement = statement
                .bind(segment.id.as_bytes().as_slice())
                .bind(set.as_bytes().as_slice())
                .bind(i64::from(segment.bytes))
                .bind(class_word(segment.class));
        }
        statement.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Writes down which data segments make a version, in the order of its manifest. They are there.
pub(super) async fn add_version_segments(
    transaction: &mut Transaction,
    version: VersionId,
    segments: impl Iterator<Item = SegmentId>,
) -> Result<()> {
    let rows: Vec<(i64, SegmentId)> = (0..).zip(segments).collect();
    for some in rows.chunks(BATCH) {
        let places = places(0, some.len(), 3);
        let text =
            format!("INSERT INTO version_segment (version, position, segment) VALUES {places}");
        let mut statement = sqlx::query(sql(text));
        for (position, id) in some {
            statement = statement
                .bind(version.as_bytes().as_slice())
                .bind(*position)
                .bind(id.as_bytes().as_slice());
        }
        statement.execute(&mut **transaction).await?;
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

    /// The data segments that the store should have: all but those of volumes whose data clients hold instead.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn segments_of_store(&self) -> Result<Vec<SegmentId>> {
        sqlx::query(
            "SELECT id FROM segment WHERE class = 'data' AND stripe_set NOT IN
               (SELECT id FROM volume WHERE layout = 'server-parity')",
        )
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| row.id("id").map(SegmentId))
        .collect()
    }

    /// Adds segments to a set; those already there stay as they are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_segments_of_set(
        &self,
        set: StripeSetId,
        segments: &[SegmentRow],
    ) -> Result<()> {
        let mut transaction = self.write().await?;
        add_segments(&mut transaction, set, segments).await?;
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

    /// All segments of a set, data and parity, live or not.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn segments_of_set(&self, set: StripeSetId) -> Result<Vec<SegmentRow>> {
        sqlx::query("SELECT id, bytes, class FROM segment WHERE stripe_set = $1 ORDER BY id")
            .bind(set.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(segment)
            .collect()
    }

    /// The set a segment belongs to.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_of_segment(&self, id: SegmentId) -> Result<Option<StripeSetId>> {
        sqlx::query("SELECT stripe_set FROM segment WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?
            .map(|row| row.id("stripe_set").map(StripeSetId))
            .transpose()
    }

    /// Whether a target that installs `version` may have this segment: data of that version, or parity of any image
    /// that shares data with it.
    pub(crate) async fn segment_serves_version(
        &self,
        id: SegmentId,
        version: VersionId,
    ) -> Result<bool> {
        let Flag(serves) = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM version_segment WHERE version = $2 AND segment = $1)
                 OR EXISTS (SELECT 1 FROM segment WHERE id = $1
                   AND stripe_set IN (SELECT image FROM version WHERE id = $2))",
        )
        .bind(id.as_bytes().as_slice())
        .bind(version.as_bytes().as_slice())
        .fetch_one(&self.pool)
        .await?;
        Ok(serves)
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
            "SELECT id FROM segment WHERE stripe_set = $1 AND class = 'data'
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
}
