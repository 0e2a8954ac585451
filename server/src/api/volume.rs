//! Volumes: list, create, show, resize, delete, and papers for who uses one from elsewhere.

use anyhow::Context as _;
use axum::{Json, extract::State, http::StatusCode};
use cairn_array::{
    tls::{Member, public_key_of_csr},
    volume::VolumeState,
    wire::split_name,
};
use cairn_core::{
    id::VolumeId,
    units::ByteCount,
    volume::{Durability, SizeError, blocks_of, checkpoint::Root},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Params, Place},
    image::{self, Scatter},
    part::{Listed, Part, Placed},
    snapshot::{self, in_order},
};
use crate::{
    app::App,
    db::{
        volume::{Origin, VolumeLayout, VolumeRow, VolumeStage},
        words,
    },
    volumes::{self, Beginning, CreateError, NewVolume, UseError},
};

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `NAME@N` of the image that it began as, or `VOLUME@SNAPSHOT`.
    pub origin: Option<String>,
    pub layout: VolumeLayout,
    /// When a flush is answered; none when it cannot be opened.
    pub durability: Option<FlushDurability>,
    /// Of a volume whose journal clients mirror: how many have all that was flushed. Flushes wait while there is none.
    pub tail_holders: Option<u64>,
    /// What may be lost without losing it, in words; none of a volume that is on the server only, or not placed yet.
    pub redundancy: Option<String>,
    /// How far clients hold what they are to hold of it, complete when that is all up to the last checkpoint; none of a
    /// volume that is on the server only.
    pub scatter: Option<Scatter>,
    pub created: String,
    pub state: Condition,
    /// Why it is not well, in words.
    pub reason: Option<String>,
    /// NBD connections to it.
    pub connections: u64,
    /// Bytes of its blocks that are not zeros and that no other has, before compression; without those of the journal.
    pub live: u64,
    /// Sealed bytes that it has in the store.
    pub stored: u64,
    /// Bytes of the journal that wait to be sealed.
    pub journal: u64,
}

/// How a volume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Well,
    /// The store has no room: what is in the journal stays there, writes fail once that is full.
    StoreFull,
    /// The store does not do what it shall: what is in the journal stays there, writes fail once that is full.
    StoreFails,
    /// A disk failed: it takes no changes until the server is started again.
    Faulty,
    /// It cannot be opened.
    Unavailable,
    /// It is being made or removed.
    Changing,
}

words! {
    /// When a flush of a volume is answered.
    FlushDurability {
        /// Once the journal is durable on the server's disk.
        Local = "local",
        /// Once a client has what the journal has, too.
        Mirrored = "mirrored",
    }
}

impl From<Durability> for FlushDurability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Local => Self::Local,
            Durability::Mirrored => Self::Mirrored,
        }
    }
}

impl From<FlushDurability> for Durability {
    fn from(durability: FlushDurability) -> Self {
        match durability {
            FlushDurability::Local => Self::Local,
            FlushDurability::Mirrored => Self::Mirrored,
        }
    }
}

/// What a volume is to be.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    pub name: String,
    /// Bytes, a multiple of 4096, at most 64 TiB. Without it: as large as what it begins as.
    pub size: Option<u64>,
    /// `NAME` or `NAME@N`: it begins as this image, of which it copies nothing.
    pub image: Option<String>,
    /// `VOLUME@SNAPSHOT`: it begins as this snapshot, of which it copies nothing.
    pub snapshot: Option<String>,
    /// Who holds a part of it: the server only, if nothing is said.
    #[serde(default = "on_the_server")]
    pub layout: VolumeLayout,
    /// When a flush is answered: `local` if nothing is said. `mirrored` needs a layout of which clients hold a part.
    #[serde(default = "locally")]
    pub durability: FlushDurability,
}

const fn on_the_server() -> VolumeLayout {
    VolumeLayout::Server
}

const fn locally() -> FlushDurability {
    FlushDurability::Local
}

/// A new size.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// Bytes, a multiple of 4096.
    pub size: u64,
    /// Cut off what is behind a smaller size.
    #[serde(default)]
    pub shrink: bool,
}

/// A certificate request, PEM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PapersRequest {
    pub csr: String,
}

/// What opens a volume from elsewhere, with the key of the request.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumePapers {
    /// PEM.
    pub certificate: String,
    /// The site's CA, PEM.
    pub ca: String,
}

pub(super) fn unknown(name: &str) -> ApiError {
    let name: String = name.chars().take(80).collect();
    ApiError::not_found(
        "volume_unknown",
        format!("there is no volume {name:?}: `cairn-server volume list` shows them"),
    )
}

