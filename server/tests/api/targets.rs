//! Targets: hello, approval, ticket, what it opens and what it does not.

use std::time::Duration;

use cairn_array::{
    pace::Rate,
    tls::{Member, Papers, Token, new_key_and_csr, url},
    wire::{
        AfterInstall, Bottleneck, Complaint, DiskSelector, InstallPhase, InstallProgress,
        ProgressReply, StripeMaps, Ticket, TicketReply, code_of,
    },
};
use cairn_core::{
    fetch::{Fault, Source},
    id::SegmentId,
    manifest::Public,
    units::ByteCount,
};
use cairn_server::{
    api::{
        deployment::{Deployment, DeploymentRequest, Install},
        install_log::LogLine,
        machine::{BootRequest, Machine},
        volume::Volume,
    },
    db::deployment::InstallState,
};
use reqwest::StatusCode;

use serde_json::json as object;

use crate::harness::{Caller, PATIENCE, Server, Target, code, hello, json, problem};

const MAC: &str = "52:54:00:12:34:01";

async fn deploy(
    server: &Server,
    image: &str,
    machine: &str,
    preapprove: bool,
) -> anyhow::Result<Deployment> {
    let request = DeploymentRequest {
        image: image.to_owned(),
        machines: vec![machine.to_owned()],
        disk: Some("serial:disk-1".to_owned()),
        preapprove,
        ..DeploymentRequest::default()
    };
    server.api().post_json("/api/v1/deployments", &request).await
}

async fn approve(server: &Server, name: &str) -> anyhow::Result<Machine> {
    server.api().post(&format!("/api/v1/machines/{name}/approve")).await
}

fn ready(reply: TicketReply) -> Ticket {
    match reply {
        TicketReply::Ready(ticket) => *ticket,
        other => panic!("{other:?}"),
    }
}

/// Whether the target is still waiting: its call is held, so another answer comes first.
async fn is_held(server: &Server, target: &Target) -> bool {
    let other = async {
        for _ in 0..5 {
            server.api().get::<Vec<Machine>>("/api/v1/machines").await.unwrap();
        }
    };
    tokio::select! {
        reply = target.ticket() => panic!("{reply:?}"),
        () = other => true,
    }
}

fn report(phase: InstallPhase, error: Option<&str>) -> InstallProgress {
    InstallProgress {
        phase,
        total: ByteCount(1000),
        from_peers: ByteCount(600),
        from_server: ByteCount(100),
        rebuilt: ByteCount(50),
        already: ByteCount(0),
        written: ByteCount(2000),
        milliseconds: 1000,
        percent: None,
        bottleneck: None,
        error: error.map(str::to_owned),
    }
}

async fn tell(target: &Target, phase: InstallPhase) -> ProgressReply {
    json(target.caller.post("/target/v1/progress", &report(phase, None)).await).await
}

#[tokio::test]
async fn a_waiting_machine_is_deployed_by_its_code() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let target = server.hello(MAC, None).await;
    assert_eq!(target.reply.code, code_of(&target.key.public_key_der));
    let machines: Vec<Machine> = server.api().get("/api/v1/machines").await.unwrap();
    assert_eq!(
        (machines[0].state.as_str(), &machines[0].codes),
        ("waiting", &vec![target.reply.code.clone()])
    );
    assert!(is_held(&server, &target).await);

    let (ticket, made) =
        tokio::join!(target.ticket(), deploy(&server, "os", &target.reply.code, false));
    let made = made.unwrap();
    assert_eq!(made.approved_codes, std::slice::from_ref(&target.reply.code));
    let ticket = ready(ticket);
    assert_eq!((ticket.image.as_str(), ticket.number), ("os", 1));
    assert_eq!(ticket.disk, DiskSelector::Serial("disk-1".to_owned()));
    assert_eq!(ticket.then, AfterInstall::Reboot);

    // The ticket opens its manifest, and only with the content key its secret part.
    let manifest = target.caller.get("/target/v1/manifest").await.bytes().await.unwrap();
    let public = Public::open(&ticket.signing_key, &manifest).unwrap();
    assert_eq!(public.version, ticket.version);
    public.open_secret(&cairn_core::seal::SealKey(ticket.content_key)).unwrap();
    let _maps: StripeMaps = json(target.caller.get("/target/v1/stripe-maps").await).await;

    assert!(!tell(&target, InstallPhase::Writing).await.cancel);
    let install: Install =
        server.api().get(&format!("/api/v1/installs/{}", ticket.install)).await.unwrap();
    assert_eq!(install.state, InstallState::Running);
    assert_eq!((install.from_peers, install.bytes_per_second), (600, 750));
    tell(&target, InstallPhase::Done).await;
    let machine: Machine = server.api().get(&format!("/api/v1/machines/{MAC}")).await.unwrap();
    assert_eq!(machine.installed.as_deref(), Some("os@1"));
    assert_eq!(machine.install, None);
    // An install that is over is not given again.
    assert!(matches!(target.ticket().await, TicketReply::Refused { .. }));
}

