//! Edits that must not undo each other, and lists in parts.

use cairn_server::api::{deployment::Deployment, group::Group, machine::Machine, volume::Volume};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json as object};

use crate::harness::{Server, json, problem};

async fn call(
    server: &Server,
    method: Method,
    path: &str,
    tag: Option<&str>,
    body: Option<Value>,
) -> Response {
    let mut request = server.api().request(method, path);
    if let Some(tag) = tag {
        request = request.header(header::IF_MATCH, tag);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    request.send().await.unwrap()
}

fn tag(response: &Response) -> String {
    response.headers()[header::ETAG].to_str().unwrap().to_owned()
}

async fn shown(server: &Server, path: &str) -> String {
    tag(&call(server, Method::GET, path, None, None).await)
}

/// Two saw the same and edit it one after the other.
async fn both_edit(
    server: &Server,
    shows: &str,
    (method, edits): (Method, &str),
    (first, second): (Value, Value),
) {
    let seen = shown(server, shows).await;
    assert_eq!(shown(server, shows).await, seen, "{shows}: a look changes nothing");
    let done = call(server, method.clone(), edits, Some(&seen), Some(first)).await;
    assert!(done.status().is_success(), "{edits}: {done:?}");
    let now = tag(&done);
    assert_ne!(now, seen, "{edits}");
    assert_eq!(shown(server, shows).await, now, "{shows}");
    let late = call(server, method.clone(), edits, Some(&seen), Some(second.clone())).await;
    assert_eq!(problem(late).await, (412, "changed_meanwhile".to_owned()), "{edits}");
    assert_eq!(shown(server, shows).await, now, "{shows}: it was changed all the same");
    let again = call(server, method, edits, Some(&now), Some(second)).await;
    assert!(again.status().is_success(), "{edits}: {again:?}");
}

#[tokio::test]
async fn of_two_who_edit_the_same_the_second_is_told() {
    let server = Server::start().await;
    let target = server.hello("52:54:00:12:34:01", None).await;
    server.hello("52:54:00:12:34:02", None).await;
    let machine = format!("/api/v1/machines/{}", target.reply.machine);
    let group: Group =
        server.api().post_json("/api/v1/groups", &object!({ "name": "lab" })).await.unwrap();
    let wish = object!({ "name": "disk", "size": 1 << 30 });
    let volume: Volume = server.api().post_json("/api/v1/volumes", &wish).await.unwrap();
    let _ann: Value = server
        .api()
        .post_json("/api/v1/users", &object!({ "name": "ann", "role": "viewer" }))
        .await
        .unwrap();
    let group = format!("/api/v1/groups/{}", group.name);
    let volume = format!("/api/v1/volumes/{}", volume.name);
    for (shows, method, edits, first, second) in [
        (
            machine.as_str(),
            Method::PUT,
            format!("{machine}/name"),
            object!({ "name": "pc-1" }),
            object!({ "name": "pc-2" }),
        ),
        (
            &group,
            Method::POST,
            format!("{group}/machines"),
            object!({ "machines": ["52:54:00:12:34:01"] }),
            object!({ "machines": ["52:54:00:12:34:02"] }),
        ),
        (
            "/api/v1/limits",
            Method::PUT,
            "/api/v1/limits".to_owned(),
            object!({ "upload": 1_000_000, "download": null }),
            object!({ "upload": 2_000_000, "download": null }),
        ),
        (
            &volume,
            Method::PATCH,
            volume.clone(),
            object!({ "size": 2_u64 << 30 }),
            object!({ "size": 3_u64 << 30 }),
        ),
        (
            "/api/v1/users/ann",
            Method::PATCH,
            "/api/v1/users/ann".to_owned(),
            object!({ "role": "operator" }),
            object!({ "role": "admin" }),
        ),
    ] {
        both_edit(&server, shows, (method, &edits), (first, second)).await;
    }
    // Without a body it is the same.
    let head = call(&server, Method::HEAD, "/api/v1/limits", None, None).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(tag(&head), shown(&server, "/api/v1/limits").await);
    // A machine that is seen again is the same.
    let before = shown(&server, &machine).await;
    server.hello("52:54:00:12:34:01", None).await;
    assert_eq!(shown(&server, &machine).await, before);
    let gone = call(&server, Method::DELETE, "/api/v1/groups/none", Some("*"), None).await;
    assert_eq!(problem(gone).await, (412, "changed_meanwhile".to_owned()));
    let late = call(&server, Method::DELETE, &group, Some("\"x\""), None).await;
    assert_eq!(late.status(), StatusCode::PRECONDITION_FAILED);
}

/// All parts of a list, each with at most `limit` entries.
async fn parts<T: serde::de::DeserializeOwned>(server: &Server, path: &str) -> Vec<Vec<T>> {
    let (mut parts, mut next) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let response = call(server, Method::GET, &format!("{path}{next}"), None, None).await;
        assert_eq!(response.status(), StatusCode::OK);
        let link = response.headers().get(header::LINK).map(|it| it.to_str().unwrap().to_owned());
        parts.push(json(response).await);
        let Some(link) = link else { return parts };
        let (address, rel) = link.split_once("; ").unwrap();
        assert_eq!(rel, "rel=\"next\"");
        next = address.trim_start_matches('<').trim_end_matches('>').to_owned();
    }
}

#[tokio::test]
async fn a_list_is_read_in_parts() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    for number in 1..=5 {
        let mac = format!("52:54:00:12:34:0{number}");
        server.hello(&mac, None).await;
        let wish = object!({ "image": "os", "machines": [mac] });
        let _made: Deployment = server.api().post_json("/api/v1/deployments", &wish).await.unwrap();
    }
    let machines = parts::<Machine>(&server, "/api/v1/machines").await;
    assert_eq!(machines.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let whole: Vec<Machine> = server.api().get("/api/v1/machines").await.unwrap();
    let mut ids: Vec<_> = machines.iter().flatten().map(|it| it.id.clone()).collect();
    let mut all: Vec<_> = whole.into_iter().map(|it| it.id).collect();
    ids.sort();
    all.sort();
    assert_eq!(ids, all);
    let deployments = parts::<Deployment>(&server, "/api/v1/deployments").await;
    let ids: Vec<_> = deployments.iter().flatten().map(|it| it.id).collect();
    assert!(ids.len() == 5 && ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    for path in ["images", "agents", "groups", "volumes", "jobs", "installs"] {
        parts::<Value>(&server, &format!("/api/v1/{path}")).await;
    }
    let bad = call(&server, Method::GET, "/api/v1/machines?limit=0", None, None).await;
    assert_eq!(problem(bad).await, (400, "bad_limit".to_owned()));
    let bad = call(&server, Method::GET, "/api/v1/machines?after=*", None, None).await;
    assert_eq!(problem(bad).await, (400, "bad_place".to_owned()));
}
