//! Images, volumes and snapshots as disks over plain HTTP, for loaders that know nothing else (`sanboot`).
//!
//! Plain HTTP is read by everybody on the way, so a disk has no address there until an administrator asks for one. It holds
//! for this disk until a moment, not for one that is made anew under its name, and whoever has it can read, never write.
//!
//! ```text
//!   http://SERVER:8441/boot/disk/PASS/volume/desk1      …/volume/desk1/clean      …/image/debian/3
//! ```

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cairn_array::{
    nbd::{Export, Exports as _, Visitor},
    pass::PassKey,
    random,
};
use cairn_core::{id::VolumeId, volume::blocks_of};
use cairn_pxe::Disk;

use crate::{
    app::App,
    db::Db,
    moment::Moment,
    volumes::{self, Served},
};

const SETTING: &str = "disk_pass_key";
/// Loaders ask for hundreds of small ranges: what is slow to open is kept for so long after the last.
const KEPT: Duration = Duration::from_secs(60);
/// Kept at once; with more, the others are opened for each range.
const MAX_KEPT: usize = 64;

/// What has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Volume(String),
    Snapshot { volume: String, name: String },
    Image { name: String, number: u32 },
}

/// As a part of an address. Slashes only: iPXE escapes other signs that names of ours are told apart by.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume/{name}"),
            Self::Snapshot { volume, name } => write!(f, "volume/{volume}/{name}"),
            Self::Image { name, number } => write!(f, "image/{name}/{number}"),
        }
    }
}

impl What {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            ["volume", name] => Some(Self::Volume(name.to_owned())),
            ["volume", volume, name] => {
                Some(Self::Snapshot { volume: volume.to_owned(), name: name.to_owned() })
            }
            ["image", name, number] => {
                Some(Self::Image { name: name.to_owned(), number: number.parse().ok()? })
            }
            _ => None,
        }
    }
}

/// What is open, and the secret that addresses are made with.
#[derive(Debug)]
pub(crate) struct Disks {
    key: PassKey,
    /// Where boot files are: `http://ADDR:PORT/boot`.
    base: OnceLock<String>,
    kept: Mutex<HashMap<String, Kept>>,
}

