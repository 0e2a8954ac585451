//! What a client costs the owner of its disk: how soon it gives way, and how much it slows him.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Figure, Wanted, swarm::Memory};
use cairn_tests::{
    image::{Synthetic, synthetic_ext4},
    netns::MegabitsPerSecond,
    site::{NetworkBoot, Site},
    small_disk::SmallDisk,
};

const MIB: u64 = 1 << 20;
const GIVE_UP: u64 = 1 << 30;
const RESERVE: u64 = 1280 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
const NAME: &str = "room";
/// What the owner writes each time, and how often.
const WRITTEN: usize = 512 << 20;
const ROUNDS: usize = 7;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = vec![gives_way()?];
    figures.extend(slows()?);
    Ok(figures)
}

/// From the moment the disk is full to the moment 1 GiB of it is free again.
fn gives_way() -> Result<Figure> {
    let mut site = Site::start("bench-owner", NetworkBoot::Off)?;
    let disk = SmallDisk::mount(&site.lab.dir().join("owners-disk"), 6144)?;
    site.join_at(&disk.path().join("client1"), &["3GiB", "--reserve", "1280MiB"])?;
    add(&site, 3000, 2400)?;
    let held = site.agents[0].status()?.segments;
    let most = disk.available()?.checked_sub(RESERVE).context("the disk is too full to begin")?;
    disk.fill("owner", most + GIVE_UP)?;
    let filled = Instant::now();
    while disk.available()? < RESERVE {
        if filled.elapsed() > PATIENCE {
            bail!("the client does not give way");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = filled.elapsed().as_secs_f64() * 1000.0;
    let left = site.agents[0].status()?.segments;
    let given_up = f64::from(held - left) / 256.0;
    let what = format!("{given_up:.2} GiB free again after the disk was filled");
    Ok(Figure::new(&what, took, "ms", Wanted::AtMost(200.0)))
}

/// The owner's sequential write beside a client that serves and scrubs, over the same write without it, in turns.
fn slows() -> Result<Vec<Figure>> {
    let mut site = Site::start("bench-owner", NetworkBoot::Off)?;
    site.join(1, "3GiB")?;
    add(&site, 1500, 1200)?;
    site.agents[0].host().shape(MegabitsPerSecond(1000))?;
    let target = site.lab.host("target", 90)?;
    // The target's disk is not the owner's.
    let memory = Memory::mount(&site.lab)?;
    let file = &memory.0.join("target.raw");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let owners = site.lab.dir().join("owner");
    let block = vec![0x5a; 1 << 20];
    write(&owners, &block)?;
    for _ in 0..ROUNDS {
        alone.push(write(&owners, &block)?);
        let (mut install, code) = site.waiting_target(&target, NAME, file)?;
        site.server.run(&["machine", "approve", &code])?;
        install.wait_for_line("^installing|^comparing", LONG)?;
        beside.push(write(&owners, &block)?);
        // Whether it was still served when the owner had written all.
        if install.ended()?.is_some() {
            bail!("the install was over before the owner had written: enlarge the image");
        }
        install.kill()?;
        fs::remove_file(file).context("remove what was installed")?;
        fs::remove_dir_all(file.with_extension("state")).context("remove the target's state")?;
    }
    let (alone, beside) = (median(&mut alone), median(&mut beside));
    #[expect(clippy::cast_precision_loss, reason = "a measured size")]
    let speed = WRITTEN as f64 / 1e6 / alone;
    Ok(vec![
        Figure::new("the owner's sequential write, alone", speed, "MB/s", Wanted::Nothing),
        Figure::new(
            "the same while the client serves a target, time over alone",
            beside / alone,
            "",
            Wanted::AtMost(1.05),
        ),
    ])
}

fn add(site: &Site, size_mib: u32, files_mib: u32) -> Result<()> {
    let wanted = Synthetic { size_mib, files_mib, seed: 3 };
    let image = synthetic_ext4(&site.lab.dir().join("image.raw"), wanted)?.path;
    site.add_image(&image, NAME)?;
    site.wait_scattered(NAME)?;
    fs::remove_file(image).context("remove the image")
}

/// Seconds until everything is on the disk.
fn write(path: &Path, block: &[u8]) -> Result<f64> {
    let started = Instant::now();
    let mut file = File::create(path).context("create the owner's file")?;
    for _ in 0..WRITTEN / block.len() {
        file.write_all(block).context("write as the owner")?;
    }
    file.sync_all().context("write as the owner")?;
    Ok(started.elapsed().as_secs_f64())
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
