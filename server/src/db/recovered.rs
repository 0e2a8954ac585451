//! Writing down a site that was found on its clients.

use std::collections::{BTreeMap, BTreeSet};

use cairn_array::{dsf::SlotCount, wire::SegmentClass};
use cairn_core::{
    directory::Directory,
    id::{AgentId, SegmentId, StripeSetId},
    manifest::SegmentEntry,
    units::{ByteCount, Generation},
    volume::Durability,
};

use super::{
    Db, Result, Transaction, integer,
    segment::{SegmentRow, add_segments, add_version_segments},
    stripe_set::{self, Owner},
    volume,
};
use crate::{
    bundle::SHARE,
    moment::Moment,
    recover::{Row, VolumeRow},
};

/// A whole site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovered<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) signed_directory: &'a [u8],
    /// In the order of image and number.
    pub(crate) images: &'a [Row],
    pub(crate) volumes: &'a [VolumeRow],
    /// What agents are to hold now counts for newer than what they were told before.
    pub(crate) assignment: Generation,
    pub(crate) now: Moment,
}

impl Recovered<'_> {
    /// The least that each agent lends, until it says it: room for what it holds, so that nothing moves before.
    fn least_lent(&self) -> BTreeMap<AgentId, ByteCount> {
        let mut held: BTreeMap<AgentId, BTreeSet<SegmentId>> = BTreeMap::new();
        let of_images = self.images.iter().flat_map(|row| &row.holders);
        let of_volumes = self.volumes.iter().flat_map(|row| &row.holders);
        for (agent, segment) in of_images.chain(of_volumes) {
            held.entry(*agent).or_default().insert(*segment);
        }
        let bundle = self.directory.bundle.len() as u64;
        let slots = |agent| held.get(&agent).map_or(0, |segments| segments.len() as u64);
        let lends = |agent: AgentId| {
            // A twentieth is kept for moves; and the bundle is carried when it is a small part.
            let wanted = (slots(agent) + bundle) * 20 / 19 + 1;
            let slots = u32::try_from(wanted.max(bundle * SHARE)).unwrap_or(u32::MAX);
            (agent, SlotCount(slots).file_bytes())
        };
        self.directory.members.iter().map(|member| lends(member.agent)).collect()
    }
}

impl Db {
    /// Writes all of it into an empty database, in one transaction.
    pub(crate) async fn keep_recovered(&self, site: &Recovered<'_>) -> Result<()> {
        let mut transaction = self.write().await?;
        sqlx::query("INSERT INTO setting (key, value) VALUES ($1, $2)")
            .bind(crate::agents::directory::SETTING)
            .bind(site.signed_directory)
            .execute(&mut *transaction)
            .await?;
        keep_agents(&mut transaction, site).await?;
        for row in site.images {
            keep_version(&mut transaction, row).await?;
            let map = row.map.as_ref().map(|(number, signed)| FoundMap {
                number: *number,
                signed,
                root: None,
            });
            keep_placement(&mut transaction, row.image.into(), map, &row.holders).await?;
        }
        for row in site.volumes {
            keep_volume(&mut transaction, row, site.now).await?;
            let map = row.map.as_ref().map(|(number, signed)| FoundMap {
                number: *number,
                signed,
                root: Some(&row.root),
            });
            keep_placement(&mut transaction, row.id.into(), map, &row.holders).await?;
        }
        if let Some(generation) = site.volumes.iter().map(|row| row.generation).max() {
            volume::keep_generation(&mut *transaction, generation).await?;
        }
        keep_bundle(&mut transaction, site.directory).await?;
        Ok(transaction.commit().await?)
    }
}

