//! Chooses how an image is spread: the group of clients, k and m or copies; and says in words what may be lost.
//!
//! Pure arithmetic over what the clients lend and how often they are there. The rules:
//!
//! * 1 client gets a copy, 2 get a copy each, 3 get 2+1.
//! * From 4 clients on, a stripe is as wide as the group, at most [`MAX_GROUP`]. Half of its places are data, or more as long as
//!   *k* of them are reachable without the server with [`PROMISE`]; at least two are parity, so that one client may be lost while
//!   another is being rebuilt.
//! * Clients that lend unequal amounts: no client has two shards of a stripe, so a wide stripe fills the small ones first and
//!   leaves room in the large ones unused. The widest stripe that wastes at most [`MAX_WASTE`] of it is taken.
//! * Of very many clients only so many are taken as the promise needs: from k = 32 on, more of them would add parity and nothing
//!   else.
//! * All segments of an image are spread over one group: independent groups would multiply the risk.
//!
//! Invariants: a plan's promise can be kept with the room there is, or there is no plan; the same input gives the same plan;
//! whoever holds the image already stays in the group.

use std::collections::HashSet;

use crate::availability::WorstHour;
use crate::id::AgentId;
use crate::layout::{Share, Spread};
use crate::stripe_map::MAX_DATA;
use crate::units::{ByteCount, SEGMENT_MAX_BYTES};

/// The widest stripe, and the size of a group unless the image needs the room of more clients.
pub const MAX_GROUP: usize = 58;
/// How surely a stripe is readable without the server, when the number of clients allows it.
pub const PROMISE: f64 = 0.999;
/// How often a client is there when nothing was measured yet.
pub const DEFAULT_AVAILABILITY: f64 = 0.8;
/// The share of the room that a wider stripe may leave unused, of what the best width could use.
pub const MAX_WASTE: f64 = 0.05;

/// How much more than a new plan would store a present one may, without being replaced by it.
pub const MAX_SURPLUS: f64 = 0.1;

/// A client that may hold a part of the image. It is a failure domain of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub agent: AgentId,
    /// What it lends and no other image uses; what this image uses already counts as room.
    pub room: ByteCount,
    /// The probability that it is there, 0 to 1, in the worst hours.
    pub availability: f64,
    /// It is one of those that hold the image already.
    pub holds: bool,
}

impl Candidate {
    /// Whole segments it has room for.
    #[must_use]
    pub const fn slots(&self) -> u64 {
        self.room.0 / SEGMENT_MAX_BYTES as u64
    }
}

/// What protects a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundancy {
    /// Each data segment is on this many clients, 1 or 2.
    Copies { count: u8 },
    /// k data segments and m parity segments on k + m clients.
    Parity { k: u8, m: u8 },
}

impl Redundancy {
    /// Clients that one stripe needs.
    #[must_use]
    pub const fn width(self) -> usize {
        match self {
            Self::Copies { count } => count as usize,
            Self::Parity { k, m } => k as usize + m as usize,
        }
    }

    /// Data places of a stripe.
    #[must_use]
    pub const fn k(self) -> u8 {
        match self {
            Self::Copies { .. } => 1,
            Self::Parity { k, .. } => k,
        }
    }

    /// Parity rows of a stripe.
    #[must_use]
    pub const fn m(self) -> u8 {
        match self {
            Self::Copies { .. } => 0,
            Self::Parity { m, .. } => m,
        }
    }

    /// Clients that may be lost together with the server.
    #[must_use]
    pub const fn losses(self) -> u8 {
        match self {
            Self::Copies { count } => count.saturating_sub(1),
            Self::Parity { m, .. } => m,
        }
    }

    /// Bytes stored on clients for each byte of the image.
    #[must_use]
    pub fn overhead(self) -> f64 {
        match self {
            Self::Copies { count } => f64::from(count),
            Self::Parity { k, m } => f64::from(k.saturating_add(m)) / f64::from(k.max(1)),
        }
    }
}

impl std::fmt::Display for Redundancy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Copies { count: 1 } => f.write_str("1 copy"),
            Self::Copies { count } => write!(f, "{count} copies"),
            Self::Parity { k, m } => write!(f, "{k}+{m}"),
        }
    }
}

