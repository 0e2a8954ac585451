//! Machines that come up from a volume over the network: without a disk of their own, and through kills of the server.

use std::time::Duration;

use cairn_tests::{
    cairn::eventually,
    image::{LOGIN_PROMPT, Variant},
    qemu::{Hardware, Machine, OnReboot, blank_disk},
    site::{CODE_LINE, NetworkBoot, Site},
};

const BOOT: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(90);
const PROXY: [&str; 2] = ["--boot-interface", "eth0"];

#[test]
fn a_machine_comes_up_from_its_volume_works_through_a_kill_of_the_server_and_finds_its_files_again()
{
    let mut site = Site::start("diskless", NetworkBoot::Proxy).unwrap();
    site.add_image(&Variant::Tiny.image().unwrap().path, "tiny").unwrap();
    site.server.run(&["volume", "create", "desk1", "--image", "tiny"]).unwrap();
    // Its own disk is so small that nothing can come from there.
    let disk = site.lab.dir().join("disk.raw");
    blank_disk(&disk, 1 << 20).unwrap();
    let mut hardware = Hardware::new("desk", 1, &disk);
    hardware.tap = Some(site.lab.tap().unwrap());

    let mut machine = hardware.start(&site.lab, OnReboot::Exit).unwrap();
    let shown = machine.wait_for(&[CODE_LINE], &[], BOOT).unwrap();
    let code = shown[0].groups[1].clone();
    eventually("the machine to be listed", SOON, || {
        let machines = site.server.machines()?;
        Ok(machines.iter().any(|machine| machine.codes.contains(&code)).then_some(()))
    })
    .unwrap();
    // Its way from the firmware to here was followed.
    let said = site.server.run(&["boot", "status"]).unwrap();
    for wanted in [&hardware.mac(), "arrived", "agent", "10.77.0.2 gave an address"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    site.server.run(&["machine", "boot", &code, "--volume", "desk1"]).unwrap();
    machine.wait_for(&["coming up from volume desk1", LOGIN_PROMPT], &[], BOOT).unwrap();
    log_in(&mut machine);
    does(&mut machine, "echo first > /root/kept && sync", "kept");
    let refused = site.server.run(&["volume", "delete", "desk1"]).unwrap_err().to_string();
    assert!(refused.contains("comes up from desk1"), "{refused}");
    let other = ["machine", "boot", "52:54:00:ca:17:99", "--volume", "desk1"];
    let refused = site.server.run(&other).unwrap_err().to_string();
    assert!(refused.contains("two would destroy it"), "{refused}");

    site.server.process().kill().unwrap();
    machine.send("echo second >> /root/kept && sync && echo went $((20 + 3)) on\n").unwrap();
    // It waits for its disk as long as it takes.
    std::thread::sleep(Duration::from_secs(3));
    let said = machine.process().transcript().text(0);
    assert!(!said.contains("went 23 on"), "it wrote without its disk: {said}");
    site.server.restart(&site.lab, &PROXY).unwrap();
    machine.wait_for(&["went 23 on"], &["I/O error"], SOON).unwrap();
    machine.cut_power().unwrap();

    // From now on it needs nobody.
    let mac = hardware.mac();
    site.server.run(&["machine", "boot", &mac, "--volume", "desk1", "--unattended"]).unwrap();
    let mut machine = hardware.start(&site.lab, OnReboot::Exit).unwrap();
    machine.wait_for(&["coming up from volume desk1", LOGIN_PROMPT], &[], BOOT).unwrap();
    log_in(&mut machine);
    machine.send("cat /root/kept\n").unwrap();
    machine.wait_for(&["^first", "^second"], &[], SOON).unwrap();
    // busybox's init, unlike systemd, would kill the process that keeps the disk first.
    machine.send("sync && poweroff -f\n").unwrap();
    assert!(machine.wait_off(SOON).unwrap().success());
    site.server.run(&["machine", "boot", &mac, "--own-disk"]).unwrap();
    // The first time the machine went without a word: its connection is given up after a while.
    eventually("the volume to be deleted", SOON, || {
        Ok(site.server.run(&["volume", "delete", "desk1"]).ok())
    })
    .unwrap();
}

/// What takes long: `cargo xtask test --long`.
mod long {
    use super::*;

    #[test]
    fn debian_with_systemd_comes_up_from_its_volume_and_goes_down_in_order() {
        let mut site = Site::start("diskless-systemd", NetworkBoot::Proxy).unwrap();
        site.add_image(&Variant::Small.image().unwrap().path, "small").unwrap();
        site.server.run(&["volume", "create", "desk1", "--image", "small"]).unwrap();
        let disk = site.lab.dir().join("disk.raw");
        blank_disk(&disk, 1 << 20).unwrap();
        let mut hardware = Hardware::new("desk", 1, &disk);
        hardware.tap = Some(site.lab.tap().unwrap());
        let mac = hardware.mac();
        site.server.run(&["machine", "boot", &mac, "--volume", "desk1", "--unattended"]).unwrap();
        let mut machine = hardware.start(&site.lab, OnReboot::Exit).unwrap();
        machine.wait_for(&["coming up from volume desk1", LOGIN_PROMPT], &[], BOOT).unwrap();
        log_in(&mut machine);
        // Its network is under systemd's care by now.
        does(&mut machine, "networkctl status eth0 | grep -q routable", "routable");
        does(&mut machine, "mount | grep -q 'nbd0.* on / type ext4 (rw'", "writable");
        machine.send("systemctl poweroff\n").unwrap();
        assert!(machine.wait_off(BOOT).unwrap().success());
    }
}

fn log_in(machine: &mut Machine) {
    machine.send("root\n").unwrap();
    machine.wait_for(&["# "], &[], SOON).unwrap();
}

/// Runs a command that must work.
fn does(machine: &mut Machine, command: &str, word: &str) {
    machine.send(&format!("{command} && echo {word} $((20 + 2))\n")).unwrap();
    machine.wait_for(&[&format!("{word} 22")], &["I/O error"], SOON).unwrap();
}
