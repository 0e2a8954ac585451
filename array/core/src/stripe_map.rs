//! The stripe map of a set (an image, or a volume): which segments form a stripe, with what parity, and who holds them.
//!
//! It is kept apart from the manifests because it changes as clients come and go while a manifest never
//! does. Data segments are whole, so a new k or m rewrites parity and this map, and nothing else. Whoever
//! has it and the public part of a manifest can serve, scrub and repair without any key.
//!
//! A map is signed, and numbered so that an older one never replaces a newer one. The signed body, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `CAIRNSTR` |
//! | 8 | 2 | version, 1 |
//! | 10 | 16 | id of the stripe set |
//! | 26 | 8 | number of the map |
//! | 34 | 4 | holder count *h*, ≤ 65,535 |
//! | 38 | 16 *h* | holders: agent ids, no one twice |
//! | 38 + 16 *h* | 4 | stripe count, ≤ 4 Mi |
//! | … | … | the stripes |
//!
//! A stripe:
//!
//! | size | field |
//! |---|---|
//! | 1 | k: data places, 1 to 32 |
//! | 1 | data shard count, 1 to k; fewer than k in a short stripe |
//! | 1 | parity shard count m, k + m ≤ 255; 0 when k is 1 |
//! | … | the data shards in the order of their places, then the parity shards in the order of their rows |
//!
//! A shard:
//!
//! | size | field |
//! |---|---|
//! | 32 | segment id |
//! | 4 | sealed bytes, 1 to 4 MiB; a parity shard is as long as the longest data shard of its stripe |
//! | 1 | holder count *c*; 0 when only the server has it |
//! | 2 *c* | positions in the holder table, strictly ascending |
//!
//! Why in that order: magic and version first, so that a stranger is refused before anything is read; set and
//! number next, so that an old map is recognised by its first 34 bytes; the holder table before the stripes, so that
//! one pass checks each position as it comes; the counts of a stripe before its shards, so that what is coming is known.
//!
//! Invariants of a map that was decoded: no segment has two places; no shard names a holder twice or one outside the
//! table; a stripe with k = 1 has no parity (its copies are the holders of its one shard).

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::bytes::{DecodeError, Reader, Writer};
use crate::id::{AgentId, SegmentId, StripeSetId};
use crate::sign::{SigningKey, VerifyingKey};
use crate::units::{Generation, SEGMENT_MAX_BYTES};

/// The first bytes of a stripe map.
pub const MAGIC: [u8; 8] = *b"CAIRNSTR";
/// The version this program writes and reads.
pub const VERSION: u16 = 1;
/// What a signature of a stripe map is bound to.
pub const CONTEXT: &str = "cairn stripe map";
/// The most data places in a stripe.
pub const MAX_DATA: usize = 32;
/// The most places in a stripe: the field of the code has 255 elements other than zero.
pub const MAX_WIDTH: usize = 255;
/// The most holders of one set.
pub const MAX_HOLDERS: usize = 65_535;
/// The most stripes of one set: 16 TiB of segments even if each stripe held one.
pub const MAX_STRIPES: usize = 4 << 20;

/// The fewest bytes a stripe takes: its counts and one shard without holders.
const MIN_STRIPE_BYTES: usize = 3 + 32 + 4 + 1;

/// A position in the holder table of a [`StripeMap`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct HolderIndex(pub u16);

/// A stripe's position in a [`StripeMap`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct StripeIndex(pub u32);

/// A shard's place in its stripe: `0..k` are the data places, `k..k + m` the parity rows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ShardPlace(pub u8);

/// One segment in a stripe, data or parity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub id: SegmentId,
    /// Sealed bytes, 1 to [`SEGMENT_MAX_BYTES`].
    pub bytes: u32,
    /// Who holds it, strictly ascending; empty when only the server does.
    pub holders: Vec<HolderIndex>,
}

/// Segments that protect each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// Data places; those behind the last data shard hold zeros that nobody stores.
    pub k: u8,
    /// 1 to k shards, by place.
    pub data: Vec<Shard>,
    /// By row; empty when k is 1.
    pub parity: Vec<Shard>,
}

