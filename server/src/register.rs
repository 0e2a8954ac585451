//! Registering: an upload becomes a version. The registrations that are under way, and how far they are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use axum::body::Body;
use bytes::Bytes;
use cairn_array::{
    peer::SegmentSource,
    register::{Counters, SourceError},
};
use cairn_core::{
    id::{SegmentId, VersionId},
    units::ByteCount,
};

use crate::{
    api::image::Registration,
    app::App,
    db::image::{BeginError, ImageFormat, NewVersion},
};

/// An image on its way in.
#[derive(Debug)]
pub struct Upload {
    pub name: String,
    pub format: ImageFormat,
    /// The size of the disk image, when the sender declared it.
    pub size: Option<ByteCount>,
    /// Take bytes that look like no disk image at all.
    pub any_content: bool,
    pub body: Body,
}

/// What came of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the version of this number now.
    Added { number: u32 },
    /// The version of this number has the same content; nothing was added.
    Identical { number: u32 },
}

/// Why an upload did not become a version. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The bytes are the sender's to mend.
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("registering is not built yet")]
    NotBuilt,
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Registers an upload.
///
/// # Errors
/// See [`RegisterError`].
#[expect(clippy::unused_async, reason = "it will wait for the body")]
pub async fn run(_app: &App, _upload: Upload) -> Result<Outcome, RegisterError> {
    Err(RegisterError::NotBuilt)
}

/// Forgets registrations that were under way when the server stopped, and what they left in the store.
///
/// # Errors
/// When the store or the database fails.
pub async fn clear_away(app: &App) -> anyhow::Result<()> {
    for version in app.db.registrations_cut_short().await? {
        app.db.abandon_version(version).await?;
    }
    Ok(())
}

/// The signed manifest of a version.
///
/// # Errors
/// When the store cannot be read.
#[expect(clippy::unused_async, reason = "it will wait for the store")]
pub async fn manifest(_app: &App, _version: VersionId) -> anyhow::Result<Option<Bytes>> {
    Err(RegisterError::NotBuilt.into())
}

/// The plain bytes of a version as a stream.
///
/// # Errors
/// When the version cannot be opened.
#[expect(clippy::unused_async, reason = "it will wait for the store")]
pub async fn export(_app: &App, _version: VersionId) -> anyhow::Result<Body> {
    Err(RegisterError::NotBuilt.into())
}

/// The server's store as its peer service sees it.
#[derive(Clone, Debug)]
pub struct StoreSource(pub App);

impl SegmentSource for StoreSource {
    async fn segment(&self, _id: SegmentId) -> anyhow::Result<Option<Bytes>> {
        Err(RegisterError::NotBuilt.into())
    }
}

/// The registrations that are under way.
#[derive(Debug, Default)]
pub struct Registrations(Arc<Mutex<BTreeMap<VersionId, Live>>>);

#[derive(Debug)]
struct Live {
    name: String,
    number: u32,
    total: Option<ByteCount>,
    counters: Arc<Counters>,
    began: Instant,
}

/// Keeps a registration in the list until it is dropped.
#[derive(Debug)]
pub struct Listed {
    list: Arc<Mutex<BTreeMap<VersionId, Live>>>,
    version: VersionId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.version);
    }
}

impl Registrations {
    /// Lists a registration, with counters that the engine keeps up to date.
    pub fn list(
        &self,
        name: &str,
        new: NewVersion,
        total: Option<ByteCount>,
        counters: Arc<Counters>,
    ) -> Listed {
        let name = name.to_owned();
        let live = Live { name, number: new.number, total, counters, began: Instant::now() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(new.version, live);
        Listed { list: Arc::clone(&self.0), version: new.version }
    }

    /// How far each is.
    #[must_use]
    pub fn all(&self) -> Vec<Registration> {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.values().map(Live::view).collect()
    }
}

impl Live {
    fn view(&self) -> Registration {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let position = read(&self.counters.position);
        let seconds = self.began.elapsed().as_secs_f64();
        let pace = u128::from(position) * 1000 / self.began.elapsed().as_millis().max(1);
        let bytes_per_second = u64::try_from(pace).unwrap_or(u64::MAX);
        let left = self.total.map(|total| total.0.saturating_sub(position));
        Registration {
            name: self.name.clone(),
            number: self.number,
            position,
            total: self.total.map(|total| total.0),
            data: read(&self.counters.data),
            free: read(&self.counters.free),
            deduplicated: read(&self.counters.deduplicated),
            stored: read(&self.counters.stored),
            seconds,
            bytes_per_second,
            seconds_left: left.and_then(|left| left.checked_div(bytes_per_second)),
        }
    }
}
