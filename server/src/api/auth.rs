//! Who may use the API: a bearer of an API token, or a browser that signed in.
//!
//! A cookie is sent along by the browser whoever caused the request, so with one an unsafe method also needs a sign
//! that the page is ours: `Sec-Fetch-Site: same-origin`, an `Origin` that is our host, or the header
//! `X-Cairn-Request`, which no foreign page can set without asking first.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::Response,
};
use cairn_array::tls::Token;

use super::{edit, error::ApiError, idempotency, role, scope};
use crate::{
    app::App,
    db::{
        account::{Role, Scope},
        audit::NewAudit,
    },
    moment::Moment,
    secret,
};

/// The cookie of a session. The prefix makes browsers insist on Secure, the whole host and no other path.
pub(crate) const COOKIE: &str = "__Host-cairn-session";
/// What programs that use the cookie set to show that they mean it.
const INTENT: &str = "x-cairn-request";

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// `user NAME`, or `token ID`.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) scope: Scope,
}

impl Actor {
    /// Somebody, and no program.
    pub(crate) fn user(&self) -> Option<&str> {
        self.name.strip_prefix("user ")
    }
}

/// Whose session a request has, if it has one that lives.
pub(crate) async fn user_of(app: &App, headers: &HeaderMap) -> Result<Option<Actor>, ApiError> {
    let Some(session) = session(headers) else { return Ok(None) };
    let account = app.db.account_of_session(secret::hash(session), Moment::now()).await?;
    Ok(account.map(|it| Actor {
        name: format!("user {}", it.name),
        role: it.role,
        scope: it.scope,
    }))
}

/// Passes on what this one may ask for, and writes down what may change something.
pub(crate) async fn pass(
    app: &App,
    actor: Actor,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    request.extensions_mut().insert(actor.clone());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let least = role::least(request.method(), route);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let done = match actor.role.is_at_least(least) {
        true => answer(app, &actor, request, next).await,
        false => Err(ApiError::forbidden(
            "role",
            format!("this needs the role {least}; you are {}: ask an administrator", actor.role),
        )),
    };
    if !is_safe(&method) {
        let status = done.as_ref().map_or_else(ApiError::status, Response::status);
        let (actor, method) = (actor.name.as_str(), method.as_str());
        let entry =
            NewAudit { at: Moment::now(), actor, method, path: &path, status: status.as_u16() };
        app.db.keep_audit(entry).await?;
    }
    done
}

/// What is asked for, done once where its sender wants that, and only where things are as its sender thinks.
async fn answer(
    app: &App,
    actor: &Actor,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let request = scope::check(app, actor, request).await?;
    let (request, thing) = edit::begin(app, request).await?;
    let response = idempotency::run(app, &actor.name, request, next).await?;
    match thing.filter(|_| response.status().is_success()) {
        Some(thing) => thing.label(app, response).await,
        None => Ok(response),
    }
}

/// Lets only those in who may; everything behind it may assume so.
pub(crate) async fn require(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(bearer) = bearer(request.headers()) {
        let token: Token = bearer.parse().map_err(|_| refused())?;
        let token = app.db.api_token(&token.secret, Moment::now()).await?.ok_or_else(refused)?;
        let actor =
            Actor { name: format!("token {}", token.id), role: token.role, scope: token.scope };
        return pass(&app, actor, request, next).await;
    }
    if session(request.headers()).is_none() {
        return Err(ApiError::unauthorized(
            "sign_in",
            "send an API token (Authorization: Bearer …), or sign in first (POST /api/v1/session)",
        ));
    }
    let over = || ApiError::unauthorized("session_over", "the session is over: sign in again");
    let actor = user_of(&app, request.headers()).await?.ok_or_else(over)?;
    if !is_safe(request.method()) && !is_intended(request.headers()) {
        return Err(ApiError::forbidden(
            "cross_site",
            "this did not come from a page of this server: use the dashboard, or send X-Cairn-Request: 1",
        ));
    }
    pass(&app, actor, request, next).await
}

fn refused() -> ApiError {
    ApiError::unauthorized(
        "token_refused",
        "this API token is unknown, revoked or expired: make another with `cairn-server token create --kind api`",
    )
}

pub(super) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The text behind `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The session cookie's value.
pub(crate) fn session(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// Whether an unsafe request with a cookie shows that one of our own pages, or a program, meant it.
pub(crate) fn is_intended(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.contains_key(INTENT) {
        return true;
    }
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            origin.strip_prefix("https://").is_some_and(|origin| Some(origin) == text("host"))
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_foreign_page_cannot_use_the_cookie() {
        for (pairs, wanted) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("origin", "https://cairn:8440"), ("host", "cairn:8440")], true),
            (&[("origin", "https://evil"), ("host", "cairn:8440")], false),
            (&[("origin", "null"), ("host", "cairn:8440")], false),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "https://cairn:8440"),
                    ("host", "cairn:8440"),
                ],
                false,
            ),
            (&[("x-cairn-request", "1")], true),
        ] {
            assert_eq!(is_intended(&headers(pairs)), wanted, "{pairs:?}");
        }
    }

    #[test]
    fn bearer_and_cookie_are_found() {
        assert_eq!(bearer(&headers(&[("authorization", "bearer abc ")])), Some("abc"));
        assert_eq!(bearer(&headers(&[("authorization", "Basic abc")])), None);
        let cookies = headers(&[("cookie", "a=1; __Host-cairn-session=xyz; b=2")]);
        assert_eq!(session(&cookies), Some("xyz"));
        assert_eq!(session(&headers(&[("cookie", "x__Host-cairn-session=xyz")])), None);
    }
}
