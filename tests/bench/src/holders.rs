//! A room that installs an image which clients hold: what the server still sends, and how much longer it takes when the server
//! and every fifth client are gone.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Figure, Wanted,
    swarm::{LONG, Memory, RATE, noise, pass},
};
use cairn_tests::{
    image::first_difference,
    process::Process,
    site::{NetworkBoot, Site},
};

const CLIENTS: u8 = 10;
const TARGETS: u8 = 4;
const NAME: &str = "noise";
const SOON: Duration = Duration::from_secs(120);

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-holders", NetworkBoot::Off)?;
    let memory = Memory::mount(&site.lab)?;
    let image = memory.0.join("image.raw");
    noise(&image)?;
    site.join(CLIENTS, "1GiB")?;
    site.add_image(&image, NAME)?;
    site.wait_scattered(NAME)?;
    for agent in &site.agents {
        agent.host().shape(RATE)?;
    }
    site.server.host().shape(RATE)?;
    let with_server = Round::begin(&mut site, &memory, 1)?;
    let with_server = with_server.finish(&image)?;
    let images_sent = |round: &Done| ratio(round.sent, round.total);

    let mut round = Round::begin(&mut site, &memory, 2)?;
    site.server.process().kill()?;
    let healthy = round.finish_alone(&image)?;
    site.server.restart(&site.lab, &[])?;
    site.wait_scattered(NAME)?;

    round = Round::begin(&mut site, &memory, 3)?;
    site.server.process().kill()?;
    for agent in site.agents.iter_mut().rev().take(usize::from(CLIENTS / 5)) {
        agent.process().kill()?;
    }
    let bereft = round.finish_alone(&image)?;
    let one = pass(with_server.total);
    Ok(vec![
        Figure::new(
            "images that the server sent to 4 targets, 10 clients holding it",
            images_sent(&with_server),
            "",
            Wanted::AtMost(0.1),
        ),
        Figure::new(
            "with the server, over one pass",
            with_server.seconds / one,
            "",
            Wanted::Nothing,
        ),
        Figure::new("the server killed, over one pass", healthy / one, "", Wanted::Nothing),
        Figure::new(
            "the server and every fifth client killed, over the server killed",
            bereft / healthy,
            "",
            Wanted::AtMost(1.25),
        ),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "measured sizes")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

/// Targets under way.
struct Round {
    targets: Vec<(Process, std::path::PathBuf)>,
    started: Instant,
    sent_before: u64,
    server: cairn_tests::netns::Host,
}

struct Done {
    seconds: f64,
    /// Bytes that left the server.
    sent: u64,
    /// Bytes of the image: noise, so sealed it is hardly more.
    total: u64,
}

impl Round {
    /// Deploys to machines; each has its ticket when this returns.
    fn begin(site: &mut Site, memory: &Memory, round: u8) -> Result<Self> {
        let (mut targets, mut codes) = (Vec::new(), Vec::new());
        for number in 1..=TARGETS {
            let number = round * 10 + number;
            let host = site.lab.host(&format!("t{number}"), 30 + number)?;
            let disk = memory.0.join(format!("disk{number}"));
            let (installer, code) = site.waiting_target(&host, NAME, &disk)?;
            host.shape(RATE)?;
            targets.push((installer, disk));
            codes.push(code);
        }
        let server = site.server.host().clone();
        let (sent_before, _) = server.traffic()?;
        let started = Instant::now();
        site.server.deploy_to_all(NAME, &codes)?;
        for (installer, _) in &targets {
            installer.wait_for_line("^preparing the disk", SOON)?;
        }
        Ok(Self { targets, started, sent_before, server })
    }

    /// Waits for all, without a server to tell. Returns seconds.
    fn finish_alone(self, image: &Path) -> Result<f64> {
        self.finish(image).map(|done| done.seconds)
    }

    fn finish(mut self, image: &Path) -> Result<Done> {
        let mut last = 0.0_f64;
        for (installer, _) in &self.targets {
            installer.wait_for_line("^reading back", LONG)?;
            last = last.max(self.started.elapsed().as_secs_f64());
        }
        for (installer, disk) in &mut self.targets {
            installer.wait_success(LONG)?;
            ensure!(first_difference(image, disk)?.is_none(), "a disk is not the image");
            std::fs::remove_file(disk).context("make room")?;
        }
        let (sent_after, _) = self.server.traffic()?;
        let total = image.metadata().context("look at the image")?.len();
        Ok(Done { seconds: last, sent: sent_after - self.sent_before, total })
    }
}
