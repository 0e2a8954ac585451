//! The dashboard in a real browser: what an administrator clicks, and what moves on the page by itself.
//!
//! The server is the real program on loopback, the browser is Debian's Chromium; a blank machine and an agent are played
//! here, with the messages that real ones send. Screenshots are left in `target/screenshots/`.

use std::{fs, path::Path, time::Duration};

use cairn_array::{
    pace::Rate,
    wire::{InstallPhase, InstallProgress, TicketReply},
};
use cairn_core::{id::sha256, units::ByteCount};
use cairn_tests::{
    cairn::binary,
    image::{Synthetic, synthetic_ext4},
    process::{Process, Program},
};

use browser::{Browser, PHONE, Size, WIDE};
use members::{Site, Target};

mod browser;
mod members;
mod newcomer;

const START: Duration = Duration::from_secs(30);
const UPLOAD: Duration = Duration::from_secs(180);
/// Mostly free space, so that it takes long enough to be watched and not long to be stored.
const IMAGE: Synthetic = Synthetic { size_mib: 1024, files_mib: 16, seed: 5 };

struct Server {
    url: String,
    password: String,
    join: String,
    /// Where images can be fetched from.
    images: String,
    _processes: [Process; 2],
}

impl Server {
    /// With a host of images: what is in the folder `elsewhere`.
    fn start(dir: &Path) -> Self {
        let folder = dir.join("elsewhere");
        fs::create_dir_all(&folder).unwrap();
        let elsewhere = Program::new("elsewhere", "python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .args([&folder])
            .start()
            .unwrap();
        let port = elsewhere.wait_for_line(r"port (\d+)", START).unwrap().groups[1].clone();
        let host = format!("127.0.0.1:{port}");
        let process = Program::new("cairn-server", binary("cairn-server").unwrap())
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--boot-listen",
                "127.0.0.1:0",
                "--nbd",
                "127.0.0.1:0",
                "--image-host",
                &host,
                "--data-dir",
            ])
            .args([dir.join("data")])
            .log(dir.join("server.log"))
            .start()
            .unwrap();
        let find = |pattern: &str| process.wait_for_line(pattern, START).unwrap().groups[1].clone();
        Self {
            join: find(r"cairn-agent join \S+ (\S+)"),
            password: find(r"with password (\S+)"),
            url: find(r"ready: (https://\S+)"),
            images: format!("http://{host}"),
            _processes: [elsewhere, process],
        }
    }

    async fn sign_in(&self, browser: &Browser) {
        browser.go(&self.url).await;
        browser.type_into("#password", &self.password).await;
        browser.click("button.main").await;
        browser.sees("nav", "Overview").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_registered_and_a_deployment_approved_by_clicking() {
    do_everything(WIDE).await;
}

/// The same on a small screen.
mod long {
    use super::{PHONE, do_everything};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_can_be_done_on_a_phone() {
        do_everything(PHONE).await;
    }
}

/// The main actions of all pages, one after the other.
async fn do_everything(screen: Size) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let site = Site::reach(&server.url, &server.join);
    let browser = Browser::start(dir.path(), screen).await;
    wrong_passwords_are_told(&server, &browser).await;
    server.sign_in(&browser).await;
    browser.sees(".verdict", "There are no images yet.").await;
    browser.sees("#steps .next", "Register an image").await;
    browser.shoot("overview-first-steps").await;

    approve_an_agent(&server, &site, &browser).await;
    register(&server, &browser, dir.path()).await;
    register_what_is_there(&server, &browser, dir.path()).await;
    follow_the_steps(&server, &browser).await;
    follow_a_machine_that_boots(&server, &site, &browser).await;
    let target = install(&server, &site, &browser).await;
    watch(&server, &target, &browser).await;
    all_steps_are_done(&server, &browser).await;
    group(&server, &target, &browser).await;
    ask_what_is_left(&server, &browser).await;
    let other = type_while_the_page_moves(&server, &site, &target, &browser).await;
    deploy_to_many(&server, &site, other, &browser).await;
    fill_the_array(&server, &browser).await;
    look_at_a_machine(&server, &target, &browser).await;
    let ann = add_a_user(&server, &browser).await;
    look_at_all_pages(&server, &browser).await;
    empty_the_array(&server, &browser).await;
    remove(&server, &browser).await;

    browser.click("form.out button").await;
    browser.sees("body", "The server printed the password of admin").await;
    what_a_viewer_may(&server, &browser, &ann).await;
    browser.quit().await;
}

