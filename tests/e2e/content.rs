//! What is written to volumes, and whether it is in them.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use cairn_tests::{image::first_difference, netns::Host, tool};

/// The server's volumes, on its own host.
const NBD: &str = "nbd://127.0.0.1:10809";

/// A file of so many bytes that do not shrink.
pub(super) fn noise(path: PathBuf, size: usize, mut state: u64) -> PathBuf {
    let words = (0..size / 8).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state ^ (state >> 29)).to_le_bytes()
    });
    fs::write(&path, words.collect::<Vec<u8>>()).unwrap();
    path
}

/// Copies a file to a volume of the server on this host, and flushes.
pub(super) fn write(server: &Host, volume: &str, file: &Path) {
    let uri = format!("{NBD}/{volume}");
    let words = ["nbdcopy", "--flush", file.to_str().unwrap(), &uri];
    tool::finish(&mut server.command(&words)).unwrap();
}

/// Copies a volume of the server on this host to a file.
pub(super) fn read(server: &Host, volume: &str, file: PathBuf) -> PathBuf {
    let uri = format!("{NBD}/{volume}");
    let words = ["nbdcopy", &uri, file.to_str().unwrap()];
    tool::finish(&mut server.command(&words)).unwrap();
    file
}

/// Writes `value` to 64 KiB from `at` on and flushes, in the volume and in the file with what it is to be.
pub(super) fn change(server: &Host, volume: &str, file: &Path, at: u64, value: u8) {
    let (write, uri) = (format!("write -P {value} {at} 64k"), format!("{NBD}/{volume}"));
    let words = ["qemu-io", "-f", "raw", "-c", &write, "-c", "flush", &uri];
    tool::finish(&mut server.command(&words)).unwrap();
    let file = fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(&[value; 64 << 10], at).unwrap();
}

/// The volume is what the file says.
pub(super) fn is_in(server: &Host, volume: &str, file: &Path) {
    let is = read(server, volume, file.with_extension("read"));
    assert_eq!(first_difference(file, &is).unwrap(), None);
}
