//! Scattering: brings what the fleet holds of a set (an image, or a volume) to what the planner wants.
//!
//! ```text
//!   plan ─► layout ─► missing parity ─► assign old and new ─► wait for the holders ─► publish the map ─► assign new only
//! ```
//!
//! Every step can be done again: after a kill the layout comes out the same, parity has the same ids, and agents that hold
//! something already say so.
//!
//! Invariants: a stripe map is published when every client that is there holds its part; what the map before it named is
//! dropped only when the new one is held in full.

mod parity;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cairn_array::{dsf::SlotCount, wire::SegmentClass};
use cairn_core::{
    availability::{WorstHour, worst_hour},
    id::{AgentId, SegmentId, StripeSetId, VersionId},
    layout::{DataSegment, Held, Layout, Member, Share, converge as lay_out},
    planner::{
        Candidate, Plan, Redundancy, Refusal, plan_again, plan_client_parity, plan_mirror,
        plan_server_parity,
    },
    stripe_map::StripeMap,
    units::{ByteCount, Generation, SEGMENT_MAX_BYTES},
};

use crate::{
    app::App,
    bundle::{segments_of, slots_taken},
    db::{
        agent::AgentRow,
        stripe_set::{KeptMap, Owner},
        volume::VolumeLayout,
    },
    events::Event,
    jobs::{JobHandle, Kind},
    moment::Moment,
    register::forget_manifest,
    volumes::scatter::{self as volume_scatter, Gathered},
};

/// A client that was not heard of for so long is asleep: nobody waits for it.
const ASLEEP_AFTER: Duration = Duration::from_secs(60);
/// A client that was not heard of for so long is lost: longer than a week of holidays is rare, and until then its segments
/// are more likely to come back than to be worth their repair.
const LOST_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// When an agent is asked again for all that it holds.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long at most until the holders are looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// When an image whose holders sleep is looked at again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Slots of a DSF that the planner does not count on: old and new segments are held together while shards move.
const SPARE_PERCENT: u64 = 5;

/// Pairs of who holds what.
type Pairs = BTreeSet<(AgentId, SegmentId)>;
/// Slots that an agent turned out to have room for, when that is less than what it lends.
type Limits = BTreeMap<AgentId, u64>;

/// What came of one plan.
enum Attempt {
    Done,
    FleetChanged,
    /// These agents have room for so many segments of the image only.
    NoRoom(Vec<(AgentId, u64)>),
}

/// Why waiting for the holders ended.
enum Wait {
    AllHeld,
    /// What is missing is with agents that sleep or rest.
    SomeSleep,
    FleetChanged,
    /// As [`Attempt::NoRoom`].
    NoRoom(Vec<(AgentId, u64)>),
}

/// Makes stripes, parity and assignments of a set what the planner wants for the present fleet.
///
/// # Errors
/// When the store or the database fails.
pub async fn converge(app: &App, set: StripeSetId, job: &JobHandle) -> anyhow::Result<()> {
    let Some(owner) = app.db.owner_of_set(set).await.context("look for the set")? else {
        return Ok(());
    };
    let mut limits = Limits::new();
    loop {
        let fleet = app.db.approved_agents().await.context("list agents")?;
        let Some(gathered) = gather(app, owner, job).await? else { return Ok(()) };
        let scattering = Scattering { app, set, owner, gathered, job };
        match scattering.attempt(&fleet, &limits).await? {
            Attempt::Done => return Ok(()),
            Attempt::FleetChanged => {
                tracing::info!(%set, "the fleet changed while segments were scattered: planning again");
            }
            Attempt::NoRoom(full) => {
                for (agent, slots) in full {
                    tracing::warn!(%set, %agent, slots, "an agent's disk is full: others take over");
                    // Always less than the time before, so that this ends.
                    let limit = limits.entry(agent).or_insert(u64::MAX);
                    *limit = slots.min(limit.saturating_sub(1));
                }
            }
        }
    }
}

