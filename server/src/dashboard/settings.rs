//! Fills the page of settings.

use axum::{
    Extension, Form,
    http::HeaderMap,
    response::{Html, IntoResponse as _, Redirect, Response},
};
use cairn_array::tls::{Peer, valid_until};
use cairn_web::{
    settings::{Asked, Made, SettingsPage, Site, Token, TokenState, User, Webhook},
    shell::{self, Place},
};
use serde::Deserialize;

use super::{ago, overview, rendered, visit::Visit};
use crate::{
    api::{
        self, auth,
        error::ApiError,
        extract::{self, Body},
        session::OwnPassword,
        token::TokenRequest,
        user::{ChangedUser, UserChange, UserRequest},
        webhook::WebhookRequest,
    },
    db::{account::Role, token::TokenKind},
    events::RECORDED,
    moment::Moment,
};

/// Lines of the audit log that are shown.
const AUDIT: u32 = 50;

async fn site(visit: &Visit) -> Result<Site, ApiError> {
    let now = Moment::now();
    let users = visit.db.accounts().await?.into_iter().map(|account| User {
        role: account.role.word(),
        groups: account.scope.0,
        created: ago(&account.created.to_text(), now),
        name: account.name,
    });
    let tokens = visit.db.tokens().await?.into_iter().rev().map(|token| Token {
        id: token.id,
        kind: token.kind.word(),
        role: (token.kind == TokenKind::Api).then(|| token.role.word()),
        groups: token.scope.0,
        created: ago(&token.created.to_text(), now),
        expires: token.expires.map(Moment::to_text),
        state: match (token.revoked, token.used) {
            (Some(_), _) => TokenState::Revoked,
            (None, Some(_)) => TokenState::Used,
            (None, None) => TokenState::Open,
        },
        note: token.note,
    });
    let audit = visit.db.audit_before(None, AUDIT).await?.into_iter().map(|row| Asked {
        at: ago(&row.at.to_text(), now),
        actor: row.actor,
        what: format!("{} {}", row.method, row.path),
        status: row.status,
    });
    let axum::Json(webhooks) = api::webhook::list(visit.state()).await?;
    let webhooks = webhooks.into_iter().map(|hook| Webhook {
        id: hook.id,
        url: hook.url,
        events: hook.events,
        created: ago(&hook.created, now),
        problem: hook.problem,
    });
    let until = Moment(valid_until(visit.site.authority().ca_pem())?.saturating_mul(1000));
    Ok(Site {
        users: users.collect(),
        tokens: tokens.collect(),
        webhooks: webhooks.collect(),
        events: RECORDED.to_vec(),
        fingerprint: visit.site.fingerprint().to_string(),
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

async fn page(visit: &Visit, words: Words<'_>) -> Result<Response, ApiError> {
    let nav = overview::nav(visit, Place::Settings).await?;
    let is_admin = visit.actor.role.is_at_least(Role::Admin);
    let view = SettingsPage {
        me: visit.actor.user().unwrap_or_default().to_owned(),
        role: visit.actor.role.word(),
        groups: visit.actor.scope.0.clone(),
        done: words.done,
        made: words.made,
        site: if is_admin { Some(site(visit).await?) } else { None },
    };
    let html = shell::page(&nav, words.notice, &view);
    Ok(Html(rendered(html)?).into_response())
}

/// The page again, with why what was asked for was not done.
async fn refuse(visit: &Visit, error: ApiError) -> Result<Response, ApiError> {
    let Some((status, why)) = error.for_people() else { return Err(error) };
    let mut response = page(visit, Words { notice: Some(why), ..Words::default() }).await?;
    *response.status_mut() = status;
    Ok(response)
}

async fn answer<T>(visit: &Visit, done: Result<T, ApiError>) -> Result<Response, ApiError> {
    match done {
        Ok(_) => Ok(Redirect::to(Place::Settings.path()).into_response()),
        Err(error) => refuse(visit, error).await,
    }
}

/// The page with a secret that was made just now, or why it was not.
async fn show_made(
    visit: &Visit,
    made: Result<Option<Made>, ApiError>,
) -> Result<Response, ApiError> {
    match made {
        Ok(made) => page(visit, Words { made, ..Words::default() }).await,
        Err(error) => refuse(visit, error).await,
    }
}

pub(super) async fn show(visit: Visit) -> Result<Response, ApiError> {
    page(&visit, Words::default()).await
}

#[derive(Deserialize)]
pub(super) struct OwnPasswordForm {
    current: String,
    new: String,
}

pub(super) async fn own_password(
    visit: Visit,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Form(form): Form<OwnPasswordForm>,
) -> Result<Response, ApiError> {
    let change = OwnPassword { current: form.current, new: form.new };
    let asker = (&visit.actor, peer.addr.ip());
    match api::session::change_own(&visit, asker, auth::session(&headers), change).await {
        Ok(()) => {
            let done = Some("Your password is changed.");
            page(&visit, Words { done, ..Words::default() }).await
        }
        Err(error) => refuse(&visit, error).await,
    }
}

#[derive(Deserialize)]
pub(super) struct NewUser {
    name: String,
    role: Role,
    #[serde(default)]
    groups: String,
}

/// Names of groups as somebody writes them into a field.
fn groups(text: &str) -> Vec<String> {
    let names = text.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

fn password_of(user: ChangedUser) -> Option<Made> {
    let what = format!("The password of {}", user.name);
    user.password.map(|secret| Made { what, secret })
}

pub(super) async fn add_user(
    visit: Visit,
    Form(form): Form<NewUser>,
) -> Result<Response, ApiError> {
    let request = UserRequest {
        name: form.name,
        role: form.role,
        groups: groups(&form.groups),
        password: None,
    };
    let made = api::user::create(visit.state(), Body(request)).await;
    let made = made.map(|(_, axum::Json(user))| password_of(user));
    show_made(&visit, made).await
}

#[derive(Deserialize)]
pub(super) struct RoleForm {
    role: Role,
    #[serde(default)]
    groups: String,
}

pub(super) async fn change_role(
    visit: Visit,
    name: extract::Place<String>,
    Form(form): Form<RoleForm>,
) -> Result<Response, ApiError> {
    let change = UserChange {
        role: Some(form.role),
        groups: Some(groups(&form.groups)),
        ..UserChange::default()
    };
    let done = api::user::change(visit.state(), name, Body(change)).await;
    answer(&visit, done).await
}

pub(super) async fn new_password(
    visit: Visit,
    name: extract::Place<String>,
) -> Result<Response, ApiError> {
    let change = UserChange { new_password: true, ..UserChange::default() };
    let made = api::user::change(visit.state(), name, Body(change)).await;
    show_made(&visit, made.map(|axum::Json(user)| password_of(user))).await
}

pub(super) async fn remove_user(
    visit: Visit,
    name: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::user::remove(visit.state(), name).await;
    answer(&visit, done).await
}

#[derive(Deserialize)]
pub(super) struct NewToken {
    note: String,
    role: Role,
    #[serde(default)]
    groups: String,
}

pub(super) async fn add_token(
    visit: Visit,
    Form(form): Form<NewToken>,
) -> Result<Response, ApiError> {
    let what = format!("A token for {}", form.note);
    let request = TokenRequest {
        kind: TokenKind::Api,
        auto_approve: false,
        role: Some(form.role),
        groups: groups(&form.groups),
        expires_in: None,
        note: form.note,
    };
    let made = api::token::create(visit.state(), Body(request)).await;
    let made = made.map(|(_, axum::Json(made))| Some(Made { what, secret: made.token }));
    show_made(&visit, made).await
}

pub(super) async fn revoke_token(
    visit: Visit,
    token: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::token::revoke(visit.state(), token).await;
    answer(&visit, done).await
}

#[derive(Deserialize)]
pub(super) struct NewWebhook {
    url: String,
    /// Empty: everything.
    event: String,
}

pub(super) async fn add_webhook(
    visit: Visit,
    Form(form): Form<NewWebhook>,
) -> Result<Response, ApiError> {
    let what = format!("The secret of {}", form.url);
    let events = Some(form.event).filter(|event| !event.is_empty());
    let request = WebhookRequest { url: form.url, events: events.into_iter().collect() };
    let made = api::webhook::create(visit.state(), Body(request)).await;
    let made = made.map(|(_, axum::Json(made))| Some(Made { what, secret: made.secret }));
    show_made(&visit, made).await
}

pub(super) async fn try_webhook(
    visit: Visit,
    webhook: extract::Place<i64>,
) -> Result<Response, ApiError> {
    match api::webhook::ping(visit.state(), webhook).await {
        Ok(_) => {
            let done = Some("The webhook took it.");
            page(&visit, Words { done, ..Words::default() }).await
        }
        Err(error) => refuse(&visit, error).await,
    }
}

pub(super) async fn remove_webhook(
    visit: Visit,
    webhook: extract::Place<i64>,
) -> Result<Response, ApiError> {
    let done = api::webhook::remove(visit.state(), webhook).await;
    answer(&visit, done).await
}
