//! Who holds which shard: a table computed by quotas.
//!
//! Each holder's quota is proportional to its room, and at most one shard of each stripe. The table starts from where shards are
//! now, fills the places that nobody holds, then moves shards from those above their quota to those below it, and nothing else:
//! who joins receives his share, who leaves gives his share away. Who comes back with shards that were made anew meanwhile gets
//! those as his share before any others: they are there already.
//!
//! Where a direct move is impossible because everyone below his quota already has a shard of every stripe in question, a chain of moves
//! is searched (the augmenting path of a bipartite flow):
//!
//! ```text
//!   stripe 7 needs a holder ──► a takes it, and gives ──► b a shard of stripe 3, in which b had none
//! ```
//!
//! Invariants: no holder has two shards of a stripe; no holder has more shards than it has room for; the same input gives the
//! same table; a shard whose holder is not above its quota stays.

use std::collections::VecDeque;

use crate::stripe_map::{HolderIndex, MAX_HOLDERS};

/// Who holds each shard of a stripe, by place; `None` where nobody does yet.
pub type Row = Vec<Option<HolderIndex>>;

/// A holder that has the shard of a place although the place is not its own: a move to it costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    pub stripe: usize,
    pub place: usize,
    pub holder: HolderIndex,
}

/// Why shards cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error(
        "{shards} shards do not fit: the holders have room for {room}, one of each stripe at most"
    )]
    NoRoom { shards: u64, room: u64 },
    #[error("{count} holders, at most {MAX_HOLDERS} are possible")]
    TooManyHolders { count: usize },
}

/// How many shards each holder shall have, when there are `shards` in `stripes` stripes: proportional to its room (in shards), at
/// most its room and one per stripe. Left-overs of rounding go first to those whose `load` is above the rounded share, so that
/// rounding alone moves nothing.
///
/// # Errors
/// [`PlaceError::NoRoom`].
pub fn quotas(
    rooms: &[u64],
    loads: &[u64],
    stripes: u64,
    shards: u64,
) -> Result<Vec<u64>, PlaceError> {
    let caps: Vec<_> = rooms.iter().map(|room| (*room).min(stripes)).collect();
    let room = caps.iter().sum();
    if shards > room {
        return Err(PlaceError::NoRoom { shards, room });
    }
    let mut quotas = vec![0; rooms.len()];
    let mut open: Vec<_> = (0..rooms.len()).collect();
    let mut left = shards;
    // Give everyone his share; whoever reaches his cap drops out and the others share again.
    let mut shares = loop {
        let weight: u128 = open.iter().map(|h| u128::from(rooms[*h])).sum::<u128>().max(1);
        let exact = |h: usize| u128::from(left) * u128::from(rooms[h]);
        let (full, rest): (Vec<usize>, Vec<usize>) =
            open.into_iter().partition(|h| exact(*h) / weight >= u128::from(caps[*h]));
        open = rest;
        if full.is_empty() {
            let shares = open.iter().map(|h| (*h, exact(*h) / weight, exact(*h) % weight));
            break shares.collect::<Vec<_>>();
        }
        for h in full {
            quotas[h] = caps[h];
            left -= caps[h];
        }
    };
    for (h, share, _) in &shares {
        quotas[*h] = u64::try_from(*share).unwrap_or(u64::MAX);
        left -= quotas[*h];
    }
    shares.sort_by_key(|(h, _, rest)| {
        (loads.get(*h).copied().unwrap_or(0) <= quotas[*h], std::cmp::Reverse(*rest), *h)
    });
    for (h, ..) in shares.iter().cycle().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        quotas[*h] += 1;
    }
    Ok(quotas)
}

/// Places every shard. `now` has a row for each stripe; `rooms` are in shards. Spares that name nothing are ignored.
///
/// # Errors
/// [`PlaceError`] when there is not enough room, or not enough holders for the widest stripe.
pub fn place(
    now: &[Row],
    spares: &[Spare],
    rooms: &[u64],
) -> Result<Vec<Vec<HolderIndex>>, PlaceError> {
    if rooms.len() > MAX_HOLDERS {
        return Err(PlaceError::TooManyHolders { count: rooms.len() });
    }
    let mut table = Table::new(now, rooms)?;
    // Open places first: who gets one has no need of another's.
    for open in [true, false] {
        spares.iter().for_each(|spare| table.reuse(*spare, open));
    }
    for stripe in 0..now.len() {
        table.fill(stripe)?;
    }
    table.level();
    table
        .rows
        .into_iter()
        .map(|row| row.into_iter().collect::<Option<_>>())
        .collect::<Option<_>>()
        .ok_or(PlaceError::NoRoom { shards: shard_count(now), room: rooms.iter().sum() })
}

fn shard_count(rows: &[Row]) -> u64 {
    rows.iter().map(|row| row.len() as u64).sum()
}

struct Table {
    rows: Vec<Row>,
    quotas: Vec<u64>,
    rooms: Vec<u64>,
    loads: Vec<u64>,
}