/// What is to be scattered of a set; none when it is left as it is.
async fn gather(app: &App, owner: Owner, job: &JobHandle) -> anyhow::Result<Option<Gathered>> {
    let image = match owner {
        Owner::Volume(volume) => return volume_scatter::gather(app, volume, job).await,
        Owner::Image(image) => image,
    };
    let segments = app.db.live_segments_of_image(image).await.context("list segments")?;
    let data = segments.iter().filter(|segment| segment.class == SegmentClass::Data);
    let data = data.map(|segment| DataSegment { id: segment.id, bytes: segment.bytes, device: 0 });
    Ok(Some(Gathered { data: data.collect(), root: None, layout: VolumeLayout::Swarm, devices: 1 }))
}

/// A plan for what may hold it.
pub(crate) fn plan(
    layout: VolumeLayout,
    devices: usize,
    candidates: &[Candidate],
    needed: ByteCount,
    present: Option<Redundancy>,
) -> Result<Plan, Refusal> {
    match layout {
        VolumeLayout::Swarm | VolumeLayout::Server => plan_again(candidates, needed, present),
        VolumeLayout::Mirror => plan_mirror(candidates, needed),
        VolumeLayout::ServerParity => plan_server_parity(candidates, needed),
        VolumeLayout::ClientParity => plan_client_parity(candidates, needed, devices),
    }
}

/// One run over a set, with what was gathered for it.
struct Scattering<'a> {
    app: &'a App,
    set: StripeSetId,
    owner: Owner,
    gathered: Gathered,
    job: &'a JobHandle,
}

