//! `cairn-server recover`: a site that lost its server, from its clients and its recovery key.
//!
//! ```text
//!   a client ─► sealed keys ─► opened with the recovery key ─► the server's papers
//!   clients  ─► newest directory ─► bundle ─► manifests, stripe maps, roots of volumes, boot files
//!   clients  ─► every segment, rebuilt where nobody has it ─► store
//!                                     secrets, rows ◄─┘ ─► a server that `serve` starts
//! ```
//!
//! Numbers begin far above those that were given before, so that clients take what this server says for newer, whatever
//! the lost one said last.
//!
//! Invariants: nothing on the clients is changed; what cannot be read is named, and given up only when the operator says
//! so; a folder that a recovery left unfinished is served by nobody, and recovering into it again goes on.

mod fleet;
mod images;
mod volumes;

pub(crate) use images::Row;
pub(crate) use volumes::Row as VolumeRow;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_array::{bundle, store::DeviceAddress, wrap::RecoveryKey};
use cairn_core::{bundle::Item, directory::Directory, units::Generation};

use crate::{
    boot_build::{INITRD_FILE, KERNEL_FILE, RECORD_FILE},
    config::{DATABASE_FILE, default_database, default_device},
    db::{Db, recovered::Recovered},
    moment::Moment,
    register::keep_manifest,
    serve::{hand_back, lock, open_store},
    site::{Secrets, Site},
};

/// Where clients serve their peers, when an address names no port.
const PEER_PORT: u16 = 8442;
/// In the data folder as long as a recovery or a restore is not done.
const MARKER: &str = "recovering";
const SECRETS: &str = "secrets";
/// By how much the directory's number leaps: more directories than any site makes between two of its clients' looks.
pub(crate) const LEAP: u64 = 1 << 20;

/// What the operator asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The site's recovery key, as the first start of the lost server wrote it
    #[arg(long, value_name = "FILE")]
    recovery_key: PathBuf,
    /// A client that runs (repeatable); it names the others
    #[arg(long = "peer", value_name = "ADDR[:PORT]", required = true, value_parser = peer)]
    peers: Vec<SocketAddr>,
    /// An empty folder for the new server
    #[arg(long, env = "CAIRN_DATA_DIR", default_value = "./cairn-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// A device of the store: a folder, or `s3://BUCKET/PREFIX` (repeatable; default: `store` in the data folder)
    #[arg(long, env = "CAIRN_STORE", value_name = "DIR-OR-URL")]
    store: Vec<DeviceAddress>,
    /// Go on without images and volumes that cannot be read now; clients then drop what they hold of them
    #[arg(long)]
    accept_loss: bool,
}

fn peer(text: &str) -> Result<SocketAddr, String> {
    let with_port = || text.parse::<SocketAddr>().ok();
    let alone = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PEER_PORT));
    with_port()
        .or_else(alone)
        .ok_or_else(|| "name a client like 10.0.0.5 or 10.0.0.5:8442".to_owned())
}

/// What came of a recovery, for people.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `NAME@N` of images, then the volumes.
    pub(crate) back: Vec<String>,
    /// Which, and why.
    pub(crate) lost: Vec<String>,
    pub(crate) clients: usize,
}

/// Whether a recovery into this folder was cut short.
///
/// # Errors
/// When it was: nobody serves it.
pub(crate) fn refuse_unfinished(data_dir: &Path) -> Result<()> {
    ensure!(
        !data_dir.join(MARKER).exists(),
        "{} is half recovered or restored: run `cairn-server recover` (or `restore`) with the same folder again",
        data_dir.display()
    );
    Ok(())
}

