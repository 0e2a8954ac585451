//! Webhooks: programs that are told of events.

use anyhow::Context as _;
use axum::{Json, extract::State, http::StatusCode};
use cairn_array::random;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Place},
};
use crate::{
    app::App,
    db::webhook::{NewWebhook, WebhookRow},
    events::RECORDED,
    moment::Moment,
    webhooks::{secret_text, try_out},
};

const MAX_URL: usize = 2000;
const MOST: usize = 32;
const SECRET_BYTES: usize = 24;

/// Who is to be told.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// `https://…` or `http://…`.
    pub url: String,
    /// Kinds of events, as the event stream names them; all if nothing is said.
    #[serde(default)]
    pub events: Vec<String>,
}

/// A webhook that was added.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct AddedWebhook {
    pub id: i64,
    /// What signs the messages; this is the only time it is shown.
    pub secret: String,
}

impl std::fmt::Debug for AddedWebhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddedWebhook").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A webhook.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    pub id: i64,
    pub url: String,
    /// Empty: all.
    pub events: Vec<String>,
    pub created: String,
    /// Why the next event was not delivered yet; it is tried again.
    pub problem: Option<String>,
}

impl From<WebhookRow> for Webhook {
    fn from(row: WebhookRow) -> Self {
        let WebhookRow { id, url, events, problem, .. } = row;
        Self { id, url, events, created: row.created.to_text(), problem }
    }
}

fn unknown() -> ApiError {
    ApiError::not_found(
        "webhook_unknown",
        "there is no such webhook: `cairn-server webhook list` shows them",
    )
}

fn check(request: &WebhookRequest) -> Result<(), ApiError> {
    let url = request.url.parse::<reqwest::Url>().ok();
    let is_http = url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !is_http || request.url.len() > MAX_URL {
        return Err(ApiError::bad_request(
            "bad_url",
            "a webhook's address is an http or https URL of at most 2000 characters",
        ));
    }
    match request.events.iter().find(|kind| !RECORDED.contains(&kind.as_str())) {
        None => Ok(()),
        Some(_) => Err(ApiError::bad_request(
            "unknown_event",
            format!("there are these events: {}", RECORDED.join(", ")),
        )),
    }
}

/// List webhooks
#[utoipa::path(get, path = "/api/v1/webhooks", tag = "events", responses((status = 200, body = Vec<Webhook>)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<Webhook>>, ApiError> {
    Ok(Json(app.db.webhooks().await?.into_iter().map(Webhook::from).collect()))
}

/// Have a program told of events from now on
#[utoipa::path(post, path = "/api/v1/webhooks", tag = "events", request_body = WebhookRequest,
    responses((status = 201, body = AddedWebhook), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<WebhookRequest>,
) -> Result<(StatusCode, Json<AddedWebhook>), ApiError> {
    check(&request)?;
    if app.db.webhooks().await?.len() >= MOST {
        return Err(ApiError::conflict(
            "too_many_webhooks",
            format!("there are {MOST} webhooks: remove one first"),
        ));
    }
    let secret: [u8; SECRET_BYTES] = random::array().context("make a secret")?;
    let events = request.events.join(" ");
    let (url, now) = (request.url.as_str(), Moment::now());
    let id = app.db.add_webhook(NewWebhook { url, secret: &secret, events: &events, now }).await?;
    Ok((StatusCode::CREATED, Json(AddedWebhook { id, secret: secret_text(&secret) })))
}

/// Remove a webhook
#[utoipa::path(delete, path = "/api/v1/webhooks/{webhook}", tag = "events", params(("webhook" = i64, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn remove(
    State(app): State<App>,
    Place(webhook): Place<i64>,
) -> Result<StatusCode, ApiError> {
    if app.db.remove_webhook(webhook).await? { Ok(StatusCode::NO_CONTENT) } else { Err(unknown()) }
}

/// Send a webhook an event named `ping`, now and once
#[utoipa::path(post, path = "/api/v1/webhooks/{webhook}/ping", tag = "events", params(("webhook" = i64, Path)),
    responses((status = 204, description = "It took it"), (status = 404, body = Problem),
    (status = 424, body = Problem, description = "It did not")))]
pub(crate) async fn ping(
    State(app): State<App>,
    Place(webhook): Place<i64>,
) -> Result<StatusCode, ApiError> {
    let webhook = app.db.webhook(webhook).await?.ok_or_else(unknown)?;
    match try_out(&webhook).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(ApiError::new(
            StatusCode::FAILED_DEPENDENCY,
            "webhook_failed",
            format!("the webhook was not told: {error:#}"),
        )),
    }
}
