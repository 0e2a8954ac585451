//! Tokens: join tokens for agents, API tokens for programs. The secret is shown once.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use cairn_array::tls::{self, Fingerprint};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Place},
    scope,
};
use crate::{
    app::App,
    db::{
        Db,
        account::{Role, Scope},
        token::{NewToken, TokenKind, TokenRow},
    },
    join_command::JoinCommands,
    moment::Moment,
};

/// A join token that is not used lies around: a day is long enough to copy it.
pub(crate) const JOIN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_LIFE_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;
const MAX_NOTE: usize = 200;

/// What token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenRequest {
    pub kind: TokenKind,
    /// Whoever joins with it is approved at once.
    #[serde(default)]
    pub auto_approve: bool,
    /// What an API token may do: everything if nothing is said.
    #[serde(default)]
    pub role: Option<Role>,
    /// Of an operator's API token: the groups of machines that its work is limited to; none: all machines, and the site.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Seconds until it expires; a day for a join token when absent, never for an API token.
    #[serde(default)]
    pub expires_in: Option<u64>,
    #[serde(default)]
    pub note: String,
}

/// A token that was made. Its text is not kept: this is the only time it is shown.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewTokenReply {
    pub id: i64,
    pub kind: TokenKind,
    pub token: String,
    pub expires: Option<String>,
    /// What to run on the machine that is to join, when it has the agent.
    pub command: Option<String>,
    /// What to run on a Debian machine without the agent: installs the server's package of it, then joins. None when
    /// the server has no package.
    #[serde(default)]
    pub install_command: Option<String>,
}

/// A token as it is listed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: i64,
    pub kind: TokenKind,
    pub note: String,
    pub auto_approve: bool,
    /// Of an API token.
    pub role: Option<Role>,
    /// That its work is limited to; none: all machines, and the site.
    #[serde(default)]
    pub groups: Vec<String>,
    pub created: String,
    pub expires: Option<String>,
    pub used: Option<String>,
    pub revoked: Option<String>,
}

impl From<TokenRow> for Token {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            kind: row.kind,
            note: row.note,
            auto_approve: row.auto_approve,
            role: (row.kind == TokenKind::Api).then_some(row.role),
            groups: row.scope.0,
            created: row.created.to_text(),
            expires: row.expires.map(Moment::to_text),
            used: row.used.map(Moment::to_text),
            revoked: row.revoked.map(Moment::to_text),
        }
    }
}

/// A token that was kept.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) id: i64,
    pub(crate) token: tls::Token,
    pub(crate) expires: Option<Moment>,
}

/// Makes and keeps a token of this scope.
pub(crate) async fn issue(
    db: &Db,
    site: Fingerprint,
    request: &TokenRequest,
    scope: &Scope,
) -> anyhow::Result<Issued> {
    let kind = match request.kind {
        TokenKind::Join => tls::TokenKind::Join,
        TokenKind::Api => tls::TokenKind::Api,
    };
    let token = tls::Token::random(kind, site)?;
    let now = Moment::now();
    let life = match (request.expires_in, request.kind) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, TokenKind::Join) => Some(JOIN_LIFE),
        (None, TokenKind::Api) => None,
    };
    let expires = life.map(|life| now.plus(life));
    let id = db
        .keep_token(NewToken {
            kind: request.kind,
            secret: &token.secret,
            note: &request.note,
            auto_approve: request.auto_approve,
            role: request.role.unwrap_or(Role::Admin),
            scope,
            now,
            expires,
        })
        .await?;
    Ok(Issued { id, token, expires })
}

/// Makes and keeps a token.
pub(crate) async fn make(app: &App, request: &TokenRequest) -> Result<NewTokenReply, ApiError> {
    let role = request.role.unwrap_or(Role::Admin);
    let scope = scope::of(app, role, request.groups.clone()).await?;
    let Issued { id, token, expires } =
        issue(&app.db, app.site.fingerprint(), request, &scope).await?;
    let commands = match request.kind {
        TokenKind::Join => {
            let sha256 = app.agent_package.sha256().await;
            Some(JoinCommands::new(app.address, &token, sha256.as_deref()))
        }
        TokenKind::Api => None,
    };
    let (command, install) = commands.map(|it| (Some(it.join), it.install)).unwrap_or_default();
    Ok(NewTokenReply {
        id,
        kind: request.kind,
        token: token.to_string(),
        expires: expires.map(Moment::to_text),
        command,
        install_command: install,
    })
}

/// Make a token
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, body = NewTokenReply), (status = 400, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<TokenRequest>,
) -> Result<(StatusCode, Json<NewTokenReply>), ApiError> {
    if request.note.chars().count() > MAX_NOTE {
        return Err(ApiError::bad_request(
            "note_too_long",
            format!("a note has at most {MAX_NOTE} characters"),
        ));
    }
    if request.expires_in.is_some_and(|seconds| seconds == 0 || seconds > MAX_LIFE_SECONDS) {
        return Err(ApiError::bad_request(
            "bad_expiry",
            "a token lives from one second to ten years",
        ));
    }
    if request.auto_approve && request.kind != TokenKind::Join {
        return Err(ApiError::bad_request(
            "bad_kind",
            "only a join token can approve: drop auto_approve",
        ));
    }
    let has_role = request.role.is_some() || !request.groups.is_empty();
    if has_role && request.kind != TokenKind::Api {
        return Err(ApiError::bad_request(
            "bad_kind",
            "only an API token has a role and groups: drop them",
        ));
    }
    Ok((StatusCode::CREATED, Json(make(&app, &request).await?)))
}

/// List tokens
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", responses((status = 200, body = Vec<Token>)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<Token>>, ApiError> {
    Ok(Json(app.db.tokens().await?.into_iter().map(Token::from).collect()))
}

/// Revoke a token
#[utoipa::path(delete, path = "/api/v1/tokens/{token}", tag = "tokens", params(("token" = i64, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    Place(token): Place<i64>,
) -> Result<StatusCode, ApiError> {
    if app.db.revoke_token(token, Moment::now()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(
            "token_unknown",
            "there is no such token: GET /api/v1/tokens lists them",
        ))
    }
}
