//! Snapshots of volumes: taken, read by real NBD clients, cloned, gone back to, made images, deleted; across stops and kills.

use std::path::Path;

use cairn_server::{
    api::{
        image::Added,
        snapshot::Snapshot,
        volume::{Condition, Volume},
    },
    db::{Db, volume::VolumeStage},
};
use reqwest::Method;
use serde_json::{Value, json as object};

use crate::{
    harness::{Server, code, database},
    volumes::{Client, create, io, run, segments, show, uri},
};

const MIB: u64 = 1 << 20;

async fn take(server: &Server, volume: &str, name: &str) -> anyhow::Result<Snapshot> {
    let path = format!("/api/v1/volumes/{volume}/snapshots");
    server.api().post_json(&path, &object!({ "name": name })).await
}

async fn roll_back(server: &Server, volume: &str, request: Value) -> anyhow::Result<Volume> {
    server.api().post_json(&format!("/api/v1/volumes/{volume}/rollback"), &request).await
}

async fn delete(server: &Server, volume: &str, name: &str) -> anyhow::Result<()> {
    server.api().delete(&format!("/api/v1/volumes/{volume}/snapshots/{name}")).await
}

/// Starts anew; what nobody refers to is deleted then.
async fn again(server: Server) -> Server {
    Server::start_in(server.stop().await).await
}

/// The file of a snapshot's root.
fn roots(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder.join("store/blobs/volume")).unwrap();
    names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().contains('-')).count()
}

