//! What goes wrong in a fleet, done to real processes: killed clients, a killed server, a killed
//! installer, rotten and full disks, broken uploads, strangers.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a test notes is shown when it fails"
)]

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_core::id::SegmentId;
use cairn_tests::{
    cairn::{Agent, eventually},
    image::{Synthetic, synthetic_ext4},
    netns::MegabitsPerSecond,
    process::Process,
    site::{NetworkBoot, Site},
    tool,
};

mod clients;
mod disks;
mod hostile;
mod installer;
mod members;
mod server;
mod tickets;
mod uploads;

const INSTALL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "faulty";

/// A site with `clients` clients and an image that is scattered over them.
fn scattered(name: &str, clients: u8, files_mib: u32) -> (Site, PathBuf) {
    let (mut site, image) = prepared(name, clients, files_mib);
    site.add_image(&image, NAME).unwrap();
    site.wait_scattered(NAME).unwrap();
    site.agents.iter_mut().for_each(|agent| assert!(agent.process().ended().unwrap().is_none()));
    (site, image)
}

fn prepared(name: &str, clients: u8, files_mib: u32) -> (Site, PathBuf) {
    let mut site = Site::start(name, NetworkBoot::Off).unwrap();
    site.join(clients, "1GiB").unwrap();
    let image = image_with(&site, files_mib);
    (site, image)
}

/// About two thirds of `files_mib` have to be stored: half is noise, half is text.
fn image_with(site: &Site, files_mib: u32) -> PathBuf {
    let wanted = Synthetic { size_mib: 2 * files_mib, files_mib, seed: 9 };
    synthetic_ext4(&site.lab.dir().join("image.raw"), wanted).unwrap().path
}

/// Adds the image over slow links and waits until some, but not all of it has arrived.
fn half_scattered(site: &Site, image: &Path) {
    for agent in &site.agents {
        agent.host().shape(MegabitsPerSecond(50)).unwrap();
    }
    site.add_image(image, NAME).unwrap();
    let begun = eventually("the first segments to arrive", SOON, || {
        let scatter = site.server.image(NAME)?.scatter;
        Ok((scatter.held_bytes > 0).then_some(scatter))
    });
    assert!(!begun.unwrap().complete, "it came too fast for this test to mean anything");
}

/// Starts a client again on what it has on its disk.
fn run_again(site: &mut Site, index: usize) {
    let agent = &site.agents[index];
    let (host, state) = (agent.host().clone(), agent.state_dir().to_owned());
    site.agents[index] = Agent::run(&site.lab, &host, &state).unwrap();
}

/// Waits until an installer has written some, but not all of a file that was a hole before.
fn half_written(installer: &mut Process, file: &Path) {
    eventually("the disk to be written", SOON, || {
        let begun = fs::metadata(file).is_ok_and(|metadata| metadata.blocks() * 512 > 1 << 20);
        Ok(begun.then_some(()))
    })
    .unwrap();
    let ended = installer.ended().unwrap();
    assert!(ended.is_none(), "it was done too early for this test to mean anything");
}

fn is_blank(file: &Path) -> bool {
    let mut first = [0; 4096];
    // A file that is not there, or still shorter, is as blank as a disk of zeros.
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut first));
    read.is_err() || first == [0; 4096]
}

/// All files below a folder with their sizes.
fn files_below(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            // What is listed may be gone by now: a server works here.
            let Ok(metadata) = entry.metadata() else { continue };
            match metadata.is_dir() {
                true => folders.push(entry.path()),
                false => files.push((entry.path(), metadata.len())),
            }
        }
    }
    files.sort();
    files
}

/// A segment on a client's disk, as the tables of `cairn_array::dsf` say where it is.
struct Slot {
    id: SegmentId,
    payload_at: u64,
    /// The payload is what the id names.
    right: bool,
}

/// The used slots of a DSF of less than 1 GiB.
fn slots(state_dir: &Path) -> Vec<Slot> {
    const MIB: u64 = 1 << 20;
    let file = File::open(dsf(state_dir)).unwrap();
    let mut slots = Vec::new();
    for index in 0..255 {
        let mut header = [0; 56];
        if file.read_exact_at(&mut header, MIB + index * 4096).is_err() {
            break;
        }
        if !header.starts_with(b"CAIRNSLT") {
            continue;
        }
        let length = u32::from_le_bytes(header[16..20].try_into().unwrap());
        let id = SegmentId(header[24..56].try_into().unwrap());
        let payload_at = 2 * MIB + index * 4 * MIB;
        let mut payload = vec![0; length.try_into().unwrap()];
        let right =
            file.read_exact_at(&mut payload, payload_at).is_ok() && SegmentId::of(&payload) == id;
        slots.push(Slot { id, payload_at, right });
    }
    slots
}

fn dsf(state_dir: &Path) -> PathBuf {
    state_dir.join("segments.dsf")
}

/// A small file system in memory; unmounted, in use or not, when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(folder: &Path, size: &str) -> Self {
        fs::create_dir_all(folder).unwrap();
        let options = format!("size={size},mode=0700");
        let args = ["-t", "tmpfs", "-o", &options, "cairn-test"].map(std::ffi::OsStr::new);
        tool::run("mount", args.into_iter().chain([folder.as_os_str()])).unwrap();
        Self(folder.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(error) = tool::run("umount", ["-l".as_ref(), self.0.as_os_str()]) {
            eprintln!("{error:#}");
        }
    }
}
