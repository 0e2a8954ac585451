//! The lab itself: if one of these fails, no other failure means anything.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use cairn_tests::{
    dhcpd::Dhcpd,
    image::{LOGIN_PROMPT, Percent, Variant, first_difference, mutate},
    netns::{Lab, MegabitsPerSecond},
    portal::Portal,
    process::Program,
    qemu::{Firmware, Hardware, Machine, Nic, OnReboot, blank_disk},
};

const SOON: Duration = Duration::from_secs(10);
const BOOT: Duration = Duration::from_secs(180);

#[test]
fn hosts_reach_each_other_and_nobody_else() {
    let mut lab = Lab::new("reach").unwrap();
    let (one, two) = (lab.host("one", 11).unwrap(), lab.host("two", 12).unwrap());
    let ping = |target: &str| {
        let ping = ["-c", "1", "-W", "2", target];
        Program::new("ping", "busybox").args(["ping"]).args(ping).on(&one).start().unwrap()
    };
    ping("10.77.0.12").wait_success(SOON).unwrap();
    two.set_link(false).unwrap();
    assert!(ping("10.77.0.12").wait_success(SOON).is_err(), "the cable is pulled");
    assert!(ping("192.0.2.1").wait_success(SOON).is_err(), "there is no way out of the lab");
}

#[test]
fn a_dropped_lab_leaves_nothing_behind() {
    let mut lab = Lab::new("drop").unwrap();
    let host = lab.host("host", 11).unwrap();
    let process = Program::new("sleep", "sleep").args(["600"]).on(&host).start().unwrap();
    let (namespace, dir) = (format!("/run/netns/{}", host.namespace()), lab.dir().to_owned());
    assert!(std::fs::exists(&namespace).unwrap() && dir.exists());
    drop(process);
    drop(lab);
    assert!(!std::fs::exists(&namespace).unwrap() && !dir.exists());
}

#[test]
fn a_shaped_link_is_as_fast_as_it_says() {
    let mut lab = Lab::new("shape").unwrap();
    let (server, client) = (lab.host("server", 1).unwrap(), lab.host("client", 11).unwrap());
    client.shape(MegabitsPerSecond(100)).unwrap();
    let listener = server.enter(|| TcpListener::bind("10.77.0.1:9000").unwrap()).unwrap();
    let sent = 10_000_000_usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&vec![7; sent]).unwrap();
        });
        let started = Instant::now();
        let mut stream = client.enter(|| TcpStream::connect("10.77.0.1:9000").unwrap()).unwrap();
        let received = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        assert_eq!(received, 10_000_000);
        // 80 Mbit over a link of 100 Mbit/s: 0.8 s and 5 % for headers, less a burst.
        let seconds = started.elapsed().as_secs_f64();
        assert!((0.75..1.6).contains(&seconds), "{seconds} s");
    });
}

#[test]
fn the_sites_dhcp_server_gives_addresses_and_nothing_to_boot() {
    let mut lab = Lab::new("dhcp").unwrap();
    let site = lab.host("dhcp", 2).unwrap();
    let dhcpd = Dhcpd::start(&lab, &site).unwrap();
    let client = lab.host_without_address("client").unwrap();
    let mut udhcpc = Program::new("udhcpc", "busybox")
        .args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-s", "/bin/true"])
        .on(&client)
        .start()
        .unwrap();
    let found = udhcpc.wait_for_line(r"lease of (10\.77\.0\.1[0-9]{2}) obtained", SOON).unwrap();
    udhcpc.wait_success(SOON).unwrap();
    let mac = client
        .enter(|| std::fs::read_to_string("/proc/self/net/arp").is_ok())
        .and_then(|_| {
            cairn_tests::tool::run(
                "ip",
                ["netns", "exec", client.namespace(), "cat", "/sys/class/net/eth0/address"],
            )
        })
        .unwrap();
    let lease = dhcpd.lease_of(mac.trim()).unwrap();
    assert_eq!(lease.map(|address| address.to_string()).as_ref(), Some(&found.groups[1]));
    let log = dhcpd.process().transcript().text(0);
    assert!(!log.contains("bootfile") && !log.contains("next-server"), "{log}");
}

