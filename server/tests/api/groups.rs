//! Groups of machines, what they are to run, and which version an image's name stands for.

use cairn_array::wire::{InstallPhase, InstallProgress, ProgressReply, TicketReply};
use cairn_core::units::ByteCount;
use cairn_server::api::{deployment::Deployment, group::Group, image::Image, machine::Machine};
use reqwest::Method;
use serde_json::{Value, json as object};

use crate::harness::{Server, code, json};

const MACS: [&str; 3] = ["52:54:00:12:34:01", "52:54:00:12:34:02", "52:54:00:12:34:03"];

async fn group(server: &Server, request: Value) -> anyhow::Result<Group> {
    server.api().post_json("/api/v1/groups", &request).await
}

async fn put_into(server: &Server, group: &str, macs: &[&str]) -> anyhow::Result<Group> {
    let path = format!("/api/v1/groups/{group}/machines");
    server.api().post_json(&path, &object!({ "machines": macs })).await
}

async fn machine(server: &Server, mac: &str) -> Machine {
    server.api().get(&format!("/api/v1/machines/{mac}")).await.unwrap()
}

async fn deploy(server: &Server, request: Value) -> anyhow::Result<Deployment> {
    server.api().post_json("/api/v1/deployments", &request).await
}

async fn promote(server: &Server, number: u32) -> Image {
    server.api().post(&format!("/api/v1/images/os/versions/{number}/promote")).await.unwrap()
}

/// A machine is installed with what the name stands for now.
async fn install(server: &Server, mac: &str) {
    let target = server.hello(mac, None).await;
    deploy(server, object!({ "image": "os", "machines": [target.reply.code] })).await.unwrap();
    assert!(matches!(target.ticket().await, TicketReply::Ready(_)));
    for phase in [InstallPhase::Writing, InstallPhase::Done] {
        let progress = InstallProgress {
            phase,
            total: ByteCount(1),
            from_peers: ByteCount(1),
            from_server: ByteCount(0),
            rebuilt: ByteCount(0),
            already: ByteCount(0),
            written: ByteCount(1),
            milliseconds: 1,
            percent: None,
            bottleneck: None,
            error: None,
        };
        let reply: ProgressReply =
            json(target.caller.post("/target/v1/progress", &progress).await).await;
        assert!(!reply.cancel);
    }
}

#[tokio::test]
async fn a_name_stands_for_what_was_promoted_and_goes_back() {
    let server = Server::start().await;
    for seed in 1..=3 {
        server.add_image("os", seed).await;
    }
    let image: Image = server.api().get("/api/v1/images/os").await.unwrap();
    assert_eq!((image.current, image.promoted), (3, false));
    let nothing = server.api().post::<Image>("/api/v1/images/os/rollback").await;
    assert_eq!(code(nothing), "nothing_promoted");

    let image = promote(&server, 1).await;
    assert_eq!((image.current, image.promoted), (1, true));
    assert_eq!(promote(&server, 2).await.current, 2);
    // A newer version does not take its place.
    server.add_image("os", 4).await;
    let made = deploy(&server, object!({ "image": "os", "machines": [MACS[0]] })).await.unwrap();
    assert_eq!(made.image, "os@2");
    let removed = server.api().delete("/api/v1/images/os/versions/2").await;
    assert_eq!(code(removed), "version_promoted");

    let back: Image = server.api().post("/api/v1/images/os/rollback").await.unwrap();
    assert_eq!((back.current, back.promoted), (1, true));
    // It is what it was after a restart.
    let server = Server::start_in(server.stop().await).await;
    let image: Image = server.api().get("/api/v1/images/os").await.unwrap();
    assert_eq!((image.current, image.promoted), (1, true));
    let back: Image = server.api().post("/api/v1/images/os/rollback").await.unwrap();
    assert_eq!((back.current, back.promoted), (4, false));
    let unknown = server.api().post::<Image>("/api/v1/images/os/versions/9/promote").await;
    assert_eq!(code(unknown), "image_unknown");
}

#[tokio::test]
async fn machines_of_a_group_drift_from_what_they_are_to_run_and_only_those_are_installed() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    for mac in MACS {
        install(&server, mac).await;
    }
    group(&server, object!({ "name": "lab-b", "image": "os" })).await.unwrap();
    let lab = put_into(&server, "lab-b", &MACS).await.unwrap();
    assert_eq!((lab.machines, lab.wanted.as_deref()), (3, Some("os@1")));
    let first = machine(&server, MACS[0]).await;
    assert_eq!(first.groups, ["lab-b"]);
    assert!(!first.has_drifted());
    let none = object!({ "image": "os", "groups": ["lab-b"], "drifted": true });
    assert_eq!(code(deploy(&server, none.clone()).await), "no_drift");

    server.add_image("os", 2).await;
    install(&server, MACS[0]).await;
    let machines: Vec<Machine> = server.api().get("/api/v1/machines").await.unwrap();
    let drifted = machines.iter().filter(|machine| machine.has_drifted());
    assert_eq!(drifted.map(|machine| machine.macs[0].as_str()).collect::<Vec<_>>(), MACS[1..]);
    let made = deploy(&server, none).await.unwrap();
    let mut labels: Vec<_> = made.installs.iter().map(|it| it.machine_label.as_str()).collect();
    labels.sort_unstable();
    assert_eq!((made.image.as_str(), labels), ("os@2", MACS[1..].to_vec()));
    // What was promoted is what they are to run.
    promote(&server, 1).await;
    assert!(machine(&server, MACS[0]).await.has_drifted());
    assert!(!machine(&server, MACS[1]).await.has_drifted());
}

