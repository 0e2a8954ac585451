//! What each role may do: one table of all routes. What is not in it, administrators may.

use axum::http::Method;

use crate::db::account::Role;

use Role::{Admin, Operator, Viewer};

/// Method, path as the router knows it, and the least role.
const RULES: &[(Method, &str, Role)] = &[
    (Method::GET, "/api/v1/agents", Viewer),
    (Method::GET, "/api/v1/agents/{agent}", Viewer),
    (Method::DELETE, "/api/v1/agents/{agent}", Admin),
    (Method::POST, "/api/v1/agents/{agent}/approve", Admin),
    (Method::POST, "/api/v1/agents/{agent}/grants", Admin),
    (Method::POST, "/api/v1/agents/{agent}/revoke", Admin),
    (Method::GET, "/api/v1/audit", Admin),
    (Method::GET, "/api/v1/availability", Viewer),
    (Method::GET, "/api/v1/backup", Admin),
    (Method::GET, "/api/v1/boot", Viewer),
    (Method::POST, "/api/v1/boot/survey", Operator),
    (Method::GET, "/api/v1/deployments", Viewer),
    (Method::POST, "/api/v1/deployments", Operator),
    (Method::GET, "/api/v1/deployments/{deployment}", Viewer),
    (Method::POST, "/api/v1/deployments/{deployment}/cancel", Operator),
    (Method::POST, "/api/v1/deployments/{deployment}/pause", Operator),
    (Method::PUT, "/api/v1/deployments/{deployment}/rate-limit", Operator),
    (Method::POST, "/api/v1/deployments/{deployment}/resume", Operator),
    (Method::POST, "/api/v1/deployments/{deployment}/retry", Operator),
    (Method::GET, "/api/v1/deployments/{deployment}/segments", Viewer),
    (Method::GET, "/api/v1/events", Viewer),
    (Method::GET, "/api/v1/groups", Viewer),
    (Method::POST, "/api/v1/groups", Operator),
    (Method::GET, "/api/v1/groups/{group}", Viewer),
    (Method::DELETE, "/api/v1/groups/{group}", Operator),
    (Method::PUT, "/api/v1/groups/{group}/image", Operator),
    (Method::POST, "/api/v1/groups/{group}/machines", Operator),
    (Method::DELETE, "/api/v1/groups/{group}/machines/{machine}", Operator),
    (Method::GET, "/api/v1/image-files", Operator),
    (Method::GET, "/api/v1/images", Viewer),
    (Method::GET, "/api/v1/images/{name}", Viewer),
    (Method::DELETE, "/api/v1/images/{name}", Operator),
    (Method::POST, "/api/v1/images/{name}/rollback", Operator),
    (Method::POST, "/api/v1/images/{name}/url", Operator),
    (Method::POST, "/api/v1/images/{name}/versions", Operator),
    (Method::DELETE, "/api/v1/images/{name}/versions/{number}", Operator),
    // What is in an image: more than looking.
    (Method::GET, "/api/v1/images/{name}/versions/{number}/content", Operator),
    (Method::POST, "/api/v1/images/{name}/versions/{number}/promote", Operator),
    (Method::GET, "/api/v1/images/{name}/versions/{number}/signature", Viewer),
    (Method::GET, "/api/v1/installs", Viewer),
    (Method::GET, "/api/v1/installs/{install}", Viewer),
    (Method::POST, "/api/v1/installs/{install}/cancel", Operator),
    (Method::GET, "/api/v1/installs/{install}/log", Viewer),
    (Method::GET, "/api/v1/jobs", Viewer),
    (Method::GET, "/api/v1/limits", Viewer),
    (Method::PUT, "/api/v1/limits", Operator),
    (Method::GET, "/api/v1/losses", Viewer),
    (Method::GET, "/api/v1/machines", Viewer),
    (Method::GET, "/api/v1/machines/{machine}", Viewer),
    (Method::DELETE, "/api/v1/machines/{machine}", Operator),
    (Method::POST, "/api/v1/machines/{machine}/approve", Operator),
    (Method::GET, "/api/v1/machines/{machine}/installs", Viewer),
    (Method::PUT, "/api/v1/machines/{machine}/name", Operator),
    (Method::POST, "/api/v1/machines/{machine}/refuse", Operator),
    (Method::PUT, "/api/v1/machines/{machine}/volume", Operator),
    (Method::DELETE, "/api/v1/machines/{machine}/volume", Operator),
    (Method::POST, "/api/v1/rebalance", Operator),
    (Method::GET, "/api/v1/registrations", Viewer),
    (Method::GET, "/api/v1/scrub", Viewer),
    (Method::POST, "/api/v1/scrub", Operator),
    (Method::DELETE, "/api/v1/session", Viewer),
    (Method::PUT, "/api/v1/session/password", Viewer),
    (Method::GET, "/api/v1/status", Viewer),
    (Method::GET, "/api/v1/store", Viewer),
    (Method::GET, "/api/v1/tokens", Admin),
    (Method::POST, "/api/v1/tokens", Admin),
    (Method::DELETE, "/api/v1/tokens/{token}", Admin),
    (Method::GET, "/api/v1/users", Admin),
    (Method::POST, "/api/v1/users", Admin),
    (Method::GET, "/api/v1/users/{name}", Admin),
    (Method::PATCH, "/api/v1/users/{name}", Admin),
    (Method::DELETE, "/api/v1/users/{name}", Admin),
    (Method::GET, "/api/v1/volumes", Viewer),
    (Method::POST, "/api/v1/volumes", Operator),
    (Method::GET, "/api/v1/volumes/{name}", Viewer),
    (Method::PATCH, "/api/v1/volumes/{name}", Operator),
    (Method::DELETE, "/api/v1/volumes/{name}", Operator),
    (Method::POST, "/api/v1/volumes/{name}/papers", Operator),
    (Method::POST, "/api/v1/volumes/{name}/rollback", Operator),
    (Method::GET, "/api/v1/volumes/{name}/snapshots", Viewer),
    (Method::POST, "/api/v1/volumes/{name}/snapshots", Operator),
    (Method::DELETE, "/api/v1/volumes/{name}/snapshots/{snapshot}", Operator),
    (Method::POST, "/api/v1/volumes/{name}/url", Operator),
    (Method::GET, "/api/v1/webhooks", Admin),
    (Method::POST, "/api/v1/webhooks", Admin),
    (Method::DELETE, "/api/v1/webhooks/{webhook}", Admin),
    (Method::POST, "/api/v1/webhooks/{webhook}/ping", Admin),
    (Method::GET, "/metrics", Viewer),
    // The dashboard.
    (Method::GET, "/", Viewer),
    (Method::GET, "/images", Viewer),
    (Method::POST, "/images/{name}/{number}/remove", Operator),
    (Method::POST, "/images/{name}/{number}/promote", Operator),
    (Method::POST, "/images/{name}/rollback", Operator),
    (Method::POST, "/images/files", Operator),
    (Method::POST, "/images/address", Operator),
    (Method::GET, "/agents", Viewer),
    (Method::POST, "/agents/join", Admin),
    (Method::POST, "/agents/{agent}/approve", Admin),
    (Method::POST, "/agents/{agent}/revoke", Admin),
    (Method::POST, "/agents/{agent}/forget", Admin),
    (Method::GET, "/machines", Viewer),
    (Method::POST, "/machines/groups", Operator),
    (Method::POST, "/machines/groups/{group}/remove", Operator),
    (Method::POST, "/machines/groups/{group}/image", Operator),
    (Method::POST, "/machines/many/{action}", Operator),
    (Method::GET, "/machines/{machine}", Viewer),
    (Method::POST, "/machines/{machine}/install", Operator),
    (Method::POST, "/machines/{machine}/approve", Operator),
    (Method::POST, "/machines/{machine}/refuse", Operator),
    (Method::POST, "/machines/{machine}/name", Operator),
    (Method::GET, "/deployments", Viewer),
    (Method::POST, "/deployments/{deployment}/cancel", Operator),
    (Method::POST, "/deployments/{deployment}/pause", Operator),
    (Method::POST, "/deployments/{deployment}/rate-limit", Operator),
    (Method::POST, "/deployments/{deployment}/resume", Operator),
    (Method::POST, "/deployments/{deployment}/retry", Operator),
    (Method::POST, "/deployments/installs/{install}/cancel", Operator),
    (Method::GET, "/boot", Viewer),
    (Method::POST, "/boot/survey", Operator),
    (Method::GET, "/array", Viewer),
    (Method::POST, "/array", Operator),
    (Method::POST, "/array/scrub", Operator),
    (Method::POST, "/array/rebalance", Operator),
    (Method::POST, "/array/{volume}/remove", Operator),
    (Method::POST, "/array/{volume}/snapshots", Operator),
    (Method::POST, "/array/{volume}/snapshots/{snapshot}/remove", Operator),
    // What is for administrators there is shown to them only.
    (Method::GET, "/settings", Viewer),
    (Method::POST, "/settings/own-password", Viewer),
    (Method::POST, "/settings/users", Admin),
    (Method::POST, "/settings/users/{name}/role", Admin),
    (Method::POST, "/settings/users/{name}/password", Admin),
    (Method::POST, "/settings/users/{name}/remove", Admin),
    (Method::POST, "/settings/tokens", Admin),
    (Method::POST, "/settings/webhooks", Admin),
    (Method::POST, "/settings/webhooks/{webhook}/ping", Admin),
    (Method::POST, "/settings/webhooks/{webhook}/remove", Admin),
    (Method::POST, "/settings/tokens/{token}/revoke", Admin),
    (Method::GET, "/parts/nav", Viewer),
    (Method::GET, "/parts/{part}", Viewer),
    (Method::GET, "/live", Viewer),
    (Method::POST, "/sign-out", Viewer),
];

/// The least role that may use a route. `HEAD` is as `GET`.
#[must_use]
pub fn least(method: &Method, path: &str) -> Role {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let rule = RULES.iter().find(|(known, at, _)| known == method && *at == path);
    rule.map_or(Admin, |(.., role)| *role)
}

/// All routes that the table has, with the least role of each.
pub fn rules() -> impl Iterator<Item = (&'static Method, &'static str, Role)> {
    RULES.iter().map(|(method, path, role)| (method, *path, *role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_more_may_all_that_others_may_and_what_is_not_listed_is_for_administrators() {
        assert!(Admin.is_at_least(Operator) && Operator.is_at_least(Viewer));
        assert!(!Viewer.is_at_least(Operator) && !Operator.is_at_least(Admin));
        assert_eq!(least(&Method::HEAD, "/api/v1/images"), Viewer);
        assert_eq!(least(&Method::GET, "/api/v1/unheard-of"), Admin);
        assert_eq!(least(&Method::PATCH, "/api/v1/images"), Admin);
    }
}
