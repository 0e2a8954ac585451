//! Who may do what: every route for every role, and users.

use cairn_array::tls::{Member, url};
use cairn_server::{
    api::{
        audit::AuditEntry,
        openapi,
        role::{least, rules},
        session::SignIn,
        token::NewTokenReply,
        user::{ChangedUser, User},
    },
    db::account::Role,
};
use reqwest::{Method, StatusCode, header};
use serde_json::json as value;

use crate::harness::{Caller, Server, json, problem};

const ROLES: [Role; 3] = [Role::Viewer, Role::Operator, Role::Admin];
/// Does not end, and takes long.
const NOT_ASKED: [&str; 2] = ["/api/v1/events", "/api/v1/backup"];

/// All routes of the API but those for anybody.
fn routes() -> Vec<(Method, String)> {
    let document = serde_json::to_value(openapi()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, _) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let is_open = ["/healthz", "/readyz", "/install/agent.deb"].contains(&path.as_str())
                || (method == Method::POST && path == "/api/v1/session");
            if !is_open {
                routes.push((method, path.clone()));
            }
        }
    }
    routes
}

async fn token(server: &Server, role: Role) -> Caller {
    let wish = value!({ "kind": "api", "role": role, "note": role.word() });
    let made = server.api().request(Method::POST, "/api/v1/tokens").json(&wish).send().await;
    let made: NewTokenReply = json(made.unwrap()).await;
    Caller { client: server.client(None), bearer: Some(made.token) }
}

#[tokio::test]
async fn every_route_is_in_the_table_and_shut_to_lesser_roles() {
    let server = Server::start().await;
    let routes = routes();
    for (method, path) in &routes {
        assert!(
            rules().any(|(known, at, _)| known == method && at == path),
            "the table of roles lacks {method} {path}"
        );
    }
    for (method, path, _) in rules().filter(|(_, path, _)| path.starts_with("/api/")) {
        let is_there = routes.iter().any(|(known, at)| known == method && at == path);
        assert!(is_there, "the table of roles has {method} {path}, which is not there");
    }
    for role in ROLES {
        let caller = token(&server, role).await;
        for (method, path) in &routes {
            let needed = least(method, path);
            let may = role.is_at_least(needed);
            if may && NOT_ASKED.contains(&path.as_str()) {
                continue;
            }
            let filled = path.replace("{number}", "999").replace("{deployment}", "999");
            let filled = filled.replace("{token}", "999").replace(['{', '}'], "");
            let request = caller.client.request(method.clone(), url(&Member::Server, &filled));
            let request = request.bearer_auth(caller.bearer.as_ref().unwrap()).json(&value!({}));
            let response = request.send().await.unwrap();
            let status = response.status();
            let refused = status == StatusCode::FORBIDDEN && problem(response).await.1 == "role";
            assert_eq!(refused, !may, "{role} {method} {path}: {status}");
        }
    }
}

async fn sign_in(server: &Server, name: &str, password: &str) -> Option<String> {
    let body = SignIn { name: Some(name.to_owned()), password: password.to_owned() };
    let client = server.client(None);
    let answer = client.post(url(&Member::Server, "/api/v1/session")).json(&body).send().await;
    let answer = answer.unwrap();
    let cookie = answer.headers().get(header::SET_COOKIE)?.to_str().unwrap().to_owned();
    Some(cookie.split(';').next().unwrap().to_owned())
}

/// Asks as a browser does that signed in.
async fn browse(server: &Server, cookie: &str, method: Method, path: &str) -> StatusCode {
    let request = server.client(None).request(method, url(&Member::Server, path));
    let request = request.header(header::COOKIE, cookie).header("x-cairn-request", "1");
    request
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .send()
        .await
        .unwrap()
        .status()
}

