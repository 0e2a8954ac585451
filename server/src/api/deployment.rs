//! Deployments (what an administrator wants) and installs (one machine's share of it).

use std::collections::{HashMap, HashSet};

use axum::{Extension, Json, extract::State, http::StatusCode};
use cairn_array::{
    pace::Rate,
    wire::{AfterInstall, Bottleneck, DiskSelector, InstallPhase, InstallProgress},
};
use cairn_core::{
    id::{InstallId, MachineId},
    units::ByteCount,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    auth::Actor,
    error::{ApiError, Problem},
    extract::{Body, Params, Place, id},
    part::{Listed, Part, Placed, newest_first},
    scope,
    steer::rate,
};
use crate::{
    app::App,
    db::deployment::{DeploymentRow, InstallRow, InstallState},
    deployments,
    moment::Moment,
    targets::{approval, ticket},
};

/// A smaller partition has room for nothing.
const MIN_STORAGE: u64 = 64 << 20;

/// What to deploy where.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DeploymentRequest {
    /// `NAME` (the newest version) or `NAME@N`
    pub image: String,
    /// Machines by id, code, name, MAC or UUID. One that waits now is approved by this.
    #[serde(default)]
    pub machines: Vec<String>,
    /// All machines of these groups, too.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Of the machines of groups only those that were not installed with this version last.
    #[serde(default)]
    pub drifted: bool,
    /// `only` (the default), `serial:…`, `wwn:…` or `size:BYTES`
    #[serde(default)]
    pub disk: Option<String>,
    /// What the machine does when it is installed: `reboot` (the default), `power-off` or `exit`
    #[serde(default)]
    pub then: Option<String>,
    /// Approve now whoever shows up as these machines until they are installed. A MAC can be forged: for closed nets.
    #[serde(default)]
    pub preapprove: bool,
    /// Do not wait until other clients hold what the clients on these machines hold: images may be with the server alone
    /// for a while.
    #[serde(default)]
    pub at_once: bool,
    /// Disks without a storage partition get one of so many bytes at their end: what a client keeps there survives installs.
    /// One that is there is kept in any case.
    #[serde(default)]
    pub storage: Option<u64>,
    /// Bytes a second that each of its machines receives at most, at least 125,000; none: as the site's limits say.
    #[serde(default)]
    pub rate_limit: Option<u64>,
}

/// A deployment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    pub id: i64,
    /// `NAME@N`
    pub image: String,
    pub disk: String,
    pub then: String,
    pub preapproved: bool,
    pub at_once: bool,
    pub storage: Option<u64>,
    /// Its machines that did not begin wait.
    #[serde(default)]
    pub paused: bool,
    /// Bytes a second that each of its machines receives at most.
    #[serde(default)]
    pub rate_limit: Option<u64>,
    pub state: InstallState,
    pub created: String,
    pub installs: Vec<Install>,
    /// The codes of the machines that this call approved; compare them with the screens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approved_codes: Vec<String>,
}

/// One machine's share.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Install {
    pub id: String,
    pub deployment: i64,
    pub machine: String,
    /// The machine as people know it: its name, else its first MAC, else its id.
    pub machine_label: String,
    /// `NAME@N`
    pub image: String,
    pub state: InstallState,
    /// `planning`, `writing`, `verifying`, `finishing`, `done` or `failed`, as the target last said
    pub phase: Option<String>,
    /// Share of the whole install, reading back included: 100 only when it is done.
    pub percent: u8,
    /// Sealed bytes to fetch.
    pub total: u64,
    pub from_peers: u64,
    pub from_server: u64,
    /// Sealed bytes that were rebuilt from parity.
    pub rebuilt: u64,
    /// Plain bytes that were right already.
    pub already: u64,
    /// Plain bytes written.
    pub written: u64,
    /// Since the target began.
    pub milliseconds: u64,
    /// Sealed bytes per second since it began.
    pub bytes_per_second: u64,
    pub seconds_left: Option<u64>,
    /// What holds it up, while it writes: `network`, `disk` or `processor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<String>,
    /// Why it failed and what to do.
    pub error: Option<String>,
    pub created: String,
    pub started: Option<String>,
    pub ended: Option<String>,
    /// Its machine has said nothing since: it was switched off, or goes on without the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<String>,
    /// Its deployment is paused: it waits if it did not begin.
    #[serde(default)]
    pub paused: bool,
    /// Bytes a second that its machine receives at most, as its deployment says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<u64>,
    /// Its machine waits for its turn, and why: what its client holds is overwritten, and others do not have it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

