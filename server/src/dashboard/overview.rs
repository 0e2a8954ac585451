//! Fills the overview and the navigation.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use cairn_pxe::{Standing, Trail};
use cairn_web::{
    agents::AgentState,
    deployments::{Install, InstallState, Map},
    images::Image,
    overview::{History, Hour, Overview, Safety, Steps, Tile, judge, needs},
    shell::{Nav, Place},
    text::{Bytes, counted},
};

use super::{agents, deployments, images, machines, visit::Visit};
use crate::{
    api::{self, error::ApiError, machine::Machine},
    app::App,
    db::{deployment::InstallState as Kept, job::JobState, target::TargetRow},
    moment::Moment,
};

/// How long a failure is worth showing when nothing came after it.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// The same in hours.
const HOURS: usize = 24;
/// How long a machine that stopped while it booted is worth showing.
const LATELY: Duration = Duration::from_secs(60 * 60);
/// Installs that are shown with all that is known of them.
const RUNNING: usize = 6;
/// Jobs that are looked at.
const JOBS: u32 = 200;

pub(super) async fn nav(visit: &Visit, at: Place) -> Result<Nav, ApiError> {
    let waiting = visit.db.waiting(Moment::now()).await?;
    Ok(Nav {
        at,
        role: visit.actor.role.word(),
        scoped: !visit.actor.scope.is_open(),
        agents_pending: waiting.agents,
        machines_waiting: waiting.machines,
        installs_running: waiting.installs,
        machines_stopped: number(stopped_lately(visit)),
    })
}

