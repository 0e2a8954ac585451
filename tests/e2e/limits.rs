//! Rate limits of a machine and of the site.

use std::time::{Duration, Instant};

use cairn_tests::{
    cairn::{Agent, eventually},
    image::{Synthetic, first_difference, synthetic_ext4},
    site::{NetworkBoot, Site},
};

const NAME: &str = "lab";
const INSTALL: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(30);
/// Bytes a second.
const SITE_UPLOAD: f64 = 1e6;
const OWN_UPLOAD: f64 = 0.25e6;
const SITE_DOWNLOAD: f64 = 2e6;
/// What passes at once, headers, and everything that is no segment.
const SLACK: f64 = 1.06;
const OTHER: f64 = 1e6;

#[test]
#[expect(clippy::cast_precision_loss, reason = "counts of bytes")]
fn nobody_sends_or_receives_faster_than_he_may() {
    let mut site = Site::start("limits", NetworkBoot::Off).unwrap();
    site.join(3, "1GiB").unwrap();
    let wanted = Synthetic { size_mib: 64, files_mib: 20, seed: 3 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path;
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    site.wait_for_stand_ins(&[0, 1, 2]).unwrap();

    // The owner of a machine and the administrator of the site each say what they allow: the lower counts.
    let said =
        site.server.run(&["limit", "--upload", "8Mbit/s", "--download", "16Mbit/s"]).unwrap();
    assert!(said.contains("upload 8 Mbit/s, download 16 Mbit/s"), "{said}");
    for index in 0..3 {
        eventually("the agents to hear of it", SOON, || {
            let limits = site.agents[index].command(&["limit"])?;
            Ok(limits.contains("upload 8 Mbit/s, download 16 Mbit/s").then_some(()))
        })
        .unwrap();
    }
    let said = site.agents[1].command(&["limit", "--upload", "2Mbit/s"]).unwrap();
    assert!(said.contains("limits     upload 2 Mbit/s, download 16 Mbit/s"), "{said}");
    assert!(site.agents[1].command(&["limit", "--upload", "1kbit/s"]).is_err(), "too slow");
    // Both are kept, also by an agent that begins while the server is away.
    site.server.process().terminate().unwrap();
    site.agents[2].process().terminate().unwrap();
    let (host, state) = (site.agents[2].host().clone(), site.agents[2].state_dir().to_owned());
    site.agents[2] = Agent::run(&site.lab, &host, &state).unwrap();
    eventually("the agent to know of the site's limits", SOON, || {
        let limits = site.agents[2].command(&["limit"])?;
        Ok(limits.contains("upload 8 Mbit/s, download 16 Mbit/s").then_some(()))
    })
    .unwrap();
    site.server.restart(&site.lab, &[]).unwrap();
    assert!(site.server.run(&["limit"]).unwrap().contains("download 16 Mbit/s"));

    let senders: Vec<_> = [site.server.host(), site.agents[1].host(), site.agents[2].host()]
        .into_iter()
        .cloned()
        .collect();
    let before: Vec<_> = senders.iter().map(|host| host.traffic().unwrap().0).collect();
    let installed = site.lab.dir().join("installed.raw");
    let begun = Instant::now();
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
    let stored = site.server.image(NAME).unwrap().versions[0].stored as f64;
    assert!(took >= stored / SITE_DOWNLOAD / SLACK, "{stored} bytes took {took} s");
    let limits = [SITE_UPLOAD, OWN_UPLOAD, SITE_UPLOAD];
    for ((host, before), limit) in senders.iter().zip(before).zip(limits) {
        let sent = (host.traffic().unwrap().0 - before) as f64;
        assert!(sent <= limit * took * SLACK + OTHER, "{sent} bytes in {took} s, at {limit}");
    }

    // Lifted: it is fast again.
    site.server.run(&["limit", "--upload", "none", "--download", "none"]).unwrap();
    site.agents[1].command(&["limit", "--upload", "none"]).unwrap();
    for index in 0..3 {
        eventually("the agents to hear of it", SOON, || {
            let limits = site.agents[index].command(&["limit"])?;
            Ok(limits.contains("limits     upload none, download none").then_some(()))
        })
        .unwrap();
    }
    let again = site.lab.dir().join("again.raw");
    let begun = Instant::now();
    site.install_to_file(0, NAME, &again).unwrap().wait_success(INSTALL).unwrap();
    assert!(begun.elapsed().as_secs_f64() < took, "the limits are still there");
}
