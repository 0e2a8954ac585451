//! Operators of some groups of machines only, and what their work reaches.
//!
//! Who has a scope looks at all that the role may look at, and changes only what concerns machines of these groups alone: what
//! concerns the site (images, volumes, limits, groups themselves) is for others.
//!
//! Invariant: a route that is not in [`ROUTES`] is closed to who has a scope, unless it only looks.

use std::collections::HashSet;

use axum::{
    RequestPartsExt as _,
    extract::{MatchedPath, RawPathParams, Request},
    http::Method,
};
use cairn_core::id::{InstallId, MachineId};

use super::{auth::Actor, error::ApiError};
use crate::{
    app::App,
    db::account::{Role, Scope},
    targets::approval,
};

/// The most groups that one account or token is limited to.
const MOST: usize = 100;

/// The scope of an account or a token that is to have this role.
///
/// # Errors
/// When this role has none, a group is not there, or they are too many.
pub(super) async fn of(app: &App, role: Role, groups: Vec<String>) -> Result<Scope, ApiError> {
    if groups.is_empty() {
        return Ok(Scope::default());
    }
    if role != Role::Operator {
        return Err(ApiError::bad_request(
            "bad_scope",
            format!(
                "only operators are limited to groups, and this is to be {role}: leave the groups out, or say operator"
            ),
        ));
    }
    if groups.len() > MOST {
        return Err(ApiError::bad_request("bad_scope", format!("name {MOST} groups at most")));
    }
    for group in &groups {
        if app.db.group(group).await?.is_none() {
            return Err(super::group::unknown(group));
        }
    }
    Ok(Scope(groups))
}

/// By what a route is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// It concerns who asks only.
    Oneself,
    /// The machine, group, install or deployment in its path.
    Machine,
    Group,
    Install,
    Deployment,
    /// What its body names: its handler asks [`require`].
    Named,
}

/// What one with a scope may use, if what it reaches is in the scope.
const ROUTES: &[(Method, &str, Reach)] = &[
    (Method::POST, "/api/v1/deployments", Reach::Named),
    (Method::POST, "/api/v1/deployments/{deployment}/cancel", Reach::Deployment),
    (Method::PUT, "/api/v1/deployments/{deployment}/rate-limit", Reach::Deployment),
    (Method::POST, "/api/v1/deployments/{deployment}/pause", Reach::Deployment),
    (Method::POST, "/api/v1/deployments/{deployment}/resume", Reach::Deployment),
    (Method::POST, "/api/v1/deployments/{deployment}/retry", Reach::Deployment),
    (Method::PUT, "/api/v1/groups/{group}/image", Reach::Group),
    (Method::POST, "/api/v1/groups/{group}/machines", Reach::Named),
    (Method::DELETE, "/api/v1/groups/{group}/machines/{machine}", Reach::Group),
    (Method::POST, "/api/v1/installs/{install}/cancel", Reach::Install),
    (Method::DELETE, "/api/v1/machines/{machine}", Reach::Machine),
    (Method::POST, "/api/v1/machines/{machine}/approve", Reach::Machine),
    (Method::PUT, "/api/v1/machines/{machine}/name", Reach::Machine),
    (Method::POST, "/api/v1/machines/{machine}/refuse", Reach::Machine),
    (Method::DELETE, "/api/v1/session", Reach::Oneself),
    (Method::PUT, "/api/v1/session/password", Reach::Oneself),
    (Method::POST, "/deployments/{deployment}/cancel", Reach::Deployment),
    (Method::POST, "/deployments/{deployment}/rate-limit", Reach::Deployment),
    (Method::POST, "/deployments/{deployment}/pause", Reach::Deployment),
    (Method::POST, "/deployments/{deployment}/resume", Reach::Deployment),
    (Method::POST, "/deployments/{deployment}/retry", Reach::Deployment),
    (Method::POST, "/deployments/installs/{install}/cancel", Reach::Install),
    (Method::POST, "/machines/groups/{group}/image", Reach::Group),
    (Method::POST, "/machines/many/{action}", Reach::Named),
    // A form has the code of the run that is meant, of whatever machine.
    (Method::POST, "/machines/{machine}/approve", Reach::Named),
    (Method::POST, "/machines/{machine}/install", Reach::Named),
    (Method::POST, "/machines/{machine}/name", Reach::Machine),
    (Method::POST, "/machines/{machine}/refuse", Reach::Named),
    (Method::POST, "/settings/own-password", Reach::Oneself),
    (Method::POST, "/sign-out", Reach::Oneself),
];

