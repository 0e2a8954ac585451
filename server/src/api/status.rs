//! The state of the fleet in one answer, and whether the server lives.

use std::collections::BTreeSet;

use axum::{Json, extract::State, http::StatusCode};
use cairn_array::wire::MemberState;
use cairn_core::id::AgentId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    image::{self, Image, Registration},
};
use crate::{app::App, db::target::TargetState, moment::Moment};

/// The fleet.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub site: String,
    /// Where others reach this server.
    pub url: String,
    pub agents: AgentCounts,
    /// Bytes that approved agents lend, and that hold segments, as they say.
    pub lent: u64,
    pub used: u64,
    /// Sealed bytes of all data segments.
    pub stored: u64,
    pub images: Vec<Image>,
    pub registrations: Vec<Registration>,
    pub machines_waiting: u64,
    pub installs_running: u64,
    pub installs_scheduled: u64,
    pub jobs: JobCounts,
    /// The number of the newest directory.
    pub directory: u64,
    /// What the site goes on with without this server.
    pub bundle: Bundle,
    /// The kernel that blank machines boot; none until `cairn-server boot build` made it.
    pub boot_kernel: Option<String>,
    /// What the boot services did since the start.
    #[schema(value_type = Object)]
    pub boot: serde_json::Value,
}

/// Agents by state.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AgentCounts {
    pub pending: u64,
    pub approved: u64,
    /// Of the approved ones, those that spoke within the last minute.
    pub online: u64,
}

/// What clients hold to go on without this server: boot files, manifests, stripe maps.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Bundle {
    pub bytes: u64,
    /// Clients that say they hold all of it.
    pub clients: u64,
    /// The directory names the newest: a stand-in finds it.
    pub published: bool,
}

/// Jobs by state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobCounts {
    pub queued: u64,
    pub running: u64,
    pub failed: u64,
}

/// That the server lives.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub status: String,
}

/// The fleet as the API shows it.
pub(crate) async fn summary(app: &App) -> Result<Status, ApiError> {
    let now = Moment::now();
    let counts = app.db.counts().await?;
    let mut agents = AgentCounts::default();
    let (mut lent, mut used) = (0_u64, 0_u64);
    for agent in app.db.agents().await? {
        match agent.state {
            MemberState::Pending => agents.pending += 1,
            MemberState::Approved => {
                agents.approved += 1;
                lent = lent.saturating_add(agent.lend.0);
                used = used.saturating_add(agent.used.0);
                let online =
                    agent.seen.is_some_and(|seen| now.since(seen) < crate::db::target::LIVE);
                agents.online += u64::from(online);
            }
            MemberState::Revoked | MemberState::Left => {}
        }
    }
    let live = app.db.live_targets(now).await?;
    let waiting = live.iter().filter(|target| target.state == TargetState::Waiting).count();
    let boot =
        serde_json::to_value(app.boot.record.counters.snapshot()).map_err(anyhow::Error::from)?;
    let payload = crate::boot_build::built(&app.boot_folder)?;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        site: app.site.id().to_string(),
        url: format!("https://{}", app.address),
        agents,
        lent,
        used,
        stored: counts.stored,
        images: image::all(app).await?,
        registrations: app.registrations.all(),
        machines_waiting: u64::try_from(waiting).unwrap_or(u64::MAX),
        installs_running: counts.installs_running,
        installs_scheduled: counts.installs_scheduled,
        jobs: JobCounts {
            queued: counts.jobs_queued,
            running: counts.jobs_running,
            failed: counts.jobs_failed,
        },
        directory: app.directory.number().0,
        bundle: bundle(app).await?,
        boot_kernel: payload.map(|payload| payload.kernel),
        boot,
    })
}

async fn bundle(app: &App) -> Result<Bundle, ApiError> {
    let Some(newest) = app.db.bundles().await?.pop() else { return Ok(Bundle::default()) };
    let holders = app.db.bundle_holders().await?;
    let all_of = |agent: &AgentId| {
        newest.segments.iter().all(|it| holders.get(&it.id).is_some_and(|all| all.contains(agent)))
    };
    let agents: BTreeSet<_> = holders.values().flatten().filter(|agent| all_of(agent)).collect();
    Ok(Bundle {
        bytes: newest.segments.iter().map(|segment| u64::from(segment.bytes)).sum(),
        clients: agents.len() as u64,
        published: newest.published,
    })
}

/// Show the fleet
#[utoipa::path(get, path = "/api/v1/status", tag = "status", responses((status = 200, body = Status)))]
pub(crate) async fn show(State(app): State<App>) -> Result<Json<Status>, ApiError> {
    Ok(Json(summary(&app).await?))
}

/// Whether the server runs
#[utoipa::path(get, path = "/healthz", tag = "status", responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// Whether the server can do its work: its database answers and it is not stopping
#[utoipa::path(get, path = "/readyz", tag = "status",
    responses((status = 200, body = Health), (status = 503, body = Problem)))]
pub(crate) async fn readyz(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    let not_ready =
        |detail: &str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail);
    if app.stop.is_cancelled() {
        return Err(not_ready("the server is stopping: ask again when it is back"));
    }
    if let Err(error) = app.db.is_alive().await {
        tracing::error!(error = &error as &dyn std::error::Error, "the database does not answer");
        return Err(not_ready("the database does not answer: the server's log says why"));
    }
    Ok(Json(Health { status: "ready".to_owned() }))
}
