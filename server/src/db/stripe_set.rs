//! Stripe sets: whose they are, their stripe maps, and what the planner promised for them.

use cairn_core::{
    id::{ImageId, StripeSetId, VersionId, VolumeId},
    units::Generation,
};
use sqlx::{Any, Executor, any::AnyRow};

use super::{Columns as _, Db, Result, integer};

/// Whose stripes a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Image(ImageId),
    Volume(VolumeId),
}

/// The newest stripe map of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptMap {
    pub signed: Vec<u8>,
    /// Of a volume: the root whose segments it places.
    pub root: Option<Vec<u8>>,
}

/// Begins the set of an image that is begun, or of a volume.
pub(super) async fn add(
    transaction: impl Executor<'_, Database = Any>,
    owner: Owner,
) -> Result<()> {
    let (image, volume) = match owner {
        Owner::Image(id) => (Some(id.0), None),
        Owner::Volume(id) => (None, Some(id.0)),
    };
    sqlx::query(
        "INSERT INTO stripe_set (id, image, volume) VALUES (coalesce($1, $2), $1, $2) ON CONFLICT (id) DO NOTHING",
    )
    .bind(image.as_ref().map(<[u8; 16]>::as_slice))
    .bind(volume.as_ref().map(<[u8; 16]>::as_slice))
    .execute(transaction)
    .await?;
    Ok(())
}

impl Db {
    /// Whose a set is; none when it is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owner_of_set(&self, set: StripeSetId) -> Result<Option<Owner>> {
        let row = sqlx::query("SELECT image, volume FROM stripe_set WHERE id = $1")
            .bind(set.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let image = row.maybe_id("image")?.map(|id| Owner::Image(ImageId(id)));
        let volume = row.maybe_id("volume")?.map(|id| Owner::Volume(VolumeId(id)));
        Ok(image.or(volume))
    }

    /// Keeps the signed stripe map of a set in place of an older one, and with it the root of the volume that it is for;
    /// says whether either was new.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_stripe_map(
        &self,
        set: StripeSetId,
        number: Generation,
        kept: &KeptMap,
    ) -> Result<bool> {
        let done = self.run(sqlx::query(
            "INSERT INTO stripe_map (stripe_set, number, signed, root) VALUES ($1, $2, $3, $4)
             ON CONFLICT (stripe_set) DO UPDATE
             SET number = excluded.number, signed = excluded.signed, root = excluded.root
             WHERE excluded.number > stripe_map.number
                OR excluded.number = stripe_map.number AND excluded.root IS DISTINCT FROM stripe_map.root",
        )
        .bind(set.as_bytes().as_slice())
        .bind(integer(number.0))
        .bind(&kept.signed)
        .bind(&kept.root))
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The number of the newest stripe map of a set.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripe_map_number(&self, set: StripeSetId) -> Result<Option<Generation>> {
        let row = sqlx::query("SELECT number FROM stripe_map WHERE stripe_set = $1")
            .bind(set.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.generation("number")).transpose()
    }

    /// The stripe map of a set.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripe_map_of_set(&self, set: StripeSetId) -> Result<Option<KeptMap>> {
        let row = sqlx::query("SELECT signed, root FROM stripe_map WHERE stripe_set = $1")
            .bind(set.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| kept(&row)).transpose()
    }

    /// The stripe maps of all sets in the order of their ids: first those of images, which change less often.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripe_maps(&self) -> Result<Vec<KeptMap>> {
        sqlx::query("SELECT signed, root FROM stripe_map ORDER BY root IS NOT NULL, stripe_set")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(kept)
            .collect()
    }

    /// The signed stripe maps of all sets whose segments a version uses.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripe_maps_of_version(&self, version: VersionId) -> Result<Vec<Vec<u8>>> {
        Ok(sqlx::query_scalar(
            "SELECT signed FROM stripe_map WHERE stripe_set IN (
               SELECT image FROM version WHERE id = $1
               UNION SELECT segment.stripe_set FROM version_segment
               JOIN segment ON segment.id = version_segment.segment
               WHERE version_segment.version = $1)",
        )
        .bind(version.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?)
    }

    /// Forgets the stripe map of a set: none of it is scattered any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_stripe_map(&self, set: StripeSetId) -> Result<()> {
        self.run(
            sqlx::query("DELETE FROM stripe_map WHERE stripe_set = $1")
                .bind(set.as_bytes().as_slice()),
        )
        .await?;
        Ok(())
    }

    /// Keeps what the planner promised for an image or a volume, in words.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_promise(&self, owner: Owner, promise: &str) -> Result<()> {
        let (statement, id) = match owner {
            Owner::Image(id) => ("UPDATE image SET promise = $2 WHERE id = $1", id.0),
            Owner::Volume(id) => ("UPDATE volume SET promise = $2 WHERE id = $1", id.0),
        };
        self.run(sqlx::query(statement).bind(id.as_slice()).bind(promise)).await?;
        Ok(())
    }
}

fn kept(row: &AnyRow) -> Result<KeptMap> {
    Ok(KeptMap {
        signed: sqlx::Row::try_get(row, "signed")?,
        root: sqlx::Row::try_get(row, "root")?,
    })
}
