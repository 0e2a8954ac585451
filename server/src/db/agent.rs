//! Agents: who joined, where they stand and where they are.

use std::net::SocketAddr;

use cairn_array::wire::MemberState;
use cairn_core::{
    id::{AgentId, MachineId},
    units::{ByteCount, Generation},
};
use cairn_pxe::MacAddr;
use sqlx::any::AnyRow;

use super::{Columns as _, Db, DbError, Result, integer, token::SpendError};
use crate::moment::Moment;

/// An agent as the server knows it.
#[derive(Clone, Debug)]
pub struct AgentRow {
    pub id: AgentId,
    pub name: String,
    pub state: MemberState,
    /// Of its one certificate.
    pub serial: Vec<u8>,
    pub lend: ByteCount,
    pub used: ByteCount,
    pub peer_port: u16,
    /// Of its peer service, once it was seen.
    pub address: Option<SocketAddr>,
    pub joined: Moment,
    pub seen: Option<Moment>,
    /// The assignment that the server wants.
    pub assignment: Generation,
    /// The newest assignment that the agent reported as fulfilled.
    pub fulfilled: Generation,
    pub want_holdings: bool,
    /// When an install began that overwrites what it holds; absent once it was heard of since.
    pub overwritten: Option<Moment>,
}

/// An agent to be added.
#[derive(Clone, Debug)]
pub(crate) struct NewAgent<'a> {
    pub(crate) id: AgentId,
    pub(crate) name: &'a str,
    pub(crate) serial: &'a [u8],
    pub(crate) lend: ByteCount,
    pub(crate) peer_port: u16,
}

/// What an agent says of itself when it syncs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgentNews {
    pub(crate) lend: ByteCount,
    pub(crate) used: ByteCount,
    pub(crate) peer_port: u16,
    pub(crate) address: SocketAddr,
    /// Of the network card by which it reaches the server.
    pub(crate) mac: Option<MacAddr>,
}

/// The word that a state is kept and shown as.
pub(crate) const fn word(state: MemberState) -> &'static str {
    match state {
        MemberState::Pending => "pending",
        MemberState::Approved => "approved",
        MemberState::Revoked => "revoked",
        MemberState::Left => "left",
    }
}

fn state(row: &AnyRow) -> Result<MemberState> {
    match row.text("state")?.as_str() {
        "pending" => Ok(MemberState::Pending),
        "approved" => Ok(MemberState::Approved),
        "revoked" => Ok(MemberState::Revoked),
        "left" => Ok(MemberState::Left),
        _ => Err(DbError::Unreadable { column: "state" }),
    }
}

fn agent(row: &AnyRow) -> Result<AgentRow> {
    let address = row
        .maybe_text("address")?
        .map(|text| text.parse().map_err(|_| DbError::Unreadable { column: "address" }))
        .transpose()?;
    let peer_port = u16::try_from(row.small("peer_port")?)
        .map_err(|_| DbError::Unreadable { column: "peer_port" })?;
    Ok(AgentRow {
        id: AgentId(row.id("id")?),
        name: row.text("name")?,
        state: state(row)?,
        serial: sqlx::Row::try_get(row, "serial")?,
        lend: row.size("lend")?,
        used: row.size("used")?,
        peer_port,
        address,
        joined: row.moment("joined")?,
        seen: row.maybe_moment("seen")?,
        assignment: row.generation("assignment")?,
        fulfilled: row.generation("fulfilled")?,
        want_holdings: row.flag("want_holdings")?,
        overwritten: row.maybe_moment("overwritten")?,
    })
}

