//! The bundles: what clients hold so that the site goes on without this server. A new one is kept beside the published
//! one until it takes its place.

use std::collections::{BTreeMap, BTreeSet};

use cairn_core::{
    id::{AgentId, SegmentId},
    manifest::SegmentEntry,
};

use super::{Columns as _, Db, Result, Transaction};

/// A bundle without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BundleRow {
    pub(crate) id: i64,
    pub(crate) published: bool,
    /// In order; a segment may come twice.
    pub(crate) segments: Vec<SegmentEntry>,
}

/// Every approved agent has another assignment now.
async fn raise_all(transaction: &mut Transaction) -> Result<()> {
    sqlx::query("UPDATE agent SET assignment = assignment + 1 WHERE state = 'approved'")
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Takes over that an agent holds these, as far as they are of a bundle.
pub(super) async fn hold(
    transaction: &mut Transaction,
    agent: AgentId,
    segments: &[SegmentId],
) -> Result<()> {
    let known: BTreeSet<SegmentId> = sqlx::query("SELECT DISTINCT id FROM bundle_segment")
        .fetch_all(&mut **transaction)
        .await?
        .iter()
        .map(|row| row.id("id").map(SegmentId))
        .collect::<Result<_>>()?;
    for id in segments.iter().filter(|id| known.contains(id)) {
        sqlx::query(
            "INSERT INTO bundle_holding (agent, segment) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(agent.as_bytes().as_slice())
        .bind(id.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

impl Db {
    /// All bundles that are kept, the newest last.
    pub(crate) async fn bundles(&self) -> Result<Vec<BundleRow>> {
        let rows = sqlx::query(
            "SELECT bundle.id AS bundle, bundle.published, bundle_segment.id, bundle_segment.bytes FROM bundle
             JOIN bundle_segment ON bundle_segment.bundle = bundle.id ORDER BY bundle.id, bundle_segment.position",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut bundles: Vec<BundleRow> = Vec::new();
        for row in &rows {
            let id = sqlx::Row::try_get(row, "bundle")?;
            let entry = SegmentEntry { id: SegmentId(row.id("id")?), bytes: row.small("bytes")? };
            match bundles.last_mut() {
                Some(last) if last.id == id => last.segments.push(entry),
                _ => bundles.push(BundleRow {
                    id,
                    published: row.flag("published")?,
                    segments: vec![entry],
                }),
            }
        }
        Ok(bundles)
    }

    /// Adds a bundle whose segments are in the store; agents are to hold it besides the others.
    pub(crate) async fn add_bundle(&self, segments: &[SegmentEntry]) -> Result<i64> {
        let mut transaction = self.write().await?;
        let id: i64 = sqlx::query_scalar("INSERT INTO bundle DEFAULT VALUES RETURNING id")
            .fetch_one(&mut *transaction)
            .await?;
        for (position, segment) in (0_i64..).zip(segments) {
            sqlx::query(
                "INSERT INTO bundle_segment (bundle, position, id, bytes) VALUES ($1, $2, $3, $4)",
            )
            .bind(id)
            .bind(position)
            .bind(segment.id.as_bytes().as_slice())
            .bind(i64::from(segment.bytes))
            .execute(&mut *transaction)
            .await?;
        }
        raise_all(&mut transaction).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Publishes a bundle; the others are forgotten, and agents drop them. Nothing when it is the only one and published.
    pub(crate) async fn publish_bundle(&self, id: i64) -> Result<bool> {
        let mut transaction = self.write().await?;
        let others = sqlx::query("DELETE FROM bundle WHERE id <> $1")
            .bind(id)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        let news =
            sqlx::query("UPDATE bundle SET published = TRUE WHERE id = $1 AND NOT published")
                .bind(id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
        sqlx::query(
            "DELETE FROM bundle_holding WHERE segment NOT IN (SELECT id FROM bundle_segment)",
        )
        .execute(&mut *transaction)
        .await?;
        if others > 0 {
            raise_all(&mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(news > 0)
    }

    /// The approved agents that say they hold each segment of a bundle.
    pub(crate) async fn bundle_holders(&self) -> Result<BTreeMap<SegmentId, Vec<AgentId>>> {
        let mut holders: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let rows = sqlx::query(
            "SELECT bundle_holding.segment, bundle_holding.agent FROM bundle_holding
             JOIN agent ON agent.id = bundle_holding.agent AND agent.state = 'approved'",
        )
        .fetch_all(&self.pool)
        .await?;
        for row in &rows {
            let id = SegmentId(row.id("segment")?);
            holders.entry(id).or_default().push(AgentId(row.id("agent")?));
        }
        Ok(holders)
    }

    /// Has an agent look at its assignment again.
    pub(crate) async fn raise_assignment(&self, agent: AgentId) -> Result<()> {
        self.run(
            sqlx::query("UPDATE agent SET assignment = assignment + 1 WHERE id = $1")
                .bind(agent.as_bytes().as_slice()),
        )
        .await?;
        Ok(())
    }
}
