//! The layout a set of segments shall have next, from the one it has: which segments form stripes, which parity stays, who holds what.
//!
//! Data segments are whole, so a new layout rewrites parity only:
//!
//! | what changed | what happens |
//! |---|---|
//! | k | all data segments form new stripes; those on different holders are grouped so that they can stay where they are |
//! | m grew or shrank | new rows are computed, surplus ones dropped; the rows that stay are not touched |
//! | segments were added | they form new stripes, together with those of the last, short stripe |
//! | segments are dead | their stripes are dissolved and what lives in them forms new stripes |
//! | clients joined or left | shards move by quota, see [`crate::placement`] |
//! | a client came back | its share is first of all what it still has |
//!
//! Invariants: every wanted data segment has exactly one place; a parity row is kept only with the very k and data segments it was
//! computed from; at most one stripe is short; the same input gives the same layout; a layout that fits is not changed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::id::{AgentId, SegmentId, StripeSetId};
use crate::placement::{PlaceError, Row, Spare, place};
use crate::planner::Redundancy;
use crate::stripe_map::{HolderIndex, Shard, Stripe, StripeIndex, StripeMap};
use crate::units::Generation;

/// A data segment of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSegment {
    pub id: SegmentId,
    /// Sealed bytes.
    pub bytes: u32,
    /// The server's device that it is on. It counts with [`Share::Parity`] only.
    pub device: usize,
}

/// Which shards of a stripe clients hold. The server keeps the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// Data and parity.
    #[default]
    All,
    /// The data.
    Data,
    /// The parity: the data of a stripe are on as many devices of the server.
    Parity,
}

/// What protects a set, and which part of that clients hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub redundancy: Redundancy,
    pub share: Share,
}

impl From<Redundancy> for Spread {
    fn from(redundancy: Redundancy) -> Self {
        Self { redundancy, share: Share::All }
    }
}

/// A client of the plan's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub agent: AgentId,
    /// How many segments of this set it has room for, those it holds included.
    pub room: u64,
}

/// A parity row of a planned stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlannedParity {
    /// It exists already; its holders may be new.
    Keep(Shard),
    /// It must be computed from the stripe's data segments.
    Compute { bytes: u32, holders: Vec<HolderIndex> },
}

/// A stripe as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStripe {
    pub k: u8,
    pub data: Vec<Shard>,
    /// By row.
    pub parity: Vec<PlannedParity>,
}

/// Who has which segments, whatever a map says: a client that comes back has those that were made anew meanwhile.
pub type Held = HashMap<SegmentId, Vec<AgentId>>;

/// Where everything shall be. Holder positions are those in `holders`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub holders: Vec<AgentId>,
    pub stripes: Vec<PlannedStripe>,
}

/// A segment that an agent shall hold and does not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transfer {
    pub segment: SegmentId,
    pub bytes: u32,
    pub to: AgentId,
}

/// Decides the layout of the data segments, given in the order of the image or volume. `held` is what clients of the group
/// have beyond what `now` says.
///
/// # Errors
/// [`PlaceError`] when the members have too little room for it: the plan was made for others.
pub fn converge(
    now: Option<&StripeMap>,
    data: &[DataSegment],
    spread: impl Into<Spread>,
    members: &[Member],
    held: &Held,
) -> Result<Layout, PlaceError> {
    let spread = spread.into();
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| member.agent);
    members.dedup_by_key(|member| member.agent);
    if members.len() > crate::stripe_map::MAX_HOLDERS {
        return Err(PlaceError::TooManyHolders { count: members.len() });
    }
    let holders: Vec<_> = members.iter().map(|member| member.agent).collect();
    let stripes = regroup(now, data, spread, &holders);
    let rows: Vec<_> = stripes.iter().map(|stripe| row(stripe, spread)).collect();
    let rooms: Vec<_> = members.iter().map(|member| member.room).collect();
    let table = place(&rows, &spares(&stripes, held, &holders, spread), &rooms)?;
    let stripes = stripes.into_iter().zip(table).map(|(mut stripe, row)| {
        settle(&mut stripe, row, spread);
        stripe
    });
    Ok(Layout { stripes: stripes.collect(), holders })
}

