//! Who is to hold which segment, and who says that it does.
//!
//! `assignment` is what the server wants, `holding` what an agent reported, `recheck` what it was reported to serve
//! damaged. Each change of what an agent is to do raises its assignment number, which wakes its sync.

use std::collections::{BTreeMap, BTreeSet};

use cairn_array::wire::{AssignedSegment, Holdings};
use cairn_core::{
    id::{AgentId, SegmentId, StripeSetId},
    units::{ByteCount, Generation},
};

use super::{
    BATCH, Columns as _, Db, Result, Transaction, bundle, integer, places, segment::segment, sql,
};
use crate::moment::Moment;

/// What one agent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HoldingCount {
    pub(crate) segments: u64,
    /// Those of them that are not parity.
    pub(crate) data: u64,
    /// Sealed bytes of all.
    pub(crate) bytes: ByteCount,
}

/// How far the segments of one set have been scattered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScatterCount {
    /// Pairs of agent and segment that the server wants.
    pub wanted: u64,
    /// Those of them that the agent reported.
    pub held: u64,
    pub wanted_bytes: ByteCount,
    pub held_bytes: ByteCount,
}

async fn raise(transaction: &mut Transaction, agent: AgentId) -> Result<()> {
    sqlx::query("UPDATE agent SET assignment = assignment + 1 WHERE id = $1")
        .bind(agent.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn hold(transaction: &mut Transaction, agent: AgentId, segments: &[SegmentId]) -> Result<()> {
    // Seldom any; asked once, because a full list has one entry for each segment of a disk.
    let doubted: BTreeSet<SegmentId> = sqlx::query("SELECT segment FROM recheck WHERE agent = $1")
        .bind(agent.as_bytes().as_slice())
        .fetch_all(&mut **transaction)
        .await?
        .iter()
        .map(|row| row.id("segment").map(SegmentId))
        .collect::<Result<_>>()?;
    for some in segments.chunks(BATCH) {
        // A segment that the server does not know is not worth a row: the agent drops it by its assignment.
        let ids = places(1, 1, some.len());
        let text = format!(
            "INSERT INTO holding (agent, segment) SELECT $1, id FROM segment WHERE id IN {ids}
             ON CONFLICT DO NOTHING"
        );
        let mut statement = sqlx::query(sql(text)).bind(agent.as_bytes().as_slice());
        for id in some {
            statement = statement.bind(id.as_bytes().as_slice());
        }
        statement.execute(&mut **transaction).await?;
    }
    for id in segments.iter().filter(|id| doubted.contains(id)) {
        sqlx::query("DELETE FROM recheck WHERE agent = $1 AND segment = $2")
            .bind(agent.as_bytes().as_slice())
            .bind(id.as_bytes().as_slice())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn lose(transaction: &mut Transaction, agent: AgentId, id: SegmentId) -> Result<bool> {
    sqlx::query("DELETE FROM bundle_holding WHERE agent = $1 AND segment = $2")
        .bind(agent.as_bytes().as_slice())
        .bind(id.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    let done = sqlx::query("DELETE FROM holding WHERE agent = $1 AND segment = $2")
        .bind(agent.as_bytes().as_slice())
        .bind(id.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    Ok(done.rows_affected() > 0)
}

impl Db {
    /// Makes `wanted` the whole of what agents are to hold of one set, and raises the assignment number of every agent
    /// whose share changed. Returns those agents.
    ///
    /// # Errors
    /// When the database fails, or `wanted` names a segment or an agent that is not there.
    pub async fn assign_set(
        &self,
        set: StripeSetId,
        wanted: &[(AgentId, SegmentId)],
    ) -> Result<Vec<AgentId>> {
        let mut transaction = self.write().await?;
        let present: BTreeSet<(AgentId, SegmentId)> = sqlx::query(
            "SELECT assignment.agent, assignment.segment FROM assignment
             JOIN segment ON segment.id = assignment.segment WHERE segment.stripe_set = $1",
        )
        .bind(set.as_bytes().as_slice())
        .fetch_all(&mut *transaction)
        .await?
        .iter()
        .map(|row| Ok((AgentId(row.id("agent")?), SegmentId(row.id("segment")?))))
        .collect::<Result<_>>()?;
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let mut changed = BTreeSet::new();
        for (agent, id) in present.difference(&wanted) {
            sqlx::query("DELETE FROM assignment WHERE agent = $1 AND segment = $2")
                .bind(agent.as_bytes().as_slice())
                .bind(id.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
            changed.insert(*agent);
        }
        let new: Vec<_> = wanted.difference(&present).collect();
        for some in new.chunks(BATCH) {
            let places = places(0, some.len(), 2);
            let text = format!("INSERT INTO assignment (agent, segment) VALUES {places}");
            let mut statement = sqlx::query(sql(text));
            for (agent, id) in some {
                statement =
                    statement.bind(agent.as_bytes().as_slice()).bind(id.as_bytes().as_slice());
                changed.insert(*agent);
            }
            statement.execute(&mut *transaction).await?;
        }
        for agent in &changed {
            raise(&mut transaction, *agent).await?;
        }
        transaction.commit().await?;
        Ok(changed.into_iter().collect())
    }

    /// Everything an agent is to hold, with who else holds it, and what it should look at again.
    pub(crate) async fn assignment_of_agent(
        &self,
        agent: AgentId,
    ) -> Result<(Generation, Vec<AssignedSegment>, Vec<SegmentId>)> {
        let mut transaction = self.pool.begin().await?;
        let number = sqlx::query("SELECT assignment FROM agent WHERE id = $1")
            .bind(agent.as_bytes().as_slice())
            .fetch_one(&mut *transaction)
            .await?
            .generation("assignment")?;
        let rows = sqlx::query(
            "SELECT segment.id, segment.bytes, segment.class FROM assignment
             JOIN segment ON segment.id = assignment.segment WHERE assignment.agent = $1 ORDER BY segment.id",
        )
        .bind(agent.as_bytes().as_slice())
        .fetch_all(&mut *transaction)
        .await?;
        let mut sources: BTreeMap<SegmentId, Vec<AgentId>> = BTreeMap::new();
        let others = sqlx::query(
            "SELECT holding.segment, holding.agent FROM assignment
             JOIN holding ON holding.segment = assignment.segment AND holding.agent <> $1
             JOIN agent ON agent.id = holding.agent AND agent.state = 'approved'
             WHERE assignment.agent = $1",
        )
        .bind(agent.as_bytes().as_slice())
        .fetch_all(&mut *transaction)
        .await?;
        for row in &others {
            let id = SegmentId(row.id("segment")?);
            sources.entry(id).or_default().push(AgentId(row.id("agent")?));
        }
        let recheck = sqlx::query("SELECT segment FROM recheck WHERE agent = $1")
            .bind(agent.as_bytes().as_slice())
            .fetch_all(&mut *transaction)
            .await?
            .iter()
            .map(|row| row.id("segment").map(SegmentId))
            .collect::<Result<Vec<_>>>()?;
        let segments = rows
            .iter()
            .map(|row| {
                let found = segment(row)?;
                Ok(AssignedSegment {
                    id: found.id,
                    bytes: found.bytes,
                    class: found.class,
                    sources: sources.remove(&found.id).unwrap_or_default(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok((number, segments, recheck))
    }

    /// Takes over what an agent says about its DSF. Returns the sets that lost a segment by it.
    pub(crate) async fn note_holdings(
        &self,
        agent: AgentId,
        holdings: &Holdings,
    ) -> Result<Vec<StripeSetId>> {
        let mut transaction = self.write().await?;
        let mut lost = Vec::new();
        if holdings.full {
            for forget in [
                "DELETE FROM holding WHERE agent = $1",
                "DELETE FROM bundle_holding WHERE agent = $1",
            ] {
                sqlx::query(forget)
                    .bind(agent.as_bytes().as_slice())
                    .execute(&mut *transaction)
                    .await?;
            }
            sqlx::query("UPDATE agent SET want_holdings = FALSE WHERE id = $1")
                .bind(agent.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        for id in holdings.dropped.iter().chain(holdings.bad.iter().map(|bad| &bad.segment)) {
            if lose(&mut transaction, agent, *id).await? {
                lost.push(*id);
            }
        }
        hold(&mut transaction, agent, &holdings.stored).await?;
        bundle::hold(&mut transaction, agent, &holdings.stored).await?;
        if let Some(number) = holdings.fulfils {
            sqlx::query("UPDATE agent SET fulfilled = $2 WHERE id = $1 AND fulfilled < $2")
                .bind(agent.as_bytes().as_slice())
                .bind(integer(number.0))
                .execute(&mut *transaction)
                .await?;
        }
        let mut sets = BTreeSet::new();
        for id in lost {
            let row = sqlx::query(
                "SELECT segment.stripe_set FROM assignment JOIN segment ON segment.id = assignment.segment
                 WHERE assignment.agent = $1 AND assignment.segment = $2",
            )
            .bind(agent.as_bytes().as_slice())
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&mut *transaction)
            .await?;
            if let Some(row) = row {
                sets.insert(StripeSetId(row.id("stripe_set")?));
            }
        }
        transaction.commit().await?;
        Ok(sets.into_iter().collect())
    }

    /// Asks agents for a full list of what they hold.
    pub(crate) async fn ask_for_holdings(&self, agents: &[AgentId]) -> Result<()> {
        let mut transaction = self.write().await?;
        for agent in agents {
            sqlx::query("UPDATE agent SET want_holdings = TRUE WHERE id = $1")
                .bind(agent.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Notes that agents may not have these segments as they should be: each counts as a holder again once it has looked.
    /// Returns how many of them they were to hold.
    pub(crate) async fn doubt_holdings(&self, pairs: &[(AgentId, SegmentId)]) -> Result<u64> {
        let mut transaction = self.write().await?;
        let mut known = 0;
        let mut agents = BTreeSet::new();
        for (agent, id) in pairs {
            let noted = sqlx::query(
                "INSERT INTO recheck (agent, segment) SELECT agent, segment FROM assignment
                 WHERE agent = $1 AND segment = $2 ON CONFLICT DO NOTHING",
            )
            .bind(agent.as_bytes().as_slice())
            .bind(id.as_bytes().as_slice())
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            lose(&mut transaction, *agent, *id).await?;
            if noted > 0 {
                known += noted;
                agents.insert(*agent);
            }
        }
        for agent in agents {
            raise(&mut transaction, agent).await?;
        }
        transaction.commit().await?;
        Ok(known)
    }

    /// The approved agents that say they hold each segment of a set.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn holders_of_set(
        &self,
        set: StripeSetId,
    ) -> Result<BTreeMap<SegmentId, Vec<AgentId>>> {
        let mut holders: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let rows = sqlx::query(
            "SELECT holding.segment, holding.agent FROM holding
             JOIN segment ON segment.id = holding.segment AND segment.stripe_set = $1
             JOIN agent ON agent.id = holding.agent AND agent.state = 'approved'
             ORDER BY holding.segment, holding.agent",
        )
        .bind(set.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?;
        for row in &rows {
            let id = SegmentId(row.id("segment")?);
            holders.entry(id).or_default().push(AgentId(row.id("agent")?));
        }
        Ok(holders)
    }

    /// What agents are to hold of a set now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn assignments_of_set(&self, set: StripeSetId) -> Result<Vec<(AgentId, SegmentId)>> {
        sqlx::query(
            "SELECT assignment.agent, assignment.segment FROM assignment
             JOIN segment ON segment.id = assignment.segment AND segment.stripe_set = $1",
        )
        .bind(set.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| Ok((AgentId(row.id("agent")?), SegmentId(row.id("segment")?))))
        .collect()
    }

    /// Slots of each agent that other sets than this one take.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn slots_taken_by_other_sets(
        &self,
        set: StripeSetId,
    ) -> Result<BTreeMap<AgentId, u64>> {
        sqlx::query(
            "SELECT assignment.agent, count(*) AS slots FROM assignment
             JOIN segment ON segment.id = assignment.segment AND segment.stripe_set <> $1 GROUP BY assignment.agent",
        )
        .bind(set.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| Ok((AgentId(row.id("agent")?), row.number("slots")?)))
        .collect()
    }

    /// How far a set is scattered.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn scatter_count_of_set(&self, set: StripeSetId) -> Result<ScatterCount> {
        let row = sqlx::query(
            "SELECT count(*) AS wanted, CAST(coalesce(sum(segment.bytes), 0) AS BIGINT) AS wanted_bytes,
                    count(holding.segment) AS held,
                    CAST(coalesce(sum(segment.bytes) FILTER (WHERE holding.segment IS NOT NULL), 0) AS BIGINT) AS held_bytes
             FROM assignment JOIN segment ON segment.id = assignment.segment AND segment.stripe_set = $1
             LEFT JOIN holding ON holding.agent = assignment.agent AND holding.segment = assignment.segment",
        )
        .bind(set.as_bytes().as_slice())
        .fetch_one(&self.pool)
        .await?;
        Ok(ScatterCount {
            wanted: row.number("wanted")?,
            held: row.number("held")?,
            wanted_bytes: row.size("wanted_bytes")?,
            held_bytes: row.size("held_bytes")?,
        })
    }

    /// How many clients that were seen since hold each data segment of what a deployment installs, in the order of the
    /// manifest.
    pub(crate) async fn holders_of_segments(
        &self,
        deployment: i64,
        seen_since: Moment,
    ) -> Result<Vec<u32>> {
        sqlx::query(
            "SELECT version_segment.position AS position, count(agent.id) AS holders FROM version_segment
             JOIN deployment ON deployment.version = version_segment.version
             LEFT JOIN holding ON holding.segment = version_segment.segment
             LEFT JOIN agent ON agent.id = holding.agent AND agent.state = 'approved' AND agent.seen >= $2
             WHERE deployment.id = $1 GROUP BY version_segment.position ORDER BY version_segment.position",
        )
        .bind(deployment)
        .bind(seen_since.0)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| row.number("holders").map(|count| u32::try_from(count).unwrap_or(u32::MAX)))
        .collect()
    }

    /// Clients that hold a part of an image.
    pub(crate) async fn client_count_of_image(&self, name: &str) -> Result<u64> {
        sqlx::query(
            "SELECT count(DISTINCT holding.agent) AS clients FROM image JOIN segment ON segment.stripe_set = image.id
             JOIN holding ON holding.segment = segment.id WHERE image.name = $1",
        )
        .bind(name)
        .fetch_one(&self.pool)
        .await?
        .number("clients")
    }

    /// What an agent says it holds.
    pub(crate) async fn holding_count_of_agent(&self, agent: AgentId) -> Result<HoldingCount> {
        let row = sqlx::query(
            "SELECT count(*) AS segments, CAST(coalesce(sum(segment.bytes), 0) AS BIGINT) AS bytes,
                    count(*) FILTER (WHERE segment.class = 'data') AS data FROM holding
             JOIN segment ON segment.id = holding.segment WHERE holding.agent = $1",
        )
        .bind(agent.as_bytes().as_slice())
        .fetch_one(&self.pool)
        .await?;
        Ok(HoldingCount {
            segments: row.number("segments")?,
            data: row.number("data")?,
            bytes: row.size("bytes")?,
        })
    }
}