#[tokio::test]
async fn a_mac_selects_and_does_not_authorise() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let made = deploy(&server, "os", MAC, false).await.unwrap();
    assert!(made.approved_codes.is_empty());
    let target = server.hello(MAC, None).await;
    assert!(is_held(&server, &target).await);
    let documents = target.caller.get("/target/v1/manifest").await;
    assert_eq!(problem(documents).await, (403, "no_ticket".to_owned()));
    let (ticket, approved) = tokio::join!(target.ticket(), approve(&server, &target.reply.code));
    assert_eq!(ready(ticket).image, "os");
    approved.unwrap();
}

#[tokio::test]
async fn a_preapproved_machine_is_installed_at_once() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    deploy(&server, "os", MAC, true).await.unwrap();
    let target = server.hello(MAC, None).await;
    assert_eq!(ready(target.ticket().await).image, "os");
    let stranger = server.hello("52:54:00:12:34:99", None).await;
    assert!(is_held(&server, &stranger).await);
}

#[tokio::test]
async fn an_operator_gets_the_image_he_asked_for_when_he_is_approved_or_none() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    server.add_image("office", 2).await;
    let target = server.hello(MAC, Some("office")).await;
    approve(&server, &target.reply.code).await.unwrap();
    let ticket = ready(target.ticket().await);
    assert_eq!((ticket.image.as_str(), ticket.then), ("office", AfterInstall::Exit));

    let other = server.hello("52:54:00:12:34:02", Some("os")).await;
    deploy(&server, "office", &other.reply.code, false).await.unwrap();
    let TicketReply::Refused { reason } = other.ticket().await else { panic!("refused") };
    assert!(reason.contains("another image"), "{reason}");
    let manifest = other.caller.get("/target/v1/manifest").await;
    assert_eq!(problem(manifest).await, (403, "no_ticket".to_owned()));

    let third = server.hello("52:54:00:12:34:03", Some("none")).await;
    assert_eq!(code(approve(&server, &third.reply.code).await), "image_unknown");
}

#[tokio::test]
async fn a_target_gets_no_segment_of_another_image() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    server.add_image("office", 2).await;
    let mut own = Vec::new();
    let mut client = None;
    for (mac, image) in [("52:54:00:12:34:01", "os"), ("52:54:00:12:34:02", "office")] {
        let target = server.hello(mac, None).await;
        deploy(&server, image, &target.reply.code, false).await.unwrap();
        let ticket = ready(target.ticket().await);
        let manifest = target.caller.get("/target/v1/manifest").await.bytes().await.unwrap();
        own.push(Public::open(&ticket.signing_key, &manifest).unwrap().data[0]);
        let papers = Papers {
            certificate_pem: ticket.certificate_pem,
            key_pem: target.key.key_pem.clone(),
            ca_pem: ticket.ca_pem,
        };
        client
            .get_or_insert((Caller { client: server.client(Some(&papers)), bearer: None }, target));
    }
    let (caller, target) = client.unwrap();
    let mine = caller.get(&format!("/peer/v1/segment/{}", own[0].id)).await.bytes().await.unwrap();
    assert_eq!(SegmentId::of(&mine), own[0].id);
    let other = caller.get(&format!("/peer/v1/segment/{}", own[1].id)).await;
    assert_eq!(problem(other).await, (403, "not_your_segment".to_owned()));
    let turn = caller.get("/peer/v1/turn").await;
    assert_eq!(turn.status(), StatusCode::OK);
    let about = |segment| Complaint { segment, source: Source::Server, fault: Fault::Damaged };
    let slander = target.caller.post("/target/v1/complaint", &about(own[1].id)).await;
    assert_eq!(problem(slander).await, (403, "not_your_segment".to_owned()));
    let told = target.caller.post("/target/v1/complaint", &about(own[0].id)).await;
    assert_eq!(told.status(), StatusCode::NO_CONTENT);
    // Its certificate is worth nothing once its install is over.
    tell(&target, InstallPhase::Done).await;
    let late = caller.get(&format!("/peer/v1/segment/{}", own[0].id)).await;
    assert_eq!(problem(late).await, (403, "install_over".to_owned()));
}