pub(crate) fn refuse_use(name: &str, error: UseError) -> ApiError {
    match error {
        UseError::Unknown => unknown(name),
        UseError::InUse => ApiError::conflict(
            "volume_in_use",
            format!("{name} is in use by NBD: disconnect its clients first"),
        ),
        UseError::Unavailable(why) => {
            ApiError::conflict("volume_unavailable", format!("{name} cannot be opened: {why}"))
        }
        UseError::HasSnapshots(snapshots) => ApiError::conflict(
            "volume_has_snapshots",
            format!("{name} has snapshots: {}. Delete them first", snapshots.join(", ")),
        ),
        UseError::IsRootOf(machine) => ApiError::conflict(
            "volume_is_root",
            format!(
                "machine {machine} comes up from {name}: give it another volume, or its own disk (`cairn-server machine boot {machine} --own-disk`)"
            ),
        ),
        UseError::Failed(error) => error.into(),
    }
}

fn refuse_create(error: CreateError) -> ApiError {
    let code = match error {
        CreateError::Failed(error) => return error.into(),
        CreateError::NameTaken => return ApiError::conflict("volume_exists", error.to_string()),
        CreateError::NoSize => "no_size",
        CreateError::NothingToMirror => "nothing_to_mirror",
        CreateError::NobodyCarries => {
            return ApiError::conflict("nobody_carries", error.to_string());
        }
        CreateError::Size(_) => "bad_size",
        CreateError::SmallerThanOrigin(_) => "smaller_than_origin",
        CreateError::Layout(..) => {
            return ApiError::conflict("layout_does_not_hold", error.to_string());
        }
        CreateError::NoRoomForJournal(_) | CreateError::StoreFull => {
            return ApiError::conflict("store_full", error.to_string());
        }
        CreateError::UnknownSnapshot => {
            return ApiError::not_found("snapshot_unknown", error.to_string());
        }
    };
    ApiError::bad_request(code, error.to_string())
}

fn bad_size(error: SizeError) -> ApiError {
    ApiError::bad_request("bad_size", error.to_string())
}

/// What a volume began as, for people.
async fn label(app: &App, origin: Origin) -> Result<Option<String>, ApiError> {
    let id = match origin {
        Origin::Version(id) => {
            let version = app.db.version(id).await?;
            return Ok(version.map(|version| format!("{}@{}", version.name, version.number)));
        }
        Origin::Snapshot(id) => id,
    };
    let snapshots = app.db.snapshots().await?;
    let Some(found) = snapshots.into_iter().find(|row| row.id == id) else { return Ok(None) };
    let volumes = app.db.volumes().await?;
    let volume = volumes.into_iter().find(|row| row.id == found.volume);
    Ok(volume.map(|volume| format!("{}@{}", volume.name, found.name)))
}

/// How far clients hold a volume of which `checkpoint` is the last.
async fn scatter(app: &App, id: VolumeId, checkpoint: u64) -> Result<Scatter, ApiError> {
    let scatter = Scatter::of(app.db.scatter_count_of_set(id.into()).await?);
    let kept = app.db.stripe_map_of_set(id.into()).await?;
    let root = kept.and_then(|kept| kept.root);
    let verifier = app.site.verifying_key();
    let root = root.map(|root| Root::open(&verifier, &root).context("read a root")).transpose()?;
    let newest = root.is_some_and(|root| root.number == checkpoint);
    Ok(Scatter { complete: scatter.complete && newest, ..scatter })
}

pub(super) async fn view(app: &App, row: VolumeRow) -> Result<Volume, ApiError> {
    let origin = match row.origin {
        Some(origin) => label(app, origin).await?,
        None => None,
    };
    let mut volume = Volume {
        name: row.name,
        size: row.size.0,
        origin,
        layout: row.layout,
        durability: None,
        tail_holders: None,
        redundancy: row.promise,
        scatter: None,
        created: row.created.to_text(),
        state: Condition::Changing,
        reason: None,
        connections: 0,
        live: 0,
        stored: 0,
        journal: 0,
    };
    if row.stage != VolumeStage::Ready {
        return Ok(volume);
    }
    match app.volumes.condition(&volume.name) {
        Err(UseError::Unavailable(why)) => {
            volume.state = Condition::Unavailable;
            volume.reason = Some(why);
        }
        // It is being made or removed just now.
        Err(_) => {}
        Ok(found) => {
            volume.state = match found.state {
                VolumeState::Well => Condition::Well,
                VolumeState::StoreFull => Condition::StoreFull,
                VolumeState::StoreFails => Condition::StoreFails,
                VolumeState::Faulty => Condition::Faulty,
            };
            volume.size = found.size.0;
            volume.live = found.usage.live.0;
            volume.stored = found.usage.stored.0;
            volume.journal = found.usage.journal.0;
            volume.connections = found.users as u64;
            volume.durability = Some(found.durability.into());
            volume.tail_holders = found.tail_holders.map(|holders| holders as u64);
            if row.layout != VolumeLayout::Server {
                volume.scatter = Some(scatter(app, row.id, found.checkpoint).await?);
            }
        }
    }
    Ok(volume)
}