/// Machines that stopped on their way to the agent, if that is not long ago: they may have been switched off since.
fn stopped_lately(app: &App) -> usize {
    let now = SystemTime::now();
    let stopped = |trail: &Trail| {
        let lately = trail.last().and_then(|(_, at)| now.duration_since(at).ok());
        matches!(trail.standing(now), Standing::Stopped(_)) && lately.is_some_and(|it| it < LATELY)
    };
    app.boot.record.trails.all().iter().filter(|trail| stopped(trail)).count()
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn waiting_codes(targets: &[TargetRow], machines: &[Machine]) -> Vec<String> {
    let by_id: HashMap<&str, &Machine> =
        machines.iter().map(|machine| (machine.id.as_str(), machine)).collect();
    let waits = |target: &&TargetRow| {
        let machine = by_id.get(target.machine.to_string().as_str()).copied();
        machine.is_some_and(|machine| machines::waits(target, machine))
    };
    targets.iter().filter(waits).map(|target| target.code.clone()).collect()
}

pub(super) async fn view(app: &App) -> Result<Overview, ApiError> {
    let now = Moment::now();
    let machines = api::machine::all(app).await?;
    let agents = api::agent::all(app).await?;
    let images = images::all(app, &machines).await?;
    let installs = deployments::all(app).await?;
    let codes = waiting_codes(&app.db.live_targets(now).await?, &machines);
    let pending: Vec<_> = agents
        .iter()
        .filter(|agent| agent.state == "pending")
        .map(|agent| agent.name.as_str())
        .collect();
    let safety: Vec<_> =
        images.iter().map(|image| Safety { name: &image.name, lives: &image.lives }).collect();
    let codes: Vec<_> = codes.iter().map(String::as_str).collect();
    let rooms = deployments::maps(&installs).iter().map(Map::headline).collect();
    let tiles = tiles(&images, &agents, &machines, &installs, now);
    let (needs_somebody, failed) = (failed_installs(&installs), failed_jobs(app, now).await?);
    let needs = needs(&codes, &pending, &needs_somebody, failed);
    let mut running: Vec<_> =
        installs.into_iter().filter(|install| !install.state.is_over()).collect();
    running.sort_by_key(deployments::urgency);
    let running_more = running.len().saturating_sub(RUNNING);
    running.truncate(RUNNING);
    let steps = Steps {
        images: !images.is_empty(),
        clients: agents.iter().any(|agent| agent.state == "approved"),
        machines: machines.iter().any(|machine| machine.installed.is_some()),
        boots: app.boot.interface.is_some(),
    };
    let history = history(app, now).await?;
    Ok(Overview {
        verdict: judge(&safety),
        steps,
        needs,
        tiles,
        rooms,
        running,
        running_more,
        history,
    })
}

/// What became of installs, hour by hour until now.
async fn history(app: &App, now: Moment) -> Result<History, ApiError> {
    let first = now.minus(FRESH);
    let mut hours = vec![Hour::default(); HOURS];
    for (hour, state, count) in app.db.ended_by_the_hour(first).await? {
        let Some(of) = usize::try_from(hour).ok().and_then(|hour| hours.get_mut(hour)) else {
            continue;
        };
        match state {
            Kept::Done => of.done = count,
            Kept::Failed => of.failed = count,
            _ => {}
        }
    }
    Ok(History(hours))
}

/// The machines whose newest install failed within [`FRESH`].
fn failed_installs(newest_first: &[Install]) -> Vec<&str> {
    let mut seen = HashSet::new();
    newest_first
        .iter()
        .filter(|install| seen.insert(&install.machine))
        .filter(|install| {
            install.state == InstallState::Failed && install.created.seconds < FRESH.as_secs()
        })
        .map(|install| install.machine.as_str())
        .collect()
}

/// Jobs that were given up within [`FRESH`] and have not succeeded since.
async fn failed_jobs(app: &App, now: Moment) -> Result<u64, ApiError> {
    let jobs = app.db.jobs(JOBS).await?;
    let mut seen: Vec<crate::db::job::Kind> = Vec::new();
    let mut failed = 0;
    for job in jobs {
        if seen.contains(&job.kind) || !matches!(job.state, JobState::Done | JobState::Failed) {
            continue;
        }
        seen.push(job.kind);
        failed += u64::from(job.state == JobState::Failed && now.since(job.updated) < FRESH);
    }
    Ok(failed)
}

fn tiles(
    images: &[Image],
    agents: &[api::agent::Agent],
    machines: &[Machine],
    installs: &[Install],
    now: Moment,
) -> Vec<Tile> {
    let states: Vec<_> = agents.iter().map(|agent| (agents::state(agent, now), agent)).collect();
    let here = states.iter().filter(|(state, _)| *state == AgentState::Here).count();
    let members: Vec<_> = states
        .iter()
        .filter(|(state, _)| matches!(state, AgentState::Here | AgentState::Away))
        .collect();
    let lent: u64 = members.iter().map(|(_, agent)| agent.lend).fold(0, u64::saturating_add);
    let used: u64 = members.iter().map(|(_, agent)| agent.used).fold(0, u64::saturating_add);
    let versions = images.iter().map(|image| image.versions.len()).sum();
    let stored = images.iter().flat_map(|image| &image.versions).map(|version| version.added.0);
    let stored = Bytes(stored.fold(0, u64::saturating_add));
    let ours = machines.iter().filter(|machine| machine.installed.is_some()).count();
    let running = installs.iter().filter(|install| !install.state.is_over()).count();
    let done = installs.iter().filter(|install| {
        install.state == InstallState::Done && install.created.seconds < FRESH.as_secs()
    });
    let tile =
        |place: Place, value, note| Tile { label: place.title(), value, note, href: place.path() };
    vec![
        tile(
            Place::Images,
            images.len().to_string(),
            format!("{}, {stored} stored", counted(number(versions), "version", "versions")),
        ),
        tile(Place::Machines, machines.len().to_string(), format!("{ours} run an image of ours")),
        tile(
            Place::Deployments,
            running.to_string(),
            format!("{} done in the last day", done.count()),
        ),
        tile(
            Place::Agents,
            format!("{here} of {}", members.len()),
            format!("are here; {} of {} lent is in use", Bytes(used), Bytes(lent)),
        ),
    ]
}
