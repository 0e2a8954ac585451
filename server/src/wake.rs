//! Waking the holders of an image before it is deployed (Wake-on-LAN).
//!
//! The server learns a client's address from its own neighbour table while the client is awake: what a client says of
//! itself is not needed for it, and a client on another network, which no magic packet reaches, is not in the table.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use anyhow::Context as _;
use cairn_core::id::ImageId;
use cairn_pxe::MacAddr;

use crate::{app::App, db::link::Link};

/// The kernel's neighbour table for IPv4, proc(5).
const NEIGHBOURS: &str = "/proc/net/arp";
/// Of a neighbour: Ethernet, and its address is known.
const ETHERNET: &str = "0x1";
const COMPLETE: u32 = 0x2;

/// Notes how the clients that were heard of lately are reached.
pub(crate) async fn note_links(app: &App) -> anyhow::Result<()> {
    let path = Path::new(NEIGHBOURS);
    let table = tokio::fs::read_to_string(path).await.context("read the neighbour table")?;
    let neighbours = neighbours(&table);
    let known = app.db.links().await.context("read links")?;
    let agents = app.db.approved_agents().await.context("list agents")?;
    let links = agents.iter().filter_map(|agent| {
        let std::net::IpAddr::V4(address) = agent.address?.ip() else { return None };
        Some((agent.id, neighbours.get(&address)?.clone()))
    });
    let news: Vec<_> = links.filter(|(agent, link)| known.get(agent) != Some(link)).collect();
    if !news.is_empty() {
        app.db.note_links(&news).await.context("note links")?;
    }
    Ok(())
}

/// Sends a magic packet to every client that holds a part of the image. Those that are awake take no notice.
pub(crate) async fn holders(app: &App, image: ImageId) -> anyhow::Result<()> {
    note_links(app).await?;
    let assigned = app.db.assignments_of_set(image.into()).await.context("list holders")?;
    let holders: std::collections::BTreeSet<_> =
        assigned.into_iter().map(|(agent, _)| agent).collect();
    let links = app.db.links().await.context("read links")?;
    let mut woken = 0;
    for (agent, link) in links.iter().filter(|(agent, _)| holders.contains(agent)) {
        match cairn_pxe::wake(&link.interface, link.mac) {
            Ok(()) => woken += 1,
            Err(error) => {
                tracing::warn!(%agent, interface = link.interface, %error, "a holder was not woken");
            }
        }
    }
    tracing::info!(
        woken,
        holders = holders.len(),
        "magic packets were sent to the holders of an image"
    );
    Ok(())
}

/// The neighbours in the text of [`NEIGHBOURS`] whose address is known.
fn neighbours(table: &str) -> BTreeMap<Ipv4Addr, Link> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = fields.next()?.parse().ok()?;
        (fields.next()? == ETHERNET).then_some(())?;
        let flags = u32::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
        (flags & COMPLETE != 0).then_some(())?;
        let mac: MacAddr = fields.next()?.parse().ok()?;
        let interface = fields.nth(1)?.to_owned();
        Some((address, Link { mac, interface }))
    };
    table.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_neighbours_with_a_known_ethernet_address_count() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.77.0.11       0x1         0x2         52:54:00:12:34:56     *        eth0\n\
                     10.77.0.12       0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     10.77.0.13       0x20        0x2         52:54:00:12:34:57     *        ib0\n\
                     nonsense\n";
        let link =
            Link { mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]), interface: "eth0".to_owned() };
        let found = neighbours(table);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(Ipv4Addr::new(10, 77, 0, 11), link)]);
    }
}
