//! Giving root up: the DSF is for the agent's own user, not for whoever uses the machine.

use std::path::Path;

use anyhow::{Context as _, Result};
use cairn_array::ownership::{Owner, hand_over, is_root};
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
    let Some(owner) = hand_to_system_user(folder)? else { return Ok(()) };
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    let become_user = || -> rustix::io::Result<()> {
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)
    };
    become_user().with_context(|| format!("become user {SYSTEM_USER}"))
}

/// As root, gives `folder` and all that is in it to the system user, who runs the agent; who that is. Without root or
/// without that user, everything stays as it is.
///
/// # Errors
/// When it is possible but fails.
pub fn hand_to_system_user(folder: &Path) -> Result<Option<Owner>> {
    if !is_root() {
        return Ok(None);
    }
    let owner = Owner::named(SYSTEM_USER).context("read /etc/passwd")?;
    let Some(owner) = owner else { return Ok(None) };
    hand_over(folder, owner)
        .with_context(|| format!("hand {} to user {SYSTEM_USER}", folder.display()))?;
    Ok(Some(owner))
}
