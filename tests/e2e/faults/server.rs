//! A server that is killed at bad moments.

use std::path::Path;

use cairn_tests::{
    cairn::{Deployment, binary, eventually},
    image::first_difference,
    netns::MegabitsPerSecond,
    process::Program,
    site::{NetworkBoot, Site},
};

use super::{
    INSTALL, NAME, SOON, files_below, half_scattered, half_written, image_with, prepared, scattered,
};

#[test]
fn killed_while_registering_it_leaves_nothing_and_the_image_is_added_again() {
    let mut site = Site::start("killed-registering", NetworkBoot::Off).unwrap();
    let image = image_with(&site, 48);
    let store = site.server.data_dir().join("store");
    let before = files_below(&store);
    let admin = site.lab.host("admin", 50).unwrap();
    admin.shape(MegabitsPerSecond(100)).unwrap();
    let mut adding = Program::new("image-add", binary("cairn-server").unwrap())
        .args(["image", "add"])
        .args([&image])
        .args(["--name", NAME, "--any-content", "--server", "https://10.77.0.1:8440"])
        .args(["--token-file".into(), site.server.data_dir().join("secrets/cli-token")])
        .on(&admin)
        .start()
        .unwrap();
    eventually("the first segments to be stored", SOON, || {
        Ok((files_below(&store).len() > before.len() + 1).then_some(()))
    })
    .unwrap();
    site.server.process().kill().unwrap();
    assert_eq!(adding.wait(SOON).unwrap().code(), Some(1), "{}", adding.transcript().text(0));
    assert_ne!(files_below(&store), before, "it was killed when there was nothing to clear away");
    site.server.restart(&site.lab, &[]).unwrap();
    assert_eq!(files_below(&store), before, "leftovers of the registration");
    assert!(site.server.json::<Vec<serde_json::Value>>(&["image", "list"]).unwrap().is_empty());
    site.add_image(&image, NAME).unwrap();
    exports_as(&site, &image);
}

fn exports_as(site: &Site, image: &Path) {
    let exported = site.lab.dir().join("exported.raw");
    site.server.run(&["image", "export", NAME, exported.to_str().unwrap()]).unwrap();
    assert_eq!(first_difference(image, &exported).unwrap(), None);
}

#[test]
fn killed_while_scattering_it_goes_on_afterwards() {
    let (mut site, image) = prepared("killed-server", 3, 48);
    half_scattered(&site, &image);
    assert_eq!(site.server.image(NAME).unwrap().redundancy, None, "it was killed too late");
    site.server.process().kill().unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    site.wait_scattered(NAME).unwrap();
    // Clients fetch what they are assigned by themselves; to publish where it is takes the server.
    let published =
        eventually("the image to be published", SOON, || Ok(site.server.image(NAME)?.redundancy));
    assert!(published.unwrap().contains("may be lost"));
}

#[test]
fn killed_while_a_machine_installs_it_hears_of_the_end_when_it_is_back() {
    let (mut site, image) = scattered("server-gone", 3, 48);
    let installed = site.lab.dir().join("installed.raw");
    site.agents[0].host().shape(MegabitsPerSecond(40)).unwrap();
    let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
    half_written(&mut installer, &installed);
    site.server.process().kill().unwrap();
    eventually("the disk to be whole", INSTALL, || {
        Ok(first_difference(&image, &installed)?.is_none().then_some(()))
    })
    .unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    installer.wait_success(INSTALL).unwrap();
    let deployments: Vec<Deployment> = site.server.json(&["deployment", "list"]).unwrap();
    let install = &site.server.deployment(deployments[0].id).unwrap().installs[0];
    assert_eq!((install.state.as_str(), &install.error), ("done", &None), "{install:?}");
    assert!(install.written > 0);
}

#[test]
fn a_second_one_on_the_same_data_is_refused() {
    let site = Site::start("second-server", NetworkBoot::Off).unwrap();
    let mut second = Program::new("second", binary("cairn-server").unwrap())
        .args(["serve", "--listen", "0.0.0.0:9440", "--boot-listen", "0.0.0.0:9441"])
        .args(["--nbd", "0.0.0.0:9442", "--data-dir"])
        .args([site.server.data_dir()])
        .on(site.server.host())
        .start()
        .unwrap();
    let status = second.wait(SOON).unwrap();
    assert_eq!(status.code(), Some(1), "{}", second.transcript().text(0));
}