struct Kept {
    used: Instant,
    disk: Arc<dyn Export>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Disks {
    /// # Errors
    /// When the database fails.
    pub(crate) async fn open(db: &Db) -> anyhow::Result<Self> {
        let kept = db.setting(SETTING).await.context("read the key of disks' addresses")?;
        let secret: [u8; 32] = match kept.and_then(|kept| kept.try_into().ok()) {
            Some(secret) => secret,
            None => {
                let secret = random::array()?;
                db.keep_setting(SETTING, &secret).await?;
                secret
            }
        };
        let key = PassKey::new(&secret);
        Ok(Self { key, base: OnceLock::new(), kept: Mutex::default() })
    }

    /// Once, when it is known where boot files are.
    pub(crate) fn serve_at(&self, base: String) {
        // The second time it is the same.
        drop(self.base.set(base));
    }

    /// Where boot files are, once that is known.
    pub(crate) fn served_at(&self) -> String {
        self.base.get().cloned().unwrap_or_default()
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds(moment: Moment) -> u64 {
    u64::try_from(moment.0 / 1000).unwrap_or(0)
}

/// The address of `what` until `expires`; none when there is no such disk.
///
/// # Errors
/// When the database fails, or it is not known yet where boot files are.
pub(crate) async fn url(app: &App, what: &What, expires: Moment) -> anyhow::Result<Option<String>> {
    let base = app.disks.base.get().context("the boot listener is not up yet")?;
    let Some(subject) = subject(app, what).await? else { return Ok(None) };
    let pass = app.disks.key.issue(&subject, seconds(expires));
    Ok(Some(format!("{base}/disk/{pass}/{what}")))
}

/// What a pass is for: the disk of that name that is there now, not one that is made anew under it.
async fn subject(app: &App, what: &What) -> anyhow::Result<Option<String>> {
    let id = match what {
        What::Image { name, number } => {
            let version = app.db.version_named(name, Some(*number)).await?;
            version.map(|version| version.id.to_string())
        }
        What::Volume(name) => volume_of(app, name).await?.map(|id| id.to_string()),
        What::Snapshot { volume, name } => {
            let Some(volume) = volume_of(app, volume).await? else { return Ok(None) };
            let snapshots = app.db.snapshots().await?;
            let found = snapshots.into_iter().find(|row| row.volume == volume && row.name == *name);
            found.map(|row| row.id.to_string())
        }
    };
    Ok(id.map(|id| format!("{what} {id}")))
}

async fn volume_of(app: &App, name: &str) -> anyhow::Result<Option<VolumeId>> {
    let volumes = app.db.volumes().await?;
    Ok(volumes.into_iter().find(|row| row.name == name).map(|row| row.id))
}

/// The disk at the end of an address: `PASS/volume/…`.
pub(crate) async fn find(app: &App, path: &str) -> Option<Arc<dyn Disk>> {
    let (pass, text) = path.split_once('/')?;
    let what = What::parse(text)?;
    match check(app, pass, &what).await {
        Ok(Some(subject)) => find_kept(app, &what, &subject).await,
        Ok(None) => None,
        Err(error) => {
            tracing::error!(disk = text, error = format!("{error:#}"), "look for a disk");
            None
        }
    }
}

/// What the pass is for, when it is one for this disk.
async fn check(app: &App, pass: &str, what: &What) -> anyhow::Result<Option<String>> {
    let subject = subject(app, what).await?;
    let now = seconds(Moment::now());
    Ok(subject.filter(|subject| app.disks.key.check(pass, subject, now)))
}

async fn find_kept(app: &App, what: &What, subject: &str) -> Option<Arc<dyn Disk>> {
    let used = app.disks.kept().get_mut(subject).map(|kept| {
        kept.used = Instant::now();
        Arc::clone(&kept.disk)
    });
    if let Some(disk) = used {
        return Some(Arc::new(Readable(disk)));
    }
    match open(app, what).await {
        Ok(Some(disk)) => {
            // A volume is open anyway, and in use as long as it is kept.
            if !matches!(what, What::Volume(_)) {
                keep(app, subject, &disk);
            }
            Some(Arc::new(Readable(disk)))
        }
        Ok(None) => None,
        Err(error) => {
            tracing::error!(disk = %what, error = format!("{error:#}"), "open a disk for a loader");
            None
        }
    }
}

async fn open(app: &App, what: &What) -> anyhow::Result<Option<Arc<dyn Export>>> {
    let export = match what {
        What::Volume(name) => name.clone(),
        What::Snapshot { volume, name } => format!("{volume}@{name}"),
        What::Image { name, number } => return open_image(app, name, *number).await,
    };
    let served = Served(app.clone());
    volumes::blocking(move || Ok(served.find(&export, Visitor::Local))).await
}

async fn open_image(app: &App, name: &str, number: u32) -> anyhow::Result<Option<Arc<dyn Export>>> {
    let version = app.db.version_named(name, Some(number)).await.context("look for an image")?;
    let Some(version) = version else { return Ok(None) };
    let blocks = blocks_of(version.size).context("measure an image")?;
    let base = volumes::base(app, &version, blocks).await?;
    Ok(Some(Arc::new(base.into_snapshot(volumes::segment_reader(app)))))
}

/// Keeps a disk until nobody has read it for a while.
fn keep(app: &App, subject: &str, disk: &Arc<dyn Export>) {
    {
        let mut kept = app.disks.kept();
        let is_new = !kept.contains_key(subject);
        if !is_new || kept.len() >= MAX_KEPT {
            return;
        }
        let entry = Kept { used: Instant::now(), disk: Arc::clone(disk) };
        kept.insert(subject.to_owned(), entry);
    }
    let (worker, subject) = (app.clone(), subject.to_owned());
    app.tasks.spawn(async move {
        loop {
            let idle = worker.disks.kept().get(&subject).map(|kept| kept.used.elapsed());
            let Some(left) = idle.and_then(|idle| KEPT.checked_sub(idle)) else { break };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = worker.stop.cancelled() => break,
            }
        }
        worker.disks.kept().remove(&subject);
    });
}

/// An export, to be read only.
struct Readable(Arc<dyn Export>);

impl fmt::Debug for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Readable({} bytes)", self.0.size())
    }
}

impl Disk for Readable {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, into).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_address_is_read_back_from_it() {
        let volume = || "desk1".to_owned();
        for what in [
            What::Volume(volume()),
            What::Snapshot { volume: volume(), name: "clean".to_owned() },
            What::Image { name: "debian".to_owned(), number: 3 },
        ] {
            assert_eq!(What::parse(&what.to_string()), Some(what));
        }
        for text in ["", "volume", "volume/a/b/c", "image/debian", "image/debian/x", "file/x"] {
            assert_eq!(What::parse(text), None, "{text}");
        }
    }
}
