//! How often agents were there, hour by hour of the week.

use std::collections::BTreeMap;

use cairn_core::{
    availability::{HourOfWeek, Tally, Week},
    id::AgentId,
};
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Result, integer};

/// How the fleet changed on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Churn {
    /// Times that a client came, or went.
    pub(crate) came: u64,
    pub(crate) went: u64,
    /// Clients that were approved, and that left for good.
    pub(crate) joined: u64,
    pub(crate) gone: u64,
}

/// Days of which it is kept.
const DAYS: i64 = 90;

fn tally(row: &AnyRow) -> Result<Tally> {
    let number =
        |column| u32::try_from(row.number(column)?).map_err(|_| DbError::Unreadable { column });
    Ok(Tally { looks: number("looks")?, there: number("there")? })
}

impl Db {
    /// Counts one look at these agents, and whether each was there.
    pub(crate) async fn note_presence(
        &self,
        hour: HourOfWeek,
        agents: &[(AgentId, bool)],
    ) -> Result<()> {
        let mut transaction = self.write().await?;
        let mut known = BTreeMap::new();
        let rows = sqlx::query("SELECT agent, looks, there FROM availability WHERE hour = $1")
            .bind(i64::from(hour.number()))
            .fetch_all(&mut *transaction)
            .await?;
        for row in &rows {
            known.insert(AgentId(row.id("agent")?), tally(row)?);
        }
        for (agent, there) in agents {
            let Tally { looks, there } = known.remove(agent).unwrap_or_default().and(*there);
            // An agent that was forgotten meanwhile has no row to refer to.
            sqlx::query(
                "INSERT INTO availability (agent, hour, looks, there) SELECT id, $2, $3, $4 FROM agent WHERE id = $1
                 ON CONFLICT (agent, hour) DO UPDATE SET looks = excluded.looks, there = excluded.there",
            )
            .bind(agent.as_bytes().as_slice())
            .bind(i64::from(hour.number()))
            .bind(i64::from(looks))
            .bind(i64::from(there))
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Adds to how the fleet changed on a day since 1970.
    pub(crate) async fn note_churn(&self, day: i64, more: Churn) -> Result<()> {
        let mut transaction = self.write().await?;
        sqlx::query("DELETE FROM churn WHERE day <= $1")
            .bind(day - DAYS)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO churn (day, came, went, joined, gone) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (day) DO UPDATE SET came = churn.came + excluded.came, went = churn.went + excluded.went,
               joined = churn.joined + excluded.joined, gone = churn.gone + excluded.gone",
        )
        .bind(day)
        .bind(integer(more.came))
        .bind(integer(more.went))
        .bind(integer(more.joined))
        .bind(integer(more.gone))
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// How the fleet changed from this day on, where it did.
    pub(crate) async fn churn_since(&self, day: i64) -> Result<Vec<(i64, Churn)>> {
        let rows = sqlx::query("SELECT * FROM churn WHERE day >= $1 ORDER BY day")
            .bind(day)
            .fetch_all(&self.pool)
            .await?;
        let day = |row: &AnyRow| {
            let churn = Churn {
                came: row.number("came")?,
                went: row.number("went")?,
                joined: row.number("joined")?,
                gone: row.number("gone")?,
            };
            Ok((sqlx::Row::try_get(row, "day")?, churn))
        };
        rows.iter().map(day).collect()
    }

    /// What was counted of every agent that was ever looked for.
    pub(crate) async fn weeks(&self) -> Result<BTreeMap<AgentId, Week>> {
        let rows = sqlx::query("SELECT agent, hour, looks, there FROM availability")
            .fetch_all(&self.pool)
            .await?;
        let mut weeks: BTreeMap<AgentId, Week> = BTreeMap::new();
        for row in &rows {
            let hour = u8::try_from(row.number("hour")?).ok().and_then(HourOfWeek::new);
            let hour = hour.ok_or(DbError::Unreadable { column: "hour" })?;
            weeks.entry(AgentId(row.id("agent")?)).or_default().set(hour, tally(row)?);
        }
        Ok(weeks)
    }
}
