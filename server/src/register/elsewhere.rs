//! Images that are not uploaded: files in the data folder's `images`, and addresses of hosts that the operator named.
//!
//! An address comes from whoever may add images, and the server asks it: so only hosts that were named when the server was
//! started are asked, redirections included, and what comes must be what its SHA-256 says.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use cairn_array::register::MAX_IMAGE_BYTES;
use cairn_core::id::Hasher;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use reqwest::{StatusCode, Url, redirect};
use rustix::fs::OFlags;
use tokio_util::io::ReaderStream;

use crate::db::image::ImageFormat;

/// The folder of files that are offered, in the data folder.
const IMAGES: &str = "images";

const CONNECT: Duration = Duration::from_secs(10);
/// A host that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest that an image may take.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
const REDIRECTS: usize = 5;
/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;
/// The most files that are listed.
const LISTED: usize = 1000;

/// A host that images may be fetched from: `NAME`, at the usual port, or `NAME:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageHost {
    name: String,
    port: Option<u16>,
}

impl FromStr for ImageHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The parser of addresses knows what a host is, and writes it as it will be compared.
        let url = Url::parse(&format!("ftp://{text}"))
            .map_err(|error| format!("a host is NAME or NAME:PORT: {error}"))?;
        let is_host = url.path() == "/" && url.username().is_empty() && url.query().is_none();
        let name = url.host_str().filter(|_| is_host).ok_or("a host is NAME or NAME:PORT")?;
        Ok(Self { name: name.to_ascii_lowercase(), port: url.port() })
    }
}

impl ImageHost {
    fn is_of(&self, url: &Url) -> bool {
        let usual = if url.scheme() == "https" { 443 } else { 80 };
        let port = url.port_or_known_default();
        url.host_str().is_some_and(|host| host.eq_ignore_ascii_case(&self.name))
            && port == Some(self.port.unwrap_or(usual))
    }
}

/// Where images may come from but from uploads.
#[derive(Clone, Debug)]
pub struct Sources {
    hosts: Vec<ImageHost>,
    folder: PathBuf,
}

/// A file that is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfferedFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// What its name stands for.
    pub(crate) format: Option<ImageFormat>,
}

/// Bytes that come from elsewhere, and how many, when that is known.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) body: Body,
    pub(crate) bytes: Option<u64>,
}

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("an image's address begins with http:// or https:// and names a host")]
    NotAnAddress,
    #[error(
        "images are not fetched from {host}: start the server with `--image-host {host}` when they are to be"
    )]
    NotAllowed { host: String },
    #[error("{host} cannot be asked: {why}")]
    Unreachable { host: String, why: String },
    #[error("{host} answered {status}")]
    Answered { host: String, status: StatusCode },
    #[error("there is no file {0:?} in the server's folder of images")]
    NoFile(String),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Sources {
    /// Whether any host was named.
    #[must_use]
    pub const fn has_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    #[must_use]
    pub fn new(hosts: Vec<ImageHost>, data_dir: &Path) -> Self {
        Self { hosts, folder: data_dir.join(IMAGES) }
    }

    fn allows(&self, url: &Url) -> bool {
        matches!(url.scheme(), "http" | "https") && self.hosts.iter().any(|host| host.is_of(url))
    }

    /// Asks a host for an image. What comes fails at its end when it is not what `sha256` says.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(crate) async fn fetch(&self, url: &str, sha256: [u8; 32]) -> Result<Fetched, FetchError> {
        let url = Url::parse(url).map_err(|_| FetchError::NotAnAddress)?;
        let Some(host) = host_of(&url) else { return Err(FetchError::NotAnAddress) };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::NotAnAddress);
        }
        if !self.allows(&url) {
            return Err(FetchError::NotAllowed { host });
        }
        let hosts = self.clone();
        let follow = redirect::Policy::custom(move |attempt| {
            if !hosts.allows(attempt.url()) {
                let host = host_of(attempt.url()).unwrap_or_default();
                attempt.error(FetchError::NotAllowed { host })
            } else if attempt.previous().len() > REDIRECTS {
                attempt.error("it redirects too often")
            } else {
                attempt.follow()
            }
        });
        let client = reqwest::Client::builder()
            .redirect(follow)
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .timeout(LONGEST)
            .build()
            .map_err(|error| anyhow::Error::from(error).context("build the HTTP client"))?;
        let answer = client.get(url).send().await.map_err(|error| {
            let why = format!("{:#}", anyhow::Error::from(error.without_url()));
            FetchError::Unreachable { host: host.clone(), why }
        })?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Answered { host, status: answer.status() });
        }
        let bytes = answer.content_length();
        let stream = answer.bytes_stream().map_err(io::Error::other);
        Ok(Fetched { body: Body::from_stream(checked(stream, sha256)), bytes })
    }

    /// Opens a file that is offered.
    ///
    /// # Errors
    /// [`FetchError::NoFile`] when it is not there, or is no plain file.
    pub(crate) async fn open(&self, name: &str) -> Result<Fetched, FetchError> {
        let none = || FetchError::NoFile(name.chars().take(80).collect());
        if !is_file_name(name) {
            return Err(none());
        }
        let path = self.folder.join(name);
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.read(true).custom_flags(flags).open(path).await.map_err(|_| none())?;
        let metadata = file.metadata().await.map_err(|_| none())?;
        if !metadata.is_file() {
            return Err(none());
        }
        let stream = ReaderStream::with_capacity(file, PIECE);
        Ok(Fetched { body: Body::from_stream(stream), bytes: Some(metadata.len()) })
    }

    /// The files that are offered, by name; none when there is no such folder. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn files(&self) -> io::Result<Vec<OfferedFile>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries.take(LISTED) {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let name = entry.file_name().into_string();
            if let (Ok(name), true) = (name, metadata.is_file())
                && is_file_name(&name)
            {
                let format = format_of(&name);
                files.push(OfferedFile { name, bytes: metadata.len(), format });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// A name in the folder itself; hidden ones are not offered.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// The format that a file's extension stands for.
#[must_use]
pub(crate) fn format_of(name: &str) -> Option<ImageFormat> {
    match Path::new(name).extension()?.to_str()? {
        "img" | "raw" | "iso" => Some(ImageFormat::Raw),
        "zst" => Some(ImageFormat::RawZst),
        "qcow2" => Some(ImageFormat::Qcow2),
        _ => None,
    }
}

/// What a stream brings; an error at its end when that is not what `sha256` says, and when it is too much.
fn checked(
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    sha256: [u8; 32],
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let state = (Box::pin(stream), Some(Hasher::default()), 0_u64);
    futures::stream::try_unfold(state, move |(mut stream, hasher, length)| async move {
        let Some(mut hasher) = hasher else { return Ok(None) };
        match stream.next().await.transpose()? {
            Some(piece) => {
                let length = length + piece.len() as u64;
                if length > MAX_IMAGE_BYTES {
                    return Err(io::Error::other("it is larger than any disk image here may be"));
                }
                hasher.update(&piece);
                Ok(Some((piece, (stream, Some(hasher), length))))
            }
            None => {
                let found = hasher.finish();
                if found == sha256 {
                    return Ok(None);
                }
                let (found, wanted) = (hex::encode(found), hex::encode(sha256));
                Err(io::Error::other(Unlike { found, wanted }))
            }
        }
    })
}

/// It came whole, and is something else.
#[derive(Debug)]
struct Unlike {
    found: String,
    wanted: String,
}

impl fmt::Display for Unlike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its SHA-256 is {}, not {}", self.found, self.wanted)
    }
}

