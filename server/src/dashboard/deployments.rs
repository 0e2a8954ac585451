//! Fills the page of deployments.

use std::collections::{BTreeMap, HashMap, HashSet};

use axum::{Form, response::Response};
use cairn_array::pace::{self, Limit};
use cairn_core::id::MachineId;
use cairn_web::{
    deployments::{Bottleneck, Cell, Deployments, Holders, Install, InstallState, Map, Progress},
    shell::Place,
    text::{Ago, Bytes, Percent, Rate, Span},
};

use serde::Deserialize;

use super::{ago, answer, at, image_label, visit::Visit};
use crate::{
    api::{self, error::ApiError, extract, steer::RateLimit},
    app::App,
    db::deployment::InstallState as Kept,
    moment::Moment,
};

/// Installs of deployments that are over that are looked at, and those that are shown with all that is known of them.
const LOOKED_AT: u32 = 200;
const SHOWN: usize = 25;
/// Deployments of which it is shown who holds the segments.
const PAINTED: usize = 4;

pub(super) async fn view(app: &App) -> Result<Deployments, ApiError> {
    let all = all(app).await?;
    let mut maps = maps(&all);
    for map in maps.iter_mut().take(PAINTED) {
        map.holders = Holders(api::deployment::holders(app, map.deployment).await?);
    }
    let (over, mut open): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|install| install.state.is_over());
    open.sort_by_key(urgency);
    let open_more = open.len().saturating_sub(SHOWN);
    open.truncate(SHOWN);
    Ok(Deployments { maps, open, open_more, over: over.into_iter().take(SHOWN).collect() })
}

/// What somebody should look at comes first, then what takes longest.
pub(super) fn urgency(install: &Install) -> (u8, std::cmp::Reverse<u64>) {
    let rank = match (install.state, &install.waits) {
        (InstallState::Silent, _) => 0,
        (_, Some(_)) => 1,
        (InstallState::Scheduled, None) => 3,
        _ => 2,
    };
    let left = install.progress.and_then(|progress| progress.left).map_or(0, |left| left.seconds);
    (rank, std::cmp::Reverse(left))
}

/// The deployments to several machines of which one is not over, the newest first.
pub(super) fn maps(all: &[Install]) -> Vec<Map> {
    let mut by_deployment = BTreeMap::<i64, Vec<&Install>>::new();
    for install in all {
        by_deployment.entry(install.deployment).or_default().push(install);
    }
    let is_open = |installs: &[&Install]| installs.iter().any(|install| !install.state.is_over());
    let several = by_deployment.into_iter().rev();
    let several = several.filter(|(_, installs)| installs.len() > 1 && is_open(installs));
    several.filter_map(|(deployment, installs)| map(deployment, installs)).collect()
}

fn map(deployment: i64, mut installs: Vec<&Install>) -> Option<Map> {
    let image = installs.first()?.image.clone();
    installs.sort_by(|a, b| a.machine.cmp(&b.machine));
    let cell = |install: &Install| Cell {
        id: install.id.clone(),
        machine: install.machine.clone(),
        state: install.state,
        progress: install.progress,
    };
    let paused = installs.iter().any(|install| install.paused);
    let rate_limit = installs.first()?.rate_limit.clone();
    let cells = installs.into_iter().map(cell).collect();
    Some(Map { deployment, image, paused, rate_limit, cells, holders: Holders::default() })
}

/// What is under way, and the newest of what is over; newest first.
pub(super) async fn all(app: &App) -> Result<Vec<Install>, ApiError> {
    let now = Moment::now();
    let all = api::deployment::recent_installs(app, LOOKED_AT).await?;
    let mut open = HashMap::<i64, u64>::new();
    for install in &all {
        *open.entry(install.deployment).or_default() += u64::from(!state(install).is_over());
    }
    let busy: HashSet<String> =
        app.db.open_installs(None).await?.keys().map(ToString::to_string).collect();
    let together =
        |install: &api::deployment::Install| open.get(&install.deployment).copied().unwrap_or(0);
    let fill = |install: &api::deployment::Install| {
        let is_busy = busy.contains(&install.machine);
        let again = api::deployment::can_be_tried_again(install.state, is_busy);
        Install { again, ..fill(install, together(install), now) }
    };
    Ok(all.iter().map(fill).collect())
}

/// The installs of one machine, newest first.
pub(super) async fn of_machine(app: &App, machine: MachineId) -> Result<Vec<Install>, ApiError> {
    let now = Moment::now();
    let installs = api::deployment::installs_of(app, machine).await?;
    let mut logs = HashMap::<String, Vec<(Ago, String)>>::new();
    for line in app.db.install_logs_of(machine).await? {
        let said = (ago(&line.at.to_text(), now), line.text);
        logs.entry(line.install.to_string()).or_default().push(said);
    }
    let fill = |install: &api::deployment::Install| Install {
        log: logs.remove(&install.id).unwrap_or_default(),
        ..fill(install, 1, now)
    };
    Ok(installs.iter().take(SHOWN).map(fill).collect())
}