const fn phase_word(phase: InstallPhase) -> &'static str {
    match phase {
        InstallPhase::Planning => "planning",
        InstallPhase::Writing => "writing",
        InstallPhase::Verifying => "verifying",
        InstallPhase::Finishing => "finishing",
        InstallPhase::Done => "done",
        InstallPhase::Failed => "failed",
    }
}

const fn bottleneck_word(bottleneck: Bottleneck) -> &'static str {
    match bottleneck {
        Bottleneck::Network => "network",
        Bottleneck::Disk => "disk",
        Bottleneck::Processor => "processor",
    }
}

/// Bytes per second and the seconds left at that pace.
fn pace(done: u64, total: u64, milliseconds: u64) -> (u64, Option<u64>) {
    let pace = u128::from(done) * 1000 / u128::from(milliseconds.max(1));
    let pace = u64::try_from(pace).unwrap_or(u64::MAX);
    let left = total.saturating_sub(done).checked_div(pace);
    (pace, left)
}

/// An install as the API shows it.
pub(crate) async fn install_view(app: &App, row: InstallRow) -> Result<Install, ApiError> {
    let labels = app.db.machine_labels(Some(row.machine)).await?;
    Ok(view_of(app, row, &labels))
}

pub(crate) fn view_of(app: &App, row: InstallRow, labels: &HashMap<MachineId, String>) -> Install {
    let label = labels.get(&row.machine).cloned().unwrap_or_else(|| row.machine.to_string());
    let progress = row.progress.as_ref();
    let bytes =
        |pick: fn(&InstallProgress) -> ByteCount| progress.map_or(0, |progress| pick(progress).0);
    let (total, milliseconds) = (bytes(|p| p.total), progress.map_or(0, |p| p.milliseconds));
    let done = bytes(|p| p.from_peers) + bytes(|p| p.from_server) + bytes(|p| p.rebuilt);
    let (bytes_per_second, left) = pace(done, total, milliseconds);
    let silent = deployments::silent_since(row.state, row.heard, row.started, Moment::now());
    let writing = silent.is_none()
        && progress.is_some_and(|progress| progress.phase == InstallPhase::Writing);
    Install {
        id: row.id.to_string(),
        deployment: row.deployment,
        machine: row.machine.to_string(),
        machine_label: label,
        image: format!("{}@{}", row.image, row.number),
        state: row.state,
        phase: progress.map(|progress| phase_word(progress.phase).to_owned()),
        percent: progress.map_or(0, InstallProgress::percent),
        total,
        from_peers: bytes(|p| p.from_peers),
        from_server: bytes(|p| p.from_server),
        rebuilt: bytes(|p| p.rebuilt),
        already: bytes(|p| p.already),
        written: bytes(|p| p.written),
        milliseconds,
        bytes_per_second: if silent.is_some() { 0 } else { bytes_per_second },
        seconds_left: left.filter(|_| writing),
        bottleneck: progress
            .and_then(|progress| progress.bottleneck)
            .filter(|_| writing)
            .map(|bottleneck| bottleneck_word(bottleneck).to_owned()),
        error: row.error,
        created: row.created.to_text(),
        started: row.started.map(|moment| moment.to_text()),
        ended: row.ended.map(|moment| moment.to_text()),
        silent_since: silent.map(|moment| moment.to_text()),
        paused: row.paused,
        rate_limit: row.rate_limit.map(Rate::bytes),
        waits_for: match (row.state, row.paused) {
            (InstallState::Scheduled, true) => Some(ticket::PAUSED.to_owned()),
            (InstallState::Scheduled, false) => app.waves.reason(row.id),
            _ => None,
        },
    }
}

/// The newest installs as the API shows them.
pub(crate) async fn all_installs(app: &App, limit: u32) -> Result<Vec<Install>, ApiError> {
    let labels = app.db.machine_labels(None).await?;
    let installs = app.db.installs(limit).await?.into_iter();
    Ok(installs.map(|row| view_of(app, row, &labels)).collect())
}

/// The installs of deployments of which one is not over, and of the newest others; newest first.
pub(crate) async fn recent_installs(app: &App, others: u32) -> Result<Vec<Install>, ApiError> {
    let labels = app.db.machine_labels(None).await?;
    let mut installs = app.db.installs_of_open_deployments().await?;
    let open: HashSet<_> = installs.iter().map(|install| install.deployment).collect();
    let newest = app.db.installs(others).await?.into_iter();
    installs.extend(newest.filter(|install| !open.contains(&install.deployment)));
    installs.sort_by_key(|install| std::cmp::Reverse(install.deployment));
    Ok(installs.into_iter().map(|row| view_of(app, row, &labels)).collect())
}

