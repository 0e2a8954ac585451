//! `cairn-server image …`

use std::{
    io::{self, Seek as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use cairn_array::wire::split_name;
use clap::Subcommand;
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, RequestBuilder};
use tokio::io::AsyncWriteExt as _;

use super::{
    client::{Client, Remote, part},
    disk::Life,
    output::{bytes, json, line, note, table},
};
use crate::{
    api::{
        image::{Added, Image, ImageFile, Registration},
        signature::Signature,
    },
    db::image::ImageFormat,
    register::elsewhere::format_of,
};

const POLL: Duration = Duration::from_millis(300);
/// Bytes of a file that are sent at once.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a disk image; under a name that is there, it becomes the next version
    Add {
        /// A file, or an address (`https://…`, with --sha256) that the server fetches it from
        #[arg(value_name = "FILE-OR-URL")]
        file: PathBuf,
        /// Of what is at the address, 64 hex digits
        #[arg(long, value_name = "HEX", conflicts_with = "on_server")]
        sha256: Option<String>,
        /// FILE is in the folder `images` of the server's data folder: nothing is sent (`image files` lists them)
        #[arg(long)]
        on_server: bool,
        #[arg(long)]
        name: String,
        /// Declared, never guessed from the bytes (default: by the file's extension: .img, .raw, .zst, .qcow2)
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// Bytes of the disk, checked when it is compressed
        #[arg(long, value_name = "BYTES")]
        size: Option<u64>,
        /// Take bytes that look like no disk image at all
        #[arg(long)]
        any_content: bool,
        #[arg(long)]
        json: bool,
    },
    /// List the files in the folder `images` of the server's data folder
    Files {
        #[arg(long)]
        json: bool,
    },
    /// List images
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show an image with its versions
    Show {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Remove an image (NAME), or one version of it (NAME@N)
    Remove { name: String },
    /// Check who signed a version (NAME@N), and what
    Signature {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Have the image's name stand for a version (NAME@N), whatever newer ones come
    Promote { name: String },
    /// Take the last promotion back
    Rollback { name: String },
    /// Write an image (NAME or NAME@N) to a file, every byte of the disk; zeros become holes
    Export { name: String, file: PathBuf },
    /// Make an address at which loaders read an image (NAME or NAME@N) by plain HTTP (`sanboot URL`)
    Url {
        name: String,
        #[command(flatten)]
        life: Life,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Raw,
    #[value(name = "raw.zst")]
    RawZst,
    Qcow2,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::RawZst => Self::RawZst,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        match self.verb {
            Verb::Add {
                file,
                sha256,
                on_server,
                name,
                format,
                size,
                any_content,
                json: as_json,
            } => {
                let by_name = || format_of(file.to_str()?);
                let format = format.map(Into::into).or_else(by_name).with_context(|| {
                    format!(
                        "the name of {} does not say its format: declare it with --format",
                        file.display()
                    )
                })?;
                let upload = Upload { file, name, format, size, any_content };
                let added = bring(&client, &upload, sha256.as_deref(), on_server).await?;
                if as_json { json(&added) } else { show_added(&added) }
            }
            Verb::Files { json: as_json } => files(&client, as_json).await,
            Verb::List { json: as_json } => {
                let images: Vec<Image> = client.get("/api/v1/images").await?;
                if as_json { json(&images) } else { list(&images) }
            }
            Verb::Show { name, json: as_json } => {
                let image: Image = client.get(&format!("/api/v1/images/{}", part(&name))).await?;
                if as_json { json(&image) } else { show(&image) }
            }
            Verb::Remove { name } => {
                let (name, number) = split_name(&name).context("an image is NAME or NAME@N")?;
                let path = match number {
                    None => format!("/api/v1/images/{}", part(name)),
                    Some(number) => format!("/api/v1/images/{}/versions/{number}", part(name)),
                };
                client.delete(&path).await
            }
            Verb::Signature { name, json } => signature(&client, &name, json).await,
            Verb::Promote { name } => {
                let (name, number) = split_name(&name).context("a version is NAME@N")?;
                let number = number.context("name the version: NAME@N")?;
                let path = format!("/api/v1/images/{}/versions/{number}/promote", part(name));
                let image: Image = client.post(&path).await?;
                show_current(&image)
            }
            Verb::Rollback { name } => {
                let path = format!("/api/v1/images/{}/rollback", part(&name));
                let image: Image = client.post(&path).await?;
                show_current(&image)
            }
            Verb::Export { name, file } => export(&client, &name, &file).await,
            Verb::Url { name, life } => {
                life.url(&client, &format!("/api/v1/images/{}", part(&name))).await
            }
        }
    }
}

async fn files(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let files: Vec<ImageFile> = client.get("/api/v1/image-files").await?;
    if as_json {
        return json(&files);
    }
    let rows = files.into_iter().map(|file| {
        let format = file.format.map_or_else(|| "?".to_owned(), |it| it.to_string());
        vec![file.name, bytes(file.bytes), format]
    });
    let none = "there is no file in the folder `images` of the server's data folder";
    table(&["FILE", "SIZE", "FORMAT"], rows.collect(), none)
}

/// Fails when the site does not vouch for it.
async fn signature(client: &Client, name: &str, as_json: bool) -> anyhow::Result<()> {
    let (name, number) = split_name(name).context("a version is NAME@N")?;
    let number = number.context("name the version: NAME@N")?;
    let path = format!("/api/v1/images/{}/versions/{number}/signature", part(name));
    let found: Signature = client.get(&path).await?;
    if as_json {
        json(&found)?;
    } else if let Some(manifest) = &found.manifest {
        line(&format!("manifest  sha256 {manifest}, {} segments", found.segments))?;
        line(&format!("site key  ed25519 {}", found.key))?;
    }
    match found.problem {
        None => note(&format!("{name}@{number} is signed by this site")),
        Some(problem) => bail!("this site does not vouch for {name}@{number}: {problem}"),
    }
}

struct Upload {
    file: PathBuf,
    name: String,
    format: ImageFormat,
    size: Option<u64>,
    any_content: bool,
}

impl Upload {
    /// The address, when it is one.
    fn url(&self) -> Option<&str> {
        let text = self.file.to_str()?;
        (text.starts_with("http://") || text.starts_with("https://")).then_some(text)
    }

    /// What is declared about it.
    fn query(&self, format: ImageFormat, size: Option<u64>) -> String {
        let mut query = format!("format={format}");
        if let Some(size) = size {
            query.push_str(&format!("&size={size}"));
        }
        if self.any_content {
            query.push_str("&any_content=true");
        }
        query
    }
}

/// Sends an image, or has the server take it from where it is.
async fn bring(
    client: &Client,
    upload: &Upload,
    sha256: Option<&str>,
    on_server: bool,
) -> anyhow::Result<Added> {
    match (upload.url(), sha256, on_server) {
        (Some(url), Some(sha256), false) => {
            let place = format!("url={}&sha256={}", part(url), part(sha256));
            add_from(client, upload, &place).await
        }
        (Some(_), ..) => bail!(
            "an address comes with --sha256: what is there now must be what you mean (`sha256sum FILE`)"
        ),
        (None, Some(_), _) => bail!("--sha256 goes with an address: drop it"),
        (None, None, true) => {
            let file = upload.file.to_str().context("its name is not UTF-8")?;
            add_from(client, upload, &format!("file={}", part(file))).await
        }
        (None, None, false) => add(client, upload).await,
    }
}

/// Has the server take an image from elsewhere.
async fn add_from(client: &Client, upload: &Upload, place: &str) -> anyhow::Result<Added> {
    let query = upload.query(upload.format, upload.size);
    let path = format!("/api/v1/images/{}/versions?{query}&{place}", part(&upload.name));
    register(client, client.request(Method::POST, &path), &upload.name, upload.size).await
}

async fn add(client: &Client, upload: &Upload) -> anyhow::Result<Added> {
    let length = length_of(&upload.file)?;
    let raw = upload.format == ImageFormat::Raw;
    if raw && upload.size.is_some_and(|size| size != length) {
        bail!("{} has {length} bytes, --size says otherwise: drop --size", upload.file.display());
    }
    // A raw file's length is the disk's size; what a compressed one holds is only known to whoever made it.
    let size = upload.size.or_else(|| raw.then_some(length));
    // Holes and zeros of a raw file stay at home.
    let format = if raw { ImageFormat::Sparse } else { upload.format };
    let query = upload.query(format, size);
    let path = format!("/api/v1/images/{}/versions?{query}", part(&upload.name));
    let body = if raw {
        reqwest::Body::wrap_stream(super::sparse::stream(upload.file.clone()))
    } else {
        let file = tokio::fs::File::open(&upload.file)
            .await
            .with_context(|| format!("open {}", upload.file.display()))?;
        reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(file, CHUNK_BYTES))
    };
    let request = client
        .request(Method::POST, &path)
        .header("content-type", "application/octet-stream")
        .body(body);
    register(client, request, &upload.name, size).await
}

/// Sends a request that registers an image, and shows how far it is.
pub(super) async fn register(
    client: &Client,
    request: RequestBuilder,
    name: &str,
    size: Option<u64>,
) -> anyhow::Result<Added> {
    let bar = progress_bar(size.unwrap_or(0));
    let sending = client.send(request);
    tokio::pin!(sending);
    let response = loop {
        tokio::select! {
            response = &mut sending => break response,
            () = tokio::time::sleep(POLL) => watch(client, name, &bar).await,
        }
    };
    bar.finish_and_clear();
    response?.json().await.context("read the server's answer")
}

/// The bytes of a file or a block device.
fn length_of(path: &Path) -> anyhow::Result<u64> {
    let measure = || std::fs::File::open(path)?.seek(io::SeekFrom::End(0));
    measure().with_context(|| format!("measure {}", path.display()))
}

fn progress_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template =
        "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Shows what the server says about the registration. That it cannot be asked just now is no reason to stop sending.
async fn watch(client: &Client, name: &str, bar: &ProgressBar) {
    let all: anyhow::Result<Vec<Registration>> = client.get("/api/v1/registrations").await;
    if let Some(mine) = all.ok().and_then(|all| all.into_iter().find(|one| one.name == name)) {
        bar.set_position(mine.position);
        bar.set_message(format!(
            "{} already stored, {} new",
            bytes(mine.deduplicated),
            bytes(mine.stored)
        ));
    }
}

pub(super) fn show_added(added: &Added) -> anyhow::Result<()> {
    let label = format!("{}@{}", added.name, added.number);
    if added.identical {
        return line(&format!("the same content is there already as {label}: nothing was added"));
    }
    match &added.version {
        None => line(&label),
        Some(version) => line(&format!(
            "{label}: disk of {}, {} in segments, {} of them new",
            bytes(version.size),
            bytes(version.stored),
            bytes(version.added)
        )),
    }
}

fn show_current(image: &Image) -> anyhow::Result<()> {
    let why = if image.promoted { "promoted" } else { "the newest" };
    line(&format!("{} stands for version {}, {why}", image.name, image.current))
}

fn list(images: &[Image]) -> anyhow::Result<()> {
    let row = |image: &Image| {
        let newest = image.versions.last();
        vec![
            image.name.clone(),
            image.versions.len().to_string(),
            if image.promoted { image.current.to_string() } else { "newest".to_owned() },
            newest.map_or_else(String::new, |version| bytes(version.size)),
            newest.map_or_else(String::new, |version| bytes(version.stored)),
            format!("{} of {}", image.scatter.held, image.scatter.wanted),
            image.redundancy.clone().unwrap_or_else(|| "not placed yet".to_owned()),
        ]
    };
    let header =
        ["NAME", "VERSIONS", "CURRENT", "DISK", "SEGMENTS", "IN PLACE", "SURVIVES THE LOSS OF"];
    table(&header, images.iter().map(row).collect(), "no images: `image add FILE --name NAME`")
}

fn show(image: &Image) -> anyhow::Result<()> {
    line(&format!("name      {}", image.name))?;
    let why = if image.promoted { "promoted" } else { "the newest" };
    line(&format!("current   {}, {why}", image.current))?;
    line(&format!("survives  {}", image.redundancy.as_deref().unwrap_or("not placed yet")))?;
    let scatter = image.scatter;
    line(&format!(
        "in place  {} of {} segments, {} of {}",
        scatter.held,
        scatter.wanted,
        bytes(scatter.held_bytes),
        bytes(scatter.wanted_bytes)
    ))?;
    let row = |version: &crate::api::image::Version| {
        vec![
            version.number.to_string(),
            version.format.to_string(),
            bytes(version.size),
            bytes(version.stored),
            bytes(version.added),
            version.created.clone(),
        ]
    };
    let header = ["VERSION", "FORMAT", "DISK", "SEGMENTS", "NEW", "CREATED"];
    table(&header, image.versions.iter().map(row).collect(), "no versions")
}

async fn export(client: &Client, name: &str, file: &Path) -> anyhow::Result<()> {
    let (name, number) = split_name(name).context("an image is NAME or NAME@N")?;
    let image: Image = client.get(&format!("/api/v1/images/{}", part(name))).await?;
    let number = number.unwrap_or(image.current);
    let path = format!("/api/v1/images/{}/versions/{number}/content", part(name));
    let response = client.send(client.request(Method::GET, &path)).await?;
    let size =
        response.content_length().context("the server does not say how large the image is")?;
    // Beside and renamed: a file of that name is an image, whole.
    let mut beside = file.as_os_str().to_owned();
    beside.push(".partial");
    let beside = PathBuf::from(beside);
    let written = write_sparse(response, &beside, size).await;
    if let Err(error) = written {
        // What is there is of no use; that it cannot be removed is not the error to report.
        drop(tokio::fs::remove_file(&beside).await);
        return Err(error);
    }
    tokio::fs::rename(&beside, file)
        .await
        .with_context(|| format!("put {} in place", file.display()))?;
    note(&format!("{name}@{number}: {} written to {}", bytes(size), file.display()))
}

/// Writes a body to a file; whole blocks of zeros become holes.
async fn write_sparse(response: reqwest::Response, path: &Path, size: u64) -> anyhow::Result<()> {
    let write = || format!("write {}", path.display());
    let mut file = tokio::fs::File::create(path).await.with_context(write)?;
    let bar = progress_bar(size);
    let mut body = response.bytes_stream();
    let mut position = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.context("the export broke off: run it again")?;
        if chunk.iter().all(|byte| *byte == 0) {
            let ahead = i64::try_from(chunk.len()).context("count bytes")?;
            tokio::io::AsyncSeekExt::seek(&mut file, io::SeekFrom::Current(ahead))
                .await
                .with_context(write)?;
        } else {
            file.write_all(&chunk).await.with_context(write)?;
        }
        position += u64::try_from(chunk.len()).context("count bytes")?;
        bar.set_position(position);
    }
    bar.finish_and_clear();
    if position != size {
        bail!("the export ended after {position} of {size} bytes: run it again");
    }
    file.set_len(size).await.with_context(write)?;
    file.sync_all().await.with_context(write)
}
