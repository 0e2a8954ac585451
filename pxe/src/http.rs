//! Boot files and scripts over plain HTTP: GET and HEAD of names in the table, with ranges, and nothing else.
//!
//! Invariants: nothing here is secret or writable; a path is only looked up (`//boot//ipxe.efi` is `/boot/ipxe.efi`, one
//! with `..` is no name); a response's memory does not grow with the file.
//!
//! UEFI sends HEAD first; `sanboot` asks for hundreds of small ranges over one connection, so a range is one read.

mod hint;
mod range;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use futures::stream;

use self::hint::InvalidHint;
use self::range::Selection;
use crate::boot_files::{BootFiles, LookUpError, Opened, normalise};
use crate::counters::Record;
use crate::decision::{BootDecider, BootDecision};
use crate::ipxe;
use crate::trail::Told;

/// How much of a file is in memory per response.
const CHUNK_BYTES: u64 = 256 * 1024;
/// Below this are disks, not files.
const DISKS: &str = "disk/";
/// How long a machine waits for a payload that is not built yet.
const NO_PAYLOAD_WAIT_SECONDS: u32 = 30;

/// Who asks: on every request that came over a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From(pub(crate) SocketAddr);

/// What goes with a request.
struct Asked<'a> {
    query: &'a str,
    from: Option<Ipv4Addr>,
    headers: &'a HeaderMap,
}

struct Shared {
    files: Arc<BootFiles>,
    decider: Arc<dyn BootDecider>,
    record: Arc<Record>,
    base_url: String,
}

/// The whole plain HTTP service. `base_url` is where machines reach it: `http://ADDR:PORT/boot`.
pub fn router(
    files: Arc<BootFiles>,
    decider: Arc<dyn BootDecider>,
    record: Arc<Record>,
    base_url: String,
) -> Router {
    // One handler: the paths firmware asks for are not clean enough to route by.
    Router::new().fallback(serve).with_state(Arc::new(Shared { files, decider, record, base_url }))
}

async fn serve(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    RawQuery(query): RawQuery,
    from: Option<Extension<From>>,
    headers: HeaderMap,
) -> Response {
    shared.record.counters.http_requests.add();
    let from = from.and_then(|Extension(From(from))| match from.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    });
    let asked = Asked { query: query.as_deref().unwrap_or_default(), from, headers: &headers };
    let response = answer(&shared, &method, &uri, &asked).await;
    match response.status() {
        StatusCode::NOT_FOUND => shared.record.counters.http_not_found.add(),
        status if status.is_client_error() => shared.record.counters.http_refused.add(),
        _ => {}
    }
    tracing::debug!(%method, %uri, status = response.status().as_u16(), "boot file request");
    response
}

async fn answer(shared: &Arc<Shared>, method: &Method, uri: &Uri, asked: &Asked<'_>) -> Response {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, HeaderValue::from_static("GET, HEAD"))];
        return (StatusCode::METHOD_NOT_ALLOWED, allow, "boot files can only be read\n")
            .into_response();
    }
    let Some(name) = normalise(uri.path()) else { return not_found() };
    match name.as_str() {
        ipxe::START_SCRIPT => script(shared, ipxe::ask_script(&shared.base_url)),
        ipxe::MENU_SCRIPT => menu(shared, asked).await,
        _ => {
            let is_head = *method == Method::HEAD;
            match name.strip_prefix(DISKS) {
                Some(path) => disk(shared, path, asked, is_head).await,
                None => file(shared, name, asked, is_head).await,
            }
        }
    }
}

async fn menu(shared: &Arc<Shared>, asked: &Asked<'_>) -> Response {
    let hint = match hint::parse(asked.query) {
        Ok(hint) => hint,
        Err(error) => return refuse_hint(&error),
    };
    let (mac, platform) = (hint.mac, hint.platform);
    let decision = shared.decider.decide(hint).await;
    let tell = |told| shared.record.trails.told(mac, asked.from, told, SystemTime::now());
    if matches!(decision, BootDecision::Agent { .. })
        && let Some(path) = shared.files.payload_missing()
    {
        tracing::warn!(%mac, path = %path.display(), "the boot payload is not there; build it");
        tell(Told::NoPayload);
        let why =
            "the server has no boot payload yet, build it there with: cairn-server boot build";
        return script(shared, ipxe::wait_script(&shared.base_url, NO_PAYLOAD_WAIT_SECONDS, why));
    }
    tell(Told::of(&decision));
    tracing::info!(%mac, ?platform, ?decision, "machine was told what to boot");
    match ipxe::script_for(&decision, platform, &shared.base_url) {
        Ok(text) => script(shared, text),
        Err(error) => {
            tracing::error!(%mac, %error, "cannot write the boot script");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the boot script could not be written; see the server's log\n",
            )
                .into_response()
        }
    }
}

