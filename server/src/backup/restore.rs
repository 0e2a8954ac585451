//! Puts a site back as a backup has it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail, ensure};
use cairn_array::{
    store::{BLOB_MAX_BYTES, BlobName, DeviceAddress, Store, StoreError},
    wrap::{Identity, RecoveryKey, opening},
};
use cairn_core::{directory::Directory, id::SegmentId, units::Generation, volume::Durability};
use futures::TryStreamExt as _;
use tokio::runtime::Handle;

use super::{BLOBS, DATABASE, FORMAT, HEADER, Header, SECRETS};
use crate::{
    config::{DATABASE_FILE, default_database, default_device},
    db::{Db, restored::Leap, volume::VolumeStage},
    recover::{self, LEAP},
    serve::{hand_back, lock, open_store},
    site::{Secrets, Site},
    volumes::{journal_path, make_journal},
};

/// The largest header, and the largest secret.
const SMALL: u64 = 64 << 10;

/// What the operator asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What `cairn-server backup` wrote
    backup: PathBuf,
    /// The site's recovery key, as its first start wrote it
    #[arg(long, value_name = "FILE")]
    recovery_key: PathBuf,
    /// A folder without a site; a store that is there is used again
    #[arg(long, env = "CAIRN_DATA_DIR", default_value = "./cairn-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// A device of the store: a folder, or `s3://BUCKET/PREFIX` (repeatable; default: `store` in the data folder)
    #[arg(long, env = "CAIRN_STORE", value_name = "DIR-OR-URL")]
    store: Vec<DeviceAddress>,
}

/// What is there again.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) header: Header,
    /// Segments that the store should have and lacks.
    pub(crate) missing: u64,
    pub(crate) segments: u64,
    /// Volumes that cannot be used, with the reasons.
    pub(crate) unusable: Vec<String>,
}

/// Puts the site into the data folder.
///
/// # Errors
/// When the folder has a site, the key is another site's, or the file is damaged. A run that was cut short is done again.
pub(crate) async fn run(options: Options) -> Result<Outcome> {
    let Options { backup, recovery_key, data_dir, store } = options;
    let RecoveryKey { identity, site: wanted } = RecoveryKey::read(&recovery_key)?;
    let header = read_header(&backup, &identity).with_context(|| {
        format!("read {}: is it a backup of this key's site?", backup.display())
    })?;
    ensure!(
        wanted.is_none_or(|wanted| wanted.to_string() == header.site),
        "{} is a backup of site {}, and the recovery key of another",
        backup.display(),
        header.site
    );
    let _lock = lock(&data_dir)?;
    recover::begin(&data_dir)?;
    let addresses = if store.is_empty() { vec![default_device(&data_dir)] } else { store };
    let store = Arc::new(open_store(&addresses, true).await?);
    let unpacked = unpack(&backup, identity, &data_dir, &store);
    let secrets = unpacked.await.with_context(|| format!("read {}", backup.display()))?;
    store.flush().await.context("make the store durable")?;
    Secrets::put_back(&data_dir, &secrets).context("write the site's secrets")?;
    let site = Site::open(&data_dir)?.site;
    let db = Db::open(&default_database(&data_dir))
        .await
        .context("open the database: is the backup of a newer version of this program?")?;
    leap(&db, &site).await?;
    let unusable = journals(&db, &data_dir, &store).await?;
    let (missing, segments) = missing(&db, &store).await?;
    db.close().await;
    store.release().await;
    recover::end(&data_dir)?;
    hand_back(&data_dir)?;
    Ok(Outcome { header, missing, segments, unusable })
}

/// The archive in the file.
fn open(path: &Path, identity: &Identity) -> Result<tar::Archive<impl Read + use<>>> {
    let file = File::open(path)?;
    let opened = opening(identity, BufReader::new(file))?;
    Ok(tar::Archive::new(zstd::Decoder::new(opened)?))
}

fn read_header(path: &Path, identity: &Identity) -> Result<Header> {
    let mut archive = open(path, identity)?;
    let mut first = archive.entries()?.next().context("it is empty")??;
    ensure!(*first.path_bytes() == *HEADER.as_bytes(), "it does not begin as a backup does");
    let header: Header = serde_json::from_slice(&whole(&mut first, SMALL)?)?;
    ensure!(
        header.format == FORMAT,
        "it is of format {}, this program reads {FORMAT}: use cairn-server {}",
        header.format,
        header.program
    );
    Ok(header)
}

