//! The main job: an image goes in, a blank machine boots from the network and comes up running it,
//! from its peers. It is the demo itself, with a system that boots quickly.

use std::{net::UdpSocket, time::Duration};

use cairn_tests::{
    demo::{self, Options},
    image::{Image, Synthetic, Variant, first_difference, synthetic_ext4},
    qemu::Firmware,
    site::{NetworkBoot, Site},
};

const INSTALL: Duration = Duration::from_secs(120);

#[test]
fn a_blank_bios_machine_comes_up_from_its_peers_and_another_without_the_server() {
    comes_up(Variant::Tiny.image().unwrap(), Firmware::Bios, 2);
}

/// Its firmware finds the system by the boot entry only.
#[test]
fn a_blank_uefi_machine_comes_up_from_its_peers() {
    let folder = tempfile::tempdir().unwrap();
    let image = Variant::Tiny.image().unwrap();
    let image = image.without_fallback_loader(&folder.path().join("tiny.raw")).unwrap();
    comes_up(image, Firmware::Uefi, 1);
}

fn comes_up(image: Image, firmware: Firmware, acts: u8) {
    let image = Some(image.path);
    demo::run(&Options { image, firmware, targets: 1, acts, keep: false }).unwrap();
}

/// The same journey without a machine: fast, so it is the first to say that something is wrong.
#[test]
fn an_image_travels_from_a_file_over_the_clients_to_a_file() {
    let mut site = Site::start("travel", NetworkBoot::Off).unwrap();
    site.join(3, "1GiB").unwrap();
    let wanted = Synthetic { size_mib: 128, files_mib: 60, seed: 1 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap();
    site.add_image(&image.path, "travel").unwrap();
    let detail = site.wait_scattered("travel").unwrap();
    assert!(detail.scatter.held_bytes > detail.versions[0].stored, "parity is held too");
    let file = site.lab.dir().join("installed.raw");
    site.install_to_file(0, "travel", &file).unwrap().wait_success(INSTALL).unwrap();
    // Free blocks of the file system are not carried: they are zeros in both.
    assert_eq!(first_difference(&image.path, &file).unwrap(), None);
}

#[test]
fn a_deployment_wakes_the_clients_that_hold_the_image() {
    let mut site = Site::start("wake", NetworkBoot::Off).unwrap();
    site.join(3, "512MiB").unwrap();
    let wanted = Synthetic { size_mib: 64, files_mib: 24, seed: 1 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap();
    site.add_image(&image.path, "wake").unwrap();
    site.wait_scattered("wake").unwrap();
    // Its machine sleeps; its network adapter listens.
    let host = site.agents[1].host().clone();
    site.agents[1].process().kill().unwrap();
    let adapter = host.enter(|| UdpSocket::bind(("0.0.0.0", 9))).unwrap().unwrap();
    adapter.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let file = site.lab.dir().join("installed.raw");
    let mut installer = site.install_to_file(0, "wake", &file).unwrap();
    let mut packet = [0; 200];
    let magic = [vec![0xff; 6], host.mac().unwrap().repeat(16)].concat();
    // Packets are broadcast: those for the other holders arrive here too.
    loop {
        let (length, from) = adapter.recv_from(&mut packet).unwrap();
        assert_eq!(from.ip(), site.server.host().address());
        if packet[..length] == magic {
            break;
        }
    }
    installer.wait_success(INSTALL).unwrap();
}
