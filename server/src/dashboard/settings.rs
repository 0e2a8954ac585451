//! Fills the page of settings.

use axum::{
    Extension, Form,
    extract::State,
    http::HeaderMap,
    response::{Html, IntoResponse as _, Redirect, Response},
};
use cairn_array::tls::{Peer, valid_until};
use cairn_web::{
    settings::{Asked, Made, SettingsPage, Site, Token, TokenState, User, Webhook},
    shell::{self, Place},
};
use serde::Deserialize;

use super::{ago, overview, rendered};
use crate::{
    api::{
        self,
        auth::{self, Actor},
        error::ApiError,
        extract::{self, Body},
        session::OwnPassword,
        token::TokenRequest,
        user::{ChangedUser, UserChange, UserRequest},
        webhook::WebhookRequest,
    },
    app::App,
    db::{account::Role, token::TokenKind},
    events::RECORDED,
    moment::Moment,
};

/// Lines of the audit log that are shown.
const AUDIT: u32 = 50;

/// Who asks, as `guard` found.
type Who = Extension<Actor>;

async fn site(app: &App) -> Result<Site, ApiError> {
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
    let axum::Json(webhooks) = api::webhook::list(State(app.clone())).await?;
    let webhooks = webhooks.into_iter().map(|hook| Webhook {
        id: hook.id,
        url: hook.url,
        events: hook.events,
        created: ago(&hook.created, now),
        problem: hook.problem,
    });
    let until = Moment(valid_until(app.site.authority().ca_pem())?.saturating_mul(1000));
    Ok(Site {
        users: users.collect(),
        tokens: tokens.collect(),
        webhooks: webhooks.collect(),
        events: RECORDED.to_vec(),
        fingerprint: app.site.fingerprint().to_string(),
        ca_until: until.to_text(),
        ca_days: until.since(now).as_secs() / 86_400,
        audit: audit.collect(),
    })
}

/// What to say above the page.
#[derive(Default)]
struct Words<'a> {
    notice: Option<&'a str>,
    done: Option<&'static str>,
    /// A secret that was made just now.
    made: Option<Made>,
}

async fn page(app: &App, actor: &Actor, words: Words<'_>) -> Result<Response, ApiError> {
    let nav = overview::nav(app, Place::Settings).await?;
    let is_admin = actor.role.is_at_least(Role::Admin);
    let view = SettingsPage {
        me: actor.user().unwrap_or_default().to_owned(),
        role: actor.role.word(),
        done: words.done,
        made: words.made,
        site: if is_admin { Some(site(app).await?) } else { None },
    };
    let html = shell::page(&nav, words.notice, &view);
    Ok(Html(rendered(html)?).into_response())
}

/// The page again, with why what was asked for was not done.
async fn refuse(app: &App, actor: &Actor, error: ApiError) -> Result<Response, ApiError> {
    let Some((status, why)) = error.for_people() else { return Err(error) };
    let mut response = page(app, actor, Words { notice: Some(why), ..Words::default() }).await?;
    *response.status_mut() = status;
    Ok(response)
}

async fn answer<T>(
    app: &App,
    actor: &Actor,
    done: Result<T, ApiError>,
) -> Result<Response, ApiError> {
    match done {
        Ok(_) => Ok(Redirect::to(Place::Settings.path()).into_response()),
        Err(error) => refuse(app, actor, error).await,
    }
}

/// The page with a secret that was made just now, or why it was not.
async fn show_made(
    app: &App,
    actor: &Actor,
    made: Result<Option<Made>, ApiError>,
) -> Result<Response, ApiError> {
    match made {
        Ok(made) => page(app, actor, Words { made, ..Words::default() }).await,
        Err(error) => refuse(app, actor, error).await,
    }
}

pub(super) async fn show(
    State(app): State<App>,
    Extension(actor): Who,
) -> Result<Response, ApiError> {
    page(&app, &actor, Words::default()).await
}

#[derive(Deserialize)]
pub(super) struct OwnPasswordForm {
    current: String,
    new: String,
}

