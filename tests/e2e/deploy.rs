//! The main job: an image goes in, a blank machine boots from the network and comes up running it,
//! from its peers. It is the demo itself, with a system that boots quickly.

use cairn_tests::{
    demo::{self, Options},
    image::Variant,
    qemu::Firmware,
};

#[test]
fn a_blank_bios_machine_comes_up_from_its_peers() {
    comes_up(Firmware::Bios);
}

#[test]
fn a_blank_uefi_machine_comes_up_from_its_peers() {
    comes_up(Firmware::Uefi);
}

fn comes_up(firmware: Firmware) {
    let image = Some(Variant::Tiny.image().unwrap().path);
    demo::run(&Options { image, firmware, targets: 1, keep: false }).unwrap();
}
