//! Writing a cpio archive in the "newc" format that the kernel unpacks as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! An entry is a header of 110 ASCII bytes, the name with its NUL, padding to 4, the data, padding to 4:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 6 | magic `070701` |
//! | 6 | 8 | inode number |
//! | 14 | 8 | mode: file type and permissions |
//! | 22 | 8 | uid, 0 |
//! | 30 | 8 | gid, 0 |
//! | 38 | 8 | link count, 1 |
//! | 46 | 8 | modification time, seconds since 1970 |
//! | 54 | 8 | data bytes |
//! | 62 | 16 | major and minor of the device the file was on, 0 |
//! | 78 | 16 | major and minor of a device node |
//! | 94 | 8 | bytes of the name with its NUL |
//! | 102 | 8 | checksum, 0 in this variant |
//!
//! Numbers are eight hex digits. The archive ends with an entry named `TRAILER!!!`. Inode numbers only count
//! up: no two entries are ever links to each other.

use std::io::{self, Write};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node<'a> {
    Directory,
    File {
        data: &'a [u8],
        executable: bool,
    },
    Symlink(&'a str),
    /// A character device, readable and writable by root alone.
    Character {
        major: u32,
        minor: u32,
    },
}

/// An archive being written.
#[derive(Debug)]
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
    /// Seconds since 1970, the same for every entry: equal input gives an equal archive.
    modified: u32,
}

impl<W: Write> Archive<W> {
    pub(super) const fn new(out: W, modified: u32) -> Self {
        Self { out, inode: 0, modified }
    }

    /// Appends an entry; its folder must have come before it.
    ///
    /// # Errors
    /// When the writer fails, or the data is 4 GiB or longer.
    pub(super) fn add(&mut self, name: &str, node: Node<'_>) -> io::Result<()> {
        let (mode, data, device) = match node {
            Node::Directory => (0o040_755, &[][..], (0, 0)),
            Node::File { data, executable: true } => (0o100_755, data, (0, 0)),
            Node::File { data, executable: false } => (0o100_644, data, (0, 0)),
            Node::Symlink(target) => (0o120_777, target.as_bytes(), (0, 0)),
            Node::Character { major, minor } => (0o020_600, &[][..], (major, minor)),
        };
        self.inode += 1;
        self.entry(name, mode, data, device)
    }

    /// Ends the archive and hands the writer back.
    ///
    /// # Errors
    /// When the writer fails.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.modified = 0;
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        data: &[u8],
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        let number = |length: usize| u32::try_from(length).map_err(io::Error::other);
        let name_bytes = number(name.len() + 1)?;
        let data_bytes = number(data.len())?;
        let (inode, modified) = (self.inode, self.modified);
        write!(self.out, "070701{inode:08x}{mode:08x}{:08x}{:08x}", 0, 0)?;
        write!(self.out, "{:08x}{modified:08x}{data_bytes:08x}{:08x}{:08x}", 1, 0, 0)?;
        write!(self.out, "{major:08x}{minor:08x}{name_bytes:08x}{:08x}", 0)?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(padding_with_nul(110 + name.len()))?;
        self.out.write_all(data)?;
        self.out.write_all(padding(data.len()))
    }
}

/// Zero bytes that follow `length` bytes up to a multiple of 4.
fn padding(length: usize) -> &'static [u8] {
    &[0; 4][..(4 - length % 4) % 4]
}

/// The name's NUL and the padding behind it.
fn padding_with_nul(length: usize) -> &'static [u8] {
    &[0; 4][..4 - length % 4]
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new(), 1_700_000_000);
        archive.add("bin", Node::Directory).unwrap();
        archive.add("bin/tool", Node::File { data: b"12345", executable: true }).unwrap();
        archive.add("bin/sh", Node::Symlink("tool")).unwrap();
        archive.add("odd-name", Node::File { data: b"1234", executable: false }).unwrap();
        archive.add("console", Node::Character { major: 5, minor: 1 }).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn headers_and_data_are_where_the_table_says() {
        let mut archive = Archive::new(Vec::new(), 0x10);
        archive.add("a", Node::File { data: b"xyz", executable: true }).unwrap();
        let bytes = archive.finish().unwrap();
        let header = "070701\
            00000001000081ed00000000000000000000000100000010\
            0000000300000000000000000000000000000000\
            0000000200000000";
        assert_eq!(std::str::from_utf8(&bytes[..110]).unwrap(), header);
        assert_eq!(&bytes[110..116], b"a\0xyz\0");
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    /// The reader of a real cpio accepts what we write; busybox is what the payload is made with anyway.
    #[test]
    fn busybox_cpio_unpacks_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-i", "-d", "-m"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("busybox-static is installed");
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        assert!(child.wait().unwrap().success());
        let path = |name| folder.path().join(name);
        assert_eq!(std::fs::read(path("bin/tool")).unwrap(), b"12345");
        assert_eq!(std::fs::read(path("odd-name")).unwrap(), b"1234");
        assert_eq!(std::fs::read_link(path("bin/sh")).unwrap().to_str(), Some("tool"));
    }
}