impl Db {
    /// Spends a join token and adds the agent, both or neither; returns where the agent stands.
    pub(crate) async fn add_agent_with_token(
        &self,
        secret: &str,
        new: NewAgent<'_>,
        now: Moment,
    ) -> Result<MemberState, SpendError> {
        // The look says in words why not; the update below is what decides between two at once.
        let token = self.join_token(secret, now).await?;
        let state = if token.auto_approve { MemberState::Approved } else { MemberState::Pending };
        let mut transaction = self.write().await?;
        let spent = sqlx::query("UPDATE token SET used = $2 WHERE id = $1 AND used IS NULL")
            .bind(token.id)
            .bind(now.0)
            .execute(&mut *transaction)
            .await
            .map_err(DbError::from)?;
        if spent.rows_affected() != 1 {
            return Err(SpendError::Used);
        }
        sqlx::query(
            "INSERT INTO agent (id, name, state, serial, lend, peer_port, joined)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(new.id.as_bytes().as_slice())
        .bind(new.name)
        .bind(word(state))
        .bind(new.serial)
        .bind(integer(new.lend.0))
        .bind(i64::from(new.peer_port))
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .map_err(DbError::from)?;
        transaction.commit().await.map_err(DbError::from)?;
        Ok(state)
    }

    /// An agent's certificate is another from now on.
    pub(crate) async fn set_serial(&self, id: AgentId, serial: &[u8]) -> Result<()> {
        let query = sqlx::query("UPDATE agent SET serial = $2 WHERE id = $1");
        self.run(query.bind(id.as_bytes().as_slice()).bind(serial)).await?;
        Ok(())
    }

    pub(crate) async fn agent(&self, id: AgentId) -> Result<Option<AgentRow>> {
        sqlx::query("SELECT * FROM agent WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(agent)
            .transpose()
    }

    /// All agents, in the order in which they joined.
    pub(crate) async fn agents(&self) -> Result<Vec<AgentRow>> {
        sqlx::query("SELECT * FROM agent ORDER BY joined, id")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(agent)
            .collect()
    }

    /// The agents that may hold segments, in the order in which they joined.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn approved_agents(&self) -> Result<Vec<AgentRow>> {
        sqlx::query("SELECT * FROM agent WHERE state = 'approved' ORDER BY joined, id")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(agent)
            .collect()
    }

    /// Moves an agent to `state` when it is in one of `from`; says whether it moved.
    pub(crate) async fn move_agent(
        &self,
        id: AgentId,
        from: &[MemberState],
        to: MemberState,
    ) -> Result<bool> {
        let mut transaction = self.write().await?;
        let found = sqlx::query("SELECT state FROM agent WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(found) = found else { return Ok(false) };
        if !from.contains(&state(&found)?) {
            return Ok(false);
        }
        sqlx::query("UPDATE agent SET state = $2 WHERE id = $1")
            .bind(id.as_bytes().as_slice())
            .bind(word(to))
            .execute(&mut *transaction)
            .await?;
        if matches!(to, MemberState::Revoked | MemberState::Left) {
            for sql in [
                "DELETE FROM assignment WHERE agent = $1",
                "DELETE FROM holding WHERE agent = $1",
                "DELETE FROM recheck WHERE agent = $1",
            ] {
                sqlx::query(sql).bind(id.as_bytes().as_slice()).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Forgets an agent that was revoked or left; says whether it was there and so.
    pub(crate) async fn forget_agent(&self, id: AgentId) -> Result<bool> {
        let done = self
            .run(
                sqlx::query("DELETE FROM agent WHERE id = $1 AND state IN ('revoked', 'left')")
                    .bind(id.as_bytes().as_slice()),
            )
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The approved agents that run on a machine, by the card that they reach the server by.
    pub(crate) async fn agents_on_machine(&self, machine: MachineId) -> Result<Vec<AgentRow>> {
        sqlx::query(
            "SELECT agent.* FROM agent JOIN machine_mac ON machine_mac.mac = agent.mac
             WHERE machine_mac.machine = $1 AND agent.state = 'approved' ORDER BY joined, id",
        )
        .bind(machine.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(agent)
        .collect()
    }

    /// Agents whose storage was overwritten on the machine where this one runs.
    pub(crate) async fn overwritten_by(&self, id: AgentId) -> Result<Vec<AgentId>> {
        sqlx::query(
            "SELECT old.id FROM agent AS old JOIN agent AS new ON new.mac = old.mac AND new.id <> old.id
             WHERE new.id = $1 AND new.state = 'approved'
               AND old.state = 'approved' AND old.overwritten IS NOT NULL",
        )
        .bind(id.as_bytes().as_slice())
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|row| row.id("id").map(AgentId))
        .collect()
    }

    /// Notes that what an agent holds is overwritten from now on.
    pub(crate) async fn note_overwritten(&self, id: AgentId, now: Moment) -> Result<()> {
        self.run(
            sqlx::query("UPDATE agent SET overwritten = $2 WHERE id = $1")
                .bind(id.as_bytes().as_slice())
                .bind(now.0),
        )
        .await?;
        Ok(())
    }

    /// Keeps what an agent said of itself. It is there, so nothing has overwritten it.
    pub(crate) async fn note_agent_news(
        &self,
        id: AgentId,
        news: AgentNews,
        now: Moment,
    ) -> Result<()> {
        self.run(
            sqlx::query(
                "UPDATE agent SET lend = $2, used = $3, peer_port = $4, address = $5, seen = $6,
               mac = coalesce($7, mac), overwritten = NULL WHERE id = $1",
            )
            .bind(id.as_bytes().as_slice())
            .bind(integer(news.lend.0))
            .bind(integer(news.used.0))
            .bind(i64::from(news.peer_port))
            .bind(news.address.to_string())
            .bind(now.0)
            .bind(news.mac.map(|mac| mac.to_string())),
        )
        .await?;
        Ok(())
    }
}