#[tokio::test]
async fn users_sign_in_do_what_their_role_lets_them_and_are_written_down() {
    let server = Server::start().await;
    let admin = server.api();
    let post = async |wish: &serde_json::Value| {
        admin.request(Method::POST, "/api/v1/users").json(wish).send().await.unwrap()
    };
    let short = post(&value!({ "name": "ann", "role": "viewer", "password": "short" })).await;
    assert_eq!(problem(short).await, (400, "bad_password".to_owned()));
    let ann: ChangedUser = json(post(&value!({ "name": "ann", "role": "viewer" })).await).await;
    let password = ann.password.unwrap();
    let again = post(&value!({ "name": "ann", "role": "admin" })).await;
    assert_eq!(problem(again).await, (409, "user_exists".to_owned()));

    // Pages as the API: she looks, and changes nothing.
    let cookie = sign_in(&server, "ann", &password).await.unwrap();
    assert_eq!(browse(&server, &cookie, Method::GET, "/machines").await, StatusCode::OK);
    assert_eq!(browse(&server, &cookie, Method::POST, "/array/scrub").await, StatusCode::FORBIDDEN);
    assert_eq!(browse(&server, &cookie, Method::POST, "/agents/join").await, StatusCode::FORBIDDEN);
    assert_eq!(
        browse(&server, &cookie, Method::GET, "/api/v1/tokens").await,
        StatusCode::FORBIDDEN
    );

    let patch = async |wish: &serde_json::Value| {
        admin.request(Method::PATCH, "/api/v1/users/ann").json(wish).send().await.unwrap()
    };
    let nothing = patch(&value!({})).await;
    assert_eq!(problem(nothing).await, (400, "no_change".to_owned()));
    assert_eq!(patch(&value!({ "role": "operator" })).await.status(), StatusCode::OK);
    // The session ended with the old role.
    assert_eq!(
        browse(&server, &cookie, Method::GET, "/api/v1/machines").await,
        StatusCode::UNAUTHORIZED
    );
    let cookie = sign_in(&server, "ann", &password).await.unwrap();
    assert_eq!(browse(&server, &cookie, Method::POST, "/array/scrub").await, StatusCode::SEE_OTHER);
    assert_eq!(browse(&server, &cookie, Method::POST, "/agents/join").await, StatusCode::FORBIDDEN);
    assert_eq!(patch(&value!({ "password": "another password" })).await.status(), StatusCode::OK);
    assert!(sign_in(&server, "ann", &password).await.is_none());
    assert!(sign_in(&server, "ann", "another password").await.is_some());

    // Somebody must be left who may everything.
    let demoted = admin.request(Method::PATCH, "/api/v1/users/admin");
    let demoted = demoted.json(&value!({ "role": "viewer" })).send().await.unwrap();
    assert_eq!(problem(demoted).await, (409, "last_admin".to_owned()));
    let removed = admin.request(Method::DELETE, "/api/v1/users/admin").send().await.unwrap();
    assert_eq!(problem(removed).await, (409, "last_admin".to_owned()));
    let removed = admin.request(Method::DELETE, "/api/v1/users/ann").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    assert!(sign_in(&server, "ann", "another password").await.is_none());
    let users: Vec<User> = admin.get("/api/v1/users").await.unwrap();
    assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["admin"]);

    let entries: Vec<AuditEntry> = admin.get("/api/v1/audit").await.unwrap();
    let said = |who: &str, what: &str, status: u32| {
        let found = entries.iter().any(|entry| {
            let asked = format!("{} {}", entry.method, entry.path);
            entry.actor.starts_with(who) && asked == what && entry.status == status
        });
        assert!(found, "{who} {what} {status}: {entries:#?}");
    };
    said("user ann", "POST /array/scrub", 403);
    said("user ann", "POST /array/scrub", 303);
    said("token", "DELETE /api/v1/users/ann", 204);
    said("token", "PATCH /api/v1/users/admin", 409);
    let older: Vec<AuditEntry> =
        admin.get(&format!("/api/v1/audit?before={}&limit=2", entries[0].id)).await.unwrap();
    assert_eq!(older.iter().map(|it| it.id).collect::<Vec<_>>(), [entries[1].id, entries[2].id]);
}