impl Table {
    /// The table as it is now, without holders that are unknown, have two shards of a stripe, or more than they have room for.
    fn new(now: &[Row], rooms: &[u64]) -> Result<Self, PlaceError> {
        let mut loads = vec![0; rooms.len()];
        let mut rows = now.to_vec();
        for row in &mut rows {
            for place in 0..row.len() {
                let (before, rest) = row.split_at_mut(place);
                let Some(holder) = rest[0] else { continue };
                let h = usize::from(holder.0);
                if h >= rooms.len() || before.contains(&rest[0]) || loads[h] >= rooms[h] {
                    rest[0] = None;
                } else {
                    loads[h] += 1;
                }
            }
        }
        let quotas = quotas(rooms, &loads, now.len() as u64, shard_count(now))?;
        Ok(Self { rows, quotas, rooms: rooms.to_vec(), loads })
    }

    fn has(&self, stripe: usize, holder: usize) -> bool {
        self.rows[stripe].iter().flatten().any(|held| usize::from(held.0) == holder)
    }

    fn set(&mut self, stripe: usize, place: usize, holder: usize) {
        if let Some(old) = self.rows[stripe][place] {
            self.loads[usize::from(old.0)] -= 1;
        }
        // `place` refused more holders than an index can name.
        self.rows[stripe][place] = u16::try_from(holder).ok().map(HolderIndex);
        self.loads[holder] += 1;
    }

    fn lack(&self, holder: usize) -> u64 {
        self.quotas[holder].saturating_sub(self.loads[holder])
    }

    fn excess(&self, holder: usize) -> u64 {
        self.loads[holder].saturating_sub(self.quotas[holder])
    }

    /// How far from its quota a holder may stay: exactness in the last percent would cost chains of moves.
    fn slack(&self, holder: usize) -> u64 {
        1 + self.quotas[holder] / 64
    }

    /// Whether a move is worth its bytes: one of the two is further from its quota than the slack.
    fn worth(&self, from: usize, to: usize) -> bool {
        let (excess, lack) = (self.excess(from), self.lack(to));
        (excess > 0 && lack > self.slack(to)) || (lack > 0 && excess > self.slack(from))
    }

    /// The holder that lacks most and has nothing of the stripe.
    fn neediest(&self, stripe: usize) -> Option<usize> {
        (0..self.loads.len())
            .filter(|holder| self.lack(*holder) > 0 && !self.has(stripe, *holder))
            .max_by_key(|holder| (self.lack(*holder), shuffle(stripe, *holder)))
    }

    /// Up to `count` holders that have nothing of the stripe, each drawn with a chance proportional to what it lacks
    /// (systematic sampling in a shuffled order; who lacks a whole step or more is always drawn).
    ///
    /// Drawing the neediest each time would pair the same holders over and over, and when one of them left, the other
    /// could take nothing over from it.
    fn draw(&self, stripe: usize, count: usize) -> Vec<usize> {
        let mut needy: Vec<_> = (0..self.loads.len())
            .filter(|holder| self.lack(*holder) > 0 && !self.has(stripe, *holder))
            .collect();
        needy.sort_by_key(|holder| (std::cmp::Reverse(self.lack(*holder)), *holder));
        let mut total: u128 = needy.iter().map(|holder| u128::from(self.lack(*holder))).sum();
        let mut drawn = Vec::with_capacity(count);
        while let Some(first) = needy.first().copied()
            && drawn.len() < count
            && u128::from(self.lack(first)) * (count - drawn.len()) as u128 >= total
        {
            drawn.push(needy.remove(0));
            total -= u128::from(self.lack(first));
        }
        let rest = (count - drawn.len()) as u128;
        needy.sort_by_key(|holder| shuffle(stripe, *holder));
        // Everything is counted in units of 1/rest, so that the step is a whole number: the total.
        let mut at = if total == 0 { 0 } else { u128::from(shuffle(stripe, usize::MAX)) % total };
        for holder in needy {
            let lack = u128::from(self.lack(holder)) * rest;
            if at < lack {
                drawn.push(holder);
                at += total;
            }
            at -= lack;
        }
        drawn
    }

    /// The holder that is least above its quota, within the slack and its room, and has nothing of the stripe.
    fn tolerant(&self, stripe: usize) -> Option<usize> {
        (0..self.loads.len())
            .filter(|h| self.excess(*h) < self.slack(*h) && self.loads[*h] < self.rooms[*h])
            .filter(|h| !self.has(stripe, *h))
            .min_by_key(|h| self.excess(*h))
    }

    /// Gives a place to who has its shard already, when that brings him nearer to his quota.
    fn reuse(&mut self, spare: Spare, open: bool) {
        let Spare { stripe, place, holder } = spare;
        let to = usize::from(holder.0);
        let held = self.rows.get(stripe).and_then(|row| row.get(place)).copied();
        let Some(held) = held.filter(|_| to < self.loads.len() && !self.has(stripe, to)) else {
            return;
        };
        let helps = match held {
            None => open && self.lack(to) > 0,
            Some(from) => !open && self.worth(usize::from(from.0), to),
        };
        if helps {
            self.set(stripe, place, to);
        }
    }

