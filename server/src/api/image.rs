//! Images: list, show, add, export, remove.

use std::{collections::HashMap, time::Duration};

use anyhow::Context as _;
use axum::{
    Json,
    body::Body as AxumBody,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use cairn_array::register::SourceError;
use cairn_core::{id::ImageId, units::ByteCount};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Params, Place},
    part::{Listed, Part, Placed},
    snapshot,
};
use crate::{
    app::App,
    db::{
        holding::ScatterCount,
        image::{BeginError, ImageFormat, ImageRow, VersionRow},
    },
    events::Event,
    jobs::Kind,
    moment::Moment,
    register::{
        self, Content, Outcome, RegisterError, Upload,
        elsewhere::{FetchError, Fetched, OfferedFile},
    },
    volumes::snapshots::{self, OpenSnapshot},
};

/// How often listeners hear how far registrations are.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// An image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    pub name: String,
    pub created: String,
    /// What may be lost without losing it, in words; none until it was placed.
    pub redundancy: Option<String>,
    /// How far its segments are where they are to be.
    pub scatter: Scatter,
    /// The number of the version that its name stands for: that which was promoted last, or the newest.
    pub current: u32,
    /// It was promoted; without that a newer version takes its place.
    pub promoted: bool,
    /// Oldest first; at least one.
    pub versions: Vec<Version>,
}

/// How far the segments of an image or a volume are where they are to be.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Scatter {
    /// Copies and parity that agents are to hold, and that they reported.
    pub wanted: u64,
    pub held: u64,
    pub wanted_bytes: u64,
    pub held_bytes: u64,
    /// Something is wanted, and all of it is there.
    pub complete: bool,
}

impl Scatter {
    pub(super) const fn of(count: ScatterCount) -> Self {
        Self {
            wanted: count.wanted,
            held: count.held,
            wanted_bytes: count.wanted_bytes.0,
            held_bytes: count.held_bytes.0,
            complete: count.wanted > 0 && count.held == count.wanted,
        }
    }
}

/// A version of an image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Version {
    pub number: u32,
    pub format: ImageFormat,
    /// Bytes of the disk.
    pub size: u64,
    /// Sealed bytes of all segments it uses.
    pub stored: u64,
    /// Sealed bytes that came with it.
    pub added: u64,
    pub created: String,
}

/// A registration that is under way.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Registration {
    pub name: String,
    pub number: u32,
    /// Bytes of the disk that were passed, of `total`.
    pub position: u64,
    pub total: Option<u64>,
    /// Bytes that are neither zero nor free.
    pub data: u64,
    /// Bytes that the file system does not use.
    pub free: u64,
    /// Bytes that were stored already.
    pub deduplicated: u64,
    /// Sealed bytes of new segments.
    pub stored: u64,
    pub seconds: f64,
    /// Of the disk.
    pub bytes_per_second: u64,
    pub seconds_left: Option<u64>,
}

/// What an upload became.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Added {
    pub name: String,
    pub number: u32,
    /// The version of this number was there already with the same content; nothing was added.
    pub identical: bool,
    pub version: Option<Version>,
}

/// How an upload is to be read.
#[derive(Clone, Debug, Deserialize, utoipa::IntoParams, Default)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadParams {
    /// Declared, never guessed from the bytes. Left out with `snapshot`.
    format: Option<ImageFormat>,
    /// `VOLUME@SNAPSHOT`: its blocks become the version, the body is empty.
    snapshot: Option<String>,
    /// The server fetches it from there: a host that it was started with. The body is empty.
    url: Option<String>,
    /// Of what is at the `url`, 64 hex digits.
    sha256: Option<String>,
    /// A file in the folder `images` of the server's data folder. The body is empty.
    file: Option<String>,
    /// Bytes of the disk, when they are known; an upload that turns out longer or shorter is refused.
    size: Option<u64>,
    /// Take bytes that look like no disk image at all.
    #[serde(default)]
    any_content: bool,
}

