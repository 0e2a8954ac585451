//! Which version an image's name stands for.

use cairn_core::id::{ImageId, VersionId};

use super::{Columns as _, Db, Result};
use crate::moment::Moment;

/// Steps that are kept of each image, to go back by.
const KEPT_STEPS: i64 = 100;

impl Db {
    /// From now on the image's name stands for this version. False when the version is not ready.
    pub(crate) async fn promote(&self, version: VersionId, now: Moment) -> Result<bool> {
        let mut transaction = self.write().await?;
        let made = sqlx::query(
            "INSERT INTO promotion (image, step, version, created)
             SELECT image, (SELECT coalesce(max(step), 0) + 1 FROM promotion WHERE promotion.image = version.image), id, $2
             FROM version WHERE id = $1 AND state = 'ready'",
        )
        .bind(version.as_bytes().as_slice())
        .bind(now.0)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "DELETE FROM promotion WHERE image = (SELECT image FROM version WHERE id = $1)
             AND step <= (SELECT max(step) FROM promotion AS last WHERE last.image = promotion.image) - $2",
        )
        .bind(version.as_bytes().as_slice())
        .bind(KEPT_STEPS)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(made.rows_affected() > 0)
    }

    /// The image's name stands for what it stood for before the last promotion. False when there was none.
    pub(crate) async fn take_promotion_back(&self, image: ImageId) -> Result<bool> {
        let delete = "DELETE FROM promotion WHERE image = $1
             AND step = (SELECT max(step) FROM promotion AS last WHERE last.image = $1)";
        let done = self.run(sqlx::query(delete).bind(image.as_bytes().as_slice())).await?;
        Ok(done.rows_affected() > 0)
    }

    /// The numbers of all promoted versions, by image.
    pub(crate) async fn promoted(&self) -> Result<std::collections::HashMap<ImageId, u32>> {
        sqlx::query(
            "SELECT promotion.image, version.number FROM promotion JOIN version ON version.id = promotion.version
             WHERE version.state = 'ready'
             AND step = (SELECT max(step) FROM promotion AS last WHERE last.image = promotion.image)",
        )
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| Ok((ImageId(row.id("image")?), row.small("number")?)))
        .collect()
    }
}