async fn wrong_passwords_are_told(server: &Server, browser: &Browser) {
    browser.go(&format!("{}/images", server.url)).await;
    browser.type_into("#password", "not-the-password").await;
    browser.click("button.main").await;
    browser.sees("[role=alert]", "name or password is wrong").await;
}

/// An agent joins while the page is open; its row shows up by itself and is approved.
async fn approve_an_agent(server: &Server, site: &Site, browser: &Browser) {
    browser.go(&format!("{}/agents", server.url)).await;
    browser.sees("#agents-live", "No agents yet").await;
    browser.mark().await;
    let name = "pc-01<script>alert(1)</script>";
    let id = site.join(&server.join, name).await;
    browser.sees(&format!("#agent-{id}"), name).await;
    browser.sees("nav .badge", "1").await;
    assert!(browser.is_marked().await, "the page was loaded again");
    browser.click(&format!("#approve-{id}")).await;
    browser.sees(&format!("#agent-{id}"), "away").await;
    browser.click(".head button.main").await;
    browser.sees("#join-command", "cairn-agent join https://").await;
    browser.shoot("agents").await;
}

/// A file is chosen, its way to the server is shown, and its row is there in the end.
async fn register(server: &Server, browser: &Browser, dir: &Path) {
    let file = dir.join("Class Room.img");
    synthetic_ext4(&file, IMAGE).unwrap();
    let text = dir.join("notes.img");
    fs::write(&text, "not a disk".repeat(5 << 20)).unwrap();
    browser.go(&format!("{}/images", server.url)).await;

    browser.choose("#file", &text).await;
    browser.click("#send").await;
    browser.sees("#register-problem", "image").await;
    browser.sees("#images-live", "No images yet").await;

    browser.drop_file("#drop", "Office 2026.qcow2").await;
    assert_eq!(browser.value("#name").await, "office-2026");
    assert_eq!(browser.value("#format").await, "qcow2");

    browser.choose("#file", &file).await;
    assert_eq!(browser.value("#name").await, "class-room");
    assert_eq!(browser.value("#format").await, "raw");
    // Begun, taken back, and begun again: nothing of the first is left.
    browser.click("#send").await;
    browser.sees("#images-live article.live", "Stored, compressed").await;
    browser.click("#abort").await;
    browser.sees("#register-problem", "Cancelled").await;
    browser.sees_gone("#images-live article.live").await;
    browser.click("#send").await;
    browser.sees("#sent-rate", "MB/s").await;
    browser.sees("#sent-left", "left").await;
    browser.sees("#images-live article.live", "Stored, compressed").await;
    browser.shoot("images-coming-in").await;
    let done = "Registered class-room, version 1.";
    browser.sees_within(UPLOAD, "#register-done", done).await;
    browser.sees("#image-class-room-1", "1 GiB").await;
    browser.sees("#image-class-room-1", "Server").await;
    browser.click("#image-class-room-1 a").await;
    browser.sees("#signature", "This site signed its manifest").await;
    browser.go(&format!("{}/images", server.url)).await;
    browser.sees_gone("#images-live article.live").await;
    browser.shoot("images").await;
}

/// Files in the server's folder are offered: one is no disk, the other becomes an image, which is removed again.
async fn register_what_is_there(server: &Server, browser: &Browser, dir: &Path) {
    let folder = dir.join("data/images");
    fs::create_dir(&folder).unwrap();
    fs::rename(dir.join("notes.img"), folder.join("Notes.img")).unwrap();
    let wanted = Synthetic { size_mib: 64, files_mib: 8, seed: 7 };
    synthetic_ext4(&folder.join("Spare Part.raw"), wanted).unwrap();
    browser.go(&format!("{}/images", server.url)).await;
    assert_eq!(browser.value("#offered-name-2").await, "spare-part");
    assert_eq!(browser.value("#offered-format-2").await, "raw");
    browser.shoot("images-offered").await;
    browser.click("#offered-1").await;
    browser.sees("[role=alert]", "image").await;
    browser.click("#offered-2").await;
    browser.sees_within(UPLOAD, "#image-spare-part-1", "64 MiB").await;
    browser.click("#remove-spare-part-1").await;
    browser.click("#sure-spare-part-1 button.danger").await;
    browser.sees_gone("#image-spare-part-1").await;
    fetch(server, browser, dir, &folder.join("Spare Part.raw")).await;
    fs::remove_dir_all(folder).unwrap();
}

