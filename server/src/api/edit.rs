//! Edits that must not undo each other: what can be edited is shown with an `ETag`, and an edit with `If-Match` is made only while it
//! is still so (RFC 9110, sections 8.8.3 and 13.1.1).
//!
//! The tag is of what can be edited, not of all that is shown: a machine that was seen again has the same.
//!
//! Invariant: things of one kind are edited one at a time, so that between the look and the edit nobody else edits.

use anyhow::Context as _;
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{MatchedPath, RawPathParams, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::Response,
};
use cairn_core::id::Hasher;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use super::{error::ApiError, extract::Place, group, limits, machine, user, volume};
use crate::app::App;

/// Of an answer of ours that shows one thing.
const MAX_BODY: usize = 1 << 20;

/// What can be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Group,
    Limits,
    Machine,
    User,
    Volume,
}

/// Which routes show or edit which.
const ROUTES: [(&str, Kind); 10] = [
    ("/api/v1/groups/{group}", Kind::Group),
    ("/api/v1/groups/{group}/image", Kind::Group),
    ("/api/v1/groups/{group}/machines", Kind::Group),
    ("/api/v1/groups/{group}/machines/{machine}", Kind::Group),
    ("/api/v1/limits", Kind::Limits),
    ("/api/v1/machines/{machine}", Kind::Machine),
    ("/api/v1/machines/{machine}/name", Kind::Machine),
    ("/api/v1/machines/{machine}/volume", Kind::Machine),
    ("/api/v1/users/{name}", Kind::User),
    ("/api/v1/volumes/{name}", Kind::Volume),
];

/// Held by who edits: one for each kind.
#[derive(Debug, Default)]
pub(crate) struct Edits([Mutex<()>; 5]);

/// What a request shows or edits, held while it does.
pub(super) struct Thing<'a> {
    kind: Kind,
    name: String,
    /// What is shown is in the answer's body: it was asked for by `GET`.
    is_shown: bool,
    /// Nobody else edits meanwhile.
    _alone: Option<MutexGuard<'a, ()>>,
}

/// Whether requests of this route may say `If-Match`.
pub(super) fn is_edited(route: &str) -> bool {
    ROUTES.iter().any(|(known, _)| *known == route)
}

/// Finds what a request is about, if that can be edited, and refuses an edit of what is not as its sender thinks.
pub(super) async fn begin<'a>(
    app: &'a App,
    request: Request,
) -> Result<(Request, Option<Thing<'a>>), ApiError> {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some((_, kind)) = ROUTES.into_iter().find(|(known, _)| *known == route) else {
        return Ok((request, None));
    };
    let (mut parts, body) = request.into_parts();
    let names = axum::RequestPartsExt::extract::<RawPathParams>(&mut parts).await;
    let name = names.ok().and_then(|names| Some(names.iter().next()?.1.to_owned()));
    let name = name.unwrap_or_default();
    let alone = match parts.method.is_safe() {
        true => None,
        false => Some(app.edits.of(kind).lock().await),
    };
    let is_shown = parts.method == Method::GET;
    let thing = Thing { kind, name, is_shown, _alone: alone };
    if let Some(wanted) = parts.headers.get(header::IF_MATCH)
        && !parts.method.is_safe()
    {
        let tag = thing.tag(app).await?;
        if !matches(wanted, tag.as_deref()) {
            return Err(ApiError::new(
                StatusCode::PRECONDITION_FAILED,
                "changed_meanwhile",
                "it was changed since it was read: read it again, then say what is to change",
            ));
        }
    }
    Ok((Request::from_parts(parts, body), Some(thing)))
}

/// Whether `If-Match` has the tag of what is there.
fn matches(wanted: &HeaderValue, tag: Option<&str>) -> bool {
    let (Ok(wanted), Some(tag)) = (wanted.to_str(), tag) else { return false };
    wanted.split(',').map(str::trim).any(|wanted| wanted == "*" || wanted == tag)
}

impl Edits {
    fn of(&self, kind: Kind) -> &Mutex<()> {
        let [group, limits, machine, user, volume] = &self.0;
        match kind {
            Kind::Group => group,
            Kind::Limits => limits,
            Kind::Machine => machine,
            Kind::User => user,
            Kind::Volume => volume,
        }
    }
}

impl Thing<'_> {
    /// Tells in the answer what it is now.
    pub(super) async fn label(self, app: &App, response: Response) -> Result<Response, ApiError> {
        let (mut parts, body) = response.into_parts();
        let (tag, body) = if self.is_shown {
            // It was looked up for the answer: once is enough.
            let bytes = to_bytes(body, MAX_BODY).await.context("read an answer of our own")?;
            let shown = serde_json::from_slice(&bytes).context("read an answer of our own")?;
            (Some(self.tag_of(app, &shown).await?), Body::from(bytes))
        } else {
            (self.tag(app).await?, body)
        };
        if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
            parts.headers.insert(header::ETAG, tag);
        }
        Ok(Response::from_parts(parts, body))
    }

    /// Of what can be edited of it now; none when it is not there.
    async fn tag(&self, app: &App) -> Result<Option<String>, ApiError> {
        let (app_state, name) = (State(app.clone()), Place(self.name.clone()));
        let shown = match self.kind {
            Kind::Group => group::show(app_state, name).await.map(value),
            Kind::Limits => Ok(value(limits::show(app_state).await)),
            Kind::Machine => machine::show(app_state, name).await.map(value),
            Kind::User => user::show(app_state, name).await.map(value),
            Kind::Volume => volume::show(app_state, name).await.map(value),
        };
        match shown {
            Ok(shown) => Ok(Some(self.tag_of(app, &shown?).await?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Of what can be edited of what is shown.
    async fn tag_of(&self, app: &App, shown: &Value) -> Result<String, ApiError> {
        let fields: &[&str] = match self.kind {
            Kind::Group => &["name", "image"],
            Kind::Limits => &["upload", "download"],
            Kind::Machine => &["id", "name", "volume", "unattended", "groups"],
            Kind::User => &["name", "role", "created"],
            Kind::Volume => &["name", "size", "created"],
        };
        let mut hasher = Hasher::default();
        for field in fields {
            hasher.update(shown.get(field).unwrap_or(&Value::Null).to_string().as_bytes());
            hasher.update(b"\n");
        }
        if self.kind == Kind::Group {
            for machine in app.db.members(&self.name).await? {
                hasher.update(machine.as_bytes());
            }
        }
        let hash = hasher.finish();
        Ok(format!("\"{}\"", hex::encode(hash.get(..8).unwrap_or_default())))
    }
}

fn value<T: Serialize>(Json(shown): Json<T>) -> Result<Value, ApiError> {
    Ok(serde_json::to_value(shown).context("write what is shown")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_among_others_and_a_star_is_any() {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let tag = Some("\"ab\"");
        assert!(matches(&value("\"cd\", \"ab\""), tag) && matches(&value("*"), tag));
        // A weak one never matches.
        for text in ["\"cd\"", "ab", "W/\"ab\"", ""] {
            assert!(!matches(&value(text), tag), "{text}");
        }
        assert!(!matches(&value("*"), None));
    }
}