impl Scattering<'_> {
    async fn attempt(&self, fleet: &[AgentRow], limits: &Limits) -> anyhow::Result<Attempt> {
        let Self { app, set, owner, gathered, job } = self;
        let (app, set) = (*app, *set);
        let present = present_map(app, set).await?;
        let data = &gathered.data;
        if data.is_empty() {
            return self.withdraw(present.as_ref()).await;
        }
        let held: Held =
            app.db.holders_of_set(set).await.context("list holders")?.into_iter().collect();
        let (candidates, worst) =
            candidates(app, set, fleet, &old_holders(present.as_ref(), &held), limits).await?;
        let needed = ByteCount(data.iter().map(|segment| u64::from(segment.bytes)).sum());
        let redundancy = present.as_ref().and_then(redundancy_of);
        let planned = plan(gathered.layout, gathered.devices, &candidates, needed, redundancy);
        let plan = match planned {
            Ok(plan) => plan,
            Err(refusal) => {
                if gathered.layout == VolumeLayout::ServerParity {
                    // What too few clients are left for is the server's again.
                    volume_scatter::bring_back(app, data, job).await?;
                }
                let promise = format!("Only the server is sure to hold it: {refusal}.");
                app.db.note_promise(*owner, &promise).await.context("note the promise")?;
                return Ok(Attempt::Done);
            }
        };
        let members = members(&candidates, &plan);
        let layout = lay_out(present.as_ref(), data, plan.spread(), &members, &held)
            .context("lay out the stripes")?;
        let next = complete(app, set, &layout, present.as_ref()).await?;
        let (old, new) = (pairs(present.as_ref()), pairs(Some(&next)));
        let approved: BTreeSet<_> = fleet.iter().map(|agent| agent.id).collect();
        let kept = kept_by_lost(fleet, &held);
        let both = old.union(&new).filter(|(agent, _)| approved.contains(agent)).copied();
        assign(app, set, &both.chain(kept.iter().copied()).collect()).await?;
        check_returned(app, present.as_ref(), &new, &held).await?;
        let all_held = match wait_for_holders(app, set, job, fleet, &new).await? {
            Wait::AllHeld => true,
            Wait::SomeSleep => false,
            Wait::FleetChanged => return Ok(Attempt::FleetChanged),
            Wait::NoRoom(full) => return Ok(Attempt::NoRoom(full)),
        };
        self.publish(present.as_ref(), &next, all_held).await?;
        promise(app, *owner, &plan, worst, all_held).await?;
        if all_held && self.settle(&next, &new.union(&kept).copied().collect(), plan.share).await? {
            // Machines may wait for others to hold what goes with their disks.
            app.targets_changed.notify();
        } else {
            app.queue_after(Kind::Scatter { set }, AGAIN_AFTER)
                .await
                .context("queue the scatter again")?;
        }
        Ok(Attempt::Done)
    }

    /// Nothing is to be held any more.
    async fn withdraw(&self, present: Option<&StripeMap>) -> anyhow::Result<Attempt> {
        assign(self.app, self.set, &Pairs::new()).await?;
        if let (Owner::Volume(volume), Some(_)) = (self.owner, present) {
            self.app.db.forget_stripe_map(self.set).await.context("forget the stripe map")?;
            volume_scatter::release(self.app, volume, &BTreeSet::new()).await?;
            self.app.queue(Kind::Bundle).await.context("queue the bundle")?;
        }
        Ok(Attempt::Done)
    }

    async fn publish(
        &self,
        present: Option<&StripeMap>,
        next: &StripeMap,
        all_held: bool,
    ) -> anyhow::Result<()> {
        let app = self.app;
        let same = present.is_some_and(|map| map.number >= next.number);
        if same && self.gathered.root.is_none() {
            return Ok(());
        }
        let kept = KeptMap {
            signed: next.sign(app.site.signer()),
            root: self.gathered.root.as_ref().map(|root| root.to_vec()),
        };
        let published = app.db.keep_stripe_map(self.set, next.number, &kept).await;
        // What is settled next brings it to the clients.
        let settled = all_held && matches!(self.owner, Owner::Volume(_));
        if published.context("publish the stripe map")? && !settled {
            app.queue(Kind::Bundle).await.context("queue the bundle")?;
        }
        Ok(())
    }

    /// Lets go of what the published map does not name, now that clients hold all that it does. False when that must wait
    /// until the clients know it.
    async fn settle(&self, map: &StripeMap, wanted: &Pairs, share: Share) -> anyhow::Result<bool> {
        let (app, set) = (self.app, self.set);
        if let Owner::Volume(volume) = self.owner {
            volume_scatter::release(app, volume, &data_of(map)).await?;
            // What clients know of it, without the server, is what the bundle says.
            if !crate::bundle::refresh(app, self.job).await? {
                return Ok(false);
            }
        }
        assign(app, set, wanted).await?;
        drop_surplus(app, set, map, share).await?;
        if let Owner::Volume(volume) = self.owner {
            let named = data_of(map);
            volume_scatter::forget_dead(app, volume, &named).await?;
            if share == Share::Data {
                volume_scatter::offload(app, volume, &named).await?;
            }
        }
        Ok(true)
    }
}

/// The stripe map that is published now.
pub(super) async fn present_map(app: &App, set: StripeSetId) -> anyhow::Result<Option<StripeMap>> {
    let kept = app.db.stripe_map_of_set(set).await.context("read the stripe map")?;
    kept.map(|kept| {
        StripeMap::open(&app.site.verifying_key(), &kept.signed).context("open the stripe map")
    })
    .transpose()
}

/// The clients that hold the set by its map, or by what they say when it has none yet.
fn old_holders(present: Option<&StripeMap>, held: &Held) -> BTreeSet<AgentId> {
    match present {
        Some(map) => map.holders.iter().copied().collect(),
        None => held.values().flatten().copied().collect(),
    }
}

/// What clients have that are lost: they keep it, for the day on which they come back.
fn kept_by_lost(fleet: &[AgentRow], held: &Held) -> Pairs {
    let lost: BTreeSet<_> =
        fleet.iter().filter(|agent| is_lost(agent)).map(|agent| agent.id).collect();
    let pairs = held.iter().flat_map(|(id, agents)| agents.iter().map(|agent| (*agent, *id)));
    pairs.filter(|(agent, _)| lost.contains(agent)).collect()
}

