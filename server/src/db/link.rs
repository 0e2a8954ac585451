//! How agents' machines were last reached on networks of this server.

use std::collections::BTreeMap;

use cairn_core::id::AgentId;
use cairn_pxe::MacAddr;

use super::{Columns as _, Db, DbError, Result};

/// A machine as a neighbour on an interface of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) mac: MacAddr,
    pub(crate) interface: String,
}

impl Db {
    /// Takes over how these agents are reached.
    pub(crate) async fn note_links(&self, links: &[(AgentId, Link)]) -> Result<()> {
        let mut transaction = self.write().await?;
        for (agent, link) in links {
            // An agent that was forgotten meanwhile has no row to refer to.
            sqlx::query(
                "INSERT INTO link (agent, mac, interface) SELECT id, $2, $3 FROM agent WHERE id = $1
                 ON CONFLICT (agent) DO UPDATE SET mac = excluded.mac, interface = excluded.interface",
            )
            .bind(agent.as_bytes().as_slice())
            .bind(link.mac.to_string())
            .bind(&link.interface)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// How every agent that ever was a neighbour was last reached.
    pub(crate) async fn links(&self) -> Result<BTreeMap<AgentId, Link>> {
        let rows =
            sqlx::query("SELECT agent, mac, interface FROM link").fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let mac = row.text("mac")?.parse();
                let mac = mac.map_err(|_| DbError::Unreadable { column: "mac" })?;
                Ok((AgentId(row.id("agent")?), Link { mac, interface: row.text("interface")? }))
            })
            .collect()
    }
}
