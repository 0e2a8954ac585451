//! What becomes of a database that comes from a backup.

use cairn_core::units::Generation;

use super::{Db, Result, integer, volume};

/// How far the numbers go on that clients and volumes know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leap<'a> {
    pub(crate) signed_directory: &'a [u8],
    pub(crate) by: u64,
    /// No agent's assignment is lower afterwards.
    pub(crate) least_assignment: Generation,
}

impl Db {
    /// Makes what agents are told newer than all that they have heard, asks them for all that they hold, and ends the
    /// sessions of browsers.
    pub(crate) async fn leap(&self, leap: &Leap<'_>) -> Result<()> {
        let generation = self.generation().await?;
        let mut transaction = self.write().await?;
        sqlx::query("UPDATE setting SET value = $2 WHERE key = $1")
            .bind(crate::agents::directory::SETTING)
            .bind(leap.signed_directory)
            .execute(&mut *transaction)
            .await?;
        let generation = Generation(generation.0 + leap.by);
        volume::keep_generation(&mut *transaction, generation).await?;
        sqlx::query(
            "UPDATE agent SET fulfilled = 0, want_holdings = TRUE,
               assignment = CASE WHEN assignment + $1 > $2 THEN assignment + $1 ELSE $2 END",
        )
        .bind(integer(leap.by))
        .bind(integer(leap.least_assignment.0))
        .execute(&mut *transaction)
        .await?;
        for forget in [
            "DELETE FROM journal_home",
            "DELETE FROM tail_holder",
            "DELETE FROM holding",
            "DELETE FROM bundle_holding",
            "DELETE FROM recheck",
            "DELETE FROM session",
        ] {
            sqlx::query(forget).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }
}
