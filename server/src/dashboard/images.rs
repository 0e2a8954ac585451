//! Fills the page of images.

use axum::{Form, response::Response};
use cairn_array::wire::split_name;
use cairn_web::{
    images::{Image, Images, Lives, Offered, Registration, Signature, Version},
    shell::Place,
    text::{Bytes, Rate, Span},
};
use serde::Deserialize;

use super::{ago, answer, image_label, visit::Visit};
use crate::{
    api::{self, error::ApiError, extract, image::ImageFile, machine::Machine},
    app::App,
    db::image::ImageFormat,
    moment::Moment,
};

/// Images on a page.
const SHOWN: usize = 25;

pub(super) async fn view(app: &App, page: usize) -> Result<Images, ApiError> {
    let machines = api::machine::all(app).await?;
    let clients = app.db.approved_agents().await?.len();
    let images = all(app, &machines).await?;
    let pages = images.len().div_ceil(SHOWN);
    let page = page.min(pages.saturating_sub(1));
    Ok(Images {
        registrations: app.registrations.all().into_iter().map(registration).collect(),
        images: images.into_iter().skip(page * SHOWN).take(SHOWN).collect(),
        page,
        pages,
        clients: u64::try_from(clients).unwrap_or(u64::MAX),
    })
}

pub(super) async fn all(app: &App, machines: &[Machine]) -> Result<Vec<Image>, ApiError> {
    let now = Moment::now();
    let mut images = Vec::new();
    for image in api::image::all(app).await? {
        let clients = app.db.client_count_of_image(&image.name).await?;
        images.push(fill(image, clients, machines, now));
    }
    Ok(images)
}

fn fill(image: api::image::Image, clients: u64, machines: &[Machine], now: Moment) -> Image {
    let runs = |number: u32| {
        let label = format!("{}@{number}", image.name);
        let count =
            machines.iter().filter(|machine| machine.installed.as_ref() == Some(&label)).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    };
    let versions = image.versions.iter().rev().map(|version| Version {
        number: version.number,
        size: Bytes(version.size),
        stored: Bytes(version.stored),
        added: Bytes(version.added),
        created: ago(&version.created, now),
        machines: runs(version.number),
        current: version.number == image.current,
    });
    Image {
        versions: versions.collect(),
        promoted: image.promoted,
        lives: Lives {
            // The server keeps the data segments of every ready version.
            server: true,
            clients,
            wanted: Bytes(image.scatter.wanted_bytes),
            held: Bytes(image.scatter.held_bytes),
            promise: image.redundancy,
        },
        name: image.name,
    }
}

fn registration(from: api::image::Registration) -> Registration {
    Registration {
        image: from.name,
        number: from.number,
        read: Bytes(from.position),
        size: from.total.map(Bytes),
        rate: (from.bytes_per_second > 0).then_some(Rate(from.bytes_per_second)),
        left: from.seconds_left.map(|seconds| Span { seconds: seconds.max(1) }),
        empty: Bytes(from.position.saturating_sub(from.data)),
        known: Bytes(from.deduplicated),
        stored: Bytes(from.stored),
    }
}

/// Files on the server that can become images.
pub(super) async fn files(app: &App) -> Result<Vec<Offered>, ApiError> {
    let files = api::image::offered(app).await?;
    let offered = |file: ImageFile| Offered {
        size: Bytes(file.bytes),
        name: name_of(&file.name),
        format: file.format.map(|format| format.to_string()),
        file: file.name,
    };
    Ok(files.into_iter().map(offered).collect())
}

/// What an address of the page says.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    pub(super) page: usize,
    /// `NAME@N`: who vouches for it?
    #[serde(default)]
    pub(super) signature: String,
}

/// Who vouches for the version that was asked for, if one was.
pub(super) async fn signature(app: &App, asked: &str) -> Result<Option<Signature>, ApiError> {
    let Some((name, Some(number))) = split_name(asked) else { return Ok(None) };
    let found = api::signature::check(app, name, number).await?;
    Ok(Some(Signature {
        version: image_label(asked),
        problem: found.problem,
        manifest: found.manifest.unwrap_or_default(),
        key: found.key,
        segments: found.segments,
    }))
}

/// What an image may be called after its file.
fn name_of(file: &str) -> String {
    let endings = [".zst", ".img", ".raw", ".iso", ".qcow2"];
    let mut stem = file;
    while let Some(shorter) = endings.iter().find_map(|ending| stem.strip_suffix(ending)) {
        stem = shorter;
    }
    let mut name = String::new();
    for sign in stem.chars().take(63) {
        if sign.is_ascii_alphanumeric() || matches!(sign, '.' | '_') {
            name.push(sign.to_ascii_lowercase());
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    name.trim_matches(|sign: char| !sign.is_ascii_alphanumeric()).to_owned()
}

/// A file that is to be registered.
#[derive(Deserialize)]
pub(super) struct FileForm {
    file: String,
    name: String,
    format: ImageFormat,
}

/// Ends when the registration does; the page that it was asked from shows how far that is.
pub(super) async fn register_file(
    visit: Visit,
    Form(FileForm { file, name, format }): Form<FileForm>,
) -> Result<Response, ApiError> {
    let done = api::image::add_file(&visit, name, file, format).await;
    answer(&visit, Place::Images, done).await
}

/// What is at an address and is to be registered.
#[derive(Deserialize)]
pub(super) struct AddressForm {
    url: String,
    sha256: String,
    name: String,
    format: ImageFormat,
}

/// Ends when the registration does, as [`register_file`].
pub(super) async fn register_address(
    visit: Visit,
    Form(form): Form<AddressForm>,
) -> Result<Response, ApiError> {
    let from = (form.url.trim().to_owned(), form.sha256.trim().to_owned());
    let done = api::image::add_url(&visit, form.name, from, form.format).await;
    answer(&visit, Place::Images, done).await
}

pub(super) async fn remove(
    visit: Visit,
    extract::Place((name, number)): extract::Place<(String, u32)>,
) -> Result<Response, ApiError> {
    let done = api::image::remove_version(visit.state(), extract::Place((name, number))).await;
    answer(&visit, Place::Images, done).await
}

pub(super) async fn promote(
    visit: Visit,
    version: extract::Place<(String, u32)>,
) -> Result<Response, ApiError> {
    let done = api::image::promote(visit.state(), version).await;
    answer(&visit, Place::Images, done).await
}

pub(super) async fn roll_back(
    visit: Visit,
    image: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::image::roll_back(visit.state(), image).await;
    answer(&visit, Place::Images, done).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_called_after_its_file() {
        assert_eq!(name_of("debian-12.raw.zst"), "debian-12");
        assert_eq!(name_of("Win 11 (lab).qcow2"), "win-11-lab");
        assert_eq!(name_of("_x.img"), "x");
        assert_eq!(name_of(&"a".repeat(80)).len(), 63);
    }
}
