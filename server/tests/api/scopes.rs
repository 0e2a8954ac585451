//! Operators of some groups only: what they may change, by every route there is.

use cairn_array::tls::{Member, url};
use cairn_server::{
    api::{
        deployment::Deployment,
        role::rules,
        session::SignIn,
        token::{NewTokenReply, Token},
        user::{ChangedUser, User},
    },
    db::account::Role,
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json as object};

use crate::harness::{Caller, Server, Target, code, json, problem};

const OURS: &str = "52:54:00:12:34:01";
const THEIRS: &str = "52:54:00:12:34:02";

/// A machine of lab-a and one of lab-b, both waiting, both with a deployment that did not begin.
struct Labs {
    server: Server,
    ours: Lab,
    theirs: Lab,
}

struct Lab {
    group: &'static str,
    target: Target,
    deployment: Deployment,
}

impl Labs {
    async fn start() -> Self {
        let server = Server::start().await;
        server.add_image("os", 1).await;
        let ours = Lab::make(&server, "lab-a", OURS).await;
        let theirs = Lab::make(&server, "lab-b", THEIRS).await;
        Self { server, ours, theirs }
    }

    /// A program that looks after lab-a.
    async fn operator(&self) -> Caller {
        let wish = object!({ "kind": "api", "role": "operator", "groups": ["lab-a"] });
        let made = self.server.api().request(Method::POST, "/api/v1/tokens").json(&wish).send();
        let made: NewTokenReply = json(made.await.unwrap()).await;
        Caller { client: self.server.client(None), bearer: Some(made.token) }
    }
}

impl Lab {
    async fn make(server: &Server, group: &'static str, mac: &str) -> Self {
        let wish = object!({ "image": "os", "machines": [mac] });
        let deployment = server.api().post_json("/api/v1/deployments", &wish).await.unwrap();
        let target = server.hello(mac, None).await;
        let made: Value =
            server.api().post_json("/api/v1/groups", &object!({ "name": group })).await.unwrap();
        assert_eq!(made["name"], group);
        let path = format!("/api/v1/groups/{group}/machines");
        let members: Value =
            server.api().post_json(&path, &object!({ "machines": [mac] })).await.unwrap();
        assert_eq!(members["machines"], 1);
        Self { group, target, deployment }
    }

    fn fill(&self, path: &str) -> String {
        let install = &self.deployment.installs[0];
        path.replace("{group}", self.group)
            .replace("{machine}", &install.machine)
            .replace("{install}", &install.id)
            .replace("{deployment}", &self.deployment.id.to_string())
            .replace("{number}", "1")
            .replace(['{', '}'], "")
    }
}

async fn ask(caller: &Caller, method: &Method, path: &str, body: &Value) -> (u16, String) {
    let request = caller.client.request(method.clone(), url(&Member::Server, path)).json(body);
    let response = request.bearer_auth(caller.bearer.as_ref().unwrap()).send().await.unwrap();
    match response.status() {
        status if status.is_success() => (status.as_u16(), String::new()),
        _ => problem(response).await,
    }
}

/// What is sent to a route, naming a machine where it names any.
fn body(path: &str, machine: &str) -> Value {
    match path.rsplit('/').next() {
        Some("machines") => object!({ "machines": [machine] }),
        Some("rate-limit") => object!({ "rate_limit": null }),
        Some("image") => object!({ "image": null }),
        _ => object!({ "machines": [machine], "image": "os", "name": "x" }),
    }
}

#[tokio::test]
async fn no_route_changes_anything_beyond_a_scope() {
    let labs = Labs::start().await;
    let operator = labs.operator().await;
    let mut reached = Vec::new();
    for (method, path, least) in rules().filter(|(_, path, _)| path.starts_with("/api/")) {
        let looks = *method == Method::GET;
        let oneself = path.starts_with("/api/v1/session");
        if looks || oneself || !Role::Operator.is_at_least(least) {
            continue;
        }
        // What a body names is theirs in any case.
        let sent = body(path, THEIRS);
        let (status, code) = ask(&operator, method, &labs.theirs.fill(path), &sent).await;
        assert_eq!((status, code.as_str()), (403, "scope"), "{method} {path}");
        if *method == Method::DELETE {
            // What is ours is needed further on.
            continue;
        }
        let sent = body(path, OURS);
        if ask(&operator, method, &labs.ours.fill(path), &sent).await.1 != "scope" {
            reached.push(format!("{method} {path}"));
        }
    }
    for wanted in [
        "POST /api/v1/deployments",
        "POST /api/v1/deployments/{deployment}/cancel",
        "PUT /api/v1/deployments/{deployment}/rate-limit",
        "PUT /api/v1/groups/{group}/image",
        "POST /api/v1/groups/{group}/machines",
        "POST /api/v1/machines/{machine}/approve",
    ] {
        assert!(reached.iter().any(|it| it == wanted), "{wanted}: {reached:#?}");
    }
    // Nobody takes a machine of others into a group of his own, also not by naming the group.
    let theirs = object!({ "machines": [THEIRS] });
    let taken = ask(&operator, &Method::POST, "/api/v1/groups/lab-a/machines", &theirs).await;
    assert_eq!(taken, (403, "scope".to_owned()));
    let all = object!({ "image": "os", "groups": ["lab-a", "lab-b"] });
    let both = ask(&operator, &Method::POST, "/api/v1/deployments", &all).await;
    assert_eq!(both, (403, "scope".to_owned()));
    let new = object!({ "image": "os", "machines": ["52:54:00:12:34:09"] });
    let unseen = ask(&operator, &Method::POST, "/api/v1/deployments", &new).await;
    assert_eq!(unseen, (403, "scope".to_owned()));
    let machine = labs.theirs.fill("/api/v1/machines/{machine}");
    let seen = ask(&operator, &Method::GET, &machine, &Value::Null).await;
    assert_eq!(seen.0, 200, "looking is not limited");
    // The group is gone: who worked for it only does not work for all now.
    labs.server.api().delete("/api/v1/groups/lab-a").await.unwrap();
    let scrub = ask(&operator, &Method::POST, "/api/v1/scrub", &object!({})).await;
    assert_eq!(scrub, (403, "scope".to_owned()));
}