/// Asks clients that are no holders by the map to check what is to be used again of what they have: nobody looked at it
/// while they were away. Until then it does not count.
async fn check_returned(
    app: &App,
    present: Option<&StripeMap>,
    new: &Pairs,
    held: &Held,
) -> anyhow::Result<()> {
    let Some(present) = present else { return Ok(()) };
    let returned = |(agent, id): &&(AgentId, SegmentId)| {
        !present.holders.contains(agent) && held.get(id).is_some_and(|has| has.contains(agent))
    };
    let doubted: Vec<_> = new.iter().filter(returned).copied().collect();
    let doubted = app.db.doubt_holdings(&doubted).await.context("have segments checked")?;
    if doubted > 0 {
        tracing::info!(set = %present.set, segments = doubted, "what clients that came back have is used again");
        app.agents_changed.notify();
    }
    Ok(())
}

/// What a set is protected by now.
fn redundancy_of(map: &StripeMap) -> Option<Redundancy> {
    let stripe = map.stripes.first()?;
    let m = u8::try_from(stripe.parity.len()).ok()?;
    (stripe.k > 1).then_some(Redundancy::Parity { k: stripe.k, m })
}

/// What the present clients have room for, of a set that none of them has anything of.
pub(crate) async fn candidates_for(app: &App, set: StripeSetId) -> anyhow::Result<Vec<Candidate>> {
    let fleet = app.db.approved_agents().await.context("list agents")?;
    let (candidates, _) = candidates(app, set, &fleet, &BTreeSet::new(), &Limits::new()).await?;
    Ok(candidates)
}

/// What each client that is not lost has room for, less what other sets take of it, and how often it is there in the
/// worst hour of use.
async fn candidates(
    app: &App,
    set: StripeSetId,
    fleet: &[AgentRow],
    holders: &BTreeSet<AgentId>,
    limits: &Limits,
) -> anyhow::Result<(Vec<Candidate>, WorstHour)> {
    let taken = app.db.slots_taken_by_other_sets(set).await.context("count slots")?;
    let bundle = segments_of(&app.db.bundles().await.context("list bundles")?).len();
    let mut weeks = app.db.weeks().await.context("read availabilities")?;
    let fleet: Vec<_> = fleet
        .iter()
        .filter(|agent| !is_lost(agent))
        .map(|agent| (agent, weeks.remove(&agent.id).unwrap_or_default()))
        .collect();
    let worst = worst_hour(fleet.iter().map(|(_, week)| week));
    let candidates = fleet
        .iter()
        .map(|(agent, week)| {
            let slots = u64::from(SlotCount::fitting(agent.lend).0);
            let usable = slots - slots * SPARE_PERCENT / 100;
            let taken = taken.get(&agent.id).copied().unwrap_or(0);
            let free = usable.saturating_sub(taken + slots_taken(agent.lend, bundle));
            let free = limits.get(&agent.id).map_or(free, |limit| free.min(*limit));
            Candidate {
                agent: agent.id,
                room: ByteCount(free * SEGMENT_MAX_BYTES as u64),
                availability: week.estimate(worst.hour),
                holds: holders.contains(&agent.id),
            }
        })
        .collect();
    Ok((candidates, worst))
}

fn members(candidates: &[Candidate], plan: &Plan) -> Vec<Member> {
    let in_group = candidates.iter().filter(|candidate| plan.group.contains(&candidate.agent));
    in_group.map(|candidate| Member { agent: candidate.agent, room: candidate.slots() }).collect()
}

/// Computes the parity that is missing; the map of the layout. The present one when nothing changed.
async fn complete(
    app: &App,
    set: StripeSetId,
    layout: &Layout,
    present: Option<&StripeMap>,
) -> anyhow::Result<StripeMap> {
    let computed = parity::compute(app, set, layout).await?;
    let number = present.map_or(Generation(1), |map| Generation(map.number.0 + 1));
    let next = layout.map(set, number, &computed).context("complete the stripe map")?;
    let same = present.filter(|map| map.stripes == next.stripes && map.holders == next.holders);
    Ok(same.cloned().unwrap_or(next))
}

