//! Signing in, and what a foreign page cannot do with the cookie.

use cairn_array::tls::{Member, url};
use cairn_server::api::session::SignIn;
use reqwest::{Method, StatusCode, header};

use crate::harness::{Server, problem};

async fn sign_in(server: &Server, password: &str) -> reqwest::Response {
    let body = SignIn { name: None, password: password.to_owned() };
    let client = server.client(None);
    client.post(url(&Member::Server, "/api/v1/session")).json(&body).send().await.unwrap()
}

#[tokio::test]
async fn a_session_reads_writes_from_our_pages_only_and_ends() {
    let server = Server::start().await;
    let password = server.first_start.clone().unwrap().password;
    let response = sign_in(&server, &password).await;
    assert_eq!(response.status(), StatusCode::OK);
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    for part in ["__Host-cairn-session=", "Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let client = server.client(None);
    let call = |method: Method, path: &str| {
        client.request(method, url(&Member::Server, path)).header(header::COOKIE, &cookie)
    };
    let read = call(Method::GET, "/api/v1/agents").send().await.unwrap();
    assert_eq!(read.status(), StatusCode::OK);

    let body = serde_json::json!({ "kind": "join" });
    let forged = call(Method::POST, "/api/v1/tokens").json(&body);
    let forged = forged.header("sec-fetch-site", "cross-site").header("origin", "https://evil");
    assert_eq!(problem(forged.send().await.unwrap()).await, (403, "cross_site".to_owned()));
    let bare = call(Method::POST, "/api/v1/tokens").json(&body);
    assert_eq!(problem(bare.send().await.unwrap()).await, (403, "cross_site".to_owned()));
    let own =
        call(Method::POST, "/api/v1/tokens").json(&body).header("sec-fetch-site", "same-origin");
    assert_eq!(own.send().await.unwrap().status(), StatusCode::CREATED);

    let out = call(Method::DELETE, "/api/v1/session").header("x-cairn-request", "1");
    assert_eq!(out.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    let read = call(Method::GET, "/api/v1/agents").send().await.unwrap();
    assert_eq!(problem(read).await, (401, "session_over".to_owned()));
}

#[tokio::test]
async fn whoever_knows_their_password_changes_it_and_their_other_sessions_end() {
    let server = Server::start().await;
    let password = server.first_start.clone().unwrap().password;
    let cookie = async |password: &str| {
        let response = sign_in(&server, password).await;
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    };
    let (here, elsewhere) = (cookie(&password).await, cookie(&password).await);
    let client = server.client(None);
    let change = async |cookie: &str, current: &str, new: &str| {
        let request = client.put(url(&Member::Server, "/api/v1/session/password"));
        let request = request.header(header::COOKIE, cookie).header("x-cairn-request", "1");
        let body = serde_json::json!({ "current": current, "new": new });
        request.json(&body).send().await.unwrap()
    };
    let reads = async |cookie: &str| {
        let request = client.get(url(&Member::Server, "/api/v1/agents"));
        request.header(header::COOKIE, cookie).send().await.unwrap().status()
    };
    let wrong = change(&here, "not the password", "a better password").await;
    assert_eq!(problem(wrong).await, (401, "wrong_password".to_owned()));
    let short = change(&here, &password, "short").await;
    assert_eq!(problem(short).await, (400, "bad_password".to_owned()));
    assert_eq!(reads(&elsewhere).await, StatusCode::OK);
    let done = change(&here, &password, "a better password").await;
    assert_eq!(done.status(), StatusCode::NO_CONTENT);
    assert_eq!(reads(&here).await, StatusCode::OK);
    assert_eq!(reads(&elsewhere).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sign_in(&server, &password).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(sign_in(&server, "a better password").await.status(), StatusCode::OK);
    let body = serde_json::json!({ "current": "x", "new": "a better password" });
    let token = server.api().request(Method::PUT, "/api/v1/session/password").json(&body);
    assert_eq!(problem(token.send().await.unwrap()).await, (409, "no_password".to_owned()));
}

#[tokio::test]
async fn guessing_the_password_is_slowed_down() {
    let server = Server::start().await;
    let mut codes = Vec::new();
    for _ in 0..11 {
        codes.push(problem(sign_in(&server, "guess").await).await);
    }
    assert_eq!(codes[0], (401, "wrong_password".to_owned()));
    assert_eq!(codes[10], (429, "too_many_logins".to_owned()));
    let password = server.first_start.clone().unwrap().password;
    let (status, _) = problem(sign_in(&server, &password).await).await;
    assert_eq!(status, 429);
}

#[tokio::test]
async fn a_wrong_token_opens_nothing() {
    let server = Server::start().await;
    let client = server.client(None);
    let call = |bearer: &str| {
        client.get(url(&Member::Server, "/api/v1/agents")).bearer_auth(bearer).send()
    };
    assert_eq!(problem(call("junk").await.unwrap()).await, (401, "token_refused".to_owned()));
    // A join token is no API token.
    let join = server.join_token(serde_json::json!({})).await.to_string();
    assert_eq!(problem(call(&join).await.unwrap()).await, (401, "token_refused".to_owned()));
    let bare = client.get(url(&Member::Server, "/api/v1/agents")).send().await.unwrap();
    assert_eq!(problem(bare).await, (401, "sign_in".to_owned()));
}
