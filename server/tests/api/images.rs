//! Images: adding, what is refused, what an aborted upload leaves, exporting, removing.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use axum::{Router, extract::Request, http::header, response::IntoResponse as _, routing::get};
use bytes::Bytes;
use cairn_core::id::sha256;
use cairn_server::api::{
    image::{Added, Image, Registration},
    signature::Signature,
};
use futures::{StreamExt as _, stream};
use reqwest::{Body, Method, RequestBuilder, StatusCode};

use crate::harness::{PATIENCE, Server, code, image, json, options, problem};

fn upload(server: &Server, name: &str, query: &str, body: impl Into<Body>) -> RequestBuilder {
    let path = format!("/api/v1/images/{name}/versions?{query}");
    server.api().request(Method::POST, &path).body(body)
}

async fn images(server: &Server) -> Vec<Image> {
    server.api().get("/api/v1/images").await.unwrap()
}

#[tokio::test]
async fn an_image_comes_out_as_it_went_in() {
    let server = Server::start().await;
    let (first, second) = (image(1), image(2));
    for (number, content) in [(1, &first), (2, &second)] {
        let request = upload(&server, "os", "format=raw&any_content=true", content.clone());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        let added: Added = json(response).await;
        assert_eq!((added.number, added.identical), (number, false));
        assert_eq!(added.version.unwrap().size, 1 << 20);
    }
    let again = upload(&server, "os", "format=raw&any_content=true", first.clone());
    let again = again.send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    let again: Added = json(again).await;
    assert_eq!((again.number, again.identical), (1, true));
    for (number, content) in [(1, &first), (2, &second)] {
        let path = format!("/api/v1/images/os/versions/{number}/content");
        let request = server.api().request(Method::GET, &path);
        let response = server.api().send(request).await.unwrap();
        assert_eq!(response.content_length(), Some(1 << 20));
        assert!(response.bytes().await.unwrap() == content.as_slice(), "version {number}");
    }
    assert_eq!(images(&server).await[0].versions.len(), 2);
}

/// All files below a folder whose names begin so.
fn files(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| match path.is_dir() {
        true => files(&path, begin),
        false => vec![path],
    });
    below.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begin)).collect()
}

#[tokio::test]
async fn a_version_is_signed_by_the_site_and_one_that_was_tampered_with_is_not() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let check = async || -> Signature {
        server.api().get("/api/v1/images/os/versions/1/signature").await.unwrap()
    };
    let right = check().await;
    assert!(right.valid && right.problem.is_none() && right.segments > 0, "{right:?}");
    let [manifest] = files(server.folder.path(), "manifest-").try_into().unwrap();
    let mut bytes = fs::read(&manifest).unwrap();
    assert_eq!(right.manifest.unwrap(), sha256(&bytes).iter().map(hex).collect::<String>());
    bytes[40] ^= 1;
    fs::write(&manifest, &bytes).unwrap();
    let wrong = check().await;
    assert!(!wrong.valid && wrong.problem.unwrap().contains("signature"), "{:?}", wrong.manifest);
    fs::remove_file(&manifest).unwrap();
    let none = check().await;
    assert!(!none.valid && none.manifest.is_none());
    let unknown = server.api().get::<Signature>("/api/v1/images/os/versions/2/signature").await;
    assert_eq!(code(unknown), "image_unknown");
}

fn hex(byte: &u8) -> String {
    format!("{byte:02x}")
}