impl Layout {
    /// The parity that must be computed: stripe, row, bytes.
    pub fn to_compute(&self) -> impl Iterator<Item = (StripeIndex, u8, u32)> {
        (0..).map(StripeIndex).zip(&self.stripes).flat_map(|(index, stripe)| {
            (0..).zip(&stripe.parity).filter_map(move |(row, parity)| match parity {
                PlannedParity::Keep(_) => None,
                PlannedParity::Compute { bytes, .. } => Some((index, row, *bytes)),
            })
        })
    }

    /// The stripe map of this layout; `None` while the id of a computed row is not known.
    #[must_use]
    pub fn map(
        &self,
        set: StripeSetId,
        number: Generation,
        computed: &HashMap<(StripeIndex, u8), SegmentId>,
    ) -> Option<StripeMap> {
        let parity = |index, row, planned: &PlannedParity| match planned {
            PlannedParity::Keep(shard) => Some(shard.clone()),
            PlannedParity::Compute { bytes, holders } => {
                let id = *computed.get(&(index, row))?;
                Some(Shard { id, bytes: *bytes, holders: holders.clone() })
            }
        };
        let stripes = (0..).map(StripeIndex).zip(&self.stripes).map(|(index, stripe)| {
            let rows = (0..).zip(&stripe.parity);
            Some(Stripe {
                k: stripe.k,
                data: stripe.data.clone(),
                parity: rows
                    .map(|(row, planned)| parity(index, row, planned))
                    .collect::<Option<_>>()?,
            })
        });
        let stripes = stripes.collect::<Option<_>>()?;
        Some(StripeMap { set, number, holders: self.holders.clone(), stripes })
    }
}

/// What the holders of a map shall hold and do not by an older map of the same set.
#[must_use]
pub fn transfers(now: Option<&StripeMap>, next: &StripeMap) -> Vec<Transfer> {
    let held: HashSet<(SegmentId, AgentId)> = now
        .into_iter()
        .flat_map(|map| {
            let shards = map.stripes.iter().flat_map(Stripe::shards);
            shards.flat_map(move |(_, shard)| map.agents(shard).map(|agent| (shard.id, agent)))
        })
        .collect();
    let shards = next.stripes.iter().flat_map(Stripe::shards);
    let wanted = shards.flat_map(|(_, shard)| {
        next.agents(shard).map(|to| Transfer { segment: shard.id, bytes: shard.bytes, to })
    });
    wanted.filter(|transfer| !held.contains(&(transfer.segment, transfer.to))).collect()
}

/// The stripes with the holders that their shards have now, in positions of the new holder table.
fn regroup(
    now: Option<&StripeMap>,
    data: &[DataSegment],
    Spread { redundancy, share }: Spread,
    holders: &[AgentId],
) -> Vec<PlannedStripe> {
    let translate = |map: &StripeMap, shard: &Shard| {
        let positions = map.agents(shard).filter_map(|agent| holders.binary_search(&agent).ok());
        let mut positions: Vec<_> =
            positions.filter_map(|at| u16::try_from(at).ok().map(HolderIndex)).collect();
        positions.sort_unstable();
        Shard { holders: positions, ..shard.clone() }
    };
    let wanted: HashMap<_, _> = data.iter().map(|segment| (segment.id, segment.device)).collect();
    let is_spread = |shards: &[Shard]| {
        let mut devices = HashSet::new();
        share != Share::Parity || shards.iter().all(|shard| devices.insert(wanted.get(&shard.id)))
    };
    let mut kept = Vec::new();
    let mut short = Vec::new();
    let mut where_now = HashMap::new();
    for (map, stripe) in now.iter().flat_map(|map| map.stripes.iter().map(move |s| (*map, s))) {
        let shards: Vec<_> = stripe.data.iter().map(|shard| translate(map, shard)).collect();
        where_now.extend(shards.iter().map(|shard| (shard.id, shard.holders.clone())));
        let alive = shards.iter().all(|shard| wanted.contains_key(&shard.id));
        if stripe.k == redundancy.k() && alive && is_spread(&shards) {
            let parity =
                stripe.parity.iter().map(|shard| PlannedParity::Keep(translate(map, shard)));
            let kept_stripe = PlannedStripe { k: stripe.k, parity: parity.collect(), data: shards };
            let full = stripe.data.len() == usize::from(stripe.k);
            if full { &mut kept } else { &mut short }.push(kept_stripe);
        }
    }
    let id_of = |stripe: &PlannedStripe| stripe.data.iter().map(|s| s.id).collect::<Vec<_>>();
    let mut placed: HashSet<_> = kept.iter().chain(&short).flat_map(id_of).collect();
    let new = data.iter().filter(|segment| !placed.contains(&segment.id)).count();
    // On unequal devices there may be many short stripes.
    if new > 0 || (short.len() > 1 && share != Share::Parity) {
        let dissolved: HashSet<_> = short.iter().flat_map(id_of).collect();
        placed.retain(|id| !dissolved.contains(id));
    } else {
        kept.append(&mut short);
    }
    let mut pool = Vec::new();
    for segment in data {
        if placed.insert(segment.id) {
            let holders = where_now.remove(&segment.id).unwrap_or_default();
            pool.push(Shard { id: segment.id, bytes: segment.bytes, holders });
        }
    }
    let grouped = match share {
        Share::All | Share::Data => group(pool, redundancy.k()),
        Share::Parity => group_by_device(pool, redundancy.k(), &wanted),
    };
    kept.extend(grouped.into_iter().map(|data| PlannedStripe {
        k: redundancy.k(),
        data,
        parity: Vec::new(),
    }));
    for stripe in &mut kept {
        complete(stripe, redundancy.m());
    }
    kept
}

