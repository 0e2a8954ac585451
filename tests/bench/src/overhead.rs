//! What is stored for an image to be readable without the server, and how often it then is: the real planner and layout, and
//! trials in which each client is switched on by chance.

use anyhow::{Result, ensure};
use cairn_core::{
    id::{AgentId, SegmentId},
    layout::{DataSegment, Held, Member, PlannedParity, PlannedStripe, converge},
    planner::{Candidate, Plan, plan},
    stripe_map::HolderIndex,
    units::{ByteCount, SEGMENT_MAX_BYTES},
};

use super::{Figure, Wanted, random::Random};

const TRIALS: u32 = 100_000;
/// An image of 4 GiB: enough stripes that not all lie on the same clients where those are more than a stripe is wide.
const SEGMENTS: u32 = 1024;
const LENT: u64 = 20 << 30;
const SEED: u64 = 0x6361_6972_6e21;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (clients, there, wanted) in [
        (3, 0.8, None),
        (5, 0.8, None),
        (10, 0.8, None),
        (20, 0.8, Some(2.0)),
        (50, 0.8, None),
        (100, 0.8, Some(1.65)),
        (300, 0.8, None),
        (20, 0.95, None),
        (100, 0.95, None),
    ] {
        figures.extend(fleet(clients, there, wanted)?);
    }
    Ok(figures)
}

fn fleet(clients: u32, there: f64, wanted: Option<f64>) -> Result<[Figure; 2]> {
    let agent = |number: u32| AgentId(u128::from(number + 1).to_be_bytes());
    let candidates: Vec<_> = (0..clients)
        .map(|number| Candidate {
            agent: agent(number),
            room: ByteCount(LENT),
            availability: there,
            holds: false,
        })
        .collect();
    let needed = ByteCount(u64::from(SEGMENTS) * SEGMENT_MAX_BYTES as u64);
    let plan = plan(&candidates, needed)?;
    let readable = trials(&plan, there)?;
    let name = format!("{clients} clients there {there:.2} of the time, {}", plan.redundancy);
    let at_most = wanted.map_or(Wanted::Nothing, Wanted::AtMost);
    let at_least = wanted.map_or(Wanted::Nothing, |_| Wanted::AtLeast(0.999));
    Ok([
        Figure::new(&format!("{name}: stored over data"), plan.redundancy.overhead(), "", at_most),
        Figure::new(&format!("{name}: whole image readable alone"), readable, "", at_least),
    ])
}

/// The share of trials in which every stripe of the image is readable from the clients that are on.
fn trials(plan: &Plan, there: f64) -> Result<f64> {
    let room = LENT / SEGMENT_MAX_BYTES as u64;
    let members: Vec<_> = plan.group.iter().map(|agent| Member { agent: *agent, room }).collect();
    let data: Vec<_> = (0..SEGMENTS)
        .map(|number| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let bytes = u32::try_from(SEGMENT_MAX_BYTES)?;
            Ok(DataSegment { id: SegmentId(id), bytes, device: 0 })
        })
        .collect::<Result<_>>()?;
    let layout = converge(None, &data, plan.redundancy, &members, &Held::new())?;
    let stripes: Vec<_> = layout.stripes.iter().map(places).collect();
    ensure!(
        stripes.iter().all(|(needed, places)| *needed <= places.len()),
        "a stripe is too small"
    );
    let mut random = Random::new(SEED);
    let mut readable = 0_u32;
    let mut on = vec![false; layout.holders.len()];
    for _ in 0..TRIALS {
        on.fill_with(|| random.happens(there));
        let is_on = |holder: &&HolderIndex| on.get(usize::from(holder.0)).copied().unwrap_or(false);
        let whole =
            stripes.iter().all(|(needed, places)| places.iter().filter(is_on).count() >= *needed);
        readable += u32::from(whole);
    }
    Ok(f64::from(readable) / f64::from(TRIALS))
}

/// How many places of a stripe are needed, and who has them. Of copies any one; of a short stripe as many as it has data.
fn places(stripe: &PlannedStripe) -> (usize, Vec<HolderIndex>) {
    let parity = stripe.parity.iter().map(|parity| match parity {
        PlannedParity::Keep(shard) => &shard.holders,
        PlannedParity::Compute { holders, .. } => holders,
    });
    let shards = stripe.data.iter().map(|shard| &shard.holders).chain(parity);
    (stripe.data.len(), shards.flatten().copied().collect())
}
