//! The pieces that all pages share, and a server asked as a browser asks it.

use std::sync::Arc;

use cairn_array::tls::{self, Member, NameTable, Trust, url};
use clap::{Args as _, FromArgMatches as _};
use reqwest::{RequestBuilder, header::HeaderMap as Headers};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    api::{role, scope},
    config::ServeOptions,
    db::account::Role,
    serve,
};

#[test]
fn a_moment_of_the_api_is_read_back() {
    let moment = Moment(1_795_000_000_000);
    assert_eq!(at(&moment.to_text()), Some(moment));
    assert_eq!(at("yesterday"), None);
    assert_eq!(ago(&moment.to_text(), Moment(moment.0 + 90_000)).seconds, 90);
}

#[test]
fn a_version_is_named_in_words() {
    assert_eq!(image_label("classroom@3"), "classroom, version 3");
    assert_eq!(image_label("classroom"), "classroom");
}

/// A running server and somebody with a browser.
struct Site {
    _dir: tempfile::TempDir,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    client: reqwest::Client,
    password: String,
}

impl Site {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let any = "127.0.0.1:0";
        let flags = ["serve", "--listen", any, "--boot-listen", any, "--nbd", any, "--data-dir"];
        let matches = ServeOptions::augment_args(clap::Command::new("serve"))
            .get_matches_from(flags.iter().map(std::ffi::OsStr::new).chain([data.as_os_str()]));
        let options = ServeOptions::from_arg_matches(&matches).unwrap();
        let stop = CancellationToken::new();
        let running = serve::start(options, stop.clone()).await.unwrap();
        let names = Arc::new(NameTable::default());
        names.set(Member::Server, running.bound);
        let trust = Trust::Pinned(running.app().site.fingerprint());
        let client = tls::client(&trust, None, names).unwrap();
        let password = running.first_start.as_ref().unwrap().password.clone();
        Self { _dir: dir, stop, running: tokio::spawn(running.run()), client, password }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(url(&Member::Server, path))
    }

    /// As one of our own pages sends it.
    fn post(&self, path: &str, form: &str) -> RequestBuilder {
        self.client
            .post(url(&Member::Server, path))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("sec-fetch-site", "same-origin")
            .body(form.to_owned())
    }

    async fn sign_in(&self) -> String {
        let form = format!("password={}&next=/machines", self.password);
        let (status, headers, _) = answer_of(self.post("/sign-in", &form)).await;
        assert_eq!((status, &headers["location"]), (303, &"/machines".parse().unwrap()));
        let cookie = headers["set-cookie"].to_str().unwrap();
        for wanted in ["__Host-", "Secure", "HttpOnly", "SameSite=Strict"] {
            assert!(cookie.contains(wanted), "{cookie}");
        }
        cookie.split(';').next().unwrap().to_owned()
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn answer_of(request: RequestBuilder) -> (u16, Headers, String) {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.text().await.unwrap())
}

#[tokio::test]
async fn nobody_gets_in_without_a_session_and_no_foreign_page_uses_one() {
    let site = Site::start().await;
    let (status, headers, _) = answer_of(site.get("/images")).await;
    assert_eq!((status, headers["location"].to_str().unwrap()), (303, "/sign-in?next=/images"));
    let (status, headers, _) =
        answer_of(site.get("/parts/images").header("hx-request", "true")).await;
    assert_eq!((status, headers["hx-redirect"].to_str().unwrap()), (401, "/sign-in"));
    assert_eq!(answer_of(site.get("/live")).await.0, 401);
    let (status, _, page) = answer_of(site.post("/sign-in", "password=guess")).await;
    assert!(status == 401 && page.contains("name or password is wrong"), "{status} {page}");

    let cookie = site.sign_in().await;
    assert_eq!(answer_of(site.get("/machines").header("cookie", &cookie)).await.0, 200);
    let foreign = site.client.post(url(&Member::Server, "/agents/join"));
    let foreign = foreign.header("cookie", &cookie).header("sec-fetch-site", "cross-site");
    assert_eq!(answer_of(foreign).await.0, 403);
    let (status, _, page) =
        answer_of(site.post("/agents/join", "").header("cookie", &cookie)).await;
    assert!(status == 200 && page.contains("cairn-agent join https://"), "{status} {page}");

    assert_eq!(answer_of(site.post("/sign-out", "").header("cookie", &cookie)).await.0, 303);
    assert_eq!(answer_of(site.get("/machines").header("cookie", &cookie)).await.0, 303);
    site.end().await;
}

