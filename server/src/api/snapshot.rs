//! Snapshots of volumes: list, take, go back to, delete.

use axum::{Json, extract::State, http::StatusCode};
use cairn_core::units::ByteCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Place},
    image, volume,
};
use crate::{
    app::App,
    db::{snapshot::SnapshotRow, volume::VolumeStage},
    volumes::snapshots::{self, SnapshotError},
};

/// A snapshot of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Served by NBD as `VOLUME@NAME`, read-only.
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub created: String,
    /// Volumes that began as it.
    pub clones: Vec<String>,
}

/// A snapshot that is to be taken.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    pub name: String,
}

/// What a volume shall be again.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    pub snapshot: String,
    /// Throw away what was written since.
    #[serde(default)]
    pub discard: bool,
}

impl From<SnapshotRow> for Snapshot {
    fn from(row: SnapshotRow) -> Self {
        let ByteCount(size) = row.size;
        Self { name: row.name, size, created: row.created.to_text(), clones: row.clones }
    }
}

pub(super) fn refuse(volume: &str, name: &str, error: SnapshotError) -> ApiError {
    let label = format!("{volume}@{name}");
    match error {
        SnapshotError::Volume(error) => volume::refuse_use(volume, error),
        SnapshotError::Unknown => unknown(&label),
        SnapshotError::NameTaken => ApiError::conflict(
            "snapshot_exists",
            format!("there is a snapshot {label}: choose another name"),
        ),
        SnapshotError::InUse => ApiError::conflict(
            "snapshot_in_use",
            format!("{label} is being read: disconnect its clients first"),
        ),
        SnapshotError::HasClones(clones) => ApiError::conflict(
            "snapshot_has_clones",
            format!(
                "{label} is what these volumes began as: {}. Delete them first",
                clones.join(", ")
            ),
        ),
        SnapshotError::Full => ApiError::conflict(
            "store_full",
            format!(
                "the store has no room for {label}: add a device, or delete what is not needed"
            ),
        ),
    }
}

pub(super) fn unknown(label: &str) -> ApiError {
    let label: String = label.chars().take(160).collect();
    ApiError::not_found(
        "snapshot_unknown",
        format!("there is no snapshot {label:?}: `cairn-server volume snapshots` shows them"),
    )
}

/// List the snapshots of a volume, oldest first
#[utoipa::path(get, path = "/api/v1/volumes/{name}/snapshots", tag = "volumes", params(("name" = String, Path)),
    responses((status = 200, body = Vec<Snapshot>), (status = 404, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<Json<Vec<Snapshot>>, ApiError> {
    Ok(Json(of_volume(&app, &name).await?))
}

pub(crate) async fn of_volume(app: &App, name: &str) -> Result<Vec<Snapshot>, ApiError> {
    let volume = volume::row(app, name).await?;
    let mut rows = app.db.snapshots().await?;
    rows.retain(|row| row.volume == volume.id && row.stage == VolumeStage::Ready);
    Ok(rows.into_iter().map(Snapshot::from).collect())
}

/// Take a snapshot of a volume as it is now, what was not flushed included
#[utoipa::path(post, path = "/api/v1/volumes/{name}/snapshots", tag = "volumes", params(("name" = String, Path)),
    request_body = SnapshotRequest,
    responses((status = 201, body = Snapshot), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn take(
    State(app): State<App>,
    Place(name): Place<String>,
    Body(request): Body<SnapshotRequest>,
) -> Result<(StatusCode, Json<Snapshot>), ApiError> {
    let snapshot = request.name;
    if !image::is_name(&snapshot) {
        return Err(ApiError::bad_request(
            "bad_name",
            "a snapshot's name has 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit",
        ));
    }
    let (worker, volume, taken) = (app.clone(), name.clone(), snapshot.clone());
    in_order(&app, async move { snapshots::take(&worker, &volume, taken).await })
        .await?
        .map_err(|error| refuse(&name, &snapshot, error))?;
    let found = of_volume(&app, &name).await?.into_iter().find(|found| found.name == snapshot);
    let found = found.ok_or_else(|| unknown(&format!("{name}@{snapshot}")))?;
    Ok((StatusCode::CREATED, Json(found)))
}

/// Delete a snapshot
#[utoipa::path(delete, path = "/api/v1/volumes/{name}/snapshots/{snapshot}", tag = "volumes",
    params(("name" = String, Path), ("snapshot" = String, Path)),
    responses((status = 204, description = "It is gone"), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove(
    State(app): State<App>,
    Place((name, snapshot)): Place<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (worker, volume, which) = (app.clone(), name.clone(), snapshot.clone());
    in_order(&app, async move { snapshots::delete(&worker, &volume, &which).await })
        .await?
        .map_err(|error| refuse(&name, &snapshot, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a volume what a snapshot of it is; nobody may use it meanwhile
#[utoipa::path(post, path = "/api/v1/volumes/{name}/rollback", tag = "volumes", params(("name" = String, Path)),
    request_body = RollbackRequest,
    responses((status = 200, body = volume::Volume), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn roll_back(
    State(app): State<App>,
    Place(name): Place<String>,
    Body(request): Body<RollbackRequest>,
) -> Result<Json<volume::Volume>, ApiError> {
    let snapshot = request.snapshot;
    if !request.discard {
        return Err(ApiError::conflict(
            "would_discard",
            format!(
                "what was written to {name} since {snapshot} would be lost: say that it may be discarded, or take a snapshot of it first and say so then"
            ),
        ));
    }
    let (worker, volume, which) = (app.clone(), name.clone(), snapshot.clone());
    in_order(&app, async move { snapshots::roll_back(&worker, &volume, &which).await })
        .await?
        .map_err(|error| refuse(&name, &snapshot, error))?;
    let row = volume::row(&app, &name).await?;
    Ok(Json(volume::view(&app, row).await?))
}

/// Does it in a task of its own: whoever asked may go away, and what was begun is still ended in order.
pub(super) async fn in_order<T: Send + 'static>(
    app: &App,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    app.tasks.spawn(work).await.map_err(|error| anyhow::Error::from(error).into())
}