/// `NAME` has 1 to 63 letters, digits, dots, dashes and underscores.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|sign: char| sign.is_ascii_alphanumeric())
        && text.chars().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '.' | '-' | '_'))
}

/// The answer when there is no such image.
pub(crate) fn unknown(name: &str) -> ApiError {
    let name: String = name.chars().take(80).collect();
    ApiError::not_found(
        "image_unknown",
        format!("there is no image {name:?}: `cairn-server image list` shows them"),
    )
}

impl From<&VersionRow> for Version {
    fn from(row: &VersionRow) -> Self {
        Self {
            number: row.number,
            format: row.format,
            size: row.size.0,
            stored: row.stored.0,
            added: row.added.0,
            created: row.created.to_text(),
        }
    }
}

async fn view(
    app: &App,
    row: ImageRow,
    versions: &[VersionRow],
    promoted: &HashMap<ImageId, u32>,
) -> Result<Image, ApiError> {
    let count = app.db.scatter_count_of_set(row.id.into()).await?;
    let mine = versions.iter().filter(|version| version.image == row.id);
    let newest = mine.clone().map(|version| version.number).max();
    let promoted = promoted.get(&row.id).copied();
    Ok(Image {
        current: promoted.or(newest).unwrap_or_default(),
        promoted: promoted.is_some(),
        name: row.name,
        created: row.created.to_text(),
        redundancy: row.promise,
        scatter: Scatter::of(count),
        versions: mine.map(Version::from).collect(),
    })
}

/// All images as the API shows them.
pub(crate) async fn all(app: &App) -> Result<Vec<Image>, ApiError> {
    let (versions, promoted) = (app.db.versions().await?, app.db.promoted().await?);
    let mut images = Vec::new();
    for row in app.db.images().await? {
        images.push(view(app, row, &versions, &promoted).await?);
    }
    Ok(images)
}

async fn one(app: &App, name: &str) -> Result<Image, ApiError> {
    let row = app.db.image_named(name).await?.ok_or_else(|| unknown(name))?;
    let (versions, promoted) = (app.db.versions().await?, app.db.promoted().await?);
    view(app, row, &versions, &promoted).await
}

impl Placed for Image {
    fn place(&self) -> String {
        self.name.clone()
    }
}

/// List images
#[utoipa::path(get, path = "/api/v1/images", tag = "images", params(Part),
    responses((status = 200, body = Vec<Image>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Image>, ApiError> {
    part.of(all(&app).await?)
}

/// Show an image
#[utoipa::path(get, path = "/api/v1/images/{name}", tag = "images", params(("name" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<Json<Image>, ApiError> {
    Ok(Json(one(&app, &name).await?))
}

/// Have the image's name stand for this version, whatever newer ones come
#[utoipa::path(post, path = "/api/v1/images/{name}/versions/{number}/promote", tag = "images",
    params(("name" = String, Path), ("number" = u32, Path)),
    responses((status = 200, body = Image), (status = 404, body = Problem)))]
pub(crate) async fn promote(
    State(app): State<App>,
    Place((name, number)): Place<(String, u32)>,
) -> Result<Json<Image>, ApiError> {
    let version = app.db.version_named(&name, Some(number)).await?.ok_or_else(|| unknown(&name))?;
    if !app.db.promote(version.id, Moment::now()).await? {
        return Err(unknown(&name));
    }
    app.events.emit(Event::ImageChanged { name: name.clone() }).await;
    Ok(Json(one(&app, &name).await?))
}

/// Take the last promotion back: the image's name stands for what it stood for before
#[utoipa::path(post, path = "/api/v1/images/{name}/rollback", tag = "images", params(("name" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn roll_back(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<Json<Image>, ApiError> {
    let row = app.db.image_named(&name).await?.ok_or_else(|| unknown(&name))?;
    if !app.db.take_promotion_back(row.id).await? {
        return Err(ApiError::conflict(
            "nothing_promoted",
            format!(
                "no version of {name} was promoted, so its name stands for the newest: promote the one that it shall stand for (`cairn-server image promote {name}@N`)"
            ),
        ));
    }
    app.events.emit(Event::ImageChanged { name: name.clone() }).await;
    Ok(Json(one(&app, &name).await?))
}