fn script(shared: &Shared, text: String) -> Response {
    shared.record.counters.boot_scripts.add();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, text).into_response()
}

async fn file(shared: &Arc<Shared>, name: String, asked: &Asked<'_>, is_head: bool) -> Response {
    let (lookup, wanted) = (Arc::clone(shared), name.clone());
    let opened = match tokio::task::spawn_blocking(move || lookup.files.open(&wanted)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(LookUpError::Unknown)) => return not_found(),
        Ok(Err(error @ LookUpError::Absent { .. })) => {
            tracing::warn!(name, %error, "boot file asked for");
            return not_found();
        }
        Ok(Err(LookUpError::Open { path, source })) => {
            tracing::error!(path = %path.display(), error = %source, "cannot open boot file");
            return unreadable();
        }
        Err(error) => {
            tracing::error!(%error, "reading task failed");
            return unreadable();
        }
    };
    send(shared, &name, opened, asked, is_head)
}

async fn disk(shared: &Arc<Shared>, path: &str, asked: &Asked<'_>, is_head: bool) -> Response {
    match shared.decider.disk(path.to_owned()).await {
        Some(disk) => send(shared, DISKS, Opened::Remote(disk), asked, is_head),
        None => (StatusCode::NOT_FOUND, "no such disk, or its address is over\n").into_response(),
    }
}

/// Answers with all of it, or the part that is asked for.
fn send(shared: &Shared, name: &str, opened: Opened, asked: &Asked<'_>, is_head: bool) -> Response {
    let headers = asked.headers;
    let etag = opened.version().map(|version| format!("\"{version:x}\""));
    let selection = match headers.get(header::IF_RANGE) {
        Some(version) if Some(version.as_bytes()) != etag.as_deref().map(str::as_bytes) => {
            Selection::Whole
        }
        _ => range::select(
            headers.get(header::RANGE).and_then(|value| value.to_str().ok()),
            opened.size(),
        ),
    };
    let size = opened.size();
    let (status, offset, len, content_range) = match selection {
        Selection::Whole => (StatusCode::OK, 0, size, None),
        Selection::Part { offset, len } => {
            let content_range = format!("bytes {offset}-{}/{size}", offset + len - 1);
            (StatusCode::PARTIAL_CONTENT, offset, len, Some(content_range))
        }
        Selection::Unsatisfiable => {
            (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0, Some(format!("bytes */{size}")))
        }
    };
    if !is_head && status == StatusCode::OK && name != DISKS {
        shared.record.counters.sent(name);
        if let Some(from) = asked.from {
            shared.record.trails.sent(from, name, SystemTime::now());
        }
    }
    let body = if is_head || len == 0 {
        Body::empty()
    } else {
        Body::from_stream(read(opened, offset, len))
    };
    let mut response = (status, body).into_response();
    let mut put = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    put(header::CONTENT_LENGTH, len.to_string());
    put(header::CONTENT_TYPE, content_type(name).to_owned());
    put(header::ACCEPT_RANGES, "bytes".to_owned());
    if let Some(etag) = etag {
        put(header::ETAG, etag);
    }
    if let Some(content_range) = content_range {
        put(header::CONTENT_RANGE, content_range);
    }
    response
}

/// The bytes in chunks; a file that became shorter breaks the response off, so that the client notices.
fn read(opened: Opened, offset: u64, len: u64) -> impl futures::Stream<Item = io::Result<Bytes>> {
    let opened = Arc::new(opened);
    stream::try_unfold((offset, len), move |(offset, left)| {
        let opened = Arc::clone(&opened);
        async move {
            let len = left.min(CHUNK_BYTES);
            if len == 0 {
                return Ok(None);
            }
            let chunk = usize::try_from(len).map_err(io::Error::other)?;
            let bytes = if let Opened::Memory(_) = *opened {
                opened.read_at(offset, chunk)?
            } else {
                tokio::task::spawn_blocking(move || opened.read_at(offset, chunk))
                    .await
                    .map_err(io::Error::other)??
            };
            Ok(Some((bytes, (offset + len, left - len))))
        }
    })
}

/// UEFI HTTP Boot goes by the type when the name does not end in `.efi`.
fn content_type(name: &str) -> &'static str {
    if name.ends_with(".efi") { "application/efi" } else { "application/octet-stream" }
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such boot file\n").into_response()
}

fn unreadable() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, "the boot file cannot be read; see the server's log\n")
        .into_response()
}

fn refuse_hint(error: &InvalidHint) -> Response {
    (StatusCode::BAD_REQUEST, format!("{error}; ask for {} first\n", ipxe::START_SCRIPT))
        .into_response()
}
