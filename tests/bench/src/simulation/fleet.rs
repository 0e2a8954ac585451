//! A year of clients that are switched on and off, lose their disks, go away and come back.
//!
//! The server of this simulation does what the real one does: it counts who is there, plans anew once a day and when somebody is
//! lost, publishes a stripe map when everybody who is there holds his part, and lets go of what the map before it named
//! when all do. Sending takes an hour.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context as _, Result};
use cairn_core::{
    availability::{HourOfWeek, Tally, Week, worst_hour},
    id::{AgentId, SegmentId, StripeSetId},
    layout::{DataSegment, Held, Layout, Member, converge},
    planner::{Candidate, Redundancy, plan_again},
    stripe_map::{StripeIndex, StripeMap},
    units::{ByteCount, Generation, SEGMENT_MAX_BYTES},
};

use super::{
    agent,
    presence::{DAY, Presence, WEEK, YEAR},
};
use crate::random::Random;

const SEED: u64 = 0x7965_6172;
/// As the server: away for longer is lost.
const LOST_AFTER: u32 = WEEK;
/// Looks that are counted in an hour; the server looks once a minute.
const LOOKS: u32 = 10;
/// Disks that are lost in a year, and those of them whose machine never comes back.
const DISKS_A_YEAR: f64 = 0.05;
const NEVER_BACK: f64 = 0.4;

/// Why something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    First,
    Lost,
    /// Another redundancy, since availability was measured.
    Measured,
    Moved,
}

#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) disks: u32,
    pub(super) away: u32,
    /// Bytes that were on lost disks, and on those of clients that were away for too long.
    pub(super) lost: u64,
    sent: BTreeMap<Cause, u64>,
    /// Bytes on clients at the end.
    pub(super) stored: u64,
    /// Hours times images; those in hours of use; and those of both that were readable without the server.
    pub(super) hours: u64,
    pub(super) in_use: u64,
    pub(super) readable: u64,
    pub(super) readable_in_use: u64,
    /// Hours times images in which no more was missing than may be, and the image was not readable.
    pub(super) broken: u64,
    pub(super) plans: u64,
}

impl Outcome {
    pub(super) fn sent(&self, cause: Cause) -> u64 {
        self.sent.get(&cause).copied().unwrap_or(0)
    }
}

type Number = usize;

#[derive(Debug)]
struct Client {
    presence: Presence,
    week: Vec<Tally>,
    slots: u64,
    seen: u32,
    gone: bool,
    /// It counts as lost.
    lost: bool,
}

#[derive(Debug)]
struct Missing {
    id: SegmentId,
    bytes: u32,
    cause: Cause,
}

#[derive(Debug)]
struct Image {
    id: StripeSetId,
    data: Vec<DataSegment>,
    redundancy: Option<Redundancy>,
    published: Option<StripeMap>,
    next: Option<StripeMap>,
    held: HashSet<(Number, SegmentId)>,
    missing: BTreeMap<Number, Vec<Missing>>,
    /// How many shards each client holds or shall.
    taken: HashMap<Number, u64>,
}

#[derive(Debug)]
pub(super) struct Year {
    random: Random,
    losses: bool,
    clients: Vec<Client>,
    images: Vec<Image>,
    /// Slots of each client that images take.
    taken: Vec<u64>,
    on: Vec<bool>,
    outcome: Outcome,
}

fn number(agent: AgentId) -> Number {
    let [.., a, b, c, d] = agent.0;
    u32::from_be_bytes([a, b, c, d]) as Number - 1
}

fn pairs(map: Option<&StripeMap>) -> impl Iterator<Item = (Number, SegmentId, u32)> {
    map.into_iter().flat_map(|map| {
        let shards = map.stripes.iter().flat_map(|stripe| stripe.shards().map(|(_, shard)| shard));
        shards.flat_map(|shard| {
            map.agents(shard).map(move |agent| (number(agent), shard.id, shard.bytes))
        })
    })
}

