//! Giving root up: the DSF is for the agent's own user, not for whoever uses the machine.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result};
use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// The system user that packages make.
pub const SYSTEM_USER: &str = "cairn-agent";

/// As root, hands `folder` to the system user and becomes that user; without root or without that user,
/// everything stays as it is. Call it before any thread is started: the identity is the thread's.
///
/// # Errors
/// When the change is possible but fails: going on as root would not be what was asked.
pub fn drop_to_system_user(folder: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let users = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let Some((user, group)) = ids(&users, SYSTEM_USER) else { return Ok(()) };
    hand_over(folder, user, group)
        .with_context(|| format!("hand {} to user {SYSTEM_USER}", folder.display()))?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    let become_user = || -> rustix::io::Result<()> {
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)
    };
    become_user().with_context(|| format!("become user {SYSTEM_USER}"))
}

/// User and group of a name in the text of `/etc/passwd`. Read here because a static program has no name service.
fn ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let user = fields.nth(1)?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some((user, group))
    })
}

fn hand_over(folder: &Path, user: u32, group: u32) -> std::io::Result<()> {
    let change = |path: &Path| -> std::io::Result<()> {
        let meta = fs::symlink_metadata(path)?;
        if (meta.uid(), meta.gid()) != (user, group) && !meta.is_symlink() {
            chown(path, Some(user), Some(group))?;
        }
        Ok(())
    };
    // The state folder has no folders in it.
    for entry in fs::read_dir(folder)? {
        change(&entry?.path())?;
    }
    change(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\ncairn-agent-x:x:1:1::/:\ncairn-agent:x:998:997::/:/usr/sbin/nologin\n";
        assert_eq!(ids(users, "cairn-agent"), Some((998, 997)));
        assert_eq!(ids(users, "cairn"), None);
        assert_eq!(ids("cairn-agent:x:not-a-number:1::", "cairn-agent"), None);
    }
}