/// Bytes of all segments.
fn stored(folder: &Path) -> u64 {
    let folders = std::fs::read_dir(folder.join("store/segments")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn a_snapshot_stays_what_it_was_and_can_be_gone_back_to() {
    let server = Server::start().await;
    create(&server, object!({ "name": "disk", "size": 8 * MIB })).await.unwrap();
    // It is taken of what was not flushed, too.
    io(&server, "disk", &["write -P 1 0 2M", "write -P 2 3M 64k"]).await;
    let taken = take(&server, "disk", "first").await.unwrap();
    assert_eq!((taken.size, taken.clones.len()), (8 * MIB, 0));
    io(&server, "disk", &["write -P 3 0 8M", "flush"]).await;
    take(&server, "disk", "second").await.unwrap();
    for (path, name, wanted) in [
        ("disk", "first", "snapshot_exists"),
        ("disk", "a/b", "bad_name"),
        ("disk", "a@b", "bad_name"),
        ("none", "a", "volume_unknown"),
    ] {
        assert_eq!(code(take(&server, path, name).await), wanted);
    }
    let first = ["read -P 1 0 2M", "read -P 0 2M 1M", "read -P 2 3M 64k", "read -P 0 4M 4M"];
    let server = again(server).await;
    io(&server, "disk@first", &first).await;
    io(&server, "disk@second", &["read -P 3 0 8M"]).await;
    let listed = run("nbdinfo", &["--list", "--json", &format!("nbd://{}", server.nbd)]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let read_only = |export: &Value| {
        (export["export-name"].as_str().unwrap().to_owned(), export["is_read_only"] == true)
    };
    let exports: Vec<_> = listed["exports"].as_array().unwrap().iter().map(read_only).collect();
    let expected = [("disk", false), ("disk@first", true), ("disk@second", true)];
    assert_eq!(exports, expected.map(|(name, read_only)| (name.to_owned(), read_only)));

    let (unknown, wanted) = (object!({ "snapshot": "third", "discard": true }), "snapshot_unknown");
    assert_eq!(code(roll_back(&server, "disk", unknown).await), wanted);
    let careless = object!({ "snapshot": "first" });
    assert_eq!(code(roll_back(&server, "disk", careless).await), "would_discard");
    io(&server, "disk", &["read -P 3 0 8M"]).await;
    let back = roll_back(&server, "disk", object!({ "snapshot": "first", "discard": true })).await;
    assert_eq!(back.unwrap().state, Condition::Well);
    io(&server, "disk", &first).await;
    io(&server, "disk", &["write -P 4 1M 1M", "flush"]).await;
    let server = Server::start_in(server.kill().await).await;
    io(&server, "disk", &["read -P 1 0 1M", "read -P 4 1M 1M", "read -P 2 3M 64k"]).await;
    io(&server, "disk@first", &first).await;
    // Forward again is possible, too.
    let forward = object!({ "snapshot": "second", "discard": true });
    roll_back(&server, "disk", forward).await.unwrap();
    io(&server, "disk", &["read -P 3 0 8M"]).await;
}

#[tokio::test]
async fn what_is_used_is_not_deleted_and_what_nobody_names_goes() {
    let server = Server::start().await;
    create(&server, object!({ "name": "disk", "size": 16 * MIB })).await.unwrap();
    // Bytes that do not compress, so that segments are real.
    let noise = server.folder.path().join("noise");
    let bytes: Vec<u8> =
        (0..16 * MIB / 32).flat_map(|n| cairn_core::id::sha256(&n.to_le_bytes())).collect();
    std::fs::write(&noise, &bytes).unwrap();
    let noise = noise.to_str().unwrap().to_owned();
    run("nbdcopy", &[&noise, &uri(&server, "disk")]).await;
    take(&server, "disk", "base").await.unwrap();
    let whole = stored(server.folder.path());
    assert!(whole > 16 * MIB, "{whole} bytes are stored");

    let clone = object!({ "name": "clone", "snapshot": "disk@base", "size": 32 * MIB });
    let made = create(&server, clone).await.unwrap();
    assert_eq!((made.size, made.origin.as_deref()), (32 * MIB, Some("disk@base")));
    for (request, wanted) in [
        (object!({ "name": "x", "snapshot": "disk@base", "size": MIB }), "smaller_than_origin"),
        (object!({ "name": "x", "snapshot": "disk@none" }), "snapshot_unknown"),
        (object!({ "name": "x", "snapshot": "none@base" }), "snapshot_unknown"),
        (object!({ "name": "x", "snapshot": "base" }), "snapshot_unknown"),
        (object!({ "name": "x", "snapshot": "disk@base", "image": "os" }), "two_origins"),
    ] {
        assert_eq!(code(create(&server, request).await), wanted);
    }
    // Data are shared: only pages are added.
    assert!(stored(server.folder.path()) < whole + MIB);
    assert_eq!(code(server.api().delete("/api/v1/volumes/disk").await), "volume_has_snapshots");
    assert_eq!(code(delete(&server, "disk", "base").await), "snapshot_has_clones");
    // All is overwritten in both, many times: what the snapshot names stays.
    for round in 1..4 {
        let fill = format!("write -P {round} 0 16M");
        io(&server, "disk", &[&fill, "flush"]).await;
        io(&server, "clone", &[&fill, "flush"]).await;
    }
    let server = again(server).await;
    let base = uri(&server, "disk@base");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &noise, &base]).await;
    io(&server, "clone", &["read -P 3 0 16M", "read -P 0 16M 16M"]).await;
    io(&server, "disk", &["read -P 3 0 16M"]).await;

    server.api().delete("/api/v1/volumes/clone").await.unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &noise, &base]).await;
    assert_eq!(roots(server.folder.path()), 1);
    delete(&server, "disk", "base").await.unwrap();
    assert_eq!(code(delete(&server, "disk", "base").await), "snapshot_unknown");
    assert_eq!(roots(server.folder.path()), 0);
    io(&server, "disk", &["read -P 3 0 16M"]).await;
    let left = stored(server.folder.path());
    assert!(left < MIB, "{left} bytes are left");
    server.api().delete("/api/v1/volumes/disk").await.unwrap();
    assert_eq!(segments(server.folder.path()), 0);
}

#[tokio::test]
async fn a_volume_in_use_is_not_rolled_back_and_a_snapshot_in_use_is_not_deleted() {
    let server = Server::start().await;
    create(&server, object!({ "name": "disk", "size": MIB })).await.unwrap();
    take(&server, "disk", "base").await.unwrap();
    for (name, wanted) in [("disk", "volume_in_use"), ("disk@base", "snapshot_in_use")] {
        let (client, _) = Client::stay(&uri(&server, name)).await;
        let refused = if name == "disk" {
            let request = object!({ "snapshot": "base", "discard": true });
            code(roll_back(&server, "disk", request).await)
        } else {
            code(delete(&server, "disk", "base").await)
        };
        assert_eq!(refused, wanted);
        client.leave().await;
    }
    while show(&server, "disk").await.connections > 0 {
        tokio::task::yield_now().await;
    }
    roll_back(&server, "disk", object!({ "snapshot": "base", "discard": true })).await.unwrap();
    // Its connection ends a moment after its client.
    while code_or_done(delete(&server, "disk", "base").await) == Some("snapshot_in_use".to_owned())
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(code(delete(&server, "disk", "base").await), "snapshot_unknown");
}

fn code_or_done(result: anyhow::Result<()>) -> Option<String> {
    result.is_err().then(|| code(result))
}