/// Remove an image with all its versions
#[utoipa::path(delete, path = "/api/v1/images/{name}", tag = "images", params(("name" = String, Path)),
    responses((status = 202, description = "Its segments leave the fleet"), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn remove(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<StatusCode, ApiError> {
    let row = app.db.image_named(&name).await?.ok_or_else(|| unknown(&name))?;
    let versions = app.db.versions().await?;
    for version in versions.iter().filter(|version| version.image == row.id) {
        begin_removal(&app, version).await?;
    }
    Ok(StatusCode::ACCEPTED)
}

/// Remove one version of an image
#[utoipa::path(delete, path = "/api/v1/images/{name}/versions/{number}", tag = "images",
    params(("name" = String, Path), ("number" = u32, Path)),
    responses((status = 202, description = "Its own segments leave the fleet"), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn remove_version(
    State(app): State<App>,
    Place((name, number)): Place<(String, u32)>,
) -> Result<StatusCode, ApiError> {
    let version = app.db.version_named(&name, Some(number)).await?.ok_or_else(|| unknown(&name))?;
    if app.db.promoted().await?.get(&version.image) == Some(&number) {
        return Err(ApiError::conflict(
            "version_promoted",
            format!("{name} stands for this version: promote another one, or roll back, first"),
        ));
    }
    begin_removal(&app, &version).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn begin_removal(app: &App, version: &VersionRow) -> Result<(), ApiError> {
    let clones = app.db.clones_of_version(version.id).await?;
    if !clones.is_empty() {
        let (name, number, clones) = (&version.name, version.number, clones.join(", "));
        return Err(ApiError::conflict(
            "image_has_clones",
            format!("{name}@{number} is what these volumes began as: {clones}. Delete them first"),
        ));
    }
    if !app.db.begin_removal(version.id).await? {
        return Err(ApiError::conflict(
            "image_in_use",
            format!(
                "{}@{} is being installed, or another version of it is being added: wait, or cancel that first",
                version.name, version.number
            ),
        ));
    }
    app.queue(Kind::RemoveVersion { version: version.id }).await?;
    app.events.emit(Event::ImageChanged { name: version.name.clone() }).await;
    Ok(())
}

/// Add the next version of an image
///
/// The body is the image itself, streamed; or it is empty, and a snapshot of a volume, an address, or a file on the server is named.
/// What breaks off leaves nothing behind.
#[utoipa::path(post, path = "/api/v1/images/{name}/versions", tag = "images",
    params(("name" = String, Path), UploadParams), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = Added), (status = 200, body = Added, description = "The same content was there already"),
    (status = 400, body = Problem), (status = 403, description = "Images are not fetched from that host", body = Problem),
    (status = 404, description = "There is no such file", body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem), (status = 502, description = "The host does not give it", body = Problem)))]
pub(crate) async fn add(
    State(app): State<App>,
    Place(name): Place<String>,
    Params(params): Params<UploadParams>,
    body: AxumBody,
) -> Result<(StatusCode, Json<Added>), ApiError> {
    if !is_name(&name) {
        return Err(ApiError::bad_request(
            "bad_name",
            "an image's name has 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit",
        ));
    }
    let upload = upload(&app, name.clone(), params, body).await?;
    // In a task of its own: when the sender goes away this handler is dropped, but the registration is still cleared away,
    // and whoever watched it hears that it is over.
    let (worker, image) = (app.clone(), name.clone());
    let mut running = app.tasks.spawn(async move {
        let outcome = register::run(&worker, upload).await;
        worker.events.emit(Event::ImageChanged { name: image }).await;
        outcome
    });
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            _ = tick.tick() => tell_progress(&app, &name).await,
        }
    };
    let outcome = ended.context("wait for a registration")?.map_err(refuse)?;
    let (number, identical) = match outcome {
        Outcome::Added { number } => (number, false),
        Outcome::Identical { number } => (number, true),
    };
    let version = app.db.version_named(&name, Some(number)).await?;
    let status = if identical { StatusCode::OK } else { StatusCode::CREATED };
    let version = version.as_ref().map(Version::from);
    Ok((status, Json(Added { name, number, identical, version })))
}

