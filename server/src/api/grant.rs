//! Grants: what lets an agent's operator read images without the server.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use cairn_array::wire::{MemberState, split_name};
use cairn_core::grant::{Grant, GrantedVersion, MAX_VERSIONS};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    agent,
    error::{ApiError, Problem},
    extract::{Body, Place},
    image,
};
use crate::{app::App, moment::Moment};

/// How long a grant is good when nobody says.
const LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MAX_LIFE: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What to grant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GrantRequest {
    /// `NAME` (its newest version) or `NAME@N`
    pub images: Vec<String>,
    /// Seconds until it expires, a year at most; 30 days when absent.
    #[serde(default)]
    pub expires_in: Option<u64>,
}

/// A grant that was given. It is not kept: this is the only time it is shown.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GrantReply {
    /// The agent it is for.
    pub agent: String,
    /// `NAME@N`
    pub images: Vec<String>,
    pub expires: String,
    /// The text of the file that `cairn-agent … --grant FILE` reads. As secret as the images.
    pub grant: String,
}

/// Let an agent's operator read images without the server
#[utoipa::path(post, path = "/api/v1/agents/{agent}/grants", tag = "agents", params(("agent" = String, Path)),
    request_body = GrantRequest, responses((status = 201, body = GrantReply), (status = 400, body = Problem),
    (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn give(
    State(app): State<App>,
    Place(agent): Place<String>,
    Body(request): Body<GrantRequest>,
) -> Result<(StatusCode, Json<GrantReply>), ApiError> {
    let agent = agent::find(&app, &agent).await?;
    if agent.state != MemberState::Approved {
        return Err(ApiError::conflict(
            "agent_not_approved",
            "only an approved agent is served by the others: approve it first",
        ));
    }
    if request.images.is_empty() || request.images.len() > MAX_VERSIONS {
        return Err(ApiError::bad_request(
            "bad_images",
            format!("name 1 to {MAX_VERSIONS} images"),
        ));
    }
    let life = request.expires_in.map_or(LIFE, Duration::from_secs);
    if life.is_zero() || life > MAX_LIFE {
        return Err(ApiError::bad_request("bad_expiry", "a grant is good for a year at most"));
    }
    let mut versions: Vec<GrantedVersion> = Vec::new();
    for text in &request.images {
        let unknown = || image::unknown(text);
        let (name, number) = split_name(text).ok_or_else(unknown)?;
        let row = app.db.version_named(name, number).await?.ok_or_else(unknown)?;
        if versions.iter().all(|granted| granted.version != row.id) {
            let content_key = app.site.open_content_key(&row.content_key)?;
            let (name, number) = (row.name, row.number);
            versions.push(GrantedVersion { version: row.id, content_key, name, number });
        }
    }
    let now = Moment::now();
    let expires = now.plus(life);
    let seconds = |moment: Moment| u64::try_from(moment.0 / 1000).unwrap_or(0);
    let images: Vec<_> =
        versions.iter().map(|granted| format!("{}@{}", granted.name, granted.number)).collect();
    let (given, until) = (seconds(now), seconds(expires));
    let grant = Grant { site: app.site.id(), agent: agent.id, given, expires: until, versions };
    let words = [
        format!("Lets the operator of client {} read {}.", agent.name, images.join(", ")),
        format!("Until {}. As secret as the images.", expires.to_text()),
    ];
    let text = cairn_array::grant::to_text(&grant.seal(app.site.signer()), &words);
    tracing::info!(agent = agent.name, images = images.join(", "), "a grant was given");
    let reply =
        GrantReply { agent: agent.id.to_string(), images, expires: expires.to_text(), grant: text };
    Ok((StatusCode::CREATED, Json(reply)))
}