/// Builds the site anew in the data folder.
///
/// # Errors
/// When the folder has a site, no client answers, the key is another site's, or an image cannot be read and the operator
/// did not accept that.
pub(crate) async fn run(options: Options, tell: impl Fn(&str)) -> Result<Outcome> {
    let Options { recovery_key, peers, data_dir, store, accept_loss } = options;
    let RecoveryKey { identity: recovery, site: wanted } = RecoveryKey::read(&recovery_key)?;
    let _lock = lock(&data_dir)?;
    begin(&data_dir)?;
    tell("looking for the site's keys and its clients");
    let fleet = fleet::find(&peers, &recovery, wanted).await?;
    let directory = &fleet.directory;
    tell(&format!(
        "{} of {} clients answer; fetching manifests and boot files",
        fleet.there,
        directory.members.len()
    ));
    let bytes = bundle::fetch(&fleet.peers, directory).await?;
    let items = cairn_core::bundle::decode(&bytes).context("read the bundle")?;
    let found = images::read(&fleet.keys, &recovery, &items)?;
    let addresses = if store.is_empty() { vec![default_device(&data_dir)] } else { store };
    let store = Arc::new(open_store(&addresses, true).await?);
    let (images, mut lost) = images::fetch(&store, &fleet, &found, &tell).await?;
    let volumes = volumes::read(&fleet.keys, &recovery, &items)?;
    let (volumes, missing) = volumes::fetch(&store, &fleet, &found, volumes, &tell).await?;
    lost.extend(missing);
    if !lost.is_empty() && !accept_loss {
        bail!(
            "{}. Switch more clients on and run this again: it goes on where it ended. With --accept-loss it goes on \
             without what is named here, and clients drop it",
            lost.join("; ")
        );
    }
    for (entry, part) in cairn_core::bundle::cut(&bytes) {
        store.put_segment(entry.id, part.to_vec().into()).await.context("keep the bundle")?;
    }
    Secrets::keep(&data_dir, &fleet.keys, &recovery.recipient())
        .context("write the site's secrets")?;
    let site = Site::open(&data_dir)?.site;
    write_boot_files(&data_dir.join("boot"), &items)?;
    let next = Directory {
        number: Generation(directory.number.0 + LEAP),
        server: None,
        ..directory.clone()
    };
    let rows = images::rows(&site, &found, &images, &next)?;
    for row in &rows {
        keep_manifest(&store, row.version, row.manifest.clone()).await?;
    }
    let (mut volumes, orphans) = volumes::rows(&site, &found.maps, &volumes, &rows, &next)?;
    lost.extend(orphans);
    for row in &mut volumes {
        volumes::keep(&data_dir, &store, &fleet, row).await?;
    }
    store.flush().await.context("make the store durable")?;
    let recovered = Recovered {
        signed_directory: &next.seal(site.signer()),
        directory: &next,
        images: &rows,
        volumes: &volumes,
        assignment: Generation(seconds()),
        now: Moment::now(),
    };
    let db = Db::open(&default_database(&data_dir)).await.context("make the database")?;
    db.keep_recovered(&recovered).await.context("write down the site")?;
    db.close().await;
    store.release().await;
    end(&data_dir)?;
    hand_back(&data_dir)?;
    let images = rows.iter().map(Row::name);
    let volumes = volumes.iter().map(|volume| format!("volume {}", volume.name));
    Ok(Outcome { back: images.chain(volumes).collect(), lost, clients: directory.members.len() })
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Takes the folder, which is empty or was left by a recovery. What is in its store is used again.
pub(crate) fn begin(data_dir: &Path) -> Result<()> {
    let marker = data_dir.join(MARKER);
    if !marker.exists() {
        let has = |name: &str| data_dir.join(name).exists();
        ensure!(
            !has(DATABASE_FILE) && !has(SECRETS),
            "{} has a site already: recover into an empty folder, or restore into one",
            data_dir.display()
        );
        fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))?;
    }
    for suffix in ["", "-wal", "-shm"] {
        forget(fs::remove_file(data_dir.join(format!("{DATABASE_FILE}{suffix}"))))?;
    }
    forget(fs::remove_dir_all(data_dir.join(SECRETS)))
}

/// The folder has a whole site.
pub(crate) fn end(data_dir: &Path) -> Result<()> {
    fs::remove_file(data_dir.join(MARKER)).context("end the recovery")
}

fn forget(removed: io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("clear away a recovery that was cut short")
        }
        _ => Ok(()),
    }
}

/// Kernel and initramfs with their record, so that machines boot without building them anew.
fn write_boot_files(folder: &Path, items: &[Item<'_>]) -> Result<()> {
    // Served under other names than they are kept; the record comes last, since it says that the others are there.
    let kept = [("vmlinuz", KERNEL_FILE), ("initrd", INITRD_FILE), (RECORD_FILE, RECORD_FILE)];
    for (served, kept) in kept {
        let file = items.iter().find_map(|item| match item {
            Item::BootFile { name, content } if *name == served => Some(*content),
            _ => None,
        });
        let Some(content) = file else { return Ok(()) };
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join(kept);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_address_with_or_without_its_port() {
        assert_eq!(peer("10.0.0.5").unwrap(), "10.0.0.5:8442".parse().unwrap());
        assert_eq!(peer("[fd00::5]:9000").unwrap(), "[fd00::5]:9000".parse().unwrap());
        assert!(peer("pc-14").unwrap_err().contains("10.0.0.5"));
    }

    #[test]
    fn a_folder_with_a_site_is_left_alone_and_an_unfinished_recovery_is_served_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path()).unwrap();
        assert!(refuse_unfinished(folder.path()).is_err());
        fs::write(folder.path().join(DATABASE_FILE), "half").unwrap();
        // Again: what was half written goes, the marker stays.
        begin(folder.path()).unwrap();
        assert!(!folder.path().join(DATABASE_FILE).exists());
        fs::remove_file(folder.path().join(MARKER)).unwrap();
        refuse_unfinished(folder.path()).unwrap();
        fs::create_dir(folder.path().join(SECRETS)).unwrap();
        let error = begin(folder.path()).unwrap_err().to_string();
        assert!(error.contains("empty folder"), "{error}");
        assert!(folder.path().join(SECRETS).exists());
    }
}
