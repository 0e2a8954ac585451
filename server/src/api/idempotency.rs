//! What is asked for twice is done once: the header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header).
//!
//! | a request with a key that its sender used | answer |
//! |---|---|
//! | never, or not within a day, or for what was refused | what the request does |
//! | for the same request | what was answered then, with `Idempotency-Replayed: true` |
//! | for another request | 422 `idempotency_key_reused` |
//! | for a request that is under way | 409 `idempotency_under_way` |
//!
//! Invariants: what is done with a key is done to its end, also when its sender goes away; no answer that has a secret in it is
//! kept. A request that a stop of the server cut short is as one that was never made: look whether it was done.

use std::time::Duration;

use anyhow::Context as _;
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use cairn_core::id::Hasher;

use super::error::ApiError;
use crate::{
    app::App,
    db::once::{Key, Once},
    moment::Moment,
};

pub(crate) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
pub(crate) const MAX_KEY: usize = 64;
/// Of a request and of its answer.
const MAX_BODY: usize = 1 << 20;
/// How long an answer is kept.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// What is made once. No answer of these has a secret in it.
pub(crate) const CREATES: [&str; 5] = [
    "/api/v1/deployments",
    "/api/v1/deployments/{deployment}/retry",
    "/api/v1/groups",
    "/api/v1/volumes",
    "/api/v1/volumes/{name}/snapshots",
];

/// Does what a request asks for, once for each key.
pub(super) async fn run(
    app: &App,
    actor: &str,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = request.headers().get(&HEADER).cloned();
    let Some(key) = key.filter(|_| !request.method().is_safe()) else {
        return Ok(next.run(request).await);
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if *request.method() != Method::POST || !CREATES.contains(&route) {
        return Err(ApiError::bad_request(
            "no_idempotency",
            "Idempotency-Key is understood where deployments, groups, volumes and snapshots are made: leave it out here",
        ));
    }
    let key =
        key.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len())).ok_or_else(|| {
            ApiError::bad_request(
                "bad_idempotency_key",
                format!("an Idempotency-Key has 1 to {MAX_KEY} characters of ASCII"),
            )
        })?;
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "the body is larger than 1 MiB, or broke off",
        )
    })?;
    let mut hasher = Hasher::default();
    for part in [parts.method.as_str().as_bytes(), parts.uri.to_string().as_bytes(), &body] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let key = Key { actor: actor.to_owned(), key: key.to_owned(), request: hasher.finish() };
    let (worker, request) = (app.clone(), Request::from_parts(parts, Body::from(body)));
    // From before the key is taken on: whoever goes away must not leave it taken.
    let done = app.tasks.spawn(async move { once(&worker, &key, request, next).await });
    done.await.context("wait for a request")?
}

async fn once(app: &App, key: &Key, request: Request, next: Next) -> Result<Response, ApiError> {
    let now = Moment::now();
    match app.db.begin_once(key, now, now.minus(LIFE)).await? {
        Once::First => {}
        Once::Done { status, kind, body } => return replay(status, &kind, body),
        Once::Other => {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "this Idempotency-Key was used for another request: take a new one",
            ));
        }
        Once::UnderWay => {
            return Err(ApiError::conflict(
                "idempotency_under_way",
                "the same request is under way: ask again in a moment",
            ));
        }
    }
    let response = next.run(request).await;
    keep(app, key, response).await
}

/// Keeps the answer when something was made; what was refused can be asked for again.
async fn keep(app: &App, key: &Key, response: Response) -> Result<Response, ApiError> {
    if !response.status().is_success() {
        app.db.forget_once(key).await?;
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, MAX_BODY).await.context("read an answer")?;
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    app.db.finish_once(key, parts.status.as_u16(), kind.unwrap_or_default(), &body).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replay(status: u16, kind: &str, body: Vec<u8>) -> Result<Response, ApiError> {
    let mut response = Response::new(Body::from(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).context("read a kept answer")?;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind.parse().context("read a kept answer")?);
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}