#[tokio::test]
async fn a_snapshot_becomes_an_image_and_the_image_a_volume() {
    let server = Server::start().await;
    let content = server.add_image("os", 1).await;
    create(&server, object!({ "name": "disk", "image": "os", "size": 4 * MIB })).await.unwrap();
    // As an administrator would mend an image.
    io(&server, "disk", &["write -P 7 2M 64k", "flush"]).await;
    take(&server, "disk", "mended").await.unwrap();
    io(&server, "disk", &["write -P 8 2M 64k", "flush"]).await;
    let add = |from: &str| {
        let path = format!("/api/v1/images/os/versions?any_content=true&{from}");
        let api = server.api();
        async move { api.send(api.request(Method::POST, &path)).await }
    };
    for (from, wanted) in [
        ("snapshot=disk@none", "snapshot_unknown"),
        ("snapshot=disk", "snapshot_unknown"),
        ("snapshot=disk@mended&format=raw", "no_format"),
        ("snapshot=disk@mended&size=4194304", "no_format"),
        ("size=5", "no_format"),
    ] {
        assert_eq!(code(add(from).await), wanted, "{from}");
    }
    let added: Added = add("snapshot=disk@mended").await.unwrap().json().await.unwrap();
    assert_eq!((added.number, added.identical), (2, false));
    let again: Added = add("snapshot=disk@mended").await.unwrap().json().await.unwrap();
    assert_eq!((again.number, again.identical), (2, true));
    let path = "/api/v1/images/os/versions/2/content";
    let response = server.api().send(server.api().request(Method::GET, path)).await.unwrap();
    let mut expected = content;
    expected.resize(usize::try_from(4 * MIB).unwrap(), 0);
    expected[2 << 20..(2 << 20) + (64 << 10)].fill(7);
    assert!(response.bytes().await.unwrap() == expected);
    create(&server, object!({ "name": "next", "image": "os@2" })).await.unwrap();
    io(&server, "next", &["read -P 7 2M 64k"]).await;
}

#[tokio::test]
async fn what_a_kill_leaves_of_a_snapshot_is_cleared_away() {
    let server = Server::start().await;
    create(&server, object!({ "name": "disk", "size": MIB })).await.unwrap();
    io(&server, "disk", &["write -P 1 0 1M"]).await;
    take(&server, "disk", "half").await.unwrap();
    take(&server, "disk", "whole").await.unwrap();
    let folder = server.kill().await;
    // As if the kill had come between the root and the note that it is there.
    let db = Db::open(&database(folder.path())).await.unwrap();
    let rows = db.snapshots().await.unwrap();
    let half = rows.iter().find(|row| row.name == "half").unwrap();
    db.set_snapshot_stage(half.id, VolumeStage::Creating).await.unwrap();
    drop(db);
    assert_eq!(roots(folder.path()), 2);
    let server = Server::start_in(folder).await;
    assert_eq!(roots(server.folder.path()), 1);
    let listed: Vec<Snapshot> = server.api().get("/api/v1/volumes/disk/snapshots").await.unwrap();
    assert_eq!(listed.iter().map(|snapshot| &*snapshot.name).collect::<Vec<_>>(), ["whole"]);
    io(&server, "disk@whole", &["read -P 1 0 1M"]).await;
    io(&server, "disk", &["read -P 1 0 1M"]).await;
    // A root that is lost is told of, and nothing that it may name is deleted.
    let before = segments(server.folder.path());
    let folder = server.stop().await;
    let blobs = folder.path().join("store/blobs/volume");
    let root = std::fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path());
    let root = root.into_iter().find(|path| path.to_string_lossy().contains('-')).unwrap();
    std::fs::rename(&root, folder.path().join("aside")).unwrap();
    let server = Server::start_in(folder).await;
    let lost = show(&server, "disk").await;
    assert_eq!(lost.state, Condition::Unavailable);
    assert!(lost.reason.as_ref().unwrap().contains("snapshot"), "{:?}", lost.reason);
    assert!(segments(server.folder.path()) >= before);
    let folder = server.stop().await;
    std::fs::rename(folder.path().join("aside"), &root).unwrap();
    let server = Server::start_in(folder).await;
    io(&server, "disk@whole", &["read -P 1 0 1M"]).await;
    // When it does not come back, it can be given up.
    let folder = server.stop().await;
    std::fs::remove_file(&root).unwrap();
    let server = Server::start_in(folder).await;
    assert_eq!(show(&server, "disk").await.state, Condition::Unavailable);
    delete(&server, "disk", "whole").await.unwrap();
    let server = again(server).await;
    assert_eq!(show(&server, "disk").await.state, Condition::Well);
    io(&server, "disk", &["read -P 1 0 1M"]).await;
}