/// How an image is spread.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub redundancy: Redundancy,
    pub share: Share,
    /// The clients that hold it, ascending, at least as many as a stripe is wide.
    pub group: Vec<AgentId>,
    /// The probability that a given stripe is readable without the server.
    pub alone: f64,
}

/// Why there is no plan; the text says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "data on the clients and parity on the server take at least 2 clients: join another with `cairn-agent join`"
    )]
    OneClient,
    #[error(
        "parity on the clients protects data on 2 to {MAX_DATA} devices of the server, which has {0}: give it more with `serve --store FOLDER`, each on a disk of its own"
    )]
    Devices(usize),
    #[error("no approved client lends any space: join one with `cairn-agent join` and approve it")]
    NoClients,
    #[error(
        "the image needs {} and the clients have room for {} of it: lend at least {} more, spread over the clients",
        human(needed.0, true), human(fits.0, false), human(missing.0, true)
    )]
    TooLittleRoom {
        /// Sealed bytes of the image.
        needed: ByteCount,
        /// How many of them would fit.
        fits: ByteCount,
        /// Lent space that is missing, parity or copies included.
        missing: ByteCount,
    },
}

impl Plan {
    /// How stripes are laid out by it.
    #[must_use]
    pub const fn spread(&self) -> Spread {
        Spread { redundancy: self.redundancy, share: self.share }
    }

    /// Says what may be lost, for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        let clients = self.group.len();
        let (k, m) = (self.redundancy.k(), self.redundancy.m());
        match self.share {
            Share::All => {}
            Share::Data => {
                return format!(
                    "Any {m} of the {clients} clients may be lost, while the server lives; the server, while all of the clients live."
                );
            }
            Share::Parity => {
                let more = if m > 1 {
                    format!(", or any {} and any 1 of the clients", m - 1)
                } else {
                    String::new()
                };
                return format!(
                    "Any {m} of the server's {k} devices may be lost, while all of the {clients} clients live{more}; all of the clients, while the devices live."
                );
            }
        }
        match (self.redundancy, self.redundancy.losses()) {
            (Redundancy::Copies { .. }, 0) if clients == 1 => {
                "Either the server or the one client may be lost, not both.".to_owned()
            }
            (Redundancy::Copies { .. }, 0) => {
                format!("Either the server or any of the {clients} clients may be lost, not both.")
            }
            (_, 1) => format!(
                "The server and any 1 of the {clients} clients may be lost; all of the clients, while the server lives."
            ),
            (_, losses) => format!(
                "The server and any {losses} of the {clients} clients may be lost; all of the clients, while the server lives."
            ),
        }
    }
}

impl Plan {
    /// Says how surely the image is readable without the server, for people; nothing before a week was seen.
    #[must_use]
    pub fn hours(&self, worst: WorstHour) -> String {
        if !worst.measured {
            return String::new();
        }
        let mut text = format!(
            " Without the server it is readable {} of the time in the worst hour of use ({}).",
            percent(self.alone),
            worst.hour
        );
        if worst.out_of_use > 0 {
            text.push_str(&format!(
                " In {} hours of the week most clients are off: then only the server is sure to give it.",
                worst.out_of_use
            ));
        }
        text
    }
}

/// A probability for people, in tenths of a percent, rounded down: nothing is promised that was not computed.
fn percent(probability: f64) -> String {
    format!("{:.1} %", (probability * 1000.0).floor() / 10.0)
}

/// Plans an image of `needed` sealed bytes. Fewer bytes than a segment count as one; one short stripe is allowed for.
///
/// # Errors
/// [`Refusal`], which says what to do.
pub fn plan(candidates: &[Candidate], needed: ByteCount) -> Result<Plan, Refusal> {
    let ranked = rank(candidates);
    if ranked.is_empty() {
        return Err(Refusal::NoClients);
    }
    let needed_slots = needed.0.div_ceil(SEGMENT_MAX_BYTES as u64).max(1);
    let bounded = ranked.get(..MAX_GROUP).unwrap_or(&ranked);
    let thrifty = ranked.get(..thrifty_group(bounded)).unwrap_or(bounded);
    [thrifty, bounded, &ranked]
        .into_iter()
        .find_map(|group| choose(group, needed_slots))
        .ok_or_else(|| refuse(&ranked, needed))
}