    /// Finds a holder for each place of a stripe that has none.
    fn fill(&mut self, stripe: usize) -> Result<(), PlaceError> {
        let open: Vec<_> =
            (0..self.rows[stripe].len()).filter(|at| self.rows[stripe][*at].is_none()).collect();
        let mut drawn = self.draw(stripe, open.len());
        drawn.sort_by_key(|holder| shuffle(!stripe, *holder));
        let mut drawn = drawn.into_iter();
        for place in open {
            if let Some(holder) = drawn.next().or_else(|| self.tolerant(stripe)) {
                self.set(stripe, place, holder);
                continue;
            }
            let starts: Vec<_> = (0..self.loads.len()).filter(|h| !self.has(stripe, *h)).collect();
            let path = self
                .path(&starts, |h| self.lack(h) > 0)
                .or_else(|| self.path(&starts, |h| self.loads[h] < self.rooms[h]));
            let Some(path) = path else {
                let room = self.rooms.iter().sum();
                return Err(PlaceError::NoRoom { shards: shard_count(&self.rows), room });
            };
            let first = path.holder;
            self.walk(path);
            self.set(stripe, place, first);
        }
        Ok(())
    }

    /// Moves shards from those above their quota to those below it.
    fn level(&mut self) {
        let stripes = self.rows.len();
        // A stride prime to the count, near the golden ratio, visits all stripes in an order that spreads a newcomer's shards.
        let mut stride = (stripes * 618 / 1000).max(1);
        while gcd(stride, stripes) != 1 {
            stride += 1;
        }
        for stripe in (0..stripes).map(|turn| turn * stride % stripes) {
            for place in 0..self.rows[stripe].len() {
                let Some(held) = self.rows[stripe][place] else { continue };
                let holder = usize::from(held.0);
                if self.excess(holder) == 0 {
                    continue;
                }
                let needy = self.neediest(stripe).filter(|needy| self.worth(holder, *needy));
                if let Some(needy) = needy {
                    self.set(stripe, place, needy);
                }
            }
        }
        while let Some(path) = self.worthy_path() {
            self.walk(path);
        }
    }

    /// A chain of moves between two holders that are worth it. Each one brings both nearer to their quotas.
    fn worthy_path(&self) -> Option<Path> {
        let count = self.loads.len();
        let above = (0..count).filter(|h| self.excess(*h) > 0);
        above
            .filter(|from| (0..count).any(|to| self.worth(*from, to)))
            .find_map(|from| self.path(&[from], |to| self.worth(from, to)))
    }

    /// The shortest chain of moves from one of `starts` to a holder that is an `end`.
    fn path(&self, starts: &[usize], end: impl Fn(usize) -> bool) -> Option<Path> {
        let mut came: Vec<Option<Step>> = vec![None; self.loads.len()];
        let mut seen = vec![false; self.loads.len()];
        let mut queue = VecDeque::new();
        for start in starts {
            seen[*start] = true;
            queue.push_back(*start);
        }
        while let Some(holder) = queue.pop_front() {
            if end(holder) {
                return Some(Path::back(holder, &came));
            }
            for (stripe, row) in self.rows.iter().enumerate() {
                let mine = |held: &Option<HolderIndex>| {
                    held.is_some_and(|held| usize::from(held.0) == holder)
                };
                let Some(place) = row.iter().position(mine) else { continue };
                let mut rest = false;
                for next in 0..seen.len() {
                    if seen[next] {
                        continue;
                    }
                    if self.has(stripe, next) {
                        rest = true;
                        continue;
                    }
                    seen[next] = true;
                    came[next] = Some(Step { stripe, place, from: holder });
                    queue.push_back(next);
                }
                if !rest {
                    break;
                }
            }
        }
        None
    }

    fn walk(&mut self, path: Path) {
        // From the far end, so that no holder is ever above its room on the way.
        for (step, to) in path.steps.into_iter().rev() {
            self.set(step.stripe, step.place, to);
        }
    }
}

/// A move of one shard, away from the holder it was reached from.
#[derive(Clone, Copy)]
struct Step {
    stripe: usize,
    place: usize,
    from: usize,
}

/// A chain of moves; `holder` is where it starts and ends up with one shard less.
struct Path {
    holder: usize,
    steps: Vec<(Step, usize)>,
}

impl Path {
    fn back(end: usize, came: &[Option<Step>]) -> Self {
        let mut steps = Vec::new();
        let mut holder = end;
        while let Some(step) = came[holder] {
            steps.push((step, holder));
            holder = step.from;
        }
        steps.reverse();
        Self { holder, steps }
    }
}

/// A number that looks random and is always the same for a stripe and a holder (the finaliser of SplitMix64).
const fn shuffle(stripe: usize, holder: usize) -> u64 {
    let mut x =
        (stripe as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (holder as u64).rotate_left(32);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
