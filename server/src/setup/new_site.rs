//! Makes a site before its server is started for the first time, so that its password is shown to who sets it up and not
//! to the journal.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use cairn_array::{
    ownership::{Owner, hand_over},
    store::DeviceAddress,
};

use crate::{
    agent_package::AgentPackage,
    config::ServeOptions,
    db::DatabaseAddress,
    first_start::{FirstStart, greet},
    serve::{claim, open_database, open_store},
    site::{Opened, Secrets, Site},
};

/// The system user that packages make.
const SYSTEM_USER: &str = "cairn-server";
/// There while a site is being made, so that a run that was cut short is done again.
const MARKER: &str = "setup.unfinished";

/// Makes the site when there is none: store, secrets, database, account and join token, all owned by the system user if
/// there is one. None when there is a site already; then nothing of it is touched.
///
/// # Errors
/// When a server uses the folder, or something cannot be made.
pub(super) async fn make(
    options: &ServeOptions,
    address: SocketAddr,
) -> Result<Option<FirstStart>> {
    let data_dir = &options.data_dir;
    let marker = data_dir.join(MARKER);
    if !Secrets::are_absent(data_dir)? && !marker.exists() {
        return Ok(None);
    }
    let owner = Owner::named(SYSTEM_USER).context("read /etc/passwd")?;
    make_folder(data_dir).with_context(|| format!("make folder {}", data_dir.display()))?;
    let _lock = claim(data_dir)?;
    File::create(&marker).with_context(|| format!("make {}", marker.display()))?;
    // Before the secrets, which say that the devices were made.
    let store = open_store(&options.store_devices(), true).await?;
    let Opened { site, .. } = Site::open(data_dir)?;
    let db = open_database(&options.database()).await?;
    let package = AgentPackage::new(options.agent_package()?);
    let first = greet((&db, &site, data_dir), address, &package).await;
    db.close().await;
    store.release().await;
    let first = first?;
    if let Some(owner) = owner {
        give_away(options, owner)?;
    }
    fs::remove_file(&marker).with_context(|| format!("remove {}", marker.display()))?;
    Ok(first)
}

fn make_folder(data_dir: &Path) -> std::io::Result<()> {
    if let Some(parent) = data_dir.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    fs::set_permissions(data_dir, Permissions::from_mode(0o700))
}

/// Gives all of a new site to the system user.
fn give_away(options: &ServeOptions, owner: Owner) -> Result<()> {
    let give = |path: &Path| {
        let done = hand_over(path, owner);
        done.with_context(|| format!("hand {} to user {SYSTEM_USER}", path.display()))
    };
    give(&options.data_dir)?;
    for device in options.store_devices() {
        if let DeviceAddress::Folder(folder) = device
            && !folder.starts_with(&options.data_dir)
        {
            give(&folder)?;
        }
    }
    match options.database() {
        DatabaseAddress::Sqlite(path) if !path.starts_with(&options.data_dir) => give(&path),
        _ => Ok(()),
    }
}