/// A deployment as the API shows it.
async fn view(
    app: &App,
    row: DeploymentRow,
    labels: &HashMap<MachineId, String>,
) -> Result<Deployment, ApiError> {
    let installs = app.db.installs_of_deployment(row.id).await?.into_iter();
    let installs: Vec<_> = installs.map(|install| view_of(app, install, labels)).collect();
    Ok(Deployment {
        id: row.id,
        image: format!("{}@{}", row.image, row.number),
        disk: disk_text(&row.disk),
        then: after_word(row.after).to_owned(),
        preapproved: row.preapproved,
        at_once: row.at_once,
        storage: row.storage.map(|size| size.0),
        paused: row.paused,
        rate_limit: row.rate_limit.map(Rate::bytes),
        state: deployments::sum(installs.iter().map(|install| install.state)),
        created: row.created.to_text(),
        installs,
        approved_codes: Vec::new(),
    })
}

/// One deployment as the API shows it.
pub(crate) async fn one(app: &App, deployment: i64) -> Result<Deployment, ApiError> {
    let row = app.db.deployment(deployment).await?.ok_or_else(unknown)?;
    view(app, row, &app.db.machine_labels(None).await?).await
}

pub(super) fn unknown() -> ApiError {
    ApiError::not_found(
        "deployment_unknown",
        "there is no such deployment: GET /api/v1/deployments lists them",
    )
}

/// `only`, `serial:…`, `wwn:…` or `size:BYTES`.
pub(crate) fn parse_disk(text: &str) -> Option<DiskSelector> {
    let some = |value: &str| (!value.is_empty() && value.len() <= 256).then(|| value.to_owned());
    match text.split_once(':') {
        None => (text == "only").then_some(DiskSelector::Only),
        Some(("serial", value)) => some(value).map(DiskSelector::Serial),
        Some(("wwn", value)) => some(value).map(DiskSelector::Wwn),
        Some(("size", value)) => value.parse().ok().map(ByteCount).map(DiskSelector::Size),
        Some(_) => None,
    }
}

fn disk_text(disk: &DiskSelector) -> String {
    match disk {
        DiskSelector::Only => "only".to_owned(),
        DiskSelector::Serial(serial) => format!("serial:{serial}"),
        DiskSelector::Wwn(wwn) => format!("wwn:{wwn}"),
        DiskSelector::Size(size) => format!("size:{size}"),
        DiskSelector::Path(path) => format!("path:{path}"),
    }
}

fn parse_after(text: &str) -> Option<AfterInstall> {
    match text {
        "reboot" => Some(AfterInstall::Reboot),
        "power-off" => Some(AfterInstall::PowerOff),
        "exit" => Some(AfterInstall::Exit),
        _ => None,
    }
}

const fn after_word(after: AfterInstall) -> &'static str {
    match after {
        AfterInstall::Reboot => "reboot",
        AfterInstall::PowerOff => "power-off",
        AfterInstall::Exit => "exit",
    }
}

/// Deploy an image
#[utoipa::path(post, path = "/api/v1/deployments", tag = "deployments", request_body = DeploymentRequest,
    responses((status = 201, body = Deployment), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(actor): Extension<Actor>,
    Body(request): Body<DeploymentRequest>,
) -> Result<(StatusCode, Json<Deployment>), ApiError> {
    let disk = match request.disk.as_deref() {
        None => DiskSelector::Only,
        Some(text) => parse_disk(text).ok_or_else(|| {
            ApiError::bad_request(
                "bad_disk",
                "a disk is `only`, `serial:…`, `wwn:…` or `size:BYTES`",
            )
        })?,
    };
    let after = match request.then.as_deref() {
        None => AfterInstall::Reboot,
        Some(text) => parse_after(text).ok_or_else(|| {
            ApiError::bad_request("bad_then", "`then` is `reboot`, `power-off` or `exit`")
        })?,
    };
    let storage = request.storage.map(ByteCount);
    if storage.is_some_and(|size| size.0 < MIN_STORAGE) {
        return Err(ApiError::bad_request(
            "bad_storage",
            "a storage partition is of at least 64 MiB, in bytes",
        ));
    }
    let wish = approval::Wish {
        image: request.image,
        disk,
        after,
        preapproved: request.preapprove,
        at_once: request.at_once,
        storage,
        rate_limit: rate(request.rate_limit)?,
    };
    let mut machines = request.machines;
    machines
        .extend(approval::machines_of(&app, &wish.image, &request.groups, request.drifted).await?);
    scope::require(&app, &actor, &machines).await?;
    let (deployment, codes) = approval::deploy(&app, &wish, &machines).await?;
    let mut made = one(&app, deployment).await?;
    made.approved_codes = codes;
    Ok((StatusCode::CREATED, Json(made)))
}