impl Year {
    pub(super) fn new(clients: u32, images: u32, segments: u32, losses: bool) -> Self {
        let mut random = Random::new(SEED);
        let clients: Vec<_> = (0..clients)
            .map(|_| Client {
                presence: Presence::draw(&mut random, losses),
                week: vec![Tally::default(); WEEK as usize],
                // 4 to 40 GiB.
                slots: 1024 * (1 + random.below(10)),
                seen: 0,
                gone: false,
                lost: false,
            })
            .collect();
        let images = (0..images).map(|image| Image::new(image, segments)).collect();
        let (taken, on) = (vec![0; clients.len()], vec![false; clients.len()]);
        Self { random, losses, clients, images, taken, on, outcome: Outcome::default() }
    }

    pub(super) fn run(mut self) -> Result<Outcome> {
        let mut most_on = 0;
        for hour in 0..YEAR {
            self.look(hour)?;
            if self.losses {
                self.lose_disks();
            }
            let affected = self.note_lost(hour);
            let daily = hour % DAY == 9;
            if daily || !affected.is_empty() {
                self.plan(hour, (!daily).then_some(&affected), &affected)?;
            }
            self.send();
            let on = self.on.iter().filter(|on| **on).count();
            most_on = most_on.max(on);
            self.judge(on * 2 >= most_on);
        }
        let stored = self.images.iter().flat_map(|image| pairs(image.published.as_ref()));
        self.outcome.stored = stored.map(|(.., bytes)| u64::from(bytes)).sum();
        Ok(self.outcome)
    }

    fn look(&mut self, hour: u32) -> Result<()> {
        let of_week = usize::try_from(hour % WEEK).context("an hour of the week")?;
        for (client, on) in self.clients.iter_mut().zip(&mut self.on) {
            *on = !client.gone && client.presence.is_on(hour);
            let tally = client.week.get_mut(of_week).context("find the hour")?;
            *tally = (0..LOOKS).fold(*tally, |tally, _| tally.and(*on));
            if *on {
                client.seen = hour;
                client.lost = false;
            }
        }
        Ok(())
    }

    fn lose_disks(&mut self) {
        for number in 0..self.clients.len() {
            if !self.random.happens(DISKS_A_YEAR / f64::from(YEAR)) || self.clients[number].gone {
                continue;
            }
            self.outcome.disks += 1;
            self.clients[number].gone = self.random.happens(NEVER_BACK);
            for image in &mut self.images {
                // What counted as lost already is not lost twice.
                let lost = image.lose(number);
                self.outcome.lost += if self.clients[number].gone { 0 } else { lost };
            }
        }
    }

    /// The images that have lost a holder in this hour.
    fn note_lost(&mut self, hour: u32) -> BTreeSet<usize> {
        let mut affected = BTreeSet::new();
        for (number, client) in self.clients.iter_mut().enumerate() {
            if client.lost || hour - client.seen <= LOST_AFTER {
                continue;
            }
            client.lost = true;
            self.outcome.away += u32::from(!client.gone);
            for (at, image) in self.images.iter().enumerate() {
                if image.taken.contains_key(&number) {
                    affected.insert(at);
                    let its = pairs(image.published.as_ref()).filter(|(who, ..)| *who == number);
                    self.outcome.lost += its.map(|(.., bytes)| u64::from(bytes)).sum::<u64>();
                }
            }
        }
        affected
    }

    fn plan(
        &mut self,
        hour: u32,
        only: Option<&BTreeSet<usize>>,
        affected: &BTreeSet<usize>,
    ) -> Result<()> {
        let there: Vec<_> = (0..self.clients.len())
            .filter(|number| !self.clients[*number].lost && !self.clients[*number].gone)
            .collect();
        let weeks: Vec<_> = there.iter().map(|number| self.clients[*number].week()).collect();
        let worst = worst_hour(&weeks).hour;
        let availability: Vec<_> = weeks.iter().map(|week| week.estimate(worst)).collect();
        for at in 0..self.images.len() {
            if only.is_some_and(|only| !only.contains(&at)) {
                continue;
            }
            let image = &self.images[at];
            let holders: BTreeSet<_> = image.holders();
            let candidates: Vec<_> = there
                .iter()
                .zip(&availability)
                .map(|(number, availability)| {
                    let own = image.taken.get(number).copied().unwrap_or(0);
                    let others = self.taken[*number] - own;
                    let room = self.clients[*number].slots.saturating_sub(others);
                    Candidate {
                        agent: agent_of(*number),
                        room: ByteCount(room * SEGMENT_MAX_BYTES as u64),
                        availability: *availability,
                        holds: holders.contains(number),
                    }
                })
                .collect();
            self.outcome.plans += 1;
            for number in image.taken.keys() {
                self.taken[*number] -= image.taken[number];
            }
            let image = &mut self.images[at];
            image.converge(&candidates, affected.contains(&at), hour)?;
            for (number, count) in &image.taken {
                self.taken[*number] += count;
            }
        }
        Ok(())
    }

