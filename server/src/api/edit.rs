//! Edits that must not undo each other: what can be edited is shown with an `ETag`, and an edit with `If-Match` is made only while it
//! is still so (RFC 9110, sections 8.8.3 and 13.1.1).
//!
//! The tag is of what can be edited, not of all that is shown: a machine that was seen again has the same.
//!
//! Invariant: things of one kind are edited one at a time, so that between the look and the edit nobody else edits.

use axum::{
    extract::{MatchedPath, RawPathParams, Request},
    http::{HeaderMap, HeaderValue, header},
};
use cairn_core::id::sha256;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::{error::ApiError, machine};
use crate::{app::App, targets::approval};

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
    let thing = Thing { kind, name, _alone: alone };
    if let Some(wanted) = parts.headers.get(header::IF_MATCH)
        && !parts.method.is_safe()
    {
        let tag = thing.tag(app).await?;
        if !matches(wanted, tag.as_deref()) {
            return Err(ApiError::new(
                axum::http::StatusCode::PRECONDITION_FAILED,
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
    pub(super) async fn label(self, app: &App, headers: &mut HeaderMap) -> Result<(), ApiError> {
        if let Some(tag) = self.tag(app).await?
            && let Ok(tag) = HeaderValue::from_str(&tag)
        {
            headers.insert(header::ETAG, tag);
        }
        Ok(())
    }

    /// Of what can be edited of it; none when it is not there.
    async fn tag(&self, app: &App) -> Result<Option<String>, ApiError> {
        let name = &self.name;
        let editable = match self.kind {
            Kind::Group => match app.db.group(name).await? {
                Some(group) => {
                    let members = app.db.members(name).await?.into_iter();
                    let members: Vec<_> = members.map(|machine| machine.to_string()).collect();
                    let image = group.wanted.map(|(image, _)| image);
                    Some(json!([name, image, members]))
                }
                None => None,
            },
            Kind::Limits => {
                let rates = super::limits::Limits::from(app.limits.rates());
                Some(json!([rates.upload, rates.download]))
            }
            Kind::Machine => match approval::find_machine(app, name).await? {
                Some(found) => {
                    let shown = machine::one(app, found.machine).await?;
                    Some(json!([
                        shown.id,
                        shown.name,
                        shown.volume,
                        shown.unattended,
                        shown.groups
                    ]))
                }
                None => None,
            },
            Kind::User => {
                let account = app.db.account_named(name).await?;
                account.map(|account| json!([account.name, account.role.word(), account.created.0]))
            }
            Kind::Volume => {
                let row = app.db.volumes().await?.into_iter().find(|row| row.name == *name);
                row.map(|row| json!([row.id.to_string(), row.name, row.size.0]))
            }
        };
        let tag = |value: serde_json::Value| {
            let hash = sha256(value.to_string().as_bytes());
            format!("\"{}\"", hex::encode(hash.get(..8).unwrap_or_default()))
        };
        Ok(editable.map(tag))
    }
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