#[test]
fn a_portal_leads_into_the_lab() {
    let mut lab = Lab::new("portal").unwrap();
    let server = lab.host("server", 1).unwrap();
    let listener = server.enter(|| TcpListener::bind("10.77.0.1:8440").unwrap()).unwrap();
    let portal = Portal::open(&server, 8440).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            stream.write_all(request.to_uppercase().as_bytes()).unwrap();
        });
        let mut stream = TcpStream::connect(portal.address()).unwrap();
        stream.write_all(b"dashboard").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "DASHBOARD");
    });
}

#[test]
fn lab_boots_tiny_image_to_login_bios() {
    boots_tiny_image_to_login(Firmware::Bios);
}

#[test]
fn lab_boots_tiny_image_to_login_uefi() {
    boots_tiny_image_to_login(Firmware::Uefi);
}

fn boots_tiny_image_to_login(firmware: Firmware) {
    let lab = Lab::new("boot").unwrap();
    let image = Variant::Tiny.image().unwrap();
    let disk = lab.dir().join("disk.raw");
    std::fs::copy(&image.path, &disk).unwrap();
    assert_eq!(first_difference(&image.path, &disk).unwrap(), None);
    let mut hardware = Hardware::new("machine", 1, &disk);
    hardware.firmware = firmware;
    let mut machine = hardware.start(&lab, OnReboot::Exit).unwrap();
    machine.wait_for(&["cairn-demo: starting", LOGIN_PROMPT], &[], BOOT).unwrap();
    logs_in(&mut machine);
    machine.switch_off().unwrap();
    // It ran from this disk: its first start is written there.
    assert!(first_difference(&image.path, &disk).unwrap().is_some());
}

/// The prompt is that of a system that works.
fn logs_in(machine: &mut Machine) {
    machine.send("root\n").unwrap();
    machine.wait_for(&["# "], &[], BOOT).unwrap();
    machine.send("echo $((6 * 7)) on $(hostname)\n").unwrap();
    machine.wait_for(&["^42 on cairn-demo"], &[], BOOT).unwrap();
    machine.send("sync\n").unwrap();
    machine.wait_for(&["# "], &[], BOOT).unwrap();
}

#[test]
fn a_blank_machine_asks_the_network() {
    for (number, firmware, nic) in
        [(1, Firmware::Bios, Nic::Virtio), (2, Firmware::Uefi, Nic::E1000)]
    {
        let mut lab = Lab::new("blank").unwrap();
        let site = lab.host("dhcp", 2).unwrap();
        let dhcpd = Dhcpd::start(&lab, &site).unwrap();
        let disk = lab.dir().join("disk.raw");
        blank_disk(&disk, 64 << 20).unwrap();
        let mut hardware = Hardware::new("machine", number, &disk);
        (hardware.firmware, hardware.nic, hardware.tap) = (firmware, nic, Some(lab.tap().unwrap()));
        let mut machine = hardware.start(&lab, OnReboot::Exit).unwrap();
        let discover = format!("DHCPDISCOVER.*{}", hardware.mac());
        dhcpd.process().wait_for_line(&discover, BOOT).unwrap();
        machine.cut_power().unwrap();
    }
}

#[test]
fn a_machine_without_anything_to_boot_is_told_apart_at_once() {
    let lab = Lab::new("nothing").unwrap();
    let disk = lab.dir().join("disk.raw");
    blank_disk(&disk, 8 << 20).unwrap();
    let hardware = Hardware::new("machine", 1, &disk);
    let mut machine = hardware.start(&lab, OnReboot::Exit).unwrap();
    let error = machine.wait_for(&[LOGIN_PROMPT], &[], BOOT).unwrap_err();
    assert!(format!("{error:#}").contains("saw /"), "it gave up before its time: {error:#}");
}

mod long {
    use super::*;

    #[test]
    fn the_second_version_of_a_system_boots_too() {
        let lab = Lab::new("second").unwrap();
        let image = Variant::Small.image().unwrap();
        let disk = lab.dir().join("disk.raw");
        let mutation = mutate(&image, Percent(8), 1, &disk).unwrap();
        let share = 100 * mutation.changed_bytes / mutation.file_bytes;
        assert!((8..10).contains(&share), "{mutation:?}");
        let mut machine = Hardware::new("machine", 1, &disk).start(&lab, OnReboot::Exit).unwrap();
        machine.wait_for(&["cairn-demo: starting", LOGIN_PROMPT], &[], BOOT).unwrap();
        machine.switch_off().unwrap();
    }
}
