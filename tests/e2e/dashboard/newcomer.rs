//! The README's first steps as a newcomer takes them: with the mouse, from an empty machine to one that runs the image.

use std::time::Duration;

use cairn_tests::{
    cairn::{Agent, PORT},
    image::{LOGIN_PROMPT, Variant},
    portal::Portal,
    qemu::{Hardware, OnReboot, blank_disk},
    site::{CODE_LINE, NetworkBoot, Site},
};

use super::browser::{Browser, WIDE};

const BOOT: Duration = Duration::from_secs(240);
const UPLOAD: Duration = Duration::from_secs(180);
const INSTALL: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_a_blank_machine_to_run_an_image_with_the_mouse_alone() {
    let mut site = Site::start("newcomer", NetworkBoot::Proxy).unwrap();
    let portal = Portal::open(site.server.host(), PORT).unwrap();
    let page = |name: &str| format!("https://{}/{name}", portal.address());
    let dir = tempfile::tempdir().unwrap();
    let browser = Browser::start(dir.path(), WIDE).await;
    browser.go(&page("")).await;
    browser.type_into("#password", &site.server.first().password).await;
    browser.click("button.main").await;
    browser.sees(".verdict", "There are no images yet.").await;

    for number in 1..=2_u8 {
        join(&mut site, &browser, &page("agents"), number).await;
    }

    let image = Variant::Tiny.image().unwrap();
    browser.go(&page("images")).await;
    browser.choose("#file", &image.path).await;
    browser.fill("#name", "tiny").await;
    browser.click("#send").await;
    browser.sees_within(UPLOAD, "#register-done", "Registered tiny, version 1.").await;
    site.wait_scattered("tiny").unwrap();

    let disk = site.lab.dir().join("blank.raw");
    blank_disk(&disk, image.size().unwrap()).unwrap();
    let mut hardware = Hardware::new("blank", 1, &disk);
    hardware.tap = Some(site.lab.tap().unwrap());
    browser.go(&page("boot")).await;
    let mut machine = hardware.start(&site.lab, OnReboot::Reboot).unwrap();
    let way = format!("[id='boot-{}']", hardware.mac());
    browser.sees_within(BOOT, &way, "on its way").await;
    let shown = machine.wait_for(&[CODE_LINE], &[], BOOT).unwrap();
    let code = &shown[0].groups[1];
    browser.sees(&way, "arrived").await;
    browser.shoot("newcomer-boot").await;

    // What its agent read of a real kernel.
    let inventory = site.server.run(&["machine", "show", code]).unwrap();
    for wanted in ["virtio_net", "iB\ncard", &hardware.mac()] {
        assert!(inventory.contains(wanted), "{wanted}: {inventory}");
    }

    browser.go(&page("machines")).await;
    browser.sees(&format!("#waiting-{code} .code"), code).await;
    browser.click(&format!("#install-{code}")).await;
    browser.sees_within(INSTALL, "#deployments-live .over", "Done").await;
    browser.shoot("newcomer-installed").await;
    machine.wait_for(&[LOGIN_PROMPT], &[], BOOT).unwrap();
    browser.go(&page("machines")).await;
    browser.sees("#machines-live", "tiny, version 1").await;
    browser.quit().await;
}

/// Has a client join with the command that the page shows, and approves it there.
async fn join(site: &mut Site, browser: &Browser, agents: &str, number: u8) {
    browser.go(agents).await;
    browser.click(".head button.main").await;
    browser.sees("#join-command", "cairn-agent join https://").await;
    let command = browser.text("#join-command").await;
    let token = command.split_whitespace().nth(3).unwrap().to_owned();
    let host = site.lab.host(&format!("client{number}"), 10 + number).unwrap();
    let agent = Agent::join(&site.lab, &host, &site.server, &token, "512MiB").unwrap();
    site.agents.push(agent);
    let known = site.server.agents().unwrap();
    let new = known.iter().find(|agent| agent.state == "pending").unwrap();
    browser.click(&format!("#approve-{}", new.id)).await;
    browser.sees_gone(&format!("#approve-{}", new.id)).await;
}