fn reach(method: &Method, route: &str) -> Option<Reach> {
    let found = ROUTES.iter().find(|(known, at, _)| known == method && *at == route);
    found.map(|(.., reach)| *reach)
}

/// Whether one with a scope may use a route at all.
#[cfg(test)]
pub(crate) fn is_open(method: &Method, route: &str) -> bool {
    super::auth::is_safe(method) || reach(method, route).is_some()
}

/// Passes what only looks, and what reaches nothing beyond the scope of who asks.
pub(super) async fn check(app: &App, actor: &Actor, request: Request) -> Result<Request, ApiError> {
    if actor.scope.is_open() || super::auth::is_safe(request.method()) {
        return Ok(request);
    }
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let reach = reach(request.method(), route).ok_or_else(|| refused(actor))?;
    let (mut parts, body) = request.into_parts();
    let names = parts.extract::<RawPathParams>().await;
    let names = names.map_err(|error| ApiError::bad_request("bad_path", error.to_string()))?;
    let name = |wanted: &str| {
        let found = names.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value).unwrap_or_default()
    };
    match reach {
        Reach::Oneself | Reach::Named => {}
        Reach::Group => require_group(actor, name("group"))?,
        // What is not there is for the handler to say.
        Reach::Machine => {
            if let Some(found) = approval::find_machine(app, name("machine")).await? {
                require_all(app, actor, &[found.machine]).await?;
            }
        }
        Reach::Install => {
            if let Ok(install) = name("install").parse::<InstallId>()
                && let Some(row) = app.db.install(install).await?
            {
                require_all(app, actor, &[row.machine]).await?;
            }
        }
        Reach::Deployment => {
            if let Ok(deployment) = name("deployment").parse() {
                let installs = app.db.installs_of_deployment(deployment).await?;
                let machines: Vec<_> = installs.iter().map(|install| install.machine).collect();
                require_all(app, actor, &machines).await?;
            }
        }
    }
    Ok(Request::from_parts(parts, body))
}

/// Passes machines that are named in any way, if all of them are in the scope of who asks.
pub(crate) async fn require(app: &App, actor: &Actor, machines: &[String]) -> Result<(), ApiError> {
    if actor.scope.is_open() {
        return Ok(());
    }
    let mut found = Vec::with_capacity(machines.len());
    for machine in machines {
        // One that nobody has seen is in no group.
        let machine = approval::find_machine(app, machine).await?.ok_or_else(|| refused(actor))?;
        found.push(machine.machine);
    }
    require_all(app, actor, &found).await
}

/// Passes a group of the scope.
pub(crate) fn require_group(actor: &Actor, group: &str) -> Result<(), ApiError> {
    if actor.scope.is_open() || actor.scope.has(group) { Ok(()) } else { Err(refused(actor)) }
}

async fn require_all(app: &App, actor: &Actor, machines: &[MachineId]) -> Result<(), ApiError> {
    let mut own = HashSet::new();
    for group in &actor.scope.0 {
        own.extend(app.db.members(group).await?);
    }
    if machines.iter().all(|machine| own.contains(machine)) { Ok(()) } else { Err(refused(actor)) }
}

fn refused(actor: &Actor) -> ApiError {
    ApiError::forbidden(
        "scope",
        format!(
            "you look after the machines of {} only: ask somebody who looks after the others, or an administrator",
            actor.scope.0.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::role;

    #[test]
    fn what_is_open_to_a_scope_is_open_to_operators_and_changes_something() {
        for (method, route, _) in ROUTES {
            assert!(Role::Operator.is_at_least(role::least(method, route)), "{method} {route}");
            assert!(!super::super::auth::is_safe(method), "{method} {route}");
            let listed = role::rules().any(|(known, at, _)| known == method && at == *route);
            assert!(listed, "{method} {route} is no route");
        }
        assert!(is_open(&Method::GET, "/api/v1/images"));
        assert!(!is_open(&Method::PUT, "/api/v1/limits"));
        assert!(!is_open(&Method::POST, "/api/v1/groups"));
    }
}