/// Where the segments of a set are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeMap {
    pub set: StripeSetId,
    pub number: Generation,
    pub holders: Vec<AgentId>,
    pub stripes: Vec<Stripe>,
}

impl Stripe {
    /// The shard at a place; `None` behind the last data shard and behind the last parity row.
    #[must_use]
    pub fn shard(&self, place: ShardPlace) -> Option<&Shard> {
        match place.0.checked_sub(self.k) {
            None => self.data.get(usize::from(place.0)),
            Some(row) => self.parity.get(usize::from(row)),
        }
    }

    /// All shards that are stored somewhere, with their places.
    pub fn shards(&self) -> impl Iterator<Item = (ShardPlace, &Shard)> {
        let data = (0..self.k).map(ShardPlace).zip(&self.data);
        let parity = (self.k..=u8::MAX).map(ShardPlace).zip(&self.parity);
        data.chain(parity)
    }

    /// The length of a parity shard: that of the longest data shard.
    #[must_use]
    pub fn parity_bytes(&self) -> u32 {
        self.data.iter().map(|shard| shard.bytes).max().unwrap_or(0)
    }

    fn check(&self, holders: usize) -> Result<(), DecodeError> {
        let k = usize::from(self.k);
        limit("stripe k", k, MAX_DATA)?;
        limit("stripe width", k + self.parity.len(), MAX_WIDTH)?;
        if k == 0 || self.data.is_empty() || self.data.len() > k {
            return Err(DecodeError::Inconsistent { field: "data shard count" });
        }
        if k == 1 && !self.parity.is_empty() {
            return Err(DecodeError::Inconsistent { field: "parity shard count" });
        }
        let longest = self.parity_bytes();
        if self.parity.iter().any(|shard| shard.bytes != longest) {
            return Err(DecodeError::Inconsistent { field: "parity shard bytes" });
        }
        self.data.iter().chain(&self.parity).try_for_each(|shard| shard.check(holders))
    }

    fn write(&self, out: &mut Writer) {
        out.u8(self.k);
        out.u8(count(self.data.len()));
        out.u8(count(self.parity.len()));
        self.data.iter().chain(&self.parity).for_each(|shard| shard.write(out));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let [k, data, parity] = reader.array()?;
        let mut shards =
            |count: u8| (0..count).map(|_| Shard::read(reader)).collect::<Result<Vec<_>, _>>();
        Ok(Self { k, data: shards(data)?, parity: shards(parity)? })
    }
}

impl Shard {
    fn check(&self, holders: usize) -> Result<(), DecodeError> {
        limit("shard bytes", usize::try_from(self.bytes).unwrap_or(usize::MAX), SEGMENT_MAX_BYTES)?;
        if self.bytes == 0 {
            return Err(DecodeError::Inconsistent { field: "shard bytes" });
        }
        limit("shard holder count", self.holders.len(), MAX_WIDTH)?;
        let ascending = self.holders.is_sorted_by(|a, b| a < b);
        let known = self.holders.last().is_none_or(|last| usize::from(last.0) < holders);
        if ascending && known {
            Ok(())
        } else {
            Err(DecodeError::Inconsistent { field: "shard holders" })
        }
    }

    fn write(&self, out: &mut Writer) {
        out.put(self.id.as_bytes());
        out.u32(self.bytes);
        out.u8(count(self.holders.len()));
        self.holders.iter().for_each(|holder| out.u16(holder.0));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = SegmentId(reader.array()?);
        let bytes = reader.u32()?;
        let holders = reader.u8()?;
        let holders =
            (0..holders).map(|_| reader.u16().map(HolderIndex)).collect::<Result<_, _>>()?;
        Ok(Self { id, bytes, holders })
    }
}

impl StripeMap {
    /// The agent behind a holder position.
    #[must_use]
    pub fn holder(&self, index: HolderIndex) -> Option<AgentId> {
        self.holders.get(usize::from(index.0)).copied()
    }

    #[must_use]
    pub fn stripe(&self, index: StripeIndex) -> Option<&Stripe> {
        self.stripes.get(usize::try_from(index.0).ok()?)
    }

