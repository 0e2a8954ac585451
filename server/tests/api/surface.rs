//! The surface as a whole: what the OpenAPI document lists, what strangers get, events, bad input.

use std::{collections::BTreeSet, path::Path};

use cairn_array::tls::{Member, url};
use cairn_server::api::{group::Group, openapi, volume::Volume};
use reqwest::{Method, StatusCode};

use crate::harness::{Caller, Server, json, options, problem};

/// What anybody may call.
const OPEN: [(&str, &str); 4] = [
    ("post", "/api/v1/session"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/install/agent.deb"),
];

fn routes() -> Vec<(String, String)> {
    let document = serde_json::to_value(openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut routes = Vec::new();
    for (path, item) in paths {
        for method in item.as_object().unwrap().keys() {
            routes.push((method.clone(), path.clone()));
        }
    }
    routes
}

#[tokio::test]
async fn every_listed_route_is_there_and_shut_to_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    let package = folder.path().join("agent.deb");
    std::fs::write(&package, "a package").unwrap();
    options.agent_package = Some(package);
    let server = Server::start_as(options, folder).await;
    let client = server.client(None);
    let routes = routes();
    assert!(routes.len() >= 30, "{routes:?}");
    for (method, path) in routes {
        let open = OPEN.contains(&(method.as_str(), path.as_str()));
        let filled =
            path.replace("{number}", "1").replace("{deployment}", "1").replace("{token}", "1");
        let filled = filled.replace(['{', '}'], "");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let response =
            client.request(method.clone(), url(&Member::Server, &filled)).send().await.unwrap();
        if open {
            assert_ne!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_ne!(response.status(), StatusCode::NOT_FOUND, "{method} {path}");
        } else {
            assert_eq!(problem(response).await, (401, "sign_in".to_owned()), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn the_served_document_is_the_one_of_the_code() {
    let server = Server::start().await;
    let stranger = Caller { client: server.client(None), bearer: None };
    let served: serde_json::Value = json(stranger.get("/api/openapi.json").await).await;
    assert_eq!(served, serde_json::to_value(openapi()).unwrap());
    for path in ["/api/v1/images", "/api/v1/deployments", "/api/v1/events", "/healthz"] {
        assert!(served["paths"].get(path).is_some(), "{path}");
    }
    let alive = stranger.get("/healthz").await;
    assert_eq!(alive.status(), StatusCode::OK);
    assert_eq!(stranger.get("/readyz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_not_there_or_not_well_formed_is_a_problem_document() {
    let server = Server::start().await;
    let request = |method, path: &str| server.api().request(method, path);
    let send =
        async |request: reqwest::RequestBuilder| problem(request.send().await.unwrap()).await;
    for (request, wanted) in [
        (request(Method::GET, "/api/v2/images"), (404, "unknown_path")),
        (request(Method::PATCH, "/api/v1/images"), (405, "unknown_method")),
        (request(Method::GET, "/api/v1/images/none"), (404, "image_unknown")),
        (request(Method::GET, "/api/v1/agents/xyz"), (400, "bad_id")),
        (request(Method::GET, "/api/v1/deployments/x"), (400, "bad_path")),
        (request(Method::POST, "/api/v1/tokens").body("{}"), (415, "not_json")),
        (request(Method::POST, "/api/v1/tokens").json(&1), (422, "bad_body")),
        (request(Method::POST, "/api/v1/images/a/versions?format=vmdk"), (400, "bad_query")),
        (request(Method::POST, "/api/v1/images/a%20b/versions?format=raw"), (400, "bad_name")),
        (request(Method::POST, "/api/v1/machines/AAAA-BBBB/approve"), (404, "machine_unknown")),
        // Last: the server closes the connection instead of reading on.
        (
            request(Method::POST, "/api/v1/tokens").json(&"x".repeat(2 << 20)),
            (413, "body_too_large"),
        ),
    ] {
        let (status, code) = send(request).await;
        assert_eq!((status, code.as_str()), wanted);
    }
}

#[tokio::test]
async fn events_have_ids_and_come_again_from_an_id_on() {
    let server = Server::start().await;
    let listen = async |last: Option<&str>| {
        let request = server.api().request(Method::GET, "/api/v1/events");
        let request =
            last.iter().fold(request, |request, last| request.header("last-event-id", *last));
        request.send().await.unwrap()
    };
    let mut live = listen(None).await;
    server.join(true).await;
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(std::str::from_utf8(&live.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert!(
        text.contains("event: agent-changed") && text.contains("\"state\":\"approved\""),
        "{text}"
    );
    let id: u64 = text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().parse().unwrap();
    // Whoever was away from just before it gets it again.
    let mut again = listen(Some(&(id - 1).to_string())).await;
    let replayed = again.chunk().await.unwrap().unwrap();
    assert!(replayed.starts_with(text.split("\n\n").next().unwrap().as_bytes()), "{replayed:?}");
    let refused = listen(Some("x")).await;
    assert_eq!(problem(refused).await, (400, "bad_event_id".to_owned()));
    // A group without machines is news, too.
    let wish = serde_json::json!({ "name": "lab-b" });
    let made: Group = server.api().post_json("/api/v1/groups", &wish).await.unwrap();
    while !text.contains("event: group-changed") {
        text.push_str(std::str::from_utf8(&live.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.contains(&format!("{{\"name\":\"{}\"}}", made.name)), "{text}");
}

#[tokio::test]
async fn the_fleet_is_there_in_numbers_for_who_has_a_token() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let make = serde_json::json!({ "name": "desk1", "size": 1 << 20 });
    let _made: Volume = server.api().post_json("/api/v1/volumes", &make).await.unwrap();
    let api = server.api();
    let response = api.send(api.request(Method::GET, "/metrics")).await.unwrap();
    assert_eq!(
        response.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = response.text().await.unwrap();
    for line in [
        "cairn_agents{state=\"online\"} 0",
        "cairn_image_versions{image=\"os\"} 1",
        "cairn_image_scattered{image=\"os\"} 0",
        "cairn_volume_size_bytes{volume=\"desk1\"} 1048576",
        "cairn_volume_well{volume=\"desk1\"} 1",
        "cairn_boot_dhcp_offers_total 0",
        "# TYPE cairn_boot_dhcp_ignored counter",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_document_has_the_words_that_are_sent_and_tells_of_problems() {
    let document = serde_json::to_value(openapi()).unwrap();
    let words = |name: &str| document["components"]["schemas"][name]["enum"].clone();
    assert_eq!(
        words("JobState"),
        serde_json::json!(["queued", "running", "done", "failed", "cancelled"])
    );
    assert_eq!(words("ImageFormat"), serde_json::json!(["raw", "raw.zst", "qcow2", "sparse"]));
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("default"), "{method} {path}");
            let refused =
                responses.iter().filter(|(status, _)| !status.starts_with(['1', '2', '3']));
            for (status, response) in refused {
                let content = response["content"].as_object().unwrap();
                let kinds: Vec<_> = content.keys().collect();
                assert_eq!(kinds, ["application/problem+json"], "{method} {path} {status}");
            }
        }
    }
}

/// Whatever looks like a metric of ours in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|sign: char| !(sign.is_ascii_alphanumeric() || sign == '_'));
    words.filter(|word| word.starts_with("cairn_")).map(str::to_owned).collect()
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    for (name, layout) in [("plain", "server"), ("spread", "mirror")] {
        if layout == "mirror" {
            server.join(true).await;
        }
        let wanted = serde_json::json!({ "name": name, "size": 1 << 20, "layout": layout });
        let _made: Volume = server.api().post_json("/api/v1/volumes", &wanted).await.unwrap();
    }
    let api = server.api();
    let response = api.send(api.request(Method::GET, "/metrics")).await.unwrap();
    let there = metrics_in(&response.text().await.unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring");
    for file in ["alerts.yml", "grafana.json"] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let wanted = metrics_in(&text);
        assert!(wanted.len() > 5, "{file}: {wanted:?}");
        let missing: Vec<_> = wanted.difference(&there).collect();
        assert!(missing.is_empty(), "{file}: {missing:?} of {there:?}");
    }
    let dashboard = std::fs::read_to_string(folder.join("grafana.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}