/// Cuts surplus parity rows and adds missing ones.
fn complete(stripe: &mut PlannedStripe, m: u8) {
    let bytes = stripe.data.iter().map(|shard| shard.bytes).max().unwrap_or(0);
    stripe.parity.resize(m.into(), PlannedParity::Compute { bytes, holders: Vec::new() });
}

/// Forms stripes of k segments so that as many as possible have different holders and stay with them.
///
/// Each stripe takes one segment from each of the longest queues: the order that leaves the fewest segments of one holder
/// for the end. Segments that nobody holds fill up.
fn group(pool: Vec<Shard>, k: u8) -> Vec<Vec<Shard>> {
    if k == 1 {
        return pool.into_iter().map(|shard| vec![shard]).collect();
    }
    let mut free = VecDeque::new();
    let mut queues: BTreeMap<HolderIndex, VecDeque<(usize, Shard)>> = BTreeMap::new();
    let count = pool.len();
    for (order, mut shard) in pool.into_iter().enumerate() {
        let length = |holder: &HolderIndex| queues.get(holder).map_or(0, VecDeque::len);
        match shard.holders.iter().min_by_key(|holder| length(holder)).copied() {
            None => free.push_back((order, shard)),
            Some(holder) => {
                shard.holders = vec![holder];
                queues.entry(holder).or_default().push_back((order, shard));
            }
        }
    }
    let mut stripes = Vec::with_capacity(count.div_ceil(k.into()));
    let mut left = count;
    while left > 0 {
        let size = left.min(k.into());
        let mut stripe = Vec::with_capacity(size);
        let mut longest: Vec<_> = queues.iter().map(|(h, queue)| (queue.len(), *h)).collect();
        longest.sort_by_key(|(length, holder)| (std::cmp::Reverse(*length), *holder));
        for (_, holder) in longest.iter().take(size) {
            stripe.extend(pop(&mut queues, *holder));
        }
        while stripe.len() < size {
            let more = free.pop_front().or_else(|| {
                // Too many on one holder: one of them will move.
                let holder = *queues.iter().max_by_key(|(_, queue)| queue.len())?.0;
                let (order, shard) = pop(&mut queues, holder)?;
                Some((order, Shard { holders: Vec::new(), ..shard }))
            });
            stripe.extend(more);
        }
        left -= size;
        stripe.sort_by_key(|(order, _)| *order);
        stripes.push(stripe);
    }
    // In the order of the image, the short one last.
    stripes
        .sort_by_key(|stripe| (stripe.len() < k.into(), stripe.first().map(|(order, _)| *order)));
    stripes.into_iter().map(|stripe| stripe.into_iter().map(|(_, shard)| shard).collect()).collect()
}

