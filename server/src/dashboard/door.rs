//! Signing in and out with a form.

use axum::{
    Extension, Form,
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{Html, IntoResponse as _, Redirect, Response},
};
use cairn_array::tls::Peer;
use cairn_web::{
    Template as _,
    shell::{self, Place},
};
use serde::Deserialize;

use super::{rendered, session_of};
use crate::{
    api::{
        auth,
        error::ApiError,
        session::{self, SignIn},
    },
    app::App,
};

#[derive(Deserialize)]
pub(super) struct Ask {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Entry {
    #[serde(default)]
    name: Option<String>,
    password: String,
    #[serde(default)]
    next: String,
}

/// Where to go on to: one of the pages, never an address that somebody else chose.
fn onward(next: &str) -> &'static str {
    Place::of_path(next).unwrap_or(Place::Overview).path()
}

pub(super) async fn show(Query(ask): Query<Ask>) -> Result<Response, ApiError> {
    let view = shell::SignIn { problem: None, next: onward(&ask.next).to_owned() };
    Ok(Html(rendered(view.render())?).into_response())
}

pub(super) async fn sign_in(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    Form(entry): Form<Entry>,
) -> Result<Response, ApiError> {
    let next = onward(&entry.next);
    if !auth::is_intended(&headers) {
        return Err(ApiError::forbidden("cross_site", "sign in on this server's own page"));
    }
    let wish = SignIn { name: entry.name, password: entry.password };
    let error = match session::sign_in_with(&app, peer.addr.ip(), wish).await {
        Ok((secret, _)) => {
            let cookie = [(header::SET_COOKIE, session::cookie(&secret)?)];
            return Ok((cookie, Redirect::to(next)).into_response());
        }
        Err(error) => error,
    };
    let Some((status, why)) = error.for_people() else { return Err(error) };
    let view = shell::SignIn { problem: Some(why.to_owned()), next: next.to_owned() };
    Ok((status, Html(rendered(view.render())?)).into_response())
}

pub(super) async fn sign_out(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if let Some(session) = session_of(&headers) {
        app.db.end_session(session).await?;
    }
    Ok(([(header::SET_COOKIE, session::cookie("")?)], Redirect::to("/sign-in")).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        assert_eq!(onward("/images"), "/images");
        for next in ["", "/", "//evil.example", "https://evil.example", "/images/../x", "/\\evil"] {
            assert_eq!(onward(next), "/", "{next}");
        }
    }
}