#[tokio::test]
async fn groups_are_made_changed_and_removed_and_two_never_disagree() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    server.add_image("office", 2).await;
    for mac in MACS {
        server.hello(mac, None).await;
    }
    for (request, wanted) in [
        (object!({ "name": "a b" }), "bad_name"),
        (object!({ "name": "" }), "bad_name"),
        (object!({ "name": "x", "image": "none" }), "image_unknown"),
    ] {
        assert_eq!(code(group(&server, request).await), wanted);
    }
    group(&server, object!({ "name": "room", "image": "os" })).await.unwrap();
    group(&server, object!({ "name": "class" })).await.unwrap();
    assert_eq!(code(group(&server, object!({ "name": "class" })).await), "group_exists");
    put_into(&server, "room", &MACS[..2]).await.unwrap();
    put_into(&server, "class", &MACS[1..]).await.unwrap();
    assert_eq!(machine(&server, MACS[1]).await.groups, ["class", "room"]);

    // Both would say what the second machine is to run.
    let image = object!({ "image": "office" });
    let refused = server.api().put_json::<_, Group>("/api/v1/groups/class/image", &image).await;
    assert_eq!(code(refused), "two_images");
    let class: Group = server.api().get("/api/v1/groups/class").await.unwrap();
    assert_eq!((class.image, class.machines), (None, 2));
    let out = format!("/api/v1/groups/class/machines/{}", MACS[1]);
    let class: Group = server.api().delete_for(&out).await.unwrap();
    assert_eq!(class.machines, 1);
    assert_eq!(code(server.api().delete_for::<Group>(&out).await), "not_in_group");
    let class: Group = server.api().put_json("/api/v1/groups/class/image", &image).await.unwrap();
    assert_eq!(class.wanted.as_deref(), Some("office@1"));
    // All of them or none.
    assert_eq!(code(put_into(&server, "class", &[MACS[2], MACS[0]]).await), "two_images");
    assert_eq!(code(put_into(&server, "class", &["nobody"]).await), "machine_unknown");
    assert_eq!(code(put_into(&server, "nowhere", &MACS).await), "group_unknown");

    // What goes with what.
    server.api().delete(&format!("/api/v1/machines/{}", MACS[2])).await.unwrap();
    let class: Group = server.api().get("/api/v1/groups/class").await.unwrap();
    assert_eq!(class.machines, 0);
    let empty = object!({ "image": "os", "groups": ["class"] });
    assert_eq!(code(deploy(&server, empty).await), "group_empty");
    server.api().delete("/api/v1/groups/room").await.unwrap();
    assert!(machine(&server, MACS[0]).await.groups.is_empty());
    assert_eq!(code(server.api().delete("/api/v1/groups/room").await), "group_unknown");
    let request = server.api().request(Method::DELETE, "/api/v1/images/office");
    server.api().send(request).await.unwrap();
    for _ in 0..100 {
        let class: Group = server.api().get("/api/v1/groups/class").await.unwrap();
        if class.image.is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("an image that is gone is still what a group is to run");
}

#[tokio::test]
async fn what_failed_or_was_cancelled_is_tried_again_and_nothing_else() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let made = deploy(&server, object!({ "image": "os", "machines": MACS })).await.unwrap();
    let retry = async |deployment: i64| -> anyhow::Result<Deployment> {
        server.api().post(&format!("/api/v1/deployments/{deployment}/retry")).await
    };
    assert_eq!(code(retry(made.id).await), "nothing_failed");
    let path = format!("/api/v1/deployments/{}/cancel", made.id);
    server.api().post::<Deployment>(&path).await.unwrap();
    // One of them has something else to do by now.
    install(&server, MACS[0]).await;
    deploy(&server, object!({ "image": "os", "machines": [MACS[1]] })).await.unwrap();
    server.add_image("os", 2).await;
    let again = retry(made.id).await.unwrap();
    let mut labels: Vec<_> = again.installs.iter().map(|it| it.machine_label.as_str()).collect();
    labels.sort_unstable();
    // What it was, not what the name stands for now.
    assert_eq!((again.image.as_str(), labels), ("os@1", vec![MACS[0], MACS[2]]));
    assert_eq!(code(retry(again.id + 99).await), "deployment_unknown");
}