impl Placed for DeploymentRow {
    fn place(&self) -> String {
        newest_first(self.id)
    }
}

/// Deployments and installs that are listed when no part is asked for.
const NEWEST: u32 = 200;
const NEWEST_INSTALLS: u32 = 500;

/// List deployments, newest first
#[utoipa::path(get, path = "/api/v1/deployments", tag = "deployments", params(Part),
    responses((status = 200, body = Vec<Deployment>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Deployment>, ApiError> {
    let labels = app.db.machine_labels(None).await?;
    let most = if part.is_asked() { u32::MAX } else { NEWEST };
    let listed = part.of(app.db.deployments(most).await?)?;
    let mut deployments = Vec::new();
    for row in &listed.entries {
        deployments.push(view(&app, row.clone(), &labels).await?);
    }
    Ok(listed.with(deployments))
}

/// Show a deployment
#[utoipa::path(get, path = "/api/v1/deployments/{deployment}", tag = "deployments",
    params(("deployment" = i64, Path)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(deployment): Place<i64>,
) -> Result<Json<Deployment>, ApiError> {
    Ok(Json(one(&app, deployment).await?))
}

/// Cancel what is not over of a deployment
#[utoipa::path(post, path = "/api/v1/deployments/{deployment}/cancel", tag = "deployments",
    params(("deployment" = i64, Path)), responses((status = 200, body = Deployment), (status = 404, body = Problem)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    Place(deployment): Place<i64>,
) -> Result<Json<Deployment>, ApiError> {
    one(&app, deployment).await?;
    approval::cancel(&app, deployment).await?;
    Ok(Json(one(&app, deployment).await?))
}

/// Cancel one install: its machine is left out of its deployment
#[utoipa::path(post, path = "/api/v1/installs/{install}/cancel", tag = "deployments", params(("install" = String, Path)),
    responses((status = 200, body = Install), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn cancel_install(
    State(app): State<App>,
    Place(install): Place<String>,
) -> Result<Json<Install>, ApiError> {
    let row = find_install(&app, &install).await?;
    if deployments::is_over(row.state) {
        return Err(ApiError::conflict(
            "install_over",
            format!("this install is over, it is {}", row.state.word()),
        ));
    }
    approval::cancel_install(&app, &row).await?;
    let row = app.db.install(row.id).await?.ok_or_else(unknown_install)?;
    Ok(Json(install_view(&app, row).await?))
}

pub(super) fn unknown_install() -> ApiError {
    ApiError::not_found(
        "install_unknown",
        "there is no such install: GET /api/v1/installs lists them",
    )
}

async fn find_install(app: &App, install: &str) -> Result<InstallRow, ApiError> {
    let install: InstallId = id("install", install)?;
    app.db.install(install).await?.ok_or_else(unknown_install)
}

/// Who holds the segments of what is deployed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SegmentHolders {
    /// Of each data segment, in the order of the manifest: clients that are there now and hold it. What none holds is made of
    /// its stripe, or comes from the server.
    pub holders: Vec<u32>,
}

/// Show how many clients hold each segment of what is deployed
#[utoipa::path(get, path = "/api/v1/deployments/{deployment}/segments", tag = "deployments",
    params(("deployment" = i64, Path)), responses((status = 200, body = SegmentHolders), (status = 404, body = Problem)))]
pub(crate) async fn segments(
    State(app): State<App>,
    Place(deployment): Place<i64>,
) -> Result<Json<SegmentHolders>, ApiError> {
    app.db.deployment(deployment).await?.ok_or_else(unknown)?;
    Ok(Json(SegmentHolders { holders: holders(&app, deployment).await? }))
}

/// How many clients that are there now hold each segment.
pub(crate) async fn holders(app: &App, deployment: i64) -> Result<Vec<u32>, ApiError> {
    let since = Moment::now().minus(crate::db::target::LIVE);
    Ok(app.db.holders_of_segments(deployment, since).await?)
}