#[tokio::test]
async fn an_upload_that_is_no_image_is_refused_and_leaves_nothing() {
    let server = Server::start().await;
    let whole = image(1);
    let cases: [(&str, &[u8], &str); 7] = [
        ("format=raw&size=1048577&any_content=true", &whole, "image_truncated"),
        ("format=raw&size=1048575&any_content=true", &whole, "image_too_long"),
        ("format=raw", &[], "image_empty"),
        ("format=raw", &whole, "not_an_image"),
        ("format=raw.zst", &whole, "image_unreadable"),
        ("format=qcow2", &whole, "image_malformed"),
        ("format=qcow2", &[], "image_empty"),
    ];
    for (query, body, wanted) in cases {
        let response = upload(&server, "os", query, body.to_vec()).send().await.unwrap();
        let (status, code) = problem(response).await;
        assert_eq!(status, 422, "{query}: {code}");
        // Which of two true words is used for a broken container is its reader's choice.
        let containers = ["image_unreadable", "image_malformed", "image_empty"];
        assert!(
            code == wanted || (containers.contains(&wanted) && containers.contains(&code.as_str())),
            "{query}: {code}"
        );
    }
    assert!(images(&server).await.is_empty());
    let registrations: Vec<Registration> = server.api().get("/api/v1/registrations").await.unwrap();
    assert!(registrations.is_empty());
}

#[tokio::test]
async fn one_name_is_registered_once_at_a_time_and_an_aborted_upload_leaves_nothing() {
    let server = Server::start().await;
    let (sender, receiver) = futures::channel::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let head = stream::iter([Ok(Bytes::from(image(1)))]);
    let body = Body::wrap_stream(head.chain(receiver));
    let slow = upload(&server, "os", "format=raw&any_content=true", body);
    let slow = tokio::spawn(slow.send());
    let listed =
        async || -> Vec<Registration> { server.api().get("/api/v1/registrations").await.unwrap() };
    let began = std::time::Instant::now();
    while listed().await.is_empty() {
        assert!(began.elapsed() < PATIENCE);
    }
    let second =
        upload(&server, "os", "format=raw&any_content=true", image(2)).send().await.unwrap();
    assert_eq!(problem(second).await, (409, "image_busy".to_owned()));
    // Another name is no hindrance.
    server.add_image("other", 3).await;

    slow.abort();
    drop(sender);
    drop(slow.await);
    while !listed().await.is_empty() {
        assert!(began.elapsed() < PATIENCE);
    }
    // What is listed no longer may take a moment to be cleared away; then the name is free and the number is the first.
    let added: Added = loop {
        let response =
            upload(&server, "os", "format=raw&any_content=true", image(2)).send().await.unwrap();
        if response.status() != StatusCode::CONFLICT {
            break json(response).await;
        }
        assert!(began.elapsed() < PATIENCE);
    };
    assert_eq!(added.number, 1);
}

#[tokio::test]
async fn a_removed_image_is_gone() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    server.add_image("os", 2).await;
    server.api().delete("/api/v1/images/os/versions/1").await.unwrap();
    let left = images(&server).await;
    assert_eq!(left[0].versions.iter().map(|version| version.number).collect::<Vec<_>>(), [2]);
    server.api().delete("/api/v1/images/os").await.unwrap();
    assert!(images(&server).await.is_empty());
}

#[tokio::test]
async fn a_refusal_is_read_although_the_upload_is_not_over() {
    let server = Server::start().await;
    let chunks =
        || stream::iter((0..64).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![7; 1 << 20]))));
    for (name, query, wanted) in [
        ("a%20b", "format=raw", (400, "bad_name")),
        ("os", "format=raw", (422, "not_an_image")),
        ("os", "format=raw&any_content=true&size=4096", (422, "image_too_long")),
    ] {
        let response =
            upload(&server, name, query, Body::wrap_stream(chunks())).send().await.unwrap();
        let (status, code) = problem(response).await;
        assert_eq!((status, code.as_str()), wanted);
    }
    assert!(images(&server).await.is_empty());
}

/// A plain HTTP server: an image, one that ends early, one that never ends, and ways to other places.
async fn host() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let moved = |place: String| {
        get(move || async move { (StatusCode::FOUND, [(header::LOCATION, place)]).into_response() })
    };
    let routes = Router::new()
        .route("/os.img", get(|| async { image(1) }))
        .route("/near", moved("/os.img".to_owned()))
        .route("/far", moved(format!("http://127.0.0.2:{}/os.img", address.port())))
        .route("/around", moved("/around".to_owned()))
        .fallback(|_: Request| async { StatusCode::NOT_FOUND });
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