/// The data segments that a map names.
fn data_of(map: &StripeMap) -> BTreeSet<SegmentId> {
    map.stripes.iter().flat_map(|stripe| stripe.data.iter().map(|shard| shard.id)).collect()
}

fn pairs(map: Option<&StripeMap>) -> Pairs {
    let stripes =
        map.into_iter().flat_map(|map| map.stripes.iter().map(move |stripe| (map, stripe)));
    stripes
        .flat_map(|(map, stripe)| stripe.shards().map(move |(_, shard)| (map, shard)))
        .flat_map(|(map, shard)| map.agents(shard).map(|agent| (agent, shard.id)))
        .collect()
}

async fn assign(app: &App, set: StripeSetId, wanted: &Pairs) -> anyhow::Result<()> {
    let wanted: Vec<_> = wanted.iter().copied().collect();
    let changed = app.db.assign_set(set, &wanted).await.context("assign segments")?;
    if !changed.is_empty() {
        app.agents_changed.notify();
    }
    Ok(())
}

/// Waits until whoever is there holds what he shall, or cannot.
async fn wait_for_holders(
    app: &App,
    set: StripeSetId,
    job: &JobHandle,
    fleet: &[AgentRow],
    wanted: &Pairs,
) -> anyhow::Result<Wait> {
    let mut changes = app.holdings_changed.watch();
    let mut asked = BTreeMap::new();
    loop {
        let now = app.db.approved_agents().await.context("list agents")?;
        if !same_fleet(fleet, &now) {
            return Ok(Wait::FleetChanged);
        }
        let held: Pairs = app
            .db
            .holders_of_set(set)
            .await
            .context("list holders")?
            .into_iter()
            .flat_map(|(id, agents)| agents.into_iter().map(move |agent| (agent, id)))
            .collect();
        let missing: Vec<_> = wanted.difference(&held).collect();
        job.progress((wanted.len() - missing.len()) as u64, wanted.len() as u64, "segments")
            .await?;
        let waits_for = |agent: &&AgentRow| !is_asleep(agent) && !app.conditions.rests(agent.id);
        let awake: BTreeSet<_> = now.iter().filter(waits_for).map(|agent| agent.id).collect();
        if missing.iter().all(|(agent, _)| !awake.contains(agent)) {
            return Ok(if missing.is_empty() { Wait::AllHeld } else { Wait::SomeSleep });
        }
        let lacking = |agent: &&AgentRow| missing.iter().any(|(who, _)| *who == agent.id);
        let unsaid = now.iter().filter(lacking).filter(|agent| says_it_holds_all(agent));
        ask_again(app, unsaid.map(|agent| agent.id), &mut asked).await?;
        let full = now.iter().filter(lacking).filter(|agent| app.full_disks.is_full(agent));
        let held_by = |id| held.iter().filter(|(agent, _)| *agent == id).count() as u64;
        let full: Vec<_> = full.map(|agent| (agent.id, held_by(agent.id))).collect();
        if !full.is_empty() {
            return Ok(Wait::NoRoom(full));
        }
        tokio::select! {
            changed = changes.changed() => changed.context("wait for holdings")?,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Whether an agent has done all that it was asked to, as it says.
const fn says_it_holds_all(agent: &AgentRow) -> bool {
    agent.fulfilled.0 >= agent.assignment.0 && !agent.want_holdings
}

/// Asks agents for all that they hold: they say that they have done what they were asked to, and yet nothing is known of some
/// of it. It was theirs before, and was forgotten and wanted again faster than they looked.
async fn ask_again(
    app: &App,
    agents: impl Iterator<Item = AgentId>,
    asked: &mut BTreeMap<AgentId, Instant>,
) -> anyhow::Result<()> {
    let now = Instant::now();
    let is_due = |agent: &AgentId| asked.get(agent).is_none_or(|at| now - *at >= ASK_AGAIN_AFTER);
    let due: Vec<AgentId> = agents.filter(is_due).collect();
    if due.is_empty() {
        return Ok(());
    }
    app.db.ask_for_holdings(&due).await.context("ask agents for what they hold")?;
    app.agents_changed.notify();
    asked.extend(due.into_iter().map(|agent| (agent, now)));
    Ok(())
}

/// Whether nobody waits for an agent.
pub(crate) fn is_asleep(agent: &AgentRow) -> bool {
    let asleep = agent.seen.is_none_or(|seen| Moment::now().since(seen) > ASLEEP_AFTER);
    asleep || agent.overwritten.is_some()
}

/// Whether an agent's share is made anew on others.
pub(crate) fn is_lost(agent: &AgentRow) -> bool {
    let away = Moment::now().since(agent.seen.unwrap_or(agent.joined));
    away > LOST_AFTER || agent.overwritten.is_some()
}

fn same_fleet(before: &[AgentRow], now: &[AgentRow]) -> bool {
    let of = |fleet: &[AgentRow]| {
        let terms = |agent: &AgentRow| (agent.id, agent.lend, agent.overwritten.is_some());
        fleet.iter().map(terms).collect::<BTreeSet<_>>()
    };
    of(before) == of(now)
}

/// Says what may be lost. What sleeping clients do not hold yet is not promised.
async fn promise(
    app: &App,
    owner: Owner,
    plan: &Plan,
    worst: WorstHour,
    all_held: bool,
) -> anyhow::Result<()> {
    let clients = match plan.group.len() {
        1 => "1 client".to_owned(),
        many => format!("{many} clients"),
    };
    let (hours, since) = match owner {
        Owner::Image(_) => (plan.hours(worst), ""),
        Owner::Volume(_) => {
            (String::new(), " What was written since its last checkpoint is on the server only.")
        }
    };
    let promise = format!("{} on {clients}. {}{hours}{since}", plan.redundancy, plan.sentence());
    let promise = if all_held {
        promise
    } else {
        format!(
            "Keep the server: some clients sleep and do not hold their part yet. Then: {promise}"
        )
    };
    app.db.note_promise(owner, &promise).await.context("note the promise")?;
    let Owner::Image(image) = owner else { return Ok(()) };
    if let Some(row) = app.db.images().await?.into_iter().find(|row| row.id == image) {
        app.events.emit(Event::ImageChanged { name: row.name }).await;
    }
    Ok(())
}

/// Forgets parity that no stripe has any more, and the server's copies of parity that clients hold.
async fn drop_surplus(
    app: &App,
    set: StripeSetId,
    map: &StripeMap,
    share: Share,
) -> anyhow::Result<()> {
    let named: BTreeSet<_> =
        map.stripes.iter().flat_map(|stripe| stripe.parity.iter().map(|shard| shard.id)).collect();
    let rows = app.db.segments_of_set(set).await.context("list segments")?;
    let parity = rows.iter().filter(|row| row.class == SegmentClass::Parity).map(|row| row.id);
    let (kept, surplus): (Vec<_>, Vec<_>) = parity.partition(|id| named.contains(id));
    let kept = kept.iter().filter(|_| share != Share::Data);
    for id in kept.chain(&surplus) {
        app.store.delete_segment(*id).await.context("delete parity from the store")?;
    }
    app.db.forget_segments(&surplus).await.context("forget parity")
}

/// Deletes the manifest of a version that is being taken apart and the bytes of segments that only it used.
///
/// # Errors
/// When the store fails.
pub async fn forget_bytes(
    app: &App,
    version: VersionId,
    segments: &[SegmentId],
) -> anyhow::Result<()> {
    for id in segments {
        app.store.delete_segment(*id).await.context("delete a segment")?;
    }
    forget_manifest(app, version).await
}