#[tokio::test]
async fn a_second_run_of_the_installer_takes_over_once_it_is_approved() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let first = server.hello(MAC, None).await;
    deploy(&server, "os", &first.reply.code, false).await.unwrap();
    let ticket = ready(first.ticket().await);
    tell(&first, InstallPhase::Writing).await;
    // The machine lost power and comes up again, with a new key and so with a new code.
    let second = server.hello(MAC, None).await;
    assert_ne!(second.reply.code, first.reply.code);
    assert_eq!(second.reply.machine, first.reply.machine);
    assert!(is_held(&server, &second).await);
    approve(&server, &second.reply.code).await.unwrap();
    assert_eq!(ready(second.ticket().await).install, ticket.install);
    let late = first.caller.post("/target/v1/progress", &report(InstallPhase::Done, None)).await;
    assert_eq!(problem(late).await, (403, "run_ended".to_owned()));
}

#[tokio::test]
async fn an_install_is_cancelled_and_a_failure_is_told() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let target = server.hello(MAC, None).await;
    let made = deploy(&server, "os", &target.reply.code, false).await.unwrap();
    ready(target.ticket().await);
    tell(&target, InstallPhase::Writing).await;
    assert_eq!(code(deploy(&server, "os", MAC, false).await), "machine_busy");
    let busy = server.api().delete("/api/v1/images/os").await;
    assert_eq!(code(busy), "image_in_use");
    let path = format!("/api/v1/deployments/{}/cancel", made.id);
    let cancelled: Deployment = server.api().post(&path).await.unwrap();
    assert_eq!(cancelled.state, InstallState::Cancelled);
    assert!(tell(&target, InstallPhase::Writing).await.cancel);
    let manifest = target.caller.get("/target/v1/manifest").await;
    assert_eq!(problem(manifest).await, (403, "install_cancelled".to_owned()));

    let next = server.hello(MAC, None).await;
    let made = deploy(&server, "os", &next.reply.code, false).await.unwrap();
    ready(next.ticket().await);
    let said = report(InstallPhase::Failed, Some("the disk is too small: choose another"));
    let _reply: ProgressReply = json(next.caller.post("/target/v1/progress", &said).await).await;
    let path = format!("/api/v1/deployments/{}", made.id);
    let failed: Deployment = server.api().get(&path).await.unwrap();
    assert_eq!(failed.state, InstallState::Failed);
    assert_eq!(failed.installs[0].error.as_deref(), Some("the disk is too small: choose another"));
}