async fn keep_agents(transaction: &mut Transaction, site: &Recovered<'_>) -> Result<()> {
    let lent = site.least_lent();
    for member in &site.directory.members {
        let lend = lent.get(&member.agent).copied().unwrap_or(ByteCount(0));
        // The serial of its certificate is in nobody's directory; its id stands in for it.
        sqlx::query(
            "INSERT INTO agent (id, name, state, serial, lend, peer_port, address, joined, assignment)
             VALUES ($1, $2, 'approved', $1, $3, $4, $5, $6, $7)",
        )
        .bind(member.agent.as_bytes().as_slice())
        .bind(&member.name)
        .bind(integer(lend.0))
        .bind(member.addr.map_or(0, |addr| i64::from(addr.port())))
        .bind(member.addr.map(|addr| addr.to_string()))
        .bind(site.now.0)
        .bind(integer(site.assignment.0))
        .execute(&mut **transaction)
        .await?;
    }
    for agent in &site.directory.revoked {
        sqlx::query(
            "INSERT INTO agent (id, name, state, serial, lend, peer_port, joined)
             VALUES ($1, '', 'revoked', $1, 0, 0, $2) ON CONFLICT DO NOTHING",
        )
        .bind(agent.as_bytes().as_slice())
        .bind(site.now.0)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

async fn keep_version(transaction: &mut Transaction, row: &Row) -> Result<()> {
    let created = integer(row.registered_at).saturating_mul(1000);
    sqlx::query(
        "INSERT INTO image (id, name, created) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
    )
    .bind(row.image.as_bytes().as_slice())
    .bind(&row.image_name)
    .bind(created)
    .execute(&mut **transaction)
    .await?;
    stripe_set::add(&mut **transaction, Owner::Image(row.image)).await?;
    sqlx::query(
        "INSERT INTO version (id, image, number, state, format, size, stored, added, content_key, created)
         VALUES ($1, $2, $3, 'ready', 'raw', $4, $5, $6, $7, $8)",
    )
    .bind(row.version.as_bytes().as_slice())
    .bind(row.image.as_bytes().as_slice())
    .bind(i64::from(row.number))
    .bind(integer(row.size.0))
    .bind(integer(row.stored.0))
    .bind(integer(row.added.0))
    .bind(&row.content_key)
    .bind(created)
    .execute(&mut **transaction)
    .await?;
    add_segments(transaction, row.image.into(), &rows(&row.segments, SegmentClass::Data)).await?;
    add_segments(transaction, row.image.into(), &rows(&row.parity, SegmentClass::Parity)).await?;
    add_version_segments(transaction, row.version, row.segments.iter().map(|row| row.id)).await
}

async fn keep_volume(transaction: &mut Transaction, row: &VolumeRow, now: Moment) -> Result<()> {
    sqlx::query(
        "INSERT INTO volume (id, name, size, state, content_key, origin, layout, created)
         VALUES ($1, $2, $3, 'ready', $4, $5, $6, $7)",
    )
    .bind(row.id.as_bytes().as_slice())
    .bind(&row.name)
    .bind(integer(row.size.0))
    .bind(&row.content_key)
    .bind(row.origin.as_ref().map(|id| id.as_bytes().as_slice()))
    .bind(row.layout.word())
    .bind(now.0)
    .execute(&mut **transaction)
    .await?;
    if row.durability == Durability::Mirrored {
        sqlx::query("INSERT INTO known_root (volume, root) VALUES ($1, $2)")
            .bind(row.id.as_bytes().as_slice())
            .bind(&row.root[..])
            .execute(&mut **transaction)
            .await?;
    }
    stripe_set::add(&mut **transaction, Owner::Volume(row.id)).await?;
    add_segments(transaction, row.id.into(), &rows(&row.data, SegmentClass::Data)).await?;
    add_segments(transaction, row.id.into(), &rows(&row.parity, SegmentClass::Parity)).await
}

fn rows(entries: &[SegmentEntry], class: SegmentClass) -> Vec<SegmentRow> {
    entries.iter().map(|entry| SegmentRow { id: entry.id, bytes: entry.bytes, class }).collect()
}

/// A stripe map as the lost server signed it, with the root of a volume that it is for.
struct FoundMap<'a> {
    number: Generation,
    signed: &'a [u8],
    root: Option<&'a [u8]>,
}

async fn keep_placement(
    transaction: &mut Transaction,
    set: StripeSetId,
    map: Option<FoundMap<'_>>,
    holders: &[(AgentId, SegmentId)],
) -> Result<()> {
    if let Some(FoundMap { number, signed, root }) = map {
        sqlx::query(
            "INSERT INTO stripe_map (stripe_set, number, signed, root) VALUES ($1, $2, $3, $4)
             ON CONFLICT (stripe_set) DO NOTHING",
        )
        .bind(set.as_bytes().as_slice())
        .bind(integer(number.0))
        .bind(signed)
        .bind(root)
        .execute(&mut **transaction)
        .await?;
    }
    for (agent, segment) in holders {
        // A shard of a version that was given up is nobody's any more.
        sqlx::query(
            "INSERT INTO assignment (agent, segment) SELECT $1, id FROM segment WHERE id = $2
             ON CONFLICT DO NOTHING",
        )
        .bind(agent.as_bytes().as_slice())
        .bind(segment.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

async fn keep_bundle(transaction: &mut Transaction, directory: &Directory) -> Result<()> {
    let bundle: i64 =
        sqlx::query_scalar("INSERT INTO bundle (published) VALUES (TRUE) RETURNING id")
            .fetch_one(&mut **transaction)
            .await?;
    for (position, segment) in (0_i64..).zip(&directory.bundle) {
        sqlx::query(
            "INSERT INTO bundle_segment (bundle, position, id, bytes) VALUES ($1, $2, $3, $4)",
        )
        .bind(bundle)
        .bind(position)
        .bind(segment.id.as_bytes().as_slice())
        .bind(i64::from(segment.bytes))
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}