/// Finds out where the bytes come from.
async fn upload(
    app: &App,
    name: String,
    params: UploadParams,
    body: AxumBody,
) -> Result<Upload, ApiError> {
    let UploadParams { format, snapshot, url, sha256, file, size, any_content } = params;
    let (format, content, known) = match (format, size, snapshot, url, sha256, file) {
        (Some(format), _, None, None, None, None) => (format, Content::Body(body), None),
        (None, None, Some(text), None, None, None) => {
            (ImageFormat::Raw, Content::Snapshot(open(app, &text).await?), None)
        }
        (Some(format), _, None, Some(url), Some(sha256), None) if format != ImageFormat::Sparse => {
            let mut hash = [0; 32];
            hex::decode_to_slice(sha256.trim(), &mut hash).map_err(|_| {
                ApiError::bad_request(
                    "bad_sha256",
                    "a SHA-256 has 64 hex digits: `sha256sum FILE` shows it",
                )
            })?;
            let Fetched { body, bytes } =
                app.sources.fetch(&url, hash).await.map_err(not_fetched)?;
            (format, Content::Body(body), bytes)
        }
        (Some(format), _, None, None, None, Some(file)) if format != ImageFormat::Sparse => {
            let Fetched { body, bytes } = app.sources.open(&file).await.map_err(not_fetched)?;
            (format, Content::Body(body), bytes)
        }
        _ => {
            return Err(ApiError::bad_request(
                "no_format",
                "declare the format of the body, of what is at `url` (with its `sha256`) or of the `file` on the server, \
                 and its size if you like; or the `snapshot` that becomes the image",
            ));
        }
    };
    // A raw image is as large as its file.
    let known = known.filter(|_| format == ImageFormat::Raw);
    let size = size.or(known).map(ByteCount);
    Ok(Upload { name, format, size, any_content, content })
}

fn not_fetched(error: FetchError) -> ApiError {
    let (status, code) = match error {
        FetchError::NotAnAddress => (StatusCode::BAD_REQUEST, "bad_url"),
        FetchError::NotAllowed { .. } => (StatusCode::FORBIDDEN, "host_not_allowed"),
        FetchError::Unreachable { .. } | FetchError::Answered { .. } => {
            (StatusCode::BAD_GATEWAY, "image_unreachable")
        }
        FetchError::NoFile(_) => (StatusCode::NOT_FOUND, "file_unknown"),
        FetchError::Failed(error) => return error.into(),
    };
    ApiError::new(status, code, error.to_string())
}

/// A file on the server that can become an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ImageFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// What its name stands for; it is declared all the same.
    pub(crate) format: Option<ImageFormat>,
}

/// Registers a file on the server, and waits for the end of that.
pub(crate) async fn add_file(
    app: &App,
    name: String,
    file: String,
    format: ImageFormat,
) -> Result<(), ApiError> {
    let params = UploadParams { format: Some(format), file: Some(file), ..UploadParams::default() };
    add(State(app.clone()), Place(name), Params(params), AxumBody::empty()).await.map(drop)
}

/// Registers what is at an address, and waits for the end of that.
pub(crate) async fn add_url(
    app: &App,
    name: String,
    (url, sha256): (String, String),
    format: ImageFormat,
) -> Result<(), ApiError> {
    let (format, url, sha256) = (Some(format), Some(url), Some(sha256));
    let params = UploadParams { format, url, sha256, ..UploadParams::default() };
    add(State(app.clone()), Place(name), Params(params), AxumBody::empty()).await.map(drop)
}