/// The same from an address, which is wrong at first.
async fn fetch(server: &Server, browser: &Browser, dir: &Path, image: &Path) {
    fs::copy(image, dir.join("elsewhere/part.raw")).unwrap();
    let hash: String =
        sha256(&fs::read(image).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    for (url, hash, said) in [
        ("http://192.0.2.7/part.raw".to_owned(), hash.clone(), "192.0.2.7"),
        (format!("{}/part.raw", server.images), "0".repeat(64), "SHA-256"),
    ] {
        browser.go(&format!("{}/images", server.url)).await;
        browser.type_into("#address-url", &url).await;
        browser.type_into("#address-sha256", &hash).await;
        browser.type_into("#address-name", "part").await;
        browser.click("#address-register").await;
        browser.sees_within(UPLOAD, "[role=alert]", said).await;
    }
    browser.type_into("#address-url", &format!("{}/part.raw", server.images)).await;
    browser.type_into("#address-sha256", &hash).await;
    browser.type_into("#address-name", "part").await;
    browser.click("#address-register").await;
    browser.sees_within(UPLOAD, "#image-part-1", "64 MiB").await;
    browser.click("#remove-part-1").await;
    browser.click("#sure-part-1 button.danger").await;
    browser.sees_gone("#image-part-1").await;
}

/// There is an image, and a client: what is left is a machine, for which this server has no network to boot from.
async fn follow_the_steps(server: &Server, browser: &Browser) {
    browser.go(&server.url).await;
    browser.sees("#steps .good", "Register an image").await;
    browser.sees("#steps .good + .good", "Let clients lend space").await;
    browser.sees("#steps .next", "start it with --boot-interface").await;
    browser.click("#steps .next a").await;
    browser.sees("h1", "Boot and network").await;
}

async fn all_steps_are_done(server: &Server, browser: &Browser) {
    browser.go(&server.url).await;
    browser.sees("#overview-live", "1 install is done, none failed.").await;
    browser.sees_gone("#steps").await;
}

/// A blank machine boots while the page is open; its code shows up by itself, and Install is clicked.
async fn install(server: &Server, site: &Site, browser: &Browser) -> Target {
    browser.go(&format!("{}/machines", server.url)).await;
    browser.sees("#machines-live", "No machine is waiting").await;
    browser.mark().await;
    let target = site.hello("52:54:00:00:00:01").await;
    let card = format!("#waiting-{}", target.code);
    browser.sees(&format!("{card} .code"), &target.code).await;
    browser.sees(&card, "QEMU").await;
    browser.sees(&card, "/dev/vda").await;
    browser.sees(&card, "removable").await;
    assert!(browser.is_marked().await, "the page was loaded again");
    assert_eq!(browser.value(&format!("{card} select[name=disk]")).await, "only");
    assert_eq!(browser.value(&format!("{card} select[name=version]")).await, "class-room@1");
    browser.shoot("machines").await;
    // The machine asks all the while; the click answers it.
    let click = async {
        browser.click(&format!("#install-{}", target.code)).await;
        browser.sees("#deployments-live", "52:54:00:00:00:01").await;
    };
    let (ticket, ()) = tokio::join!(target.ticket(), click);
    let TicketReply::Ready(ticket) = ticket else { panic!("no ticket: {ticket:?}") };
    assert_eq!((ticket.image.as_str(), ticket.number), ("class-room", 1));
    target
}

/// The target reports, and the page follows.
async fn watch(server: &Server, target: &Target, browser: &Browser) {
    const MIB: u64 = 1 << 20;
    browser.mark().await;
    let mut progress = InstallProgress {
        phase: InstallPhase::Writing,
        total: ByteCount(100 * MIB),
        from_peers: ByteCount(40 * MIB),
        from_server: ByteCount(10 * MIB),
        rebuilt: ByteCount(5 * MIB),
        already: ByteCount(3 * MIB),
        written: ByteCount(50 * MIB),
        milliseconds: 1000,
        percent: None,
        bottleneck: None,
        error: None,
    };
    assert!(!target.report(&progress).await.cancel);
    let row = "#deployments-live .open article";
    for text in
        ["Writing", "55 %", "57.6 MB/s", "left", "40 MiB from peers", "10 MiB from the server"]
    {
        browser.sees(row, text).await;
    }
    browser.sees(row, "5 MiB rebuilt from parity").await;
    browser.sees(row, "3 MiB on the disk already").await;
    browser.shoot("deployments-writing").await;
    progress.phase = InstallPhase::Verifying;
    progress.from_peers = ByteCount(85 * MIB);
    target.report(&progress).await;
    browser.sees(row, "Verifying").await;
    progress.phase = InstallPhase::Done;
    target.report(&progress).await;
    browser.sees("#deployments-live .over article", "Done").await;
    assert!(browser.is_marked().await, "the page was loaded again");
    browser.go(&format!("{}/machines", server.url)).await;
    browser.sees("#machines-live table", "class-room, version 1").await;
    browser.click(&format!("#name-{}", target.machine)).await;
    browser.type_into(&format!("#new-name-{}", target.machine), "pc-14").await;
    browser.click(&format!("#naming-{} button.main", target.machine)).await;
    browser.sees(&format!("#machine-{} th", target.machine), "pc-14").await;
}

/// A group is made, the machines that were found are put into it, and it shows that they run what they are to run.
async fn group(server: &Server, target: &Target, browser: &Browser) {
    let machines = format!("{}/machines", server.url);
    browser.go(&machines).await;
    browser.type_into("#group-name", "lab b").await;
    browser.click("#group-create").await;
    browser.sees("[role=alert]", "a group's name").await;
    browser.type_into("#group-name", "lab-b").await;
    browser.type_into("#group-image", "class-room").await;
    browser.click("#group-create").await;
    browser.sees("#group-lab-b", "class-room, version 1").await;
    browser.type_into("#find", "pc-14 class-room").await;
    browser.click("#show-found").await;
    browser.sees("#known-title", "Found").await;
    browser.click("#many").await;
    browser.shoot("machines-many").await;
    browser.click("#many-add").await;
    let row = format!("#machine-{}", target.machine);
    browser.sees(&row, "lab-b").await;
    browser.sees("#group-lab-b", "1 machine").await;
    browser.sees("#group-lab-b", "none").await;
    // Nothing is like that.
    browser.click("#drifted").await;
    browser.click("#show-found").await;
    browser.sees("#machines-live", "No machine is like that").await;
    // Out again by its group, which goes then.
    browser.go(&format!("{machines}?group=lab-b")).await;
    browser.click("#many").await;
    browser.click("#many-take").await;
    browser.sees("#group-lab-b", "0 machines").await;
    browser.click("#change-lab-b").await;
    browser.click("#remove-lab-b").await;
    browser.sees_gone("#group-lab-b").await;
}

/// What is being typed stays, and where it is typed stays open, while another machine shows up.
async fn type_while_the_page_moves(
    server: &Server,
    site: &Site,
    target: &Target,
    browser: &Browser,
) -> Target {
    browser.go(&format!("{}/machines", server.url)).await;
    browser.click(&format!("#name-{}", target.machine)).await;
    let field = format!("#new-name-{}", target.machine);
    browser.fill(&field, "pc-15").await;
    let other = site.hello("52:54:00:00:00:03").await;
    browser.sees(&format!("#waiting-{}", other.code), &other.code).await;
    assert_eq!(browser.value(&field).await, "pc-15");
    other
}

/// All known machines are installed at once: the map shows how far each is, and what failed is tried again.
async fn deploy_to_many(server: &Server, site: &Site, other: Target, browser: &Browser) {
    let targets = [other, site.hello("52:54:00:00:00:04").await];
    browser.go(&format!("{}/machines", server.url)).await;
    browser.click("#many").await;
    let click = async {
        browser.click("#many-install").await;
        browser.sees("#deployments-live .map", "0 of 4 done, 2 not there yet").await;
    };
    let (one, other, ()) = tokio::join!(targets[0].ticket(), targets[1].ticket(), click);
    assert!(matches!(one, TicketReply::Ready(_)) && matches!(other, TicketReply::Ready(_)));
    let mut progress = InstallProgress {
        phase: InstallPhase::Writing,
        total: ByteCount(100),
        from_peers: ByteCount(45),
        from_server: ByteCount(5),
        rebuilt: ByteCount(0),
        already: ByteCount(0),
        written: ByteCount(50),
        milliseconds: 1000,
        percent: None,
        bottleneck: None,
        error: None,
    };
    browser.click("button[id^=pause-]").await;
    browser.sees("#deployments-live .map", "Paused").await;
    browser.click("button[id^=resume-]").await;
    browser.sees_gone("button[id^=resume-]").await;
    browser.click(".map button[id^=slow-]").await;
    browser.type_into(".sure:popover-open input", "10 Mbit").await;
    browser.click(".sure:popover-open button.main").await;
    browser.sees(".map button[id^=slow-]", "At most 10 Mbit/s each").await;
    let told = targets[0].report(&progress).await.limits.download.map(Rate::bytes);
    assert_eq!(told, Some(1_250_000));
    browser.sees("#deployments-live .map", "Writing 50 %").await;
    browser.sees("#deployments-live .map", "90 % from peers").await;
    progress.phase = InstallPhase::Failed;
    progress.error = Some("the disk is broken: replace it".to_owned());
    targets[1].report(&progress).await;
    browser.sees("#deployments-live .map", "0 of 4 done, 2 not there yet, 1 failed").await;
    browser.shoot("deployments-map").await;
    browser.click("form[action$='/retry'] button").await;
    browser.sees("#deployments-live .open", "52:54:00:00:00:04").await;
    // One that did not come is left out.
    browser.click("article.install:has(h3):nth-last-child(1) button[id^=cancel-]").await;
    browser.click(".sure:popover-open button[id^=skip-]").await;
    browser.sees("#deployments-live .over", "Cancelled").await;
    // Both deployments, so that the image can go in the end.
    for _ in 0..2 {
        browser.click("article.install button[id^=cancel-]").await;
        browser.click(".sure:popover-open button.danger").await;
        browser.sees("#deployments-live .over", "Cancelled").await;
    }
    browser.sees("#deployments-live", "Nothing is being installed").await;
}

/// The only client holds nothing, and it is told what that means.
async fn ask_what_is_left(server: &Server, browser: &Browser) {
    browser.go(&format!("{}/agents", server.url)).await;
    browser.click("#what-if input[name=gone]").await;
    browser.click("#ask-left").await;
    browser.sees("#left", "Without the server and pc-01").await;
    browser.sees("#left", "1 of these could not be read from the 0 clients that are left").await;
    browser.sees("#what-if", "image class-room: 4 of 4 stripes are lost").await;
    browser.shoot("agents-what-if").await;
}

/// Nothing is removed before somebody said that he means it.
async fn remove(server: &Server, browser: &Browser) {
    browser.go(&format!("{}/images", server.url)).await;
    browser.click("#remove-class-room-1").await;
    browser.shoot("images-remove").await;
    browser.click("#sure-class-room-1 button.plain").await;
    browser.sees("#image-class-room-1", "1 GiB").await;
    browser.click("#remove-class-room-1").await;
    browser.click("#sure-class-room-1 button.danger").await;
    browser.sees("#images-live", "No images yet").await;
}

/// An empty volume and a clone; what cannot be is told, and what the store has is read through.
async fn fill_the_array(server: &Server, browser: &Browser) {
    browser.go(&format!("{}/array", server.url)).await;
    browser.sees("#array-live", "No volumes yet").await;
    browser.sees("#array-live", "/data/store").await;
    // As it was when the server started, without images.
    browser.sees("#array-live", "0 segments read, all good").await;
    browser.type_into("#volume-name", "scratch").await;
    browser.click("#volume-create").await;
    browser.sees("[role=alert]", "size").await;
    browser.type_into("#volume-name", "scratch").await;
    browser.type_into("#volume-size", "64MiB").await;
    browser.click("#volume-create").await;
    browser.sees("#volume-scratch", "64 MiB").await;
    browser.sees("#address-scratch", "nbd://127.0.0.1:").await;
    browser.type_into("#volume-name", "desk7").await;
    browser.click("#volume-image option[value='class-room@1']").await;
    browser.click("#volume-create").await;
    browser.sees("#volume-desk7", "class-room@1").await;
    browser.sees("#volume-desk7", "well").await;
    browser.type_into("#snapshot-scratch", "monday").await;
    browser.click("#take-scratch").await;
    browser.sees("#volume-scratch", "monday").await;
    browser.click("#scrub").await;
    browser.sees("#array-live", "just now").await;
    browser.sees("#array-live", "all good").await;
}

/// Somebody who may look; her password.
async fn add_a_user(server: &Server, browser: &Browser) -> String {
    browser.go(&format!("{}/settings", server.url)).await;
    browser.sees("main", "user admin").await;
    browser.type_into("#user-name", "admin").await;
    browser.click("#user-add").await;
    browser.sees("[role=alert]", "there is a user of this name").await;
    browser.type_into("#user-name", "ann").await;
    browser.click("#user-add").await;
    browser.sees("#made-title", "The password of ann").await;
    let password = browser.text("#made-secret").await;
    browser.type_into("#token-note", "monitoring").await;
    browser.click("#token-add").await;
    browser.sees("#made-title", "A token for monitoring").await;
    // Nobody listens there.
    browser.type_into("#webhook-url", "http://127.0.0.1:1/hook").await;
    browser.click("#webhook-add").await;
    browser.sees("#made-title", "The secret of http://127.0.0.1:1/hook").await;
    browser.click("[action$='/ping'] button").await;
    browser.sees("[role=alert]", "the webhook was not told").await;
    browser.go(&format!("{}/settings", server.url)).await;
    browser.sees("#user-ann", "viewer").await;
    browser.sees("main", "a program, as viewer").await;
    browser.sees_gone("#made-secret").await;
    password
}

/// She looks, and is shown nothing that she may not do.
async fn what_a_viewer_may(server: &Server, browser: &Browser, password: &str) {
    browser.fill("#name", "ann").await;
    browser.type_into("#password", password).await;
    browser.click("button.main").await;
    browser.sees("nav", "Overview").await;
    browser.go(&format!("{}/settings", server.url)).await;
    browser.sees("main", "You are ann, viewer.").await;
    browser.sees_gone("#user-name").await;
    browser.type_into("#own-current", "not it at all").await;
    browser.type_into("#own-new", "a better password").await;
    browser.click("#own-change").await;
    browser.sees("[role=alert]", "name or password is wrong").await;
    browser.type_into("#own-current", password).await;
    browser.type_into("#own-new", "a better password").await;
    browser.click("#own-change").await;
    browser.sees("[role=status]", "Your password is changed.").await;
    assert_eq!(browser.levers().await, ["Change it"]);
    for page in ["", "images", "agents", "machines", "deployments", "boot", "array"] {
        browser.go(&format!("{}/{page}", server.url)).await;
        browser.sees("nav", "Overview").await;
        assert_eq!(browser.levers().await, [""; 0], "on {page}");
    }
}

/// What has a snapshot stays until that is gone.
async fn empty_the_array(server: &Server, browser: &Browser) {
    browser.go(&format!("{}/array", server.url)).await;
    let delete = async |volume: &str| {
        browser.click(&format!("#delete-{volume}")).await;
        browser.click(&format!("#sure-{volume} button.danger")).await;
    };
    delete("scratch").await;
    browser.sees("[role=alert]", "scratch has snapshots: monday").await;
    browser.click("#forget-scratch-monday").await;
    browser.sees_gone("#forget-scratch-monday").await;
    delete("scratch").await;
    browser.sees_gone("#volume-scratch").await;
    delete("desk7").await;
    browser.sees("#array-live", "No volumes yet").await;
}

/// A machine's loader asks; why it does not go on is shown, and that it did, both by themselves.
async fn follow_a_machine_that_boots(server: &Server, site: &Site, browser: &Browser) {
    let mac = "52:54:00:00:00:09";
    browser.go(&format!("{}/boot", server.url)).await;
    browser.sees("#boot-live", "None since the server started").await;
    browser.mark().await;
    let files = browser.text("#boot-files").await;
    let asked = format!("{files}/menu.ipxe?mac={mac}&platform=efi");
    let asked = tokio::process::Command::new("curl").args(["-sSf", &asked]).output().await;
    assert!(asked.unwrap().status.success());
    let machine = format!("[id='boot-{mac}']");
    browser.sees(&machine, "There is nothing to boot yet.").await;
    browser.sees(&format!("{machine} .last"), "Told what to boot").await;
    browser.sees("nav .badge", "1").await;
    browser.shoot("boot-stopped").await;
    let target = site.hello(mac).await;
    browser.sees(&machine, "arrived").await;
    browser.sees(&format!("{machine} .done:last-child"), "Agent said hello").await;
    assert!(browser.is_marked().await, "the page was loaded again");
    browser.go(&format!("{}/machines", server.url)).await;
    browser.click(&format!("#refuse-{}", target.code)).await;
    browser.sees("#machines-live", "No machine is waiting").await;
}

/// What a machine is made of, and what was installed on it.
async fn look_at_a_machine(server: &Server, target: &Target, browser: &Browser) {
    browser.go(&format!("{}/machines", server.url)).await;
    browser.click(&format!("#machine-{} th a", target.machine)).await;
    browser.sees("#machine-live", "12 × AMD Ryzen 5").await;
    browser.sees("#machine-live", "16 GiB").await;
    browser.sees("#machine-live", "e1000e · 1 Gbit/s").await;
    browser.sees("#machine-live article.install", "class-room, version 1").await;
    browser.click("#machine-live details summary").await;
    browser.sees("#machine-live .log", "reads back what was written").await;
    for (screen, size) in [("wide", WIDE), ("phone", PHONE)] {
        browser.resize(size).await;
        assert!(browser.fits().await, "a machine's page is wider than a {screen}");
        browser.shoot(&format!("machine-{screen}")).await;
        assert_eq!(browser.barriers().await, [""; 0], "on a machine's page, {screen}");
    }
    browser.resize_back().await;
}

/// Every page fits a phone and a desk, can be used by everybody, light and dark, and breaks no rule of its own policy.
async fn look_at_all_pages(server: &Server, browser: &Browser) {
    for page in ["", "images", "agents", "machines", "deployments", "boot", "array", "settings"] {
        let name = if page.is_empty() { "overview" } else { page };
        browser.go(&format!("{}/{page}", server.url)).await;
        browser.sees("main", "").await;
        let has_none = matches!(page, "" | "deployments" | "boot");
        assert!(has_none || !browser.levers().await.is_empty(), "nothing can be done on {name}");
        for (screen, size) in [("wide", WIDE), ("phone", PHONE)] {
            browser.resize(size).await;
            assert!(browser.fits().await, "{name} is wider than a {screen}");
            browser.shoot(&format!("{name}-{screen}")).await;
            assert_eq!(browser.barriers().await, [""; 0], "on {name}, {screen}");
        }
        browser.dark(true).await;
        browser.shoot(&format!("{name}-phone-dark")).await;
        assert_eq!(browser.barriers().await, [""; 0], "on {name}, dark");
        browser.resize(WIDE).await;
        browser.unfold().await;
        assert_eq!(browser.barriers().await, [""; 0], "on {name}, dark, unfolded");
        browser.dark(false).await;
        browser.shoot(&format!("{name}-unfolded")).await;
        assert_eq!(browser.barriers().await, [""; 0], "on {name}, unfolded");
        assert_eq!(browser.violations().await, Vec::<String>::new(), "on {name}");
    }
    browser.resize_back().await;
    browser.spoil().await;
    assert_eq!(browser.barriers().await.len(), 1, "what is wrong is not seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_can_be_read_without_javascript_and_without_a_session_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let site = Site::reach(&server.url, &server.join);
    let target = site.hello("52:54:00:00:00:02").await;
    let browser = Browser::start(dir.path(), WIDE).await;
    browser.scripts(false).await;
    for page in ["", "images", "agents", "machines", "deployments", "boot", "array", "settings"] {
        browser.go(&format!("{}/{page}", server.url)).await;
        browser.sees("form", "The server printed the password of admin").await;
    }
    for path in ["parts/machines", "live", "images/x/1/remove"] {
        let status = site.status(&format!("{}/{path}", server.url)).await;
        assert!(matches!(status, 303 | 401 | 405), "{path}: {status}");
    }
    server.sign_in(&browser).await;
    browser.go(&format!("{}/machines", server.url)).await;
    browser.sees(".code", &target.code).await;
    browser.click(&format!("#refuse-{}", target.code)).await;
    browser.sees("#machines-live", "No machine is waiting").await;
    assert!(matches!(target.ticket().await, TicketReply::Refused { .. }));
    browser.go(&format!("{}/images", server.url)).await;
    browser.sees("noscript", "cairn-server image add").await;
    browser.quit().await;
}
