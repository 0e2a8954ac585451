//! Programs that are told of events: a receiver that fails at first, and checks what it gets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::hmac;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cairn_server::api::webhook::{AddedWebhook, Webhook};
use reqwest::Method;
use serde_json::{Value, json as value};

use crate::harness::{Server, json, problem};

type Message = (HeaderMap, String);

/// How many messages a receiver still refuses, and what it has seen.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<(u32, Vec<Message>)>>);

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> StatusCode {
    let mut seen = receiver.0.lock().unwrap();
    if seen.0 > 0 {
        seen.0 -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    seen.1.push((headers, body));
    StatusCode::NO_CONTENT
}

impl Receiver {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/hook", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/hook")
    }

    /// Waits for a message of this type.
    async fn hears(&self, kind: &str) -> Message {
        for _ in 0..300 {
            let seen = self.0.lock().unwrap().1.clone();
            let of_kind =
                |(_, body): &&Message| serde_json::from_str::<Value>(body).unwrap()["type"] == kind;
            if let Some(found) = seen.iter().find(of_kind) {
                return found.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no {kind} was heard of");
    }
}

fn is_signed(secret: &str, (headers, body): &Message) -> bool {
    let secret = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let text = |name: &str| headers[name].to_str().unwrap();
    let signed = format!("{}.{}.{body}", text("webhook-id"), text("webhook-timestamp"));
    let tag = STANDARD.decode(text("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    hmac::verify(&key, signed.as_bytes(), &tag).is_ok()
}

#[tokio::test]
async fn a_webhook_is_told_signed_in_order_and_again_when_it_failed() {
    let server = Server::start().await;
    let admin = server.api();
    let add = async |wish: Value| {
        admin.request(Method::POST, "/api/v1/webhooks").json(&wish).send().await.unwrap()
    };
    let bad = add(value!({ "url": "ftp://host/" })).await;
    assert_eq!(problem(bad).await, (400, "bad_url".to_owned()));
    let bad = add(value!({ "url": "http://host/", "events": ["tea"] })).await;
    assert_eq!(problem(bad).await, (400, "unknown_event".to_owned()));

    let receiver = Receiver::default();
    receiver.0.lock().unwrap().0 = 2;
    let url = receiver.start().await;
    let wish = value!({ "url": url, "events": ["job-changed"] });
    let added: AddedWebhook = json(add(wish).await).await;
    // Refused twice, and told of nevertheless.
    let begun = admin.request(Method::POST, "/api/v1/scrub").send().await.unwrap();
    assert!(begun.status().is_success());
    let first = receiver.hears("job-changed").await;
    assert!(is_signed(&added.secret, &first));
    assert!(!is_signed(&format!("whsec_{}", STANDARD.encode([0; 24])), &first));
    let body: Value = serde_json::from_str(&first.1).unwrap();
    assert_eq!(body["data"]["state"], "running", "{body}");
    let ping = async || {
        let path = format!("/api/v1/webhooks/{}/ping", added.id);
        admin.request(Method::POST, &path).send().await.unwrap()
    };
    assert_eq!(ping().await.status(), StatusCode::NO_CONTENT);
    receiver.hears("ping").await;
    receiver.0.lock().unwrap().0 = 1000;
    assert_eq!(problem(ping().await).await, (424, "webhook_failed".to_owned()));
    let kinds = receiver.0.lock().unwrap().1.clone();
    let kinds = kinds.iter().map(|(_, body)| serde_json::from_str::<Value>(body).unwrap());
    assert!(kinds.clone().all(|body| body["type"] != "image-changed"));

    // What is wrong with one is shown, and one that is removed is told nothing.
    admin.request(Method::POST, "/api/v1/scrub").send().await.unwrap();
    let mut shown: Vec<Webhook> = Vec::new();
    for _ in 0..100 {
        shown = admin.get("/api/v1/webhooks").await.unwrap();
        if shown[0].problem.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(shown[0].problem.as_ref().unwrap().contains("503"), "{shown:?}");
    let path = format!("/api/v1/webhooks/{}", added.id);
    let removed = admin.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    assert_eq!(problem(ping().await).await, (404, "webhook_unknown".to_owned()));
}
