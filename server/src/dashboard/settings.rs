//! Fills the page of settings.

use axum::{
    Form,
    extract::State,
    response::{Html, IntoResponse as _, Response},
};
use cairn_web::{
    settings::{Asked, Made, SettingsPage, Token, TokenState, User},
    shell::{self, Place},
};
use serde::Deserialize;

use super::{ago, answer, overview, rendered};
use crate::{
    api::{
        self,
        error::ApiError,
        extract::{self, Body},
        token::TokenRequest,
        user::{UserChange, UserRequest},
    },
    app::App,
    db::{account::Role, token::TokenKind},
    moment::Moment,
};

/// Lines of the audit log that are shown.
const AUDIT: u32 = 50;

async fn fill(app: &App, made: Option<Made>) -> Result<SettingsPage, ApiError> {
    let now = Moment::now();
    let users = app.db.accounts().await?.into_iter().map(|account| User {
        role: account.role.word(),
        created: ago(&account.created.to_text(), now),
        name: account.name,
    });
    let tokens = app.db.tokens().await?.into_iter().rev().map(|token| Token {
        id: token.id,
        kind: token.kind.word(),
        role: (token.kind == TokenKind::Api).then(|| token.role.word()),
        created: ago(&token.created.to_text(), now),
        expires: token.expires.map(Moment::to_text),
        state: match (token.revoked, token.used) {
            (Some(_), _) => TokenState::Revoked,
            (None, Some(_)) => TokenState::Used,
            (None, None) => TokenState::Open,
        },
        note: token.note,
    });
    let audit = app.db.audit_before(None, AUDIT).await?.into_iter().map(|row| Asked {
        at: ago(&row.at.to_text(), now),
        actor: row.actor,
        what: format!("{} {}", row.method, row.path),
        status: row.status,
    });
    Ok(SettingsPage {
        users: users.collect(),
        tokens: tokens.collect(),
        audit: audit.collect(),
        made,
    })
}

/// The page, with a secret that was made just now.
pub(super) async fn page(
    app: &App,
    notice: Option<&str>,
    made: Option<Made>,
) -> Result<Response, ApiError> {
    let nav = overview::nav(app, Place::Settings).await?;
    let html = shell::page(&nav, notice, &fill(app, made).await?);
    Ok(Html(rendered(html)?).into_response())
}

pub(super) async fn show(State(app): State<App>) -> Result<Response, ApiError> {
    page(&app, None, None).await
}

#[derive(Deserialize)]
pub(super) struct NewUser {
    name: String,
    role: Role,
}

pub(super) async fn add_user(
    State(app): State<App>,
    Form(form): Form<NewUser>,
) -> Result<Response, ApiError> {
    let request = UserRequest { name: form.name, role: form.role, password: None };
    match api::user::create(State(app.clone()), Body(request)).await {
        Ok((_, axum::Json(user))) => show_password(&app, user.name, user.password).await,
        Err(error) => answer::<()>(&app, Place::Settings, Err(error)).await,
    }
}

async fn show_password(
    app: &App,
    name: String,
    password: Option<String>,
) -> Result<Response, ApiError> {
    let what = format!("The password of {name}");
    page(app, None, password.map(|secret| Made { what, secret })).await
}

#[derive(Deserialize)]
pub(super) struct RoleForm {
    role: Role,
}

pub(super) async fn change_role(
    State(app): State<App>,
    name: extract::Place<String>,
    Form(form): Form<RoleForm>,
) -> Result<Response, ApiError> {
    let change = UserChange { role: Some(form.role), password: None, new_password: false };
    let done = api::user::change(State(app.clone()), name, Body(change)).await;
    answer(&app, Place::Settings, done).await
}

pub(super) async fn new_password(
    State(app): State<App>,
    name: extract::Place<String>,
) -> Result<Response, ApiError> {
    let change = UserChange { role: None, password: None, new_password: true };
    match api::user::change(State(app.clone()), name, Body(change)).await {
        Ok(axum::Json(user)) => show_password(&app, user.name, user.password).await,
        Err(error) => answer::<()>(&app, Place::Settings, Err(error)).await,
    }
}

pub(super) async fn remove_user(
    State(app): State<App>,
    name: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::user::remove(State(app.clone()), name).await;
    answer(&app, Place::Settings, done).await
}

#[derive(Deserialize)]
pub(super) struct NewToken {
    note: String,
    role: Role,
}

pub(super) async fn add_token(
    State(app): State<App>,
    Form(form): Form<NewToken>,
) -> Result<Response, ApiError> {
    let what = format!("A token for {}", form.note);
    let request = TokenRequest {
        kind: TokenKind::Api,
        auto_approve: false,
        role: Some(form.role),
        expires_in: None,
        note: form.note,
    };
    match api::token::create(State(app.clone()), Body(request)).await {
        Ok((_, axum::Json(made))) => {
            page(&app, None, Some(Made { what, secret: made.token })).await
        }
        Err(error) => answer::<()>(&app, Place::Settings, Err(error)).await,
    }
}

pub(super) async fn revoke_token(
    State(app): State<App>,
    token: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::token::revoke(State(app.clone()), token).await;
    answer(&app, Place::Settings, done).await
}
