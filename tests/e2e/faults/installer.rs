//! An installer that is killed again and again.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cairn_tests::{image::first_difference, netns::MegabitsPerSecond};

use super::{INSTALL, NAME, is_blank, scattered};

const KILLS: u32 = 20;
/// Milliseconds after the approval; a whole install takes two seconds over the link of this test.
const MOMENTS: u64 = 2500;

#[test]
fn killed_at_any_moment_it_finishes_when_run_again_and_never_leaves_half_a_system() {
    let (site, image) = scattered("killed-installer", 3, 48);
    // A superblock lies in its first block, or this would prove nothing.
    assert!(!is_blank(&image));
    let installed = site.lab.dir().join("installed.raw");
    site.agents[0].host().shape(MegabitsPerSecond(100)).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let mut seed = u64::try_from(now & u128::from(u64::MAX)).unwrap() | 1;
    println!("seed {seed}");
    let (mut killed, mut writing, mut finished) = (0, 0, 0);
    while killed < KILLS {
        // xorshift64 (Marsaglia, 2003). No event marks "any moment".
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut installer = site.install_to_file(0, NAME, &installed).unwrap();
        let whole = || first_difference(&image, &installed).unwrap_or(None).is_none();
        if let Ok(status) = installer.wait(Duration::from_millis(seed % MOMENTS)) {
            assert!(status.success(), "{}", installer.transcript().text(0));
            assert!(whole(), "it said that it was done");
            finished += 1;
            fs::remove_file(&installed).unwrap();
            continue;
        }
        installer.kill().unwrap();
        killed += 1;
        // The first blocks are what makes a disk boot; they come when all else was read back.
        assert!(is_blank(&installed) || whole(), "kill {killed}: half a system would boot");
        writing +=
            u32::from(fs::metadata(&installed).is_ok_and(|file| file.blocks() > 0) && !whole());
    }
    println!("{killed} killed, {writing} of them while writing; {finished} came to their end");
    assert!(writing >= KILLS / 4, "too few were killed while they wrote: {writing} of {killed}");
    site.install_to_file(0, NAME, &installed).unwrap().wait_success(INSTALL).unwrap();
    assert_eq!(first_difference(&image, &installed).unwrap(), None);
}
