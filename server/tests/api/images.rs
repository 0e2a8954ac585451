//! Images: adding, what is refused, what an aborted upload leaves, exporting, removing.

use bytes::Bytes;
use cairn_server::api::image::{Added, Image, Registration};
use futures::{StreamExt as _, stream};
use reqwest::{Body, Method, RequestBuilder, StatusCode};

use crate::harness::{PATIENCE, Server, image, json, problem};

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