    /// The stripes with their positions.
    pub fn numbered(&self) -> impl Iterator<Item = (StripeIndex, &Stripe)> {
        (0..=u32::MAX).map(StripeIndex).zip(&self.stripes)
    }

    /// The agents that hold a shard.
    pub fn agents<'a>(&'a self, shard: &'a Shard) -> impl Iterator<Item = AgentId> + 'a {
        shard.holders.iter().filter_map(|holder| self.holder(*holder))
    }

    /// Checks all limits and invariants that the module header names.
    ///
    /// # Errors
    /// [`DecodeError::Limit`] or [`DecodeError::Inconsistent`], naming the field.
    pub fn check(&self) -> Result<(), DecodeError> {
        limit("holder count", self.holders.len(), MAX_HOLDERS)?;
        limit("stripe count", self.stripes.len(), MAX_STRIPES)?;
        let mut agents = HashSet::with_capacity(self.holders.len());
        if !self.holders.iter().all(|agent| agents.insert(agent)) {
            return Err(DecodeError::Inconsistent { field: "holders" });
        }
        let mut segments = HashSet::new();
        for stripe in &self.stripes {
            stripe.check(self.holders.len())?;
            if !stripe.shards().all(|(_, shard)| segments.insert(shard.id)) {
                return Err(DecodeError::Inconsistent { field: "segment id" });
            }
        }
        Ok(())
    }

    /// The body, unsigned. A map that does not pass [`StripeMap::check`] encodes to bytes that do not decode.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_header(MAGIC, VERSION);
        out.put(self.set.as_bytes());
        out.u64(self.number.0);
        out.count(self.holders.len());
        self.holders.iter().for_each(|agent| out.put(agent.as_bytes()));
        out.count(self.stripes.len());
        self.stripes.iter().for_each(|stripe| stripe.write(&mut out));
        out.finish()
    }

    /// Reads a body whose signature was checked, or does not matter.
    ///
    /// # Errors
    /// Any [`DecodeError`] but those of signatures.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.header(MAGIC, VERSION)?;
        let set = StripeSetId(reader.array()?);
        let number = Generation(reader.u64()?);
        let count = reader.count("holder count", MAX_HOLDERS, AgentId::BYTES)?;
        let holders =
            (0..count).map(|_| reader.array().map(AgentId)).collect::<Result<Vec<_>, _>>()?;
        let count = reader.count("stripe count", MAX_STRIPES, MIN_STRIPE_BYTES)?;
        let mut stripes = Vec::with_capacity(count);
        for _ in 0..count {
            stripes.push(Stripe::read(&mut reader)?);
        }
        reader.finish()?;
        let map = Self { set, number, holders, stripes };
        map.check()?;
        Ok(map)
    }

    /// The signed document.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        key.sign(CONTEXT, self.encode())
    }

    /// Reads a signed document.
    ///
    /// # Errors
    /// [`DecodeError::Signature`] when the site did not sign it, else as [`StripeMap::decode`].
    pub fn open(key: &VerifyingKey, signed: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(key.open(CONTEXT, signed)?)
    }

    /// The place of each segment, data and parity.
    #[must_use]
    pub fn places(&self) -> SegmentPlaces {
        let mut places = HashMap::new();
        for (index, stripe) in self.numbered() {
            for (place, shard) in stripe.shards() {
                places.insert(shard.id, (index, place));
            }
        }
        SegmentPlaces(places)
    }
}

/// Finds a segment's place in the [`StripeMap`] that it was made from.
#[derive(Clone, Debug, Default)]
pub struct SegmentPlaces(HashMap<SegmentId, (StripeIndex, ShardPlace)>);

impl SegmentPlaces {
    #[must_use]
    pub fn get(&self, id: &SegmentId) -> Option<(StripeIndex, ShardPlace)> {
        self.0.get(id).copied()
    }

    /// How many segments have a place.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn limit(field: &'static str, value: usize, limit: usize) -> Result<(), DecodeError> {
    if value > limit {
        return Err(DecodeError::Limit { field, value: value as u64, limit: limit as u64 });
    }
    Ok(())
}

/// A count in one byte. A larger one is beyond every limit here, and saturates to bytes that do not decode.
fn count(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;