#[tokio::test]
async fn an_image_is_fetched_from_a_host_that_was_named_and_is_what_its_hash_says() {
    let (address, folder) = (host().await, tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.image_host = vec![address.to_string().parse().unwrap()];
    let server = Server::start_as(options, folder).await;
    let good = hex::encode(sha256(&image(1)));
    let ask = async |url: &str, sha256: &str| {
        let query = format!("format=raw&any_content=true&url={url}&sha256={sha256}");
        upload(&server, "os", &query, Bytes::new()).send().await.unwrap()
    };
    let at = |path: &str| format!("http://{address}/{path}");
    let cases = [
        (at("os.img"), "00".repeat(32), 422, "image_unreadable"),
        (at("os.img"), "12".to_owned(), 400, "bad_sha256"),
        (at("none.img"), good.clone(), 502, "image_unreachable"),
        (at("far"), good.clone(), 502, "image_unreachable"),
        (at("around"), good.clone(), 502, "image_unreachable"),
        (
            format!("http://127.0.0.1:{}/os.img", address.port() ^ 1),
            good.clone(),
            403,
            "host_not_allowed",
        ),
        ("http://169.254.169.254/latest".to_owned(), good.clone(), 403, "host_not_allowed"),
        ("file:///etc/passwd".to_owned(), good.clone(), 400, "bad_url"),
        ("nothing".to_owned(), good.clone(), 400, "bad_url"),
    ];
    for (url, sha256, status, code) in cases {
        let found = problem(ask(&url, &sha256).await).await;
        assert_eq!(found, (status, code.to_owned()), "{url}");
        assert!(images(&server).await.is_empty(), "{url} leaves something");
    }
    let query = format!("format=raw&any_content=true&url={}", at("os.img"));
    let without_hash = upload(&server, "os", &query, Bytes::new()).send().await.unwrap();
    assert_eq!(problem(without_hash).await.1, "no_format");
    for path in ["os.img", "near"] {
        let added: Added = json(ask(&at(path), &good).await).await;
        assert_eq!((added.number, added.identical), (1, path == "near"));
    }
}

#[tokio::test]
async fn files_in_the_folder_of_images_are_offered_and_nothing_else_is() {
    let server = Server::start().await;
    let offered = async || -> Vec<serde_json::Value> {
        server.api().get("/api/v1/image-files").await.unwrap()
    };
    assert!(offered().await.is_empty());
    let folder = server.folder.path().join("images");
    fs::create_dir_all(folder.join("sub.img")).unwrap();
    fs::write(folder.join("os 1.raw"), image(1)).unwrap();
    fs::write(folder.join(".hidden.raw"), image(2)).unwrap();
    let secret = server.folder.path().join("secrets/cli-token");
    std::os::unix::fs::symlink(&secret, folder.join("link.raw")).unwrap();
    let wanted = serde_json::json!([{ "name": "os 1.raw", "bytes": 1 << 20, "format": "raw" }]);
    assert_eq!(serde_json::Value::from(offered().await), wanted);
    let ask = async |file: &str| {
        let query = format!("format=raw&any_content=true&file={file}");
        upload(&server, "os", &query, Bytes::new()).send().await.unwrap()
    };
    for no in ["link.raw", ".hidden.raw", "sub.img", "none.raw", "..%2Fsecrets%2Fcli-token", ""] {
        assert_eq!(problem(ask(no).await).await, (404, "file_unknown".to_owned()), "{no}");
    }
    let added: Added = json(ask("os%201.raw").await).await;
    assert_eq!((added.number, added.version.unwrap().size), (1, 1 << 20));
}