#[tokio::test]
async fn a_form_that_fails_shows_its_page_with_the_reason() {
    let site = Site::start().await;
    let cookie = site.sign_in().await;
    let agent = format!("/agents/{}/approve", "00".repeat(16));
    for (path, form, status, reason) in [
        (agent.as_str(), "", 404, "there is no such agent"),
        ("/agents/x/revoke", "", 400, "hex digits"),
        ("/images/none/1/remove", "", 404, "there is no image"),
        (
            "/machines/x/install",
            "code=AAAA-AAAA&version=none%401&disk=only",
            404,
            "there is no image",
        ),
        ("/machines/x/refuse", "code=AAAA-AAAA", 404, "no machine has this id"),
        ("/deployments/7/cancel", "", 404, "there is no such deployment"),
    ] {
        let answer = answer_of(site.post(path, form).header("cookie", &cookie)).await;
        assert_eq!(answer.0, status, "{path}");
        assert!(
            answer.2.contains(reason) && answer.2.contains("role=\"alert\""),
            "{path}: {}",
            answer.2
        );
    }
    site.end().await;
}

#[tokio::test]
async fn every_answer_forbids_inline_scripts_and_files_are_asked_for_once() {
    let site = Site::start().await;
    let (status, headers, page) = answer_of(site.get("/sign-in")).await;
    assert_eq!(status, 200);
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(headers["cache-control"], "no-store");
    let style = page.split('"').find(|part| part.starts_with("/static/app.css")).unwrap();
    let (status, headers, _) = answer_of(site.get(style)).await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (200, "text/css; charset=utf-8")
    );
    assert!(headers["cache-control"].to_str().unwrap().contains("immutable"));
    let again = site.get("/static/app.css").header("if-none-match", &headers["etag"]);
    let (status, headers, body) = answer_of(again).await;
    assert_eq!(
        (status, body.as_str(), headers["cache-control"].to_str().unwrap()),
        (304, "", "no-cache")
    );
    for path in ["/static/nothing.css", "/static/../Cargo.toml", "/parts/nothing"] {
        assert_ne!(answer_of(site.get(path)).await.0, 200, "{path}");
    }
    site.end().await;
}

/// The parts of a path; none for one that a name stands in.
fn parts(path: &str) -> Vec<Option<&str>> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.split('/').map(|part| (!part.contains('{')).then_some(part)).collect()
}

/// Whether a route answers what a form of a template is sent to.
fn answers(route: &str, action: &str) -> bool {
    let (route, action) = (parts(route), parts(action));
    let agree =
        |(route, action): (&Option<&str>, &Option<&str>)| route.is_none() || route == action;
    route.len() == action.len() && route.iter().zip(&action).all(agree)
}

#[test]
fn a_form_is_hidden_from_whom_it_would_be_refused() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../web/templates");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let forms =
            text.match_indices("<form").map(|(at, _)| text[at..].split('>').next().unwrap());
        for form in forms.filter(|form| form.contains("method=\"post\"")) {
            let word = |name: &str| form.split_once(name)?.1.split('"').next();
            let action = word(" action=\"").unwrap();
            // Of those outside, nothing is to be hidden; of the page of settings, all is left out.
            if action == "/sign-in" || action.starts_with("/settings") {
                continue;
            }
            let rule = role::rules()
                .find(|(method, route, _)| *method == Method::POST && answers(route, action));
            let (method, route, least) = rule.unwrap_or_else(|| panic!("{path:?}: {form}"));
            let classes: Vec<_> = word(" class=\"").unwrap_or_default().split(' ').collect();
            let hidden = |class: &str, must: bool| {
                assert_eq!(classes.contains(&class), must, "{class}: {path:?}: {form}");
            };
            hidden("for-admin", least == Role::Admin);
            hidden("for-operator", least == Role::Operator);
            hidden("for-site", least == Role::Operator && !scope::is_open(method, route));
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}
