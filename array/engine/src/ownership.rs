//! Owners of state folders. The server and the agent run as system users of their own; commands that root runs on their
//! folders must leave files that these users can read.
//!
//! Invariant: no symbolic link is followed and no file with a second name is handed over, since the owner of a folder may
//! have put either there to be given a file of somebody else's.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chownat, fstat, openat},
    process::{Gid, Uid},
};

/// Folders in folders that are handed over. State folders have a few.
const MAX_DEPTH: usize = 32;

/// A user of this machine, with its own group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: u32,
    pub group: u32,
}

impl Owner {
    pub const ROOT: Self = Self { user: 0, group: 0 };

    /// The user of that name; none when this machine has none.
    ///
    /// # Errors
    /// When `/etc/passwd` cannot be read.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        Ok(Self::find(&fs::read_to_string("/etc/passwd")?, name))
    }

    /// Looks a name up in the text of `/etc/passwd`. A static program has no other name service.
    fn find(users: &str, name: &str) -> Option<Self> {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let user = fields.nth(1)?.parse().ok()?;
            let group = fields.next()?.parse().ok()?;
            Some(Self { user, group })
        })
    }

    /// The owner of a file or folder.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { user: found.uid(), group: found.gid() })
    }

    #[must_use]
    pub const fn is_root(self) -> bool {
        self.user == 0
    }
}

/// Whether this process may give files away.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a file, or a folder with all that is in it, to `owner`; the folder itself last.
///
/// # Errors
/// When something of it cannot be opened or given away.
pub fn hand_over(path: &Path, owner: Owner) -> io::Result<()> {
    hand_over_at(CWD, path, owner, MAX_DEPTH)
}

/// As root, gives an open file to `owner` unless it has a second name.
///
/// # Errors
/// When it cannot be given away.
pub fn hand_over_file(file: impl AsFd, owner: Owner) -> io::Result<()> {
    if !is_root() {
        return Ok(());
    }
    give(file.as_fd(), owner)
}

fn hand_over_at(
    folder: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    owner: Owner,
    depth: usize,
) -> io::Result<()> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(folder, name, look, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(io::Error::other("there are folders in folders without an end"));
        };
        hand_over_entries(&found, owner, depth)?;
    }
    give(found.as_fd(), owner)
}

fn hand_over_entries(folder: &OwnedFd, owner: Owner, depth: usize) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = openat(folder, c".", read, Mode::empty())?;
    for entry in Dir::new(entries)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            hand_over_at(folder.as_fd(), name, owner, depth)?;
        }
    }
    Ok(())
}

fn give(file: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
    let found = fstat(file)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let is_of_others =
        kind == FileType::Symlink || (kind != FileType::Directory && found.st_nlink > 1);
    if is_of_others || (found.st_uid, found.st_gid) == (owner.user, owner.group) {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    Ok(chownat(file, c"", Some(user), Some(group), AtFlags::EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\ncairn-agent-x:x:1:1::/:\ncairn-agent:x:998:997::/:/usr/sbin/nologin\n";
        let found = Owner::find(users, "cairn-agent");
        assert_eq!(found, Some(Owner { user: 998, group: 997 }));
        assert_eq!(Owner::find(users, "cairn"), None);
        assert_eq!(Owner::find("cairn-agent:x:not-a-number:1::", "cairn-agent"), None);
    }

    #[test]
    fn a_folder_is_handed_over_whole_and_nothing_outside_it() {
        assert!(is_root(), "only root gives files away: run the tests as root");
        let before = Owner::of(Path::new("/")).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let (folder, outside) = (temporary.path().join("state"), temporary.path().join("outside"));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        for file in ["state/top", "state/a/b/deep", "outside/linked", "outside/named-twice"] {
            fs::write(temporary.path().join(file), "x").unwrap();
        }
        symlink(outside.join("linked"), folder.join("to-file")).unwrap();
        symlink(&outside, folder.join("a/to-folder")).unwrap();
        fs::hard_link(outside.join("named-twice"), folder.join("a/second-name")).unwrap();
        let owner = Owner { user: 12_345, group: 12_346 };
        hand_over(&folder, owner).unwrap();
        for given in ["", "top", "a", "a/b", "a/b/deep"] {
            assert_eq!(Owner::of(&folder.join(given)).unwrap(), owner, "{given}");
        }
        for left in ["", "linked", "named-twice"] {
            assert_eq!(Owner::of(&outside.join(left)).unwrap(), before, "{left}");
        }
        hand_over(&folder.join("to-file"), Owner { user: 1, group: 1 }).unwrap();
        assert_eq!(Owner::of(&outside.join("linked")).unwrap(), before);
    }

    #[test]
    fn folders_in_folders_have_an_end() {
        let temporary = tempfile::tempdir().unwrap();
        let deep: std::path::PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 1).collect();
        fs::create_dir_all(temporary.path().join(deep)).unwrap();
        let owner = Owner::of(temporary.path()).unwrap();
        assert!(hand_over(temporary.path(), owner).is_err());
    }
}