#[tokio::test]
async fn one_machine_is_left_out_and_the_others_go_on_and_say_what_holds_them_up() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let targets = [server.hello(MAC, None).await, server.hello("52:54:00:00:00:77", None).await];
    let codes = targets.each_ref().map(|target| target.reply.code.as_str());
    let wish = object!({ "image": "os", "machines": codes });
    let made: Deployment = server.api().post_json("/api/v1/deployments", &wish).await.unwrap();
    for target in &targets {
        ready(target.ticket().await);
        tell(target, InstallPhase::Writing).await;
    }
    let of = |deployment: &Deployment, target: &Target| {
        let id = target.reply.machine.to_string();
        deployment.installs.iter().find(|it| it.machine == id).unwrap().clone()
    };
    let out = of(&made, &targets[0]);
    let path = format!("/api/v1/installs/{}/cancel", out.id);
    let cancelled: Install = server.api().post(&path).await.unwrap();
    assert_eq!(cancelled.state, InstallState::Cancelled);
    assert_eq!(code(server.api().post::<Install>(&path).await), "install_over");
    assert!(tell(&targets[0], InstallPhase::Writing).await.cancel);
    let mut said = report(InstallPhase::Writing, None);
    said.bottleneck = Some(Bottleneck::Disk);
    let told: ProgressReply =
        json(targets[1].caller.post("/target/v1/progress", &said).await).await;
    assert!(!told.cancel);
    let path = format!("/api/v1/deployments/{}", made.id);
    // It is written down together with what others say.
    let begun = tokio::time::Instant::now();
    loop {
        let now: Deployment = server.api().get(&path).await.unwrap();
        if of(&now, &targets[1]).bottleneck.as_deref() == Some("disk") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tell(&targets[1], InstallPhase::Done).await;
    let now: Deployment = server.api().get(&path).await.unwrap();
    assert_eq!(of(&now, &targets[1]).state, InstallState::Done);
    assert_eq!(of(&now, &targets[1]).bottleneck, None);
    assert_eq!(of(&now, &targets[0]).state, InstallState::Cancelled);
}

#[tokio::test]
async fn machines_of_a_paused_deployment_that_did_not_begin_wait() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let targets = [server.hello(MAC, None).await, server.hello("52:54:00:00:00:77", None).await];
    let codes = targets.each_ref().map(|target| target.reply.code.as_str());
    let wish = object!({ "image": "os", "machines": codes });
    let made: Deployment = server.api().post_json("/api/v1/deployments", &wish).await.unwrap();
    ready(targets[0].ticket().await);
    tell(&targets[0], InstallPhase::Writing).await;
    let path = |verb: &str| format!("/api/v1/deployments/{}/{verb}", made.id);
    let paused: Deployment = server.api().post(&path("pause")).await.unwrap();
    assert!(paused.paused);
    // Who writes goes on.
    assert!(!tell(&targets[0], InstallPhase::Writing).await.cancel);
    let waits = paused.installs.iter().find(|it| it.state == InstallState::Scheduled).unwrap();
    assert_eq!(waits.waits_for.as_deref(), Some("its deployment is paused"));
    assert!(is_held(&server, &targets[1]).await);
    let resumed: Deployment = server.api().post(&path("resume")).await.unwrap();
    assert!(!resumed.paused);
    ready(targets[1].ticket().await);
    assert_eq!(
        code(server.api().post::<Deployment>("/api/v1/deployments/999/pause").await),
        "deployment_unknown"
    );
}

#[tokio::test]
async fn a_machine_at_work_hears_of_the_lower_of_the_limits_of_its_deployment_and_the_site() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let target = server.hello(MAC, None).await;
    let wish = object!({ "image": "os", "machines": [target.reply.code], "rate_limit": 1_000_000 });
    let made: Deployment = server.api().post_json("/api/v1/deployments", &wish).await.unwrap();
    assert_eq!(made.rate_limit, Some(1_000_000));
    ready(target.ticket().await);
    let told = async || {
        let limits = tell(&target, InstallPhase::Writing).await.limits;
        (limits.upload.map(Rate::bytes), limits.download.map(Rate::bytes))
    };
    assert_eq!(told().await, (None, Some(1_000_000)));
    let path = format!("/api/v1/deployments/{}/rate-limit", made.id);
    let limit = async |bytes: Option<u64>| -> anyhow::Result<Deployment> {
        server.api().put_json(&path, &object!({ "rate_limit": bytes })).await
    };
    let site = object!({ "upload": 300_000, "download": 500_000 });
    let set: serde_json::Value = server.api().put_json("/api/v1/limits", &site).await.unwrap();
    assert_eq!(set, site);
    assert_eq!(told().await, (Some(300_000), Some(500_000)));
    assert_eq!(limit(Some(200_000)).await.unwrap().rate_limit, Some(200_000));
    assert_eq!(told().await, (Some(300_000), Some(200_000)));
    assert_eq!(limit(None).await.unwrap().rate_limit, None);
    assert_eq!(told().await, (Some(300_000), Some(500_000)));
    assert_eq!(code(limit(Some(1)).await), "bad_rate");
    let slow = object!({ "image": "os", "machines": [MAC], "rate_limit": 5 });
    let refused = server.api().post_json::<_, Deployment>("/api/v1/deployments", &slow).await;
    assert_eq!(code(refused), "bad_rate");
}

