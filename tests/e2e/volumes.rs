//! Volumes: as a card of a virtual machine, from another machine, and through kills of the server.

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cairn_tests::{
    cairn::eventually,
    image::{LOGIN_PROMPT, Variant},
    process::Program,
    qemu::{Hardware, Machine, OnReboot, blank_disk},
    site::{NetworkBoot, Site},
    tool,
};

const LOGIN: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(60);
const NBD: &str = "nbd://127.0.0.1:10809";

/// Writes blocks at random, each with the number of the write, flushes now and then and says when that was done; ends when
/// the server does. With a number of writes: finds out which of them are there, and checks that none is missing before.
const COUNTER: &str = r"
import nbd, random, struct, sys
uri, seed, begun = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BLOCKS, BLOCK = 2048, 4096
h = nbd.NBD()
h.connect_uri(uri)
dice = random.Random(seed)
def block(number):
    return struct.pack('<Q', number) * (BLOCK // 8)
if begun == 0:
    number = 0
    try:
        while True:
            number += 1
            at = dice.randrange(BLOCKS)
            h.pwrite(block(number), at * BLOCK)
            print('wrote', number, flush=number % 64 == 0)
            if number % 50 == 0:
                h.flush()
                print('flushed', number, flush=True)
    except nbd.Error:
        sys.exit(0)
data = b''.join(h.pread(1 << 20, part << 20) for part in range(BLOCKS * BLOCK >> 20))
found = [struct.unpack_from('<Q', data, at * BLOCK)[0] for at in range(BLOCKS)]
newest = max(found)
assert newest >= begun, f'{begun} was answered, {newest} is the newest there'
expected = [0] * BLOCKS
for number in range(1, newest + 1):
    expected[dice.randrange(BLOCKS)] = number
for at in range(BLOCKS):
    assert found[at] == expected[at], f'block {at} has {found[at]}, not {expected[at]}'
    assert data[at * BLOCK:(at + 1) * BLOCK] == block(found[at]), f'block {at} is torn'
print('whole up to', newest)
";

/// Kills the server in the middle of writes, `cycles` times; each time the volume is what it was after some write, and
/// none that was answered before is missing.
fn kill_in_the_middle(name: &str, cycles: u32) {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    let host = site.server.host().clone();
    for cycle in 1..=cycles {
        let volume = format!("v{cycle}");
        site.server.run(&["volume", "create", &volume, "--size", "8MiB"]).unwrap();
        let uri = format!("{NBD}/{volume}");
        let seed = cycle.to_string();
        let mut writer = Program::new("writer", "/usr/bin/python3")
            .args(["-c", COUNTER, &uri, &seed, "0"])
            .on(&host)
            .start()
            .unwrap();
        // Each time at another moment: some writes later, some more journal sealed.
        writer.wait_for_line(&format!("flushed {}$", 250 + cycle % 7 * 350), SOON).unwrap();
        site.server.process().kill().unwrap();
        writer.wait_success(SOON).unwrap();
        let said = writer.transcript().text(0);
        let answered = said.lines().filter_map(|line| line.strip_prefix("wrote ")).next_back();
        let answered = answered.unwrap().to_owned();
        site.server.restart(&site.lab, &[]).unwrap();
        let words = ["/usr/bin/python3", "-c", COUNTER, &uri, &seed, &answered];
        let verdict = tool::finish(&mut host.command(&words)).unwrap();
        assert!(verdict.contains("whole up to"), "cycle {cycle}: {verdict}");
        site.server.run(&["volume", "delete", &volume]).unwrap();
    }
}

#[test]
fn no_kill_loses_a_write_that_was_answered() {
    kill_in_the_middle("volumes-kill", 4);
}

/// What takes long: `cargo xtask test --long`.
mod long {
    #[test]
    fn no_kill_of_two_hundred_loses_a_write_that_was_answered() {
        super::kill_in_the_middle("volumes-kills", 200);
    }
}

#[test]
fn a_machine_boots_a_clone_of_an_image_from_a_card() {
    let site = Site::start("volumes-card", NetworkBoot::Off).unwrap();
    let host = site.server.host().clone();
    let image = Variant::Tiny.image().unwrap();
    site.add_image(&image.path, "tiny").unwrap();
    site.server.run(&["volume", "create", "system", "--image", "tiny"]).unwrap();
    let socket = site.lab.dir().join("card.sock");
    let daemon = Program::new("card", "qemu-storage-daemon")
        .args(["--blockdev", "driver=nbd,node-name=disk,server.type=inet,server.host=127.0.0.1,server.port=10809,export=system,discard=unmap"])
        .args(["--export", &format!("type=vhost-user-blk,id=card,node-name=disk,writable=on,addr.type=unix,addr.path={}", socket.display())])
        .on(&host)
        .start()
        .unwrap();
    eventually("the card's socket", SOON, || Ok(socket.exists().then_some(()))).unwrap();
    // The machine has a disk of its own, too: blank, so that it cannot be what it comes up from.
    let blank = site.lab.dir().join("blank.raw");
    blank_disk(&blank, 16 << 20).unwrap();
    let mut hardware = Hardware::new("guest", 1, &blank);
    hardware.extra = [
        "-object",
        "memory-backend-memfd,id=shared,size=1024M,share=on",
        "-numa",
        "node,memdev=shared",
        "-chardev",
        &format!("socket,id=card,path={}", socket.display()),
        "-device",
        "vhost-user-blk-pci,chardev=card,bootindex=0",
    ]
    .map(str::to_owned)
    .to_vec();
    hardware.bootable = false;
    let mut machine = hardware.start(&site.lab, OnReboot::Exit).unwrap();
    machine.wait_for(&[LOGIN_PROMPT], &[], LOGIN).unwrap();
    machine.cut_power().unwrap();
    drop(daemon);
    // What it wrote is in its clone; the image is what it was.
    let back = site.lab.dir().join("back.raw");
    site.server.run(&["image", "export", "tiny", back.to_str().unwrap()]).unwrap();
    assert!(same(&back, &image.path), "the image changed");
    let compared = host
        .command(&[
            "qemu-img",
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            back.to_str().unwrap(),
            &format!("{NBD}/system"),
        ])
        .output()
        .unwrap();
    assert_eq!(compared.status.code(), Some(1), "the machine wrote nothing to its disk");
}

fn same(one: &Path, other: &Path) -> bool {
    Command::new("cmp").arg("--silent").args([one, other]).status().unwrap().success()
}

#[test]
fn another_machine_uses_a_volume_with_its_papers_only() {
    let mut site = Site::start("volumes-tls", NetworkBoot::Off).unwrap();
    let server = site.server.host().clone();
    let other = site.lab.host("other", 40).unwrap();
    for name in ["mine", "theirs"] {
        site.server.run(&["volume", "create", name, "--size", "16MiB"]).unwrap();
        let folder = papers(&site, name);
        site.server.run(&["volume", "papers", name, folder.to_str().unwrap()]).unwrap();
    }
    let address = server.address();
    let plain = other.command(&["nbdinfo", &format!("nbd://{address}/mine")]).output().unwrap();
    let said = String::from_utf8_lossy(&plain.stderr);
    // That is how libnbd says that an option needs TLS.
    assert!(!plain.status.success() && said.contains("not supported"), "{said}");
    let uri = |volume: &str, with: &str| {
        format!("nbds://{address}/{volume}?tls-certificates={}", papers(&site, with).display())
    };
    let foreign = other.command(&["nbdinfo", &uri("theirs", "mine")]).output().unwrap();
    assert!(!foreign.status.success());
    let listed =
        tool::finish(&mut other.command(&["nbdinfo", "--list", &uri("", "mine")])).unwrap();
    assert!(listed.contains("mine") && !listed.contains("theirs"), "{listed}");
    let file = site.lab.dir().join("noise");
    tool::run(
        "dd",
        ["if=/dev/urandom", &format!("of={}", file.display()), "bs=1M", "count=16", "status=none"],
    )
    .unwrap();
    let file = file.to_str().unwrap();
    tool::finish(&mut other.command(&["nbdcopy", "--flush", file, &uri("mine", "mine")])).unwrap();
    let local = format!("{NBD}/mine");
    tool::finish(
        &mut server.command(&["qemu-img", "compare", "-f", "raw", "-F", "raw", file, &local]),
    )
    .unwrap();
}

fn papers(site: &Site, name: &str) -> PathBuf {
    site.lab.dir().join(format!("papers-{name}"))
}

/// Types a command for iPXE, again if it lost a key: it looks for them between other things.
fn type_line(machine: &mut Machine, text: &str) {
    for _ in 0..5 {
        for key in text.chars() {
            machine.send(&key.to_string()).unwrap();
            // Nobody types faster.
            std::thread::sleep(Duration::from_millis(30));
        }
        machine.send("\r").unwrap();
        let echo = format!("{}\\s*$", regex::escape(text));
        if machine.wait_for(&[&echo], &[], Duration::from_secs(10)).is_ok() {
            return;
        }
    }
    panic!("iPXE does not take {text}");
}

/// iPXE, GRUB and curl read a disk by plain HTTP; nobody without its address does.
#[test]
fn loaders_read_images_and_volumes_by_plain_http_with_their_address_only() {
    let mut site = Site::start("sanboot", NetworkBoot::Proxy).unwrap();
    let host = site.server.host().clone();
    let image = Variant::Tiny.image().unwrap();
    site.add_image(&image.path, "tiny").unwrap();
    site.server.run(&["volume", "create", "system", "--image", "tiny"]).unwrap();
    site.server.run(&["volume", "snapshot", "system", "clean"]).unwrap();
    let url = |words: &[&str]| site.server.run(words).unwrap().trim().to_owned();
    let of_image = url(&["image", "url", "tiny"]);
    assert!(of_image.ends_with("/image/tiny/1"), "{of_image}");
    for url in [
        &of_image,
        &url(&["volume", "url", "system", "--hours", "1"]),
        &url(&["volume", "url", "system@clean"]),
    ] {
        let read =
            host.command(&["curl", "-fsS", "-r", "46137344-46661631", url]).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let mut wanted = vec![0; 512 << 10];
        std::fs::File::open(&image.path).unwrap().read_exact_at(&mut wanted, 46_137_344).unwrap();
        assert!(read.stdout == wanted, "{url}: other bytes");
    }
    let status = |url: &str| {
        let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-I", url];
        tool::finish(&mut host.command(&words)).unwrap()
    };
    assert_eq!(status(&of_image), "200");
    // The address of one disk opens no other.
    assert_eq!(status(&of_image.replace("image/tiny/1", "volume/system")), "404");
    // Nor one that is made anew under its name.
    site.server.run(&["volume", "create", "other", "--size", "8MiB"]).unwrap();
    site.server.run(&["volume", "snapshot", "other", "s"]).unwrap();
    let of_volume = url(&["volume", "url", "other"]);
    let of_snapshot = url(&["volume", "url", "other@s"]);
    assert_eq!(status(&of_volume), "200");
    site.server.run(&["volume", "delete-snapshot", "other", "s"]).unwrap();
    site.server.run(&["volume", "snapshot", "other", "s"]).unwrap();
    assert_eq!((status(&of_volume), status(&of_snapshot)), ("200".into(), "404".into()));
    site.server.run(&["volume", "delete-snapshot", "other", "s"]).unwrap();
    site.server.run(&["volume", "delete", "other"]).unwrap();
    site.server.run(&["volume", "create", "other", "--size", "8MiB"]).unwrap();
    assert_eq!(status(&of_volume), "404");
    let unknown = site.server.run(&["volume", "url", "nothing"]).unwrap_err().to_string();
    assert!(unknown.contains("volume list"), "{unknown}");

    let blank = site.lab.dir().join("blank.raw");
    blank_disk(&blank, 1 << 20).unwrap();
    let mut hardware = Hardware::new("loader", 1, &blank);
    hardware.tap = Some(site.lab.tap().unwrap());
    let mut machine = hardware.start(&site.lab, OnReboot::Exit).unwrap();
    machine.wait_for(&["Ctrl-B"], &[], LOGIN).unwrap();
    // It may miss one, and waits for two seconds.
    let asks = (0..40).any(|_| {
        machine.send("\x02").unwrap();
        machine.wait_for(&["iPXE>"], &[], Duration::from_millis(100)).is_ok()
    });
    assert!(asks, "iPXE shows no prompt");
    type_line(&mut machine, "dhcp");
    machine.wait_for(&[r"Configuring .* ok"], &[], SOON).unwrap();
    // In pieces that fit a line of its screen, where each is seen to be right.
    let (first, rest) = of_image.split_at(60);
    let (second, third) = rest.split_at(rest.len() / 2);
    for (name, part) in [("a", first), ("b", second), ("c", third)] {
        type_line(&mut machine, &format!("set {name} {part}"));
    }
    type_line(&mut machine, "sanboot ${a}${b}${c}");
    // Kernel and initramfs came that way; of a root the firmware's disk is none.
    let shown = ["cairn-demo: starting", "cairn-demo: no root file system"];
    machine.wait_for(&shown, &[], LOGIN).unwrap();
    machine.cut_power().unwrap();
}
