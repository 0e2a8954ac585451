//! Signing in and out of the dashboard.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cairn_array::tls::Peer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    auth::{self, Actor},
    error::{ApiError, Problem},
    extract::Body,
    user,
};
use crate::{app::App, db::account::Account, moment::Moment, secret};

/// The account that the first start makes.
pub(crate) const ADMIN: &str = "admin";
const SESSION_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Attempts that one address may make within [`LIMIT_WINDOW`], and all addresses together.
const ADDRESS_LIMIT: u32 = 10;
const TOTAL_LIMIT: u32 = 200;
const LIMIT_WINDOW: Duration = Duration::from_secs(60);
pub(crate) const MAX_PASSWORD: usize = 1024;

/// Who wants to sign in.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
pub struct SignIn {
    /// `admin` when absent.
    #[serde(default)]
    pub name: Option<String>,
    pub password: String,
}

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIn").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A session that began.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SignedIn {
    pub expires: String,
}

/// Counts failed attempts to sign in, so that guessing takes longer than anybody has.
#[derive(Debug, Default)]
pub(crate) struct LoginLimit(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    total: u32,
    by_address: HashMap<IpAddr, u32>,
}

impl LoginLimit {
    fn is_reached(&self, from: IpAddr, now: Instant) -> bool {
        let mut window = self.window(now);
        let by_address = window.by_address.entry(from).or_default();
        *by_address >= ADDRESS_LIMIT || window.total >= TOTAL_LIMIT
    }

    fn count(&self, from: IpAddr, now: Instant) {
        let mut window = self.window(now);
        window.total += 1;
        *window.by_address.entry(from).or_default() += 1;
    }

    /// Takes an attempt back: it was the right password.
    fn forgive(&self, from: IpAddr, now: Instant) {
        let mut window = self.window(now);
        window.total = window.total.saturating_sub(1);
        let by_address = window.by_address.entry(from).or_default();
        *by_address = by_address.saturating_sub(1);
    }

    fn window(&self, now: Instant) -> std::sync::MutexGuard<'_, Window> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.duration_since(began) >= LIMIT_WINDOW) {
            *window = Window { began: Some(now), ..Window::default() };
        }
        window
    }
}

/// The password as it is kept: a PHC string of argon2id.
pub(crate) fn hash_password(password: &str) -> anyhow::Result<String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|error| anyhow::anyhow!("{error}")).context("hash a password")?.to_string())
}

fn password_is(password: &str, kept: &str) -> anyhow::Result<bool> {
    let kept = PasswordHash::new(kept)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("read a kept password")?;
    Ok(Argon2::default().verify_password(password.as_bytes(), &kept).is_ok())
}

/// The account of somebody who knows its password.
async fn verify(
    app: &App,
    from: IpAddr,
    name: &str,
    password: String,
) -> Result<Account, ApiError> {
    let wrong = || ApiError::unauthorized("wrong_password", "name or password is wrong");
    if app.login_limit.is_reached(from, Instant::now()) {
        return Err(ApiError::too_many(
            "too_many_logins",
            "too many attempts to sign in: wait a minute, then try again",
        ));
    }
    // Counted before the slow hash, so that many guesses at once do not slip through.
    app.login_limit.count(from, Instant::now());
    if password.len() > MAX_PASSWORD {
        return Err(wrong());
    }
    let account = app.db.account_named(name).await?.ok_or_else(wrong)?;
    let kept = account.password.clone();
    let right = tokio::task::spawn_blocking(move || password_is(&password, &kept))
        .await
        .context("verify a password")??;
    if !right {
        return Err(wrong());
    }
    app.login_limit.forgive(from, Instant::now());
    Ok(account)
}

/// Begins a session for somebody who knows the password; returns the cookie's secret.
pub(crate) async fn sign_in_with(
    app: &App,
    from: IpAddr,
    sign_in: SignIn,
) -> Result<(String, Moment), ApiError> {
    let name = sign_in.name.as_deref().unwrap_or(ADMIN);
    let account = verify(app, from, name, sign_in.password).await?;
    let cookie = secret::random_text()?;
    let now = Moment::now();
    let expires = now.plus(SESSION_LIFE);
    app.db.begin_session(secret::hash(&cookie), account.id, now, expires).await?;
    Ok((cookie, expires))
}