#[tokio::test]
async fn what_happened_in_an_install_can_be_read_afterwards() {
    let server = Server::start().await;
    server.add_image("os", 1).await;
    let target = server.hello(MAC, None).await;
    let made = deploy(&server, "os", &target.reply.code, false).await.unwrap();
    ready(target.ticket().await);
    for phase in [InstallPhase::Planning, InstallPhase::Writing, InstallPhase::Writing] {
        tell(&target, phase).await;
    }
    let failed = report(InstallPhase::Failed, Some("the disk is broken"));
    let _told: ProgressReply = json(target.caller.post("/target/v1/progress", &failed).await).await;
    let path = format!("/api/v1/installs/{}/log", made.installs[0].id);
    let lines: Vec<LogLine> = server.api().get(&path).await.unwrap();
    let said: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    let begun = format!("begins, as {} at 127.0.0.1", target.reply.code);
    let wanted = [
        begun.as_str(),
        "looks at what is on the disk already",
        "fetches 1000 B and writes",
        "failed: the disk is broken",
    ];
    assert_eq!(said, wanted);
    // It stays with the install, over a restart.
    let server = Server::start_in(server.stop().await).await;
    assert_eq!(server.api().get::<Vec<LogLine>>(&path).await.unwrap().len(), 4);
    let unknown = format!("/api/v1/installs/{}/log", "ab".repeat(16));
    assert_eq!(code(server.api().get::<Vec<LogLine>>(&unknown).await), "install_unknown");
}

#[tokio::test]
async fn a_refused_machine_is_told_so_and_several_waiting_ones_need_a_code() {
    let server = Server::start().await;
    let (first, second) = (server.hello(MAC, None).await, server.hello(MAC, None).await);
    assert_eq!(code(approve(&server, MAC).await), "code_needed");
    let refuse = format!("/api/v1/machines/{}/refuse", first.reply.code);
    let (reply, refused) = tokio::join!(first.ticket(), server.api().post::<Machine>(&refuse));
    refused.unwrap();
    assert!(matches!(reply, TicketReply::Refused { .. }), "{reply:?}");
    // Now only one waits, so the MAC will do.
    approve(&server, MAC).await.unwrap();
    assert!(is_held(&server, &second).await);
}

#[tokio::test]
async fn a_machine_has_a_name_and_can_be_forgotten() {
    let server = Server::start().await;
    let target = server.hello(MAC, None).await;
    let path = format!("/api/v1/machines/{MAC}/name");
    let name = |name: &str| serde_json::json!({ "name": name });
    let named: Machine = server.api().put_json(&path, &name("room-12")).await.unwrap();
    assert_eq!(named.name.as_deref(), Some("room-12"));
    let bad = server.api().put_json::<_, Machine>(&path, &name("AAAA-BBBB")).await;
    assert_eq!(code(bad), "bad_name");
    server.hello("52:54:00:12:34:02", None).await;
    let (path, same) = ("/api/v1/machines/52:54:00:12:34:02/name", name("room-12"));
    let taken = server.api().put_json::<_, Machine>(path, &same).await;
    assert_eq!(code(taken), "name_taken");
    server.api().delete("/api/v1/machines/room-12").await.unwrap();
    let gone = target.caller.get("/target/v1/ticket").await;
    assert_eq!(problem(gone).await, (401, "session_unknown".to_owned()));
}

