//! Fills the page of deployments.

use std::collections::HashMap;

use axum::{extract::State, response::Response};
use cairn_web::{
    deployments::{Deployments, Install, InstallState, Progress},
    shell::Place,
    text::{Bytes, Rate, Span},
};

use super::{ago, answer, at, image_label};
use crate::{
    api::{self, error::ApiError, extract},
    app::App,
    db::deployment::InstallState as Kept,
    moment::Moment,
};

/// Installs that are looked at, and finished ones that are shown.
const LOOKED_AT: u32 = 500;
const SHOWN: usize = 50;

pub(super) async fn view(app: &App) -> Result<Deployments, ApiError> {
    let all = all(app).await?;
    let (over, open): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|install| install.state.is_over());
    Ok(Deployments { open, over: over.into_iter().take(SHOWN).collect() })
}

/// The newest installs, newest first.
pub(super) async fn all(app: &App) -> Result<Vec<Install>, ApiError> {
    let now = Moment::now();
    let all = api::deployment::all_installs(app, LOOKED_AT).await?;
    let mut open = HashMap::<i64, u64>::new();
    for install in &all {
        *open.entry(install.deployment).or_default() += u64::from(!state(install).is_over());
    }
    let together =
        |install: &api::deployment::Install| open.get(&install.deployment).copied().unwrap_or(0);
    Ok(all.iter().map(|install| fill(install, together(install), now)).collect())
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
        machine: install.machine_label.clone(),
        image: image_label(&install.image),
        state,
        progress: install.phase.is_some().then(|| Progress {
            total: Bytes(install.total),
            from_peers: Bytes(install.from_peers),
            from_server: Bytes(install.from_server),
            rebuilt: Bytes(install.rebuilt),
            already: Bytes(install.already),
            written: Bytes(install.written),
            rate: (moves && install.bytes_per_second > 0).then_some(Rate(install.bytes_per_second)),
            // Nothing is done in no time.
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
    State(app): State<App>,
    deployment: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::deployment::cancel(State(app.clone()), deployment).await;
    answer(&app, Place::Deployments, done).await
}