pub(crate) async fn row(app: &App, name: &str) -> Result<VolumeRow, ApiError> {
    let rows = app.db.volumes().await?;
    rows.into_iter().find(|row| row.name == name).ok_or_else(|| unknown(name))
}

impl Placed for Volume {
    fn place(&self) -> String {
        self.name.clone()
    }
}

/// List volumes
#[utoipa::path(get, path = "/api/v1/volumes", tag = "volumes", params(Part),
    responses((status = 200, body = Vec<Volume>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Volume>, ApiError> {
    part.of(all(&app).await?)
}

pub(crate) async fn all(app: &App) -> Result<Vec<Volume>, ApiError> {
    let mut volumes = Vec::new();
    for row in app.db.volumes().await? {
        volumes.push(view(app, row).await?);
    }
    Ok(volumes)
}

/// Show a volume
#[utoipa::path(get, path = "/api/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    responses((status = 200, body = Volume), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<Json<Volume>, ApiError> {
    let row = row(&app, &name).await?;
    Ok(Json(view(&app, row).await?))
}

/// Create a volume: empty, or as a clone of an image or of a snapshot
#[utoipa::path(post, path = "/api/v1/volumes", tag = "volumes", request_body = VolumeRequest,
    responses((status = 201, body = Volume), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<VolumeRequest>,
) -> Result<(StatusCode, Json<Volume>), ApiError> {
    let name = request.name;
    if !image::is_name(&name) {
        return Err(ApiError::bad_request(
            "bad_name",
            "a volume's name has 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit",
        ));
    }
    let beginning = match (&request.image, &request.snapshot) {
        (None, None) => None,
        (Some(text), None) => {
            let (image, number) = split_name(text).ok_or_else(|| image::unknown(text))?;
            let version = app.db.version_named(image, number).await?;
            let version = version.ok_or_else(|| image::unknown(text))?;
            Some(Beginning::Version(Box::new(version)))
        }
        (None, Some(text)) => {
            let (volume, snapshot) = text.split_once('@').ok_or_else(|| snapshot::unknown(text))?;
            Some(Beginning::Snapshot(volume.to_owned(), snapshot.to_owned()))
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "two_origins",
                "a volume begins as an image or as a snapshot: name one of them",
            ));
        }
    };
    let size = request.size.map(ByteCount);
    let (layout, durability) = (request.layout, request.durability.into());
    let new = NewVolume { name: name.clone(), size, beginning, layout, durability };
    let worker = app.clone();
    let made = in_order(&app, async move { volumes::create(&worker, new).await }).await?;
    made.map_err(refuse_create)?;
    let row = row(&app, &name).await?;
    Ok((StatusCode::CREATED, Json(view(&app, row).await?)))
}

/// Give a volume another size; clients see it when they connect anew
#[utoipa::path(patch, path = "/api/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    request_body = ResizeRequest,
    responses((status = 200, body = Volume), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn resize(
    State(app): State<App>,
    Place(name): Place<String>,
    Body(request): Body<ResizeRequest>,
) -> Result<Json<Volume>, ApiError> {
    let size = ByteCount(request.size);
    let blocks = blocks_of(size).map_err(bad_size)?;
    let found = app.volumes.condition(&name).map_err(|error| refuse_use(&name, error))?;
    if size < found.size && !request.shrink {
        return Err(ApiError::conflict(
            "volume_would_shrink",
            format!(
                "{name} has {} bytes: say that it may shrink, and what is behind is lost",
                found.size.0
            ),
        ));
    }
    volumes::resize(&app, &name, size, blocks).await.map_err(|error| refuse_use(&name, error))?;
    let row = row(&app, &name).await?;
    Ok(Json(view(&app, row).await?))
}

/// Delete a volume with all that it holds
#[utoipa::path(delete, path = "/api/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    responses((status = 204, description = "It is gone"), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<StatusCode, ApiError> {
    let (worker, which) = (app.clone(), name.clone());
    let removed = in_order(&app, async move { volumes::remove(&worker, &which).await }).await?;
    removed.map_err(|error| refuse_use(&name, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make papers with which a volume can be used from another machine
#[utoipa::path(post, path = "/api/v1/volumes/{name}/papers", tag = "volumes", params(("name" = String, Path)),
    request_body = PapersRequest,
    responses((status = 200, body = VolumePapers), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn papers(
    State(app): State<App>,
    Place(name): Place<String>,
    Body(request): Body<PapersRequest>,
) -> Result<Json<VolumePapers>, ApiError> {
    let row = row(&app, &name).await?;
    let key = public_key_of_csr(&request.csr)
        .map_err(|error| ApiError::bad_request("bad_csr", format!("{error:#}")))?;
    let authority = app.site.authority();
    let certified = authority.certify(&Member::Volume(row.id), &key)?;
    Ok(Json(VolumePapers {
        certificate: certified.certificate_pem,
        ca: authority.ca_pem().to_owned(),
    }))
}