/// How many of these clients suffice: k is at most [`MAX_DATA`], so from some number on more clients would only add parity that
/// the promise does not need.
fn thrifty_group(ranked: &[Candidate]) -> usize {
    let enough = |count: &usize| {
        let group = ranked.get(..*count).unwrap_or(ranked);
        let k = redundancy(group, *count).k();
        usize::from(k) == MAX_DATA && at_least(k.into(), &rarest(group, *count)) >= PROMISE
    };
    (MAX_DATA..ranked.len()).find(enough).unwrap_or(ranked.len())
}

/// As [`plan`], but what there is stays while it is nearly as good: a fleet whose availability hovers about a threshold must
/// not rewrite its parity to and fro, nor let clients out of a group and in again. A present redundancy stays when it keeps
/// the promise at least as well and
///
/// * is one step safer than it need be over the same clients, or
/// * stores at most [`MAX_SURPLUS`] more, where there are more clients than are needed.
///
/// # Errors
/// As [`plan`].
pub fn plan_again(
    candidates: &[Candidate],
    needed: ByteCount,
    present: Option<Redundancy>,
) -> Result<Plan, Refusal> {
    let next = plan(candidates, needed)?;
    let (Some(present), Redundancy::Parity { .. }) = (present, next.redundancy) else {
        return Ok(next);
    };
    let ranked = rank(candidates);
    let one_step_safer =
        present.width() == next.redundancy.width() && present.k() + 1 == next.redundancy.k();
    let surplus = present.overhead() / next.redundancy.overhead() - 1.0;
    let as_good = next.group.len() < ranked.len() && (0.0..=MAX_SURPLUS).contains(&surplus);
    let size = if one_step_safer {
        next.group.len()
    } else {
        let holders = ranked.iter().filter(|candidate| candidate.holds).count();
        holders.clamp(present.width(), MAX_GROUP.max(present.width()))
    };
    let Some(group) = ranked.get(..size).filter(|_| one_step_safer || as_good) else {
        return Ok(next);
    };
    let rooms: Vec<_> = group.iter().map(Candidate::slots).collect();
    let needed_slots = needed.0.div_ceil(SEGMENT_MAX_BYTES as u64).max(1);
    let fits =
        needed_slots.div_ceil(present.k().into()) <= stripes_that_fit(&rooms, present.width());
    let alone = at_least(present.k().into(), &rarest(group, present.width()));
    if !fits || alone < next.alone.min(PROMISE) {
        return Ok(next);
    }
    let mut members: Vec<_> = group.iter().map(|candidate| candidate.agent).collect();
    members.sort_unstable();
    Ok(Plan { redundancy: present, share: Share::All, alone, group: members })
}

/// Plans a whole copy of `needed` sealed bytes, striped over all clients that have room.
///
/// # Errors
/// [`Refusal`], which says what to do.
pub fn plan_mirror(candidates: &[Candidate], needed: ByteCount) -> Result<Plan, Refusal> {
    plan_share(candidates, needed, |_| Ok((Redundancy::Copies { count: 1 }, Share::All)))
}

/// Plans data striped over the clients, with parity on the server: as much of it as makes [`PROMISE`] hold while the server
/// lives, at most half as many segments, rounded up, as there are of data: the server has little disk.
///
/// # Errors
/// [`Refusal`], which says what to do.
pub fn plan_server_parity(candidates: &[Candidate], needed: ByteCount) -> Result<Plan, Refusal> {
    plan_share(candidates, needed, |ranked| {
        let width = ranked.len().min(MAX_DATA);
        let k = u8::try_from(width).unwrap_or(u8::MAX);
        if k < 2 {
            return Err(Refusal::OneClient);
        }
        let rarest = rarest(ranked, width);
        let suffices = |m: &u8| at_least(usize::from(k - m), &rarest) >= PROMISE;
        let half = k.div_ceil(2);
        let m = (1..half).find(suffices).unwrap_or(half);
        Ok((Redundancy::Parity { k, m }, Share::Data))
    })
}