    /// Who is on gets what it shall hold.
    fn send(&mut self) {
        for image in &mut self.images {
            let reached: Vec<_> =
                image.missing.keys().copied().filter(|number| self.on[*number]).collect();
            for number in reached {
                for Missing { id, bytes, cause } in
                    image.missing.remove(&number).unwrap_or_default()
                {
                    if image.held.insert((number, id)) {
                        *self.outcome.sent.entry(cause).or_default() += u64::from(bytes);
                    }
                }
            }
            if image.next.is_some() {
                // Nobody waits for those that are off.
                image.publish(|number| self.clients[number].lost);
            }
        }
    }

    fn judge(&mut self, in_use: bool) {
        for image in &self.images {
            let Some(map) = &image.published else { continue };
            let (readable, unavailable) = image.readable(map, &self.on);
            let losses = image.redundancy.map_or(0, Redundancy::losses);
            let outcome = &mut self.outcome;
            outcome.hours += 1;
            outcome.in_use += u64::from(in_use);
            outcome.readable += u64::from(readable);
            outcome.readable_in_use += u64::from(readable && in_use);
            outcome.broken += u64::from(!readable && unavailable <= usize::from(losses));
        }
    }
}

impl Client {
    fn week(&self) -> Week {
        let mut week = Week::default();
        for (hour, tally) in (0..).zip(&self.week) {
            if let Some(hour) = HourOfWeek::new(hour) {
                week.set(hour, *tally);
            }
        }
        week
    }
}

fn agent_of(number: Number) -> AgentId {
    agent(u32::try_from(number).unwrap_or(u32::MAX - 1))
}

impl Image {
    fn new(number: u32, segments: u32) -> Self {
        let segment = |at: u32| DataSegment {
            id: SegmentId::of(&[number.to_le_bytes(), at.to_le_bytes()].concat()),
            bytes: 4 << 20,
            device: 0,
        };
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        Self {
            id: StripeSetId(id),
            data: (0..segments).map(segment).collect(),
            redundancy: None,
            published: None,
            next: None,
            held: HashSet::new(),
            missing: BTreeMap::new(),
            taken: HashMap::new(),
        }
    }

    fn holders(&self) -> BTreeSet<Number> {
        let map = self.published.iter();
        map.flat_map(|map| &map.holders).map(|agent| number(*agent)).collect()
    }

    /// Its disk is new. Returns the bytes that were on it.
    fn lose(&mut self, client: Number) -> u64 {
        if !self.held.iter().any(|(who, _)| *who == client) {
            return 0;
        }
        self.held.retain(|(who, _)| *who != client);
        let wanted = pairs(self.published.as_ref()).chain(pairs(self.next.as_ref()));
        let wanted: HashMap<_, _> =
            wanted.filter(|(who, ..)| *who == client).map(|(_, id, bytes)| (id, bytes)).collect();
        let lost = wanted.values().map(|bytes| u64::from(*bytes)).sum();
        let missing = wanted.into_iter();
        let missing = missing.map(|(id, bytes)| Missing { id, bytes, cause: Cause::Lost });
        if lost > 0 {
            self.missing.insert(client, missing.collect());
        }
        lost
    }