/// Deploy anew to the machines of a deployment on which it failed or was cancelled
///
/// Those that have something else to do by now are left out.
#[utoipa::path(post, path = "/api/v1/deployments/{deployment}/retry", tag = "deployments",
    params(("deployment" = i64, Path)), responses((status = 201, body = Deployment), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn retry(
    State(app): State<App>,
    Place(deployment): Place<i64>,
) -> Result<(StatusCode, Json<Deployment>), ApiError> {
    let row = app.db.deployment(deployment).await?.ok_or_else(unknown)?;
    let busy = app.db.open_installs(None).await?;
    let installs = app.db.installs_of_deployment(deployment).await?.into_iter();
    let machines: Vec<_> = installs
        .filter(|install| can_be_tried_again(install.state, busy.contains_key(&install.machine)))
        .map(|install| install.machine.to_string())
        .collect();
    if machines.is_empty() {
        return Err(ApiError::conflict(
            "nothing_failed",
            "no machine of this deployment failed, or what failed has something else to do by now",
        ));
    }
    let wish = approval::Wish {
        image: format!("{}@{}", row.image, row.number),
        disk: row.disk,
        after: row.after,
        preapproved: row.preapproved,
        at_once: row.at_once,
        storage: row.storage,
        rate_limit: row.rate_limit,
    };
    let (made, codes) = approval::deploy(&app, &wish, &machines).await?;
    let mut made = one(&app, made).await?;
    made.approved_codes = codes;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Whether a machine gets an install of this state anew when its deployment is tried again.
pub(crate) const fn can_be_tried_again(state: InstallState, is_busy: bool) -> bool {
    matches!(state, InstallState::Failed | InstallState::Cancelled) && !is_busy
}

impl Placed for Install {
    fn place(&self) -> String {
        format!("{} {}", newest_first(self.deployment), self.id)
    }
}

/// List installs, newest first
#[utoipa::path(get, path = "/api/v1/installs", tag = "deployments", params(Part),
    responses((status = 200, body = Vec<Install>), (status = 400, body = Problem)))]
pub(crate) async fn list_installs(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Install>, ApiError> {
    let most = if part.is_asked() { u32::MAX } else { NEWEST_INSTALLS };
    part.of(all_installs(&app, most).await?)
}

/// List the installs of a machine, newest first
#[utoipa::path(get, path = "/api/v1/machines/{machine}/installs", tag = "deployments",
    params(("machine" = String, Path), Part), responses((status = 200, body = Vec<Install>), (status = 400, body = Problem),
    (status = 404, body = Problem)))]
pub(crate) async fn list_of_machine(
    State(app): State<App>,
    Place(machine): Place<String>,
    Params(part): Params<Part>,
) -> Result<Listed<Install>, ApiError> {
    let found = approval::find_machine(&app, &machine).await?;
    let found = found.ok_or_else(super::machine::unknown)?;
    part.of(installs_of(&app, found.machine).await?)
}

/// The installs of a machine as the API shows them.
pub(crate) async fn installs_of(app: &App, machine: MachineId) -> Result<Vec<Install>, ApiError> {
    let labels = app.db.machine_labels(Some(machine)).await?;
    let installs = app.db.installs_of_machine(machine).await?.into_iter();
    Ok(installs.map(|row| view_of(app, row, &labels)).collect())
}

/// Show an install
#[utoipa::path(get, path = "/api/v1/installs/{install}", tag = "deployments", params(("install" = String, Path)),
    responses((status = 200, body = Install), (status = 404, body = Problem)))]
pub(crate) async fn show_install(
    State(app): State<App>,
    Place(install): Place<String>,
) -> Result<Json<Install>, ApiError> {
    let row = find_install(&app, &install).await?;
    Ok(Json(install_view(&app, row).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_by_what_does_not_change() {
        assert_eq!(parse_disk("only"), Some(DiskSelector::Only));
        assert_eq!(parse_disk("serial:a:b"), Some(DiskSelector::Serial("a:b".into())));
        assert_eq!(parse_disk("size:1000"), Some(DiskSelector::Size(ByteCount(1000))));
        for text in ["", "serial:", "size:x", "/dev/sda", "path:/dev/sda"] {
            assert_eq!(parse_disk(text), None, "{text}");
        }
        assert_eq!(disk_text(&DiskSelector::Wwn("x".into())), "wwn:x");
    }

    #[test]
    fn pace_and_time_left() {
        assert_eq!(pace(100, 300, 1000), (100, Some(2)));
        assert_eq!(pace(0, 300, 1000), (0, None));
        assert_eq!(pace(300, 300, 0), (300_000, Some(0)));
    }
}
