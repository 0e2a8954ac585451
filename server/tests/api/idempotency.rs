//! What is asked for twice with one key is done once.

use std::time::Duration;

use cairn_server::api::{
    deployment::Deployment, group::Group, token::NewTokenReply, volume::Volume,
};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json as object};

use crate::harness::{PATIENCE, Server, json, problem};

async fn post(server: &Server, path: &str, key: &str, body: &Value) -> Response {
    let request = server.api().request(Method::POST, path).header("idempotency-key", key);
    request.json(body).send().await.unwrap()
}

fn was_replayed(response: &Response) -> bool {
    response.headers().get("idempotency-replayed").is_some_and(|value| value == "true")
}

async fn groups(server: &Server) -> Vec<Group> {
    server.api().get("/api/v1/groups").await.unwrap()
}

#[tokio::test]
async fn the_answer_is_that_of_the_first_time_also_after_a_restart() {
    let server = Server::start().await;
    let lab = object!({ "name": "lab" });
    let first = post(&server, "/api/v1/groups", "k1", &lab).await;
    assert_eq!((first.status(), was_replayed(&first)), (StatusCode::CREATED, false));
    let first: Value = json(first).await;
    let server = Server::start_in(server.kill().await).await;
    let again = post(&server, "/api/v1/groups", "k1", &lab).await;
    assert_eq!((again.status(), was_replayed(&again)), (StatusCode::CREATED, true));
    assert_eq!(json::<Value>(again).await, first);
    // Without the key, or with another, it is another request.
    let (status, code) = problem(post(&server, "/api/v1/groups", "k2", &lab).await).await;
    assert_eq!((status, code.as_str()), (409, "group_exists"));
    let other = object!({ "name": "other" });
    let (status, code) = problem(post(&server, "/api/v1/groups", "k1", &other).await).await;
    assert_eq!((status, code.as_str()), (422, "idempotency_key_reused"));
    // What was refused leaves its key.
    let refused = post(&server, "/api/v1/groups", "k3", &object!({ "name": "a b" })).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(post(&server, "/api/v1/groups", "k3", &other).await.status(), StatusCode::CREATED);
    assert_eq!(groups(&server).await.len(), 2);
}

#[tokio::test]
async fn keys_are_their_owners_and_only_where_no_secret_is_answered() {
    let server = Server::start().await;
    let lab = object!({ "name": "lab" });
    assert_eq!(post(&server, "/api/v1/groups", "k", &lab).await.status(), StatusCode::CREATED);
    let wish = object!({ "kind": "api", "role": "operator" });
    let token: NewTokenReply = server.api().post_json("/api/v1/tokens", &wish).await.unwrap();
    let url = format!("https://{}/api/v1/groups", server.bound);
    let request = server.client(None).post(&url).bearer_auth(token.token.to_string());
    let other = request.header("idempotency-key", "k").json(&lab).send().await.unwrap();
    assert_eq!(problem(other).await, (409, "group_exists".to_owned()));
    for (key, path, wanted) in [
        ("k", "/api/v1/tokens", "no_idempotency"),
        ("k", "/api/v1/webhooks", "no_idempotency"),
        ("", "/api/v1/groups", "bad_idempotency_key"),
        (&*"k".repeat(65), "/api/v1/groups", "bad_idempotency_key"),
    ] {
        let (status, code) = problem(post(&server, path, key, &wish).await).await;
        assert_eq!((status, code.as_str()), (400, wanted), "{path}");
    }
    // Looking needs no key, and is not hindered by one.
    let look = server.api().request(Method::GET, "/api/v1/tokens").header("idempotency-key", "k");
    assert_eq!(look.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn many_at_once_make_one_and_who_goes_away_is_not_half_served() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let wish = object!({ "image": "os", "machines": ["52:54:00:12:34:01"] });
    let all = (0..12).map(|_| post(&server, "/api/v1/deployments", "once", &wish));
    let answers = futures::future::join_all(all).await;
    let (made, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|it| it.status() == StatusCode::CREATED);
    assert_eq!(made.iter().filter(|it| !was_replayed(it)).count(), 1);
    for other in others {
        assert_eq!(problem(other).await, (409, "idempotency_under_way".to_owned()));
    }
    let deployments: Vec<Deployment> = server.api().get("/api/v1/deployments").await.unwrap();
    assert_eq!(deployments.len(), 1);

    // The sender goes away before it is answered, sooner or later.
    let waits = [2, 5, 10, 15, 20, 30, 40, 60];
    for (number, wait) in waits.into_iter().enumerate() {
        let (name, wait) = (format!("disk{number}"), Duration::from_millis(wait));
        let wish = object!({ "name": name, "size": 16 << 20 });
        let request = server.api().request(Method::POST, "/api/v1/volumes");
        let request = request.header("idempotency-key", &name).json(&wish);
        request.timeout(wait).send().await.ok();
        let ended = async {
            loop {
                let again = post(&server, "/api/v1/volumes", &name, &wish).await;
                if again.status() == StatusCode::CREATED {
                    return;
                }
                assert_eq!(problem(again).await, (409, "idempotency_under_way".to_owned()));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("what was begun to end");
    }
    let volumes: Vec<Volume> = server.api().get("/api/v1/volumes").await.unwrap();
    assert_eq!(volumes.len(), waits.len());
}
