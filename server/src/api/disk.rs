//! Addresses at which loaders read images, volumes and snapshots as disks, by plain HTTP.

use std::time::Duration;

use axum::{Json, extract::State};
use cairn_array::wire::split_name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Place},
    image, volume,
};
use crate::{
    app::App,
    disks::{self, What},
    moment::Moment,
};

const MOST_HOURS: u32 = 365 * 24;

/// An address is asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlRequest {
    /// How long it holds, 1 to 8760.
    #[serde(default = "a_day")]
    pub hours: u32,
}

const fn a_day() -> u32 {
    24
}

/// Where a disk is read by plain HTTP, in ranges.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskUrl {
    /// Whoever has it can read the disk; nobody can write.
    pub url: String,
    pub expires: String,
}

async fn url(
    app: &App,
    what: &What,
    request: UrlRequest,
) -> Result<Option<Json<DiskUrl>>, ApiError> {
    if !(1..=MOST_HOURS).contains(&request.hours) {
        return Err(ApiError::bad_request(
            "bad_hours",
            format!("an address holds for 1 to {MOST_HOURS} hours"),
        ));
    }
    let life = Duration::from_secs(u64::from(request.hours) * 3600);
    let expires = Moment::now().plus(life);
    let Some(url) = disks::url(app, what, expires).await? else { return Ok(None) };
    tracing::info!(disk = %what, expires = expires.to_text(), "a disk was given an address");
    Ok(Some(Json(DiskUrl { url, expires: expires.to_text() })))
}

/// Make an address at which loaders read a volume, or `VOLUME@SNAPSHOT`, by plain HTTP (`sanboot`)
#[utoipa::path(post, path = "/api/v1/volumes/{name}/url", tag = "volumes", params(("name" = String, Path)),
    request_body = UrlRequest,
    responses((status = 200, body = DiskUrl), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn of_volume(
    State(app): State<App>,
    Place(name): Place<String>,
    Body(request): Body<UrlRequest>,
) -> Result<Json<DiskUrl>, ApiError> {
    let what = match name.split_once('@') {
        None => What::Volume(name.clone()),
        Some((volume, snapshot)) => {
            What::Snapshot { volume: volume.to_owned(), name: snapshot.to_owned() }
        }
    };
    url(&app, &what, request).await?.ok_or_else(|| volume::unknown(&name))
}

/// Make an address at which loaders read a version of an image by plain HTTP (`sanboot`)
///
/// Without a number it is that of the version that the name stands for now.
#[utoipa::path(post, path = "/api/v1/images/{name}/url", tag = "images", params(("name" = String, Path)),
    request_body = UrlRequest,
    responses((status = 200, body = DiskUrl), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn of_image(
    State(app): State<App>,
    Place(text): Place<String>,
    Body(request): Body<UrlRequest>,
) -> Result<Json<DiskUrl>, ApiError> {
    let (name, number) = split_name(&text).ok_or_else(|| image::unknown(&text))?;
    let version = app.db.version_named(name, number).await?;
    let version = version.ok_or_else(|| image::unknown(&text))?;
    let what = What::Image { name: version.name, number: version.number };
    url(&app, &what, request).await?.ok_or_else(|| image::unknown(&text))
}
