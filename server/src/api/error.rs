//! Errors as problem documents (RFC 9457) with a stable `code`.
//!
//! A 4xx says what to do. A 5xx says only a request id; the log has the rest under it.

use std::sync::Arc;

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use cairn_array::store::StoreError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::DbError;

/// Why a request was not answered as hoped.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    cause: Option<anyhow::Error>,
}

/// A problem document.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:cairn:problem:CODE`
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// Stable; for programs.
    pub code: String,
    /// For people: what happened and what to do.
    pub detail: String,
}

/// What an answer carries on its way out, for [`name_requests`] to log under the request's id.
#[derive(Clone)]
struct Failure(Arc<anyhow::Error>);

impl ApiError {
    /// An error the caller can do something about; `detail` says what.
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), cause: None }
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(crate) fn unauthorized(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }

    pub(crate) fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// What a person can do about it; none when the server failed.
    pub(crate) fn for_people(&self) -> Option<(StatusCode, &str)> {
        self.cause.is_none().then_some((self.status, &self.detail))
    }

    pub(crate) fn too_many(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail)
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(cause: anyhow::Error) -> Self {
        if let Some(error) = missing_device(&cause) {
            tracing::error!(error = format!("{cause:#}"), "a device of the store is missing");
            let detail = format!("{error}: try again once it answers");
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_missing", detail);
        }
        if cause
            .chain()
            .any(|error| error.downcast_ref::<DbError>().is_some_and(DbError::is_no_answer))
        {
            tracing::error!(error = format!("{cause:#}"), "the database does not answer");
            let detail = "the database does not answer: try again once it does";
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_missing", detail);
        }
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            code: "internal",
            detail: String::new(),
            cause: Some(cause),
        }
    }
}

/// A person can do something about a device that does not answer: the server is well without it.
fn missing_device(cause: &anyhow::Error) -> Option<&StoreError> {
    let error = cause.chain().find_map(|error| error.downcast_ref::<StoreError>());
    error.filter(|error| matches!(error, StoreError::Lost { .. } | StoreError::Device { .. }))
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        anyhow::Error::from(error).into()
    }
}

fn document(status: StatusCode, code: &str, detail: String) -> Response {
    let problem = Problem {
        kind: format!("urn:cairn:problem:{code}"),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        code: code.to_owned(),
        detail,
    };
    let kind = HeaderValue::from_static("application/problem+json");
    let mut response = (status, Json(problem)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = document(self.status, self.code, self.detail);
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(Failure(Arc::new(cause)));
        }
        response
    }
}

/// Gives every request an id, and logs failures under it, once.
pub(crate) async fn name_requests(mut request: Request, next: Next) -> Response {
    // HTTP/2 names the host in the URI; what compares it with an origin looks in one place.
    let host = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let id = match crate::secret::random::<8>() {
        Ok(bytes) => hex::encode(bytes),
        Err(_) => "unknown".to_owned(),
    };
    if let Some(Failure(cause)) = response.extensions_mut().remove::<Failure>() {
        tracing::error!(request = id, %method, path, error = format!("{cause:#}"), "request failed");
        let detail = format!("the server failed; its log says why under request {id}");
        response = document(response.status(), "internal", detail);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// The answer to a path that is not there.
pub(crate) async fn unknown_path() -> ApiError {
    ApiError::not_found(
        "unknown_path",
        "there is nothing at this path: see /api/openapi.json for what there is",
    )
}

/// The answer to a method that a path does not have.
pub(crate) async fn unknown_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "unknown_method",
        "this path does not have this method: see /api/openapi.json",
    )
}