    /// As the server's scatter: plan, layout, and who is to get what.
    fn converge(&mut self, candidates: &[Candidate], lost: bool, hour: u32) -> Result<()> {
        let needed = self.data.iter().map(|segment| u64::from(segment.bytes)).sum();
        let plan = plan_again(candidates, ByteCount(needed), self.redundancy)?;
        let in_group = candidates.iter().filter(|c| plan.group.binary_search(&c.agent).is_ok());
        let members: Vec<_> =
            in_group.map(|c| Member { agent: c.agent, room: c.slots() }).collect();
        let holders = self.holders();
        let mut held = Held::new();
        for (number, id) in self.held.iter().filter(|(number, _)| !holders.contains(number)) {
            held.entry(*id).or_default().push(agent_of(*number));
        }
        let layout =
            converge(self.published.as_ref(), &self.data, plan.redundancy, &members, &held)?;
        let map = self.realise(&layout, hour)?;
        let present = self.published.as_ref();
        if present.is_some_and(|now| now.stripes == map.stripes && now.holders == map.holders) {
            return Ok(());
        }
        let known: HashSet<_> = pairs(present).map(|(_, id, _)| id).collect();
        let changed = self.redundancy.is_some_and(|before| before != plan.redundancy);
        let cause = |id: &SegmentId| match self.redundancy {
            None => Cause::First,
            // A parity row that was not there before repairs nothing.
            Some(_) if changed && !(lost && known.contains(id)) => Cause::Measured,
            Some(_) if lost => Cause::Lost,
            Some(_) => Cause::Moved,
        };
        let old: HashMap<_, _> = std::mem::take(&mut self.missing)
            .into_iter()
            .flat_map(|(who, missing)| missing.into_iter().map(move |m| ((who, m.id), m.cause)))
            .collect();
        self.taken.clear();
        let mut wanted = HashSet::new();
        for (who, id, bytes) in pairs(Some(&map)).chain(pairs(present)) {
            if !wanted.insert((who, id)) {
                continue;
            }
            *self.taken.entry(who).or_default() += 1;
            if !self.held.contains(&(who, id)) {
                let cause = old.get(&(who, id)).copied().unwrap_or_else(|| cause(&id));
                self.missing.entry(who).or_default().push(Missing { id, bytes, cause });
            }
        }
        self.redundancy = Some(plan.redundancy);
        self.next = Some(map);
        Ok(())
    }

    fn realise(&self, layout: &Layout, hour: u32) -> Result<StripeMap> {
        let id = |index: StripeIndex, row: u8| {
            let name = [&self.id.0[..], &hour.to_le_bytes(), &index.0.to_le_bytes(), &[row]];
            SegmentId::of(&name.concat())
        };
        let computed: HashMap<_, _> =
            layout.to_compute().map(|(index, row, _)| ((index, row), id(index, row))).collect();
        let number = self.published.as_ref().map_or(1, |map| map.number.0 + 1);
        layout.map(self.id, Generation(number), &computed).context("complete the stripe map")
    }

    /// Publishes the next map unless somebody who is on lacks his part: [`Year::send`] has just given it to all of those.
    fn publish(&mut self, is_lost: impl Fn(Number) -> bool) {
        let Some(next) = self.next.take() else { return };
        self.published = Some(next.clone());
        let lacks = pairs(Some(&next)).any(|(who, id, _)| !self.held.contains(&(who, id)));
        if lacks {
            // What the map before it named stays, until all hold the new one.
            self.next = Some(next);
            return;
        }
        let wanted: HashSet<_> = pairs(Some(&next)).map(|(who, id, _)| (who, id)).collect();
        self.held.retain(|(who, id)| wanted.contains(&(*who, *id)) || is_lost(*who));
        self.missing.clear();
        self.taken.clear();
        for (who, _) in wanted {
            *self.taken.entry(who).or_default() += 1;
        }
    }

    /// Whether the clients that are on can give the image without the server; and how many of its holders are off or lack
    /// a part.
    fn readable(&self, map: &StripeMap, on: &[bool]) -> (bool, usize) {
        let whole = self.missing.is_empty();
        let has = |agent: AgentId, id: SegmentId| {
            let number = number(agent);
            on[number] && (whole || self.held.contains(&(number, id)))
        };
        let readable = map.stripes.iter().all(|stripe| {
            let there = stripe
                .shards()
                .filter(|(_, shard)| map.agents(shard).any(|agent| has(agent, shard.id)));
            there.count() >= stripe.data.len()
        });
        let lacks = |agent: &&AgentId| {
            let number = number(**agent);
            !on[number] || self.missing.contains_key(&number)
        };
        (readable, map.holders.iter().filter(lacks).count())
    }
}
