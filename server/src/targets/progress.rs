//! What a target reports while it installs.

use axum::{Extension, Json, extract::State, http::StatusCode};
use cairn_array::{
    peer::Source,
    tls::Peer,
    wire::{BadSegment, Complaint, InstallProgress, ProgressReply},
};

use cairn_core::fetch::Fault;

use super::{log, session::Ticketed, ticket::tell_install};
use crate::{
    agents,
    api::{self, error::ApiError, extract::Body},
    app::App,
    db::deployment::{InstallRow, InstallState},
    deployments::{self, is_over},
    events::Event,
    moment::Moment,
};

/// What a target hears in return.
fn reply(app: &App, install: &InstallRow, cancel: bool) -> ProgressReply {
    let mut limits = app.limits.rates();
    limits.download = [limits.download, install.rate_limit].into_iter().flatten().min();
    ProgressReply { cancel, limits }
}

/// The longest reason for a failure that is kept.
const MAX_ERROR: usize = 4000;

pub(super) async fn progress(
    State(app): State<App>,
    Ticketed(install): Ticketed,
    Body(mut progress): Body<InstallProgress>,
) -> Result<Json<ProgressReply>, ApiError> {
    if let Some(error) = &mut progress.error {
        *error = error
            .chars()
            .filter(|sign| !sign.is_control() || *sign == '\n')
            .take(MAX_ERROR)
            .collect();
    }
    let now = Moment::now();
    if let Some(line) = log::turn(install.progress.as_ref(), &progress) {
        log::add(&app, install.id, &line).await;
    }
    let goes_on = deployments::next(install.state, progress.phase.into()) == Some(install.state);
    if goes_on && install.state == InstallState::Running && progress.error.is_none() {
        let progress = Some(progress);
        app.reports.put(InstallRow { progress, heard: Some(now), ..install.clone() });
        return Ok(Json(reply(&app, &install, false)));
    }
    let state = app.db.note_install_progress(install.id, &progress, now).await?;
    let Some(state) = state else {
        return Ok(Json(reply(&app, &install, install.state == InstallState::Cancelled)));
    };
    if let Some(error) = &progress.error {
        tracing::warn!(install = %install.id, machine = %install.machine, error, "an install failed");
    }
    tell_install(&app, install.id).await?;
    if is_over(state) {
        app.swarms.leave(install.id);
        app.targets_changed.notify();
        api::machine::tell(&app, install.machine).await?;
        app.events.emit(Event::DeploymentChanged { id: install.deployment }).await;
    }
    Ok(Json(reply(&app, &install, false)))
}

/// What a target says about a source. What is damaged or missing is looked into; for the rest the target has already helped itself.
pub(super) async fn complaint(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Ticketed(install): Ticketed,
    Body(Complaint { segment, source, fault }): Body<Complaint>,
) -> Result<StatusCode, ApiError> {
    // A target tells about segments of its own version; about others it cannot know.
    if !app.db.segment_serves_version(segment, install.version).await? {
        return Err(ApiError::forbidden(
            "not_your_segment",
            "this segment does not belong to the image of this install",
        ));
    }
    let told_by = format!("install {} at {}", install.id, peer.addr.ip());
    tracing::warn!(%source, ?fault, %segment, told_by, "a target complains");
    log::add(&app, install.id, &log::complaint(&app, source, fault).await).await;
    let holder = match source {
        Source::Peer(agent) => Some(agent),
        Source::Server => None,
        Source::Target(other) => {
            app.swarms.complain(other, install.id);
            return Ok(StatusCode::NO_CONTENT);
        }
    };
    if let Some(agent) = holder
        && let Some(row) = app.db.agent(agent).await?
        && app.complaints.note(agent, install.id, fault, Moment::now())
    {
        let view = api::agent::view(&app, &row).await?;
        app.events.emit(Event::AgentChanged(Box::new(view))).await;
    }
    match fault {
        Fault::Damaged => {
            agents::note_bad_segment(&app, BadSegment { segment, holder }, told_by).await?;
        }
        Fault::Empty => agents::note_missing_segment(&app, segment, holder).await?,
        Fault::Slow => {}
    }
    Ok(StatusCode::NO_CONTENT)
}