/// Plans parity on the clients for data that is striped over so many devices of the server: two rows from 4 clients on, so
/// that one client may be lost together with a device. One device has to be left: roots are on devices only.
///
/// # Errors
/// [`Refusal`], which says what to do.
pub fn plan_client_parity(
    candidates: &[Candidate],
    needed: ByteCount,
    devices: usize,
) -> Result<Plan, Refusal> {
    let k = u8::try_from(devices).ok().filter(|k| (2..=MAX_DATA).contains(&usize::from(*k)));
    let k = k.ok_or(Refusal::Devices(devices))?;
    plan_share(candidates, needed, |ranked| {
        let m = if ranked.len() < 4 || k < 3 { 1 } else { 2 };
        Ok((Redundancy::Parity { k, m }, Share::Parity))
    })
}

/// A plan over all clients that have room.
fn plan_share(
    candidates: &[Candidate],
    needed: ByteCount,
    decide: impl FnOnce(&[Candidate]) -> Result<(Redundancy, Share), Refusal>,
) -> Result<Plan, Refusal> {
    let ranked = rank(candidates);
    if ranked.is_empty() {
        return Err(Refusal::NoClients);
    }
    let (redundancy, share) = decide(&ranked)?;
    let width = match share {
        Share::All => redundancy.width(),
        Share::Data => redundancy.k().into(),
        Share::Parity => redundancy.m().into(),
    };
    let segment = SEGMENT_MAX_BYTES as u64;
    let rooms: Vec<_> = ranked.iter().map(Candidate::slots).collect();
    let needed_stripes = needed.0.div_ceil(segment).max(1).div_ceil(redundancy.k().into());
    let fits = stripes_that_fit(&rooms, width);
    if needed_stripes > fits {
        let missing = (needed_stripes - fits).saturating_mul(width as u64);
        return Err(Refusal::TooLittleRoom {
            needed,
            fits: ByteCount(fits.saturating_mul(u64::from(redundancy.k()) * segment)),
            missing: ByteCount(missing.saturating_mul(segment)),
        });
    }
    let alone = match share {
        Share::All => at_least(redundancy.k().into(), &rarest(&ranked, width)),
        // Without the server there is no parity, or no data.
        Share::Data => at_least(width, &rarest(&ranked, width)),
        Share::Parity => 0.0,
    };
    let mut group: Vec<_> = ranked.iter().map(|candidate| candidate.agent).collect();
    group.sort_unstable();
    Ok(Plan { redundancy, share, group, alone })
}