#[tokio::test]
async fn a_malformed_hello_is_refused() {
    let server = Server::start().await;
    let stranger = Caller { client: server.client(None), bearer: None };
    let junk = stranger.post("/target/v1/hello", &hello("junk", MAC, None)).await;
    assert_eq!(problem(junk).await, (400, "bad_csr".to_owned()));
    let mut tampered = new_key_and_csr().unwrap().csr_pem;
    let other = new_key_and_csr().unwrap().csr_pem;
    let half = tampered.len() / 2;
    tampered.replace_range(half.., &other[half.min(other.len())..]);
    let tampered = stranger.post("/target/v1/hello", &hello(&tampered, MAC, None)).await;
    assert_eq!(problem(tampered).await, (400, "bad_csr".to_owned()));
    let call = stranger.client.get(url(&Member::Server, "/target/v1/ticket")).bearer_auth("nobody");
    assert_eq!(problem(call.send().await.unwrap()).await, (401, "session_unknown".to_owned()));
    let api: Token =
        crate::harness::read(server.folder.path(), "secrets/cli-token").parse().unwrap();
    let call = stranger.client.get(url(&Member::Server, "/target/v1/ticket")).bearer_auth(api);
    assert_eq!(problem(call.send().await.unwrap()).await, (401, "session_unknown".to_owned()));
    let csr = new_key_and_csr().unwrap().csr_pem;
    for name in ["o\0s", "", "os@", "os@-1", "../os", &"x".repeat(81)] {
        let asks = stranger.post("/target/v1/hello", &hello(&csr, MAC, Some(name))).await;
        assert_eq!(problem(asks).await, (400, "bad_image".to_owned()), "{name:?}");
    }
    // Last: the server closes the connection instead of reading on.
    let large = stranger.post("/target/v1/hello", &hello(&"x".repeat(1 << 20), MAC, None)).await;
    assert_eq!(problem(large).await, (413, "body_too_large".to_owned()));
}

#[tokio::test]
async fn a_machine_of_a_volume_is_approved_for_it_and_keeps_it_from_others() {
    let server = Server::start().await;
    let api = server.api();
    let make = serde_json::json!({ "name": "desk1", "size": 1 << 20 });
    let _made: Volume = api.post_json("/api/v1/volumes", &make).await.unwrap();
    let path = |machine: &str| format!("/api/v1/machines/{machine}/volume");
    let root = |volume: &str, unattended| BootRequest { volume: volume.to_owned(), unattended };
    let give = async |machine: &str, root: BootRequest| {
        api.put_json::<_, Machine>(&path(machine), &root).await
    };
    // It was never seen.
    let machine = give(MAC, root("desk1", false)).await.unwrap();
    assert_eq!((machine.state.as_str(), machine.volume.as_deref()), ("diskless", Some("desk1")));
    let other = "52:54:00:12:34:02";
    assert_eq!(code(give(other, root("desk1", true)).await), "volume_taken");
    assert_eq!(code(give(other, root("desk2", true)).await), "volume_unknown");
    assert_eq!(code(give("nobody", root("desk1", true)).await), "machine_unknown");
    assert_eq!(code(api.delete("/api/v1/volumes/desk1").await), "volume_is_root");

    let target = server.hello(MAC, None).await;
    assert!(is_held(&server, &target).await, "it was not approved");
    approve(&server, &target.reply.code).await.unwrap();
    // This server serves volumes to its own machine only.
    let TicketReply::Refused { reason } = target.ticket().await else { panic!("no refusal") };
    assert!(reason.contains("--nbd"), "{reason}");
    // An operator who installs on a running system is not given a volume.
    let installer = server.hello(MAC, Some("os")).await;
    assert!(is_held(&server, &installer).await);

    give(MAC, root("desk1", true)).await.unwrap();
    let again = server.hello(MAC, None).await;
    assert!(matches!(again.ticket().await, TicketReply::Refused { .. }), "nobody has to approve");
    let machine: Machine = api.delete_for(&path(MAC)).await.unwrap();
    assert_eq!((machine.volume, machine.unattended), (None, false));
    api.delete("/api/v1/volumes/desk1").await.unwrap();
}