#[tokio::test]
async fn a_form_reaches_no_other_machine_by_the_code_that_it_carries() {
    let labs = Labs::start().await;
    let wish = object!({ "name": "ann", "role": "operator", "groups": ["lab-a"] });
    let made = labs.server.api().request(Method::POST, "/api/v1/users").json(&wish).send().await;
    let ann: ChangedUser = json(made.unwrap()).await;
    assert_eq!(ann.groups, ["lab-a"]);
    let client = labs.server.client(None);
    let sign_in = SignIn { name: Some("ann".to_owned()), password: ann.password.unwrap() };
    let session = client.post(url(&Member::Server, "/api/v1/session")).json(&sign_in).send().await;
    let session = session.unwrap().headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    let post = async |path: &str, form: String| {
        let request = client.post(url(&Member::Server, path)).body(form);
        let request = request
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::COOKIE, session.split(';').next().unwrap())
            .header("x-cairn-request", "1");
        let response = request.send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let machine = &labs.ours.deployment.installs[0].machine;
    let (theirs, ours) = (&labs.theirs.target.reply.code, &labs.ours.target.reply.code);
    let many = "q=&group=lab-b&count=1&with=os@1".to_owned();
    for (path, form) in [
        (format!("/machines/{machine}/approve"), format!("code={theirs}")),
        (format!("/machines/{machine}/refuse"), format!("code={theirs}")),
        (format!("/machines/{machine}/install"), format!("code={theirs}&version=os@1&disk=only")),
        ("/machines/many/install".to_owned(), many),
        ("/machines/many/add".to_owned(), "q=&group=lab-b&count=1&with=lab-a".to_owned()),
        ("/machines/many/take".to_owned(), "q=&group=lab-b&count=1&with=".to_owned()),
        ("/array/scrub".to_owned(), String::new()),
    ] {
        let (status, page) = post(&path, form).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        assert!(page.contains("you look after the machines of lab-a only"), "{path}: {page}");
    }
    let (status, _) = post(&format!("/machines/{machine}/approve"), format!("code={ours}")).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn only_operators_are_limited_and_only_to_groups_that_are_there() {
    let server = Server::start().await;
    let admin = server.api();
    let send = async |method: Method, path: &str, wish: Value| {
        admin.request(method, path).json(&wish).send().await.unwrap()
    };
    let add = async |wish: Value| send(Method::POST, "/api/v1/users", wish).await;
    let unknown = add(object!({ "name": "ann", "role": "operator", "groups": ["lab-a"] })).await;
    assert_eq!(problem(unknown).await, (404, "group_unknown".to_owned()));
    let made: Value =
        admin.post_json("/api/v1/groups", &object!({ "name": "lab-a" })).await.unwrap();
    assert_eq!(made["name"], "lab-a");
    let viewer = add(object!({ "name": "ann", "role": "viewer", "groups": ["lab-a"] })).await;
    assert_eq!(problem(viewer).await, (400, "bad_scope".to_owned()));
    let join =
        send(Method::POST, "/api/v1/tokens", object!({ "kind": "join", "groups": ["lab-a"] }));
    assert_eq!(problem(join.await).await, (400, "bad_kind".to_owned()));
    let all = send(Method::POST, "/api/v1/tokens", object!({ "kind": "api", "groups": ["lab-a"] }));
    assert_eq!(problem(all.await).await, (400, "bad_scope".to_owned()));

    add(object!({ "name": "ann", "role": "operator", "groups": ["lab-a"] })).await;
    let change = async |wish: Value| -> ChangedUser {
        json(send(Method::PATCH, "/api/v1/users/ann", wish).await).await
    };
    // Another role takes the limit along; back again it is not there.
    assert_eq!(change(object!({ "new_password": true })).await.groups, ["lab-a"]);
    assert_eq!(change(object!({ "role": "viewer" })).await.groups, [""; 0]);
    assert_eq!(change(object!({ "role": "operator" })).await.groups, [""; 0]);
    assert_eq!(change(object!({ "groups": ["lab-a"] })).await.groups, ["lab-a"]);
    assert_eq!(change(object!({ "groups": [] })).await.groups, [""; 0]);
    let wish = object!({ "kind": "api", "role": "operator", "groups": ["lab-a"] });
    assert!(send(Method::POST, "/api/v1/tokens", wish).await.status().is_success());

    // They are what they were after a restart.
    assert_eq!(change(object!({ "groups": ["lab-a"] })).await.groups, ["lab-a"]);
    let server = Server::start_in(server.stop().await).await;
    let users: Vec<User> = server.api().get("/api/v1/users").await.unwrap();
    assert_eq!(users[1].groups, ["lab-a"]);
    let tokens: Vec<Token> = server.api().get("/api/v1/tokens").await.unwrap();
    assert!(tokens.iter().any(|token| token.groups == ["lab-a"]), "{tokens:?}");
    assert_eq!(code(server.api().delete("/api/v1/groups/lab-x").await), "group_unknown");
}