/// The stripes of `width` different clients each that fit into the clients' room.
///
/// By Gale and Ryser, `s` stripes fit exactly when `Σ min(room, s) ≥ width · s`; the left side grows ever slower with `s`, so
/// the largest such `s` is found by bisection.
#[must_use]
pub fn stripes_that_fit(rooms: &[u64], width: usize) -> u64 {
    let width = width as u128;
    if width == 0 {
        return 0;
    }
    let fits = |stripes: u64| {
        let room: u128 = rooms.iter().map(|room| u128::from(*room.min(&stripes))).sum();
        room >= width * u128::from(stripes)
    };
    let all: u128 = rooms.iter().map(|room| u128::from(*room)).sum();
    let (mut low, mut high) = (0, u64::try_from(all / width).unwrap_or(u64::MAX));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// The probability that at least `k` of these clients are there, each independently of the others.
#[must_use]
pub fn at_least(k: usize, availabilities: &[f64]) -> f64 {
    // `exactly[n]`: the probability that n of those seen so far are there.
    let mut exactly = vec![0.0; availabilities.len() + 1];
    exactly[0] = 1.0;
    for (seen, there) in availabilities.iter().enumerate() {
        let there = if there.is_nan() { 0.0 } else { there.clamp(0.0, 1.0) };
        for n in (0..=seen).rev() {
            exactly[n + 1] += exactly[n] * there;
            exactly[n] *= 1.0 - there;
        }
    }
    exactly.iter().skip(k).sum()
}

/// Clients with room for a segment, the best members of a group first: holders, then by room, then by id.
fn rank(candidates: &[Candidate]) -> Vec<Candidate> {
    let mut seen = HashSet::new();
    let mut ranked: Vec<_> =
        candidates.iter().filter(|c| c.slots() > 0 && seen.insert(c.agent)).copied().collect();
    ranked.sort_by_key(|c| (!c.holds, std::cmp::Reverse(c.slots()), c.agent));
    ranked
}

/// Widths that a group may be given, the widest first. Down to 3 for the sake of unequal lenders; only fewer clients get copies.
fn widths(clients: usize) -> impl Iterator<Item = usize> + Clone {
    let narrowest = clients.saturating_sub(1).clamp(1, 3);
    (narrowest..=clients.min(MAX_GROUP)).rev()
}

fn choose(group: &[Candidate], needed_slots: u64) -> Option<Plan> {
    let rooms: Vec<_> = group.iter().map(Candidate::slots).collect();
    let fits = |width: usize| {
        let stripes = stripes_that_fit(&rooms, width);
        needed_slots.div_ceil(redundancy(group, width).k().into()) <= stripes
    };
    let used = |width: usize| stripes_that_fit(&rooms, width).saturating_mul(width as u64);
    let widths = widths(group.len());
    let best = widths.clone().map(used).max().unwrap_or(0);
    let wasteful = |width: usize| ratio(used(width), best) < 1.0 - MAX_WASTE;
    let thrifty = widths.clone().find(|width| !wasteful(*width) && fits(*width));
    let width = thrifty.or_else(|| widths.clone().find(|width| fits(*width)))?;
    let redundancy = redundancy(group, width);
    let mut members: Vec<_> = group.iter().map(|c| c.agent).collect();
    members.sort_unstable();
    let alone = at_least(redundancy.k().into(), &rarest(group, width));
    Some(Plan { redundancy, share: Share::All, group: members, alone })
}

/// What a stripe over `width` clients of the group is made of.
fn redundancy(group: &[Candidate], width: usize) -> Redundancy {
    let count = u8::try_from(width).unwrap_or(u8::MAX);
    match width {
        0..=2 => Redundancy::Copies { count },
        3 => Redundancy::Parity { k: 2, m: 1 },
        _ => {
            let rarest = rarest(group, width);
            let half = width.div_ceil(2);
            let k = (half..=width - 2)
                .rev()
                .find(|k| at_least(*k, &rarest) >= PROMISE)
                .unwrap_or(half)
                .min(MAX_DATA);
            let k = u8::try_from(k).unwrap_or(u8::MAX);
            Redundancy::Parity { k, m: count.saturating_sub(k) }
        }
    }
}

/// The availabilities of the `width` members that are there least often: no stripe has a worse set.
fn rarest(group: &[Candidate], width: usize) -> Vec<f64> {
    let mut all: Vec<_> = group.iter().map(|c| c.availability).collect();
    all.sort_by(f64::total_cmp);
    all.truncate(width);
    all
}

fn refuse(ranked: &[Candidate], needed: ByteCount) -> Refusal {
    let rooms: Vec<_> = ranked.iter().map(Candidate::slots).collect();
    let segment = SEGMENT_MAX_BYTES as u64;
    let (fits, redundancy) = widths(ranked.len())
        .map(|width| (redundancy(ranked, width), stripes_that_fit(&rooms, width)))
        .map(|(redundancy, stripes)| (stripes.saturating_mul(redundancy.k().into()), redundancy))
        .max_by_key(|(slots, redundancy)| (*slots, redundancy.width()))
        .unwrap_or((0, Redundancy::Copies { count: 1 }));
    let missing = needed.0.div_ceil(segment).max(1).saturating_sub(fits);
    let stripes = missing.div_ceil(redundancy.k().into());
    Refusal::TooLittleRoom {
        needed,
        fits: ByteCount(fits.saturating_mul(segment)),
        missing: ByteCount(
            stripes.saturating_mul(redundancy.width() as u64).saturating_mul(segment),
        ),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of sizes, compared with a percentage")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A size for people, in tenths: rounded up when it is needed, down when it is there.
fn human(bytes: u64, up: bool) -> String {
    let (unit, name) = match bytes {
        0x4000_0000.. => (1_u128 << 30, "GiB"),
        0x10_0000.. => (1 << 20, "MiB"),
        _ => (1 << 10, "KiB"),
    };
    let tenfold = u128::from(bytes) * 10;
    let tenths = if up { tenfold.div_ceil(unit) } else { tenfold / unit };
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests;