pub(super) async fn own_password(
    State(app): State<App>,
    Extension(actor): Who,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Form(form): Form<OwnPasswordForm>,
) -> Result<Response, ApiError> {
    let change = OwnPassword { current: form.current, new: form.new };
    let asker = (&actor, peer.addr.ip());
    match api::session::change_own(&app, asker, auth::session(&headers), change).await {
        Ok(()) => {
            let done = Some("Your password is changed.");
            page(&app, &actor, Words { done, ..Words::default() }).await
        }
        Err(error) => refuse(&app, &actor, error).await,
    }
}

#[derive(Deserialize)]
pub(super) struct NewUser {
    name: String,
    role: Role,
}

fn password_of(user: ChangedUser) -> Option<Made> {
    let what = format!("The password of {}", user.name);
    user.password.map(|secret| Made { what, secret })
}

pub(super) async fn add_user(
    State(app): State<App>,
    Extension(actor): Who,
    Form(form): Form<NewUser>,
) -> Result<Response, ApiError> {
    let request = UserRequest { name: form.name, role: form.role, password: None };
    let made = api::user::create(State(app.clone()), Body(request)).await;
    let made = made.map(|(_, axum::Json(user))| password_of(user));
    show_made(&app, &actor, made).await
}

#[derive(Deserialize)]
pub(super) struct RoleForm {
    role: Role,
}

pub(super) async fn change_role(
    State(app): State<App>,
    Extension(actor): Who,
    name: extract::Place<String>,
    Form(form): Form<RoleForm>,
) -> Result<Response, ApiError> {
    let change = UserChange { role: Some(form.role), password: None, new_password: false };
    let done = api::user::change(State(app.clone()), name, Body(change)).await;
    answer(&app, &actor, done).await
}

pub(super) async fn new_password(
    State(app): State<App>,
    Extension(actor): Who,
    name: extract::Place<String>,
) -> Result<Response, ApiError> {
    let change = UserChange { role: None, password: None, new_password: true };
    let made = api::user::change(State(app.clone()), name, Body(change)).await;
    show_made(&app, &actor, made.map(|axum::Json(user)| password_of(user))).await
}

pub(super) async fn remove_user(
    State(app): State<App>,
    Extension(actor): Who,
    name: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::user::remove(State(app.clone()), name).await;
    answer(&app, &actor, done).await
}

#[derive(Deserialize)]
pub(super) struct NewToken {
    note: String,
    role: Role,
}

pub(super) async fn add_token(
    State(app): State<App>,
    Extension(actor): Who,
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
    let made = api::token::create(State(app.clone()), Body(request)).await;
    let made = made.map(|(_, axum::Json(made))| Some(Made { what, secret: made.token }));
    show_made(&app, &actor, made).await
}

pub(super) async fn revoke_token(
    State(app): State<App>,
    Extension(actor): Who,
    token: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::token::revoke(State(app.clone()), token).await;
    answer(&app, &actor, done).await
}

#[derive(Deserialize)]
pub(super) struct NewWebhook {
    url: String,
    /// Empty: everything.
    event: String,
}

pub(super) async fn add_webhook(
    State(app): State<App>,
    Extension(actor): Who,
    Form(form): Form<NewWebhook>,
) -> Result<Response, ApiError> {
    let what = format!("The secret of {}", form.url);
    let events = Some(form.event).filter(|event| !event.is_empty());
    let request = WebhookRequest { url: form.url, events: events.into_iter().collect() };
    let made = api::webhook::create(State(app.clone()), Body(request)).await;
    let made = made.map(|(_, axum::Json(made))| Some(Made { what, secret: made.secret }));
    show_made(&app, &actor, made).await
}

pub(super) async fn try_webhook(
    State(app): State<App>,
    Extension(actor): Who,
    webhook: extract::Place<i64>,
) -> Result<Response, ApiError> {
    match api::webhook::ping(State(app.clone()), webhook).await {
        Ok(_) => {
            let done = Some("The webhook took it.");
            page(&app, &actor, Words { done, ..Words::default() }).await
        }
        Err(error) => refuse(&app, &actor, error).await,
    }
}

pub(super) async fn remove_webhook(
    State(app): State<App>,
    Extension(actor): Who,
    webhook: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::webhook::remove(State(app.clone()), webhook).await;
    answer(&app, &actor, done).await
}