/// Writes the database, puts blobs into a store that lacks them, and returns the secrets.
async fn unpack(
    path: &Path,
    identity: Identity,
    data_dir: &Path,
    store: &Arc<Store>,
) -> Result<BTreeMap<String, String>> {
    let (path, database) = (path.to_owned(), data_dir.join(DATABASE_FILE));
    let (store, runtime) = (Arc::clone(store), Handle::current());
    let unpacked = tokio::task::spawn_blocking(move || -> Result<_> {
        let mut archive = open(&path, &identity)?;
        let mut secrets = BTreeMap::new();
        let mut has_database = false;
        for entry in archive.entries()?.skip(1) {
            let mut entry = entry?;
            let name = String::from_utf8(entry.path_bytes().into_owned())?;
            if let Some(name) = name.strip_prefix(SECRETS) {
                secrets.insert(name.to_owned(), String::from_utf8(whole(&mut entry, SMALL)?)?);
            } else if let Some(name) = name.strip_prefix(BLOBS) {
                let name: BlobName = name.parse()?;
                let blob = whole(&mut entry, BLOB_MAX_BYTES)?;
                runtime.block_on(put_missing(&store, &name, blob))?;
            } else if name == DATABASE {
                write_database(&database, &mut entry)?;
                has_database = true;
            } else {
                bail!("{name} does not belong into a backup");
            }
        }
        // What is cut off shows only at the end.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        ensure!(has_database, "it has no database");
        Ok(secrets)
    });
    unpacked.await.context("wait for a thread")?
}

fn whole(entry: &mut impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(limit + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= limit, "an entry is larger than {limit} bytes");
    Ok(bytes)
}

fn write_database(path: &Path, entry: &mut impl Read) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).with_context(what)?;
    io::copy(entry, &mut file).with_context(what)?;
    file.sync_all().with_context(what)
}

/// What the store has is newer.
async fn put_missing(store: &Store, name: &BlobName, blob: Vec<u8>) -> Result<()> {
    match store.get_blob(name).await {
        Ok(_) => Ok(()),
        Err(StoreError::NotFound { .. }) => Ok(store.put_blob(name, blob.into()).await?),
        Err(error) => Err(error.into()),
    }
}

/// Clients have heard newer numbers than those of the backup, and hold what it does not know.
async fn leap(db: &Db, site: &Site) -> Result<()> {
    let setting = crate::agents::directory::SETTING;
    let directory = match db.setting(setting).await.context("read the directory")? {
        Some(signed) => Directory::open(&site.verifying_key(), &signed)
            .context("the database is of another site than the secrets")?,
        None => bail!("the database has no directory: it is of a server that was never started"),
    };
    let number = Generation(directory.number.0 + LEAP);
    let directory = Directory { number, server: None, ..directory };
    let seconds =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let signed = directory.seal(site.signer());
    let leap = Leap { signed_directory: &signed, by: LEAP, least_assignment: Generation(seconds) };
    db.leap(&leap).await.context("write down that the site was restored")
}

/// Gives volumes whose journals are gone empty ones.
async fn journals(db: &Db, data_dir: &Path, store: &Arc<Store>) -> Result<Vec<String>> {
    let mut unusable = Vec::new();
    for row in db.volumes().await.context("list volumes")? {
        if row.stage != VolumeStage::Ready || journal_path(data_dir, row.id).exists() {
            continue;
        }
        // Clients know roots of those whose journal they mirror.
        let known = db.known_root(row.id).await.context("look for the root that clients know")?;
        let durability = known.map_or(Durability::Local, |_| Durability::Mirrored);
        if let Err(error) = make_journal(data_dir, store, row.id, (row.size, durability)).await {
            unusable.push(format!("volume {}: {error:#}", row.name));
        }
    }
    Ok(unusable)
}

/// How many of the segments that the store is to have it lacks, and how many there are.
async fn missing(db: &Db, store: &Store) -> Result<(u64, u64)> {
    let there = store.segments().map_ok(|segment| segment.id).try_collect();
    let there: std::collections::HashSet<SegmentId> = there.await.context("list the store")?;
    let wanted = db.segments_of_store().await.context("list segments")?;
    let missing = wanted.iter().filter(|id| !there.contains(id)).count();
    Ok((missing as u64, wanted.len() as u64))
}