/// Forms stripes of up to k segments on different devices, from the fullest devices first; the large ones go with each other,
/// since parity is as long as the longest.
fn group_by_device(
    pool: Vec<Shard>,
    k: u8,
    devices: &HashMap<SegmentId, usize>,
) -> Vec<Vec<Shard>> {
    let mut queues: BTreeMap<usize, VecDeque<Shard>> = BTreeMap::new();
    for shard in pool {
        let device = devices.get(&shard.id).copied().unwrap_or_default();
        queues.entry(device).or_default().push_back(shard);
    }
    let mut queues: Vec<_> = queues.into_values().collect();
    for queue in &mut queues {
        queue.make_contiguous().sort_by_key(|shard| std::cmp::Reverse(shard.bytes));
    }
    let mut stripes = Vec::new();
    loop {
        queues.sort_by_key(|queue| std::cmp::Reverse(queue.len()));
        let stripe: Vec<_> =
            queues.iter_mut().take(k.into()).filter_map(VecDeque::pop_front).collect();
        if stripe.is_empty() {
            return stripes;
        }
        stripes.push(stripe);
    }
}

fn pop(
    queues: &mut BTreeMap<HolderIndex, VecDeque<(usize, Shard)>>,
    holder: HolderIndex,
) -> Option<(usize, Shard)> {
    let queue = queues.get_mut(&holder)?;
    let shard = queue.pop_front();
    if queue.is_empty() {
        queues.remove(&holder);
    }
    shard
}

/// The places of a stripe as placement sees them: its copies, or the shards that clients hold.
fn row(stripe: &PlannedStripe, Spread { redundancy, share }: Spread) -> Row {
    if let Redundancy::Copies { count } = redundancy {
        let now = stripe.data.iter().flat_map(|shard| &shard.holders).copied().map(Some);
        return now.chain(std::iter::repeat(None)).take(count.into()).collect();
    }
    let data = stripe.data.iter().map(|shard| &shard.holders).filter(|_| share != Share::Parity);
    let parity = stripe.parity.iter().map(|parity| match parity {
        PlannedParity::Keep(shard) => &shard.holders,
        PlannedParity::Compute { holders, .. } => holders,
    });
    let parity = parity.filter(|_| share != Share::Data);
    data.chain(parity).map(|holders| holders.first().copied()).collect()
}

/// The places whose shards somebody of the group has although they are not his.
fn spares(
    stripes: &[PlannedStripe],
    held: &Held,
    holders: &[AgentId],
    Spread { redundancy, share }: Spread,
) -> Vec<Spare> {
    let mut spares = Vec::new();
    if held.is_empty() {
        return spares;
    }
    for (stripe, planned) in stripes.iter().enumerate() {
        let kept = planned.parity.iter().map(|parity| match parity {
            PlannedParity::Keep(shard) => Some(shard),
            PlannedParity::Compute { .. } => None,
        });
        let data = planned.data.iter().map(Some).filter(|_| share != Share::Parity);
        let shards = data.chain(kept.filter(|_| share != Share::Data)).enumerate();
        for (shard_at, shard) in shards.filter_map(|(at, shard)| Some((at, shard?))) {
            // Copies of a segment are all the same: any place of the row will do.
            let places = match redundancy {
                Redundancy::Copies { count } => 0..usize::from(count),
                Redundancy::Parity { .. } => shard_at..shard_at + 1,
            };
            for agent in held.get(&shard.id).into_iter().flatten() {
                let at = holders.binary_search(agent).ok().and_then(|at| u16::try_from(at).ok());
                let Some(holder) = at.map(HolderIndex) else { continue };
                if shard.holders.contains(&holder) {
                    continue;
                }
                spares.extend(places.clone().map(|place| Spare { stripe, place, holder }));
            }
        }
    }
    spares
}

/// Writes the holders that placement chose into the stripe.
fn settle(
    stripe: &mut PlannedStripe,
    mut row: Vec<HolderIndex>,
    Spread { redundancy, share }: Spread,
) {
    if let (Redundancy::Copies { .. }, Some(shard)) = (redundancy, stripe.data.first_mut()) {
        row.sort_unstable();
        shard.holders = row;
        return;
    }
    let mut row = row.into_iter();
    let mut placed = |is_placed: bool| row.by_ref().take(usize::from(is_placed)).collect();
    for shard in &mut stripe.data {
        shard.holders = placed(share != Share::Parity);
    }
    for parity in &mut stripe.parity {
        let holders = match parity {
            PlannedParity::Keep(shard) => &mut shard.holders,
            PlannedParity::Compute { holders, .. } => holders,
        };
        *holders = placed(share != Share::Data);
    }
}

#[cfg(test)]
mod tests;