/// List the files in the folder `images` of the server's data folder
#[utoipa::path(get, path = "/api/v1/image-files", tag = "images", responses((status = 200, body = Vec<ImageFile>)))]
pub(crate) async fn files(State(app): State<App>) -> Result<Json<Vec<ImageFile>>, ApiError> {
    Ok(Json(offered(&app).await?))
}

pub(crate) async fn offered(app: &App) -> Result<Vec<ImageFile>, ApiError> {
    let sources = app.sources.clone();
    let files = tokio::task::spawn_blocking(move || sources.files()).await;
    let files = files.context("wait for a thread")?.context("list the folder of images")?;
    let file = |OfferedFile { name, bytes, format }| ImageFile { name, bytes, format };
    Ok(files.into_iter().map(file).collect())
}

/// Opens a snapshot by `VOLUME@SNAPSHOT`.
async fn open(app: &App, text: &str) -> Result<OpenSnapshot, ApiError> {
    let (volume, name) = text.split_once('@').ok_or_else(|| snapshot::unknown(text))?;
    let (worker, of, which) = (app.clone(), volume.to_owned(), name.to_owned());
    let opening = tokio::task::spawn_blocking(move || snapshots::open(&worker, &of, &which));
    let opened = opening.await.context("wait for a thread")?;
    opened.map_err(|error| snapshot::refuse(volume, name, error))
}

async fn tell_progress(app: &App, name: &str) {
    for registration in app.registrations.all() {
        if registration.name == name {
            app.events.emit(Event::Registering(Box::new(registration))).await;
        }
    }
}

fn refuse(error: RegisterError) -> ApiError {
    match error {
        RegisterError::Begin(BeginError::Busy) => ApiError::conflict(
            "image_busy",
            "another registration of this name is under way: wait for it, or choose another name",
        ),
        RegisterError::Begin(BeginError::Db(error)) => error.into(),
        RegisterError::Source(error) => {
            let code = match error {
                SourceError::Truncated { .. } => "image_truncated",
                SourceError::TooLong { .. } => "image_too_long",
                SourceError::Empty => "image_empty",
                SourceError::TooLarge { .. } => "image_too_large",
                SourceError::NotAnImage => "not_an_image",
                SourceError::Read(_) => "image_unreadable",
                SourceError::Malformed(_) => "image_malformed",
            };
            let said = format!("{:#}", anyhow::Error::from(error));
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, said)
        }
        RegisterError::Failed(error) => error.into(),
    }
}

/// Export a version as a raw disk image
#[utoipa::path(get, path = "/api/v1/images/{name}/versions/{number}/content", tag = "images",
    params(("name" = String, Path), ("number" = u32, Path)),
    responses((status = 200, description = "Every byte of the disk", content_type = "application/octet-stream"),
    (status = 404, body = Problem)))]
pub(crate) async fn export(
    State(app): State<App>,
    Place((name, number)): Place<(String, u32)>,
) -> Result<Response, ApiError> {
    let version = app.db.version_named(&name, Some(number)).await?.ok_or_else(|| unknown(&name))?;
    let body = register::export(&app, version.id).await?;
    let length = HeaderValue::from(version.size.0);
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, length)], body).into_response())
}

/// List the registrations that are under way
#[utoipa::path(get, path = "/api/v1/registrations", tag = "images",
    responses((status = 200, body = Vec<Registration>)))]
pub(crate) async fn registrations(State(app): State<App>) -> Json<Vec<Registration>> {
    Json(app.registrations.all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_in_a_path_and_leaves_room_for_a_number() {
        for name in ["debian-12", "a", "Win_11.2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "a/b", "a@2", "-a", "..", "ä", &"a".repeat(64)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