impl std::error::Error for Unlike {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_with_their_ports() {
        let host = |text: &str| text.parse::<ImageHost>().unwrap();
        let is = |named: &str, url: &str| host(named).is_of(&Url::parse(url).unwrap());
        assert!(is("mirror.lan", "https://mirror.lan/x"));
        assert!(is("Mirror.LAN", "http://MIRROR.lan:80/x"));
        assert!(is("mirror.lan:8080", "http://mirror.lan:8080/x"));
        assert!(is("[fd00::1]:81", "http://[fd00::1]:81/x"));
        assert!(!is("mirror.lan", "http://mirror.lan:8080/x"));
        assert!(!is("mirror.lan:8080", "http://mirror.lan/x"));
        assert!(!is("mirror.lan", "http://mirror.lan.evil/x"));
        assert!(!is("mirror.lan", "http://evil/@mirror.lan"));
        for wrong in ["", "a/b", "user@host", "http://x", "a b", "host:x", "host?q"] {
            assert!(wrong.parse::<ImageHost>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_extension_says_the_format_or_nothing() {
        assert_eq!(format_of("a.img"), Some(ImageFormat::Raw));
        assert_eq!(format_of("https://host/a.raw.zst"), Some(ImageFormat::RawZst));
        assert_eq!(format_of("a.qcow2"), Some(ImageFormat::Qcow2));
        assert_eq!(format_of("a.vmdk"), None);
        assert_eq!(format_of("a"), None);
    }

    #[tokio::test]
    async fn a_stream_ends_well_only_when_it_is_what_its_hash_says() {
        let whole = |bytes: &'static [u8], hash| async move {
            let pieces = bytes.chunks(3).map(|piece| Ok(Bytes::from_static(piece)));
            checked(futures::stream::iter(pieces), hash).map_ok(Vec::from).try_concat().await
        };
        let hash = cairn_core::id::sha256(b"an image");
        assert_eq!(whole(b"an image", hash).await.unwrap(), b"an image");
        let error = whole(b"an imagf", hash).await.unwrap_err();
        assert!(error.to_string().contains(&hex::encode(hash)), "{error}");
        assert!(whole(b"an imag", hash).await.is_err());
    }
}