/// The cookie that carries a session, or takes it away when `value` is empty.
pub(crate) fn cookie(value: &str) -> anyhow::Result<HeaderValue> {
    let age = if value.is_empty() { 0 } else { SESSION_LIFE.as_secs() };
    let text = format!(
        "{}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={age}",
        auth::COOKIE
    );
    HeaderValue::from_str(&text).context("write the session cookie")
}

/// Sign in
#[utoipa::path(post, path = "/api/v1/session", tag = "session", request_body = SignIn, responses(
    (status = 200, body = SignedIn, description = "Signed in; the session is in the cookie"),
    (status = 401, body = Problem), (status = 429, body = Problem)))]
pub(crate) async fn sign_in(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(sign_in): Body<SignIn>,
) -> Result<Response, ApiError> {
    let (secret, expires) = sign_in_with(&app, peer.addr.ip(), sign_in).await?;
    let body = Json(SignedIn { expires: expires.to_text() });
    Ok(([(header::SET_COOKIE, cookie(&secret)?)], body).into_response())
}

/// A password of one's own.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnPassword {
    pub current: String,
    /// At least 10 characters.
    pub new: String,
}

impl std::fmt::Debug for OwnPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnPassword").finish_non_exhaustive()
    }
}

/// Gives whoever asks another password, if the present one is known.
pub(crate) async fn change_own(
    app: &App,
    (actor, from): (&Actor, IpAddr),
    session: Option<&str>,
    change: OwnPassword,
) -> Result<(), ApiError> {
    let Some(name) = actor.user() else {
        return Err(ApiError::conflict(
            "no_password",
            "a token has no password: sign in as a user, or change it with `cairn-server user password NAME`",
        ));
    };
    verify(app, from, name, change.current).await?;
    let (kept, _) = user::password(Some(change.new), false).await?;
    let kept = kept.context("hash a password")?;
    app.db.change_password(name, &kept, session.map(secret::hash)).await?;
    Ok(())
}

/// Change your own password
///
/// Your other sessions end.
#[utoipa::path(put, path = "/api/v1/session/password", tag = "session", request_body = OwnPassword, responses(
    (status = 204), (status = 400, body = Problem), (status = 401, body = Problem),
    (status = 409, description = "A token has no password", body = Problem), (status = 429, body = Problem)))]
pub(crate) async fn change_password(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Extension(actor): Extension<Actor>,
    headers: HeaderMap,
    Body(change): Body<OwnPassword>,
) -> Result<StatusCode, ApiError> {
    change_own(&app, (&actor, peer.addr.ip()), auth::session(&headers), change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sign out
#[utoipa::path(delete, path = "/api/v1/session", tag = "session", responses(
    (status = 204, description = "The session is over"), (status = 403, body = Problem)))]
pub(crate) async fn sign_out(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if let Some(session) = auth::session(&headers) {
        app.db.end_session(secret::hash(session)).await?;
    }
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie("")?)]).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_is_limited_by_address_and_in_all_and_forgotten_after_a_minute() {
        let limit = LoginLimit::default();
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let start = Instant::now();
        (0..ADDRESS_LIMIT).for_each(|_| limit.count(a, start));
        assert!(limit.is_reached(a, start));
        assert!(!limit.is_reached(b, start));
        limit.forgive(a, start);
        assert!(!limit.is_reached(a, start));
        limit.count(a, start);
        assert!(limit.is_reached(a, start));
        assert!(!limit.is_reached(a, start + LIMIT_WINDOW));
    }

    #[test]
    fn a_password_is_kept_as_argon2id() {
        let kept = hash_password("stone").unwrap();
        assert!(kept.starts_with("$argon2id$v=19$"), "{kept}");
        assert!(password_is("stone", &kept).unwrap());
        assert!(!password_is("Stone", &kept).unwrap());
        assert!(password_is("stone", "junk").is_err());
    }
}