fn state(install: &api::deployment::Install) -> InstallState {
    if install.silent_since.is_some() {
        return InstallState::Silent;
    }
    match (install.state, install.phase.as_deref()) {
        (Kept::Scheduled, _) => InstallState::Scheduled,
        (Kept::Ticketed, _) => InstallState::Ticketed,
        (Kept::Running, Some("writing")) => InstallState::Writing,
        (Kept::Running, Some("verifying")) => InstallState::Verifying,
        (Kept::Running, Some("finishing" | "done")) => InstallState::Finishing,
        (Kept::Running, _) => InstallState::Planning,
        (Kept::Done, _) => InstallState::Done,
        (Kept::Failed, _) => InstallState::Failed,
        (Kept::Cancelled, _) => InstallState::Cancelled,
    }
}

fn fill(install: &api::deployment::Install, together: u64, now: Moment) -> Install {
    let state = state(install);
    let started = install.started.as_deref().and_then(at);
    let ended = install.ended.as_deref().and_then(at);
    let took =
        started.map(|started| Span { seconds: ended.unwrap_or(now).since(started).as_secs() });
    let moves = matches!(state, InstallState::Writing | InstallState::Done);
    Install {
        id: install.id.clone(),
        deployment: install.deployment,
        together,
        again: false,
        log: Vec::new(),
        paused: install.paused,
        rate_limit: install
            .rate_limit
            .and_then(|bytes| pace::Rate::from_bytes(bytes).ok())
            .map(|rate| rate.to_string()),
        machine: install.machine_label.clone(),
        image: image_label(&install.image),
        state,
        progress: install.phase.is_some().then(|| Progress {
            percent: Percent::of(install.percent.into(), 100),
            total: Bytes(install.total),
            from_peers: Bytes(install.from_peers),
            from_server: Bytes(install.from_server),
            rebuilt: Bytes(install.rebuilt),
            already: Bytes(install.already),
            written: Bytes(install.written),
            rate: (moves && install.bytes_per_second > 0).then_some(Rate(install.bytes_per_second)),
            // Nothing is done in no time.
            bottleneck: match install.bottleneck.as_deref() {
                Some("network") => Some(Bottleneck::Network),
                Some("disk") => Some(Bottleneck::Disk),
                Some("processor") => Some(Bottleneck::Processor),
                _ => None,
            },
            left: install.seconds_left.map(|seconds| Span { seconds: seconds.max(1) }),
        }),
        error: install.error.clone(),
        waits: install.waits_for.clone(),
        silent: install.silent_since.as_deref().map(|since| ago(since, now)),
        created: ago(&install.created, now),
        took,
    }
}

pub(super) async fn cancel(
    visit: Visit,
    deployment: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::deployment::cancel(visit.state(), deployment).await;
    answer(&visit, Place::Deployments, done).await
}

pub(super) async fn pause(
    visit: Visit,
    deployment: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::steer::pause(visit.state(), deployment).await;
    answer(&visit, Place::Deployments, done).await
}

pub(super) async fn resume(
    visit: Visit,
    deployment: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::steer::resume(visit.state(), deployment).await;
    answer(&visit, Place::Deployments, done).await
}

/// Leaves one machine out.
pub(super) async fn skip(
    visit: Visit,
    install: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::deployment::cancel_install(visit.state(), install).await;
    answer(&visit, Place::Deployments, done).await
}

pub(super) async fn retry(
    visit: Visit,
    deployment: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::deployment::retry(visit.state(), deployment).await;
    answer(&visit, Place::Deployments, done).await
}

#[derive(Deserialize)]
pub(super) struct RateForm {
    /// `50Mbit/s`; empty: no limit.
    rate_limit: String,
}

pub(super) async fn limit(
    visit: Visit,
    deployment: extract::Place<i64>,
    Form(form): Form<RateForm>,
) -> Result<Response, ApiError> {
    // As it is shown, too.
    let text: String = form.rate_limit.split_whitespace().collect();
    let wished = if text.is_empty() { "none" } else { &text };
    let done = match wished.parse() {
        Ok(Limit(rate)) => {
            let limit = RateLimit { rate_limit: rate.map(pace::Rate::bytes) };
            api::steer::limit(visit.state(), deployment, extract::Body(limit)).await
        }
        Err(error) => Err(ApiError::bad_request("bad_rate", error.to_string())),
    };
    answer(&visit, Place::Deployments, done).await
}
