//! Registering: an upload becomes a version.
//!
//! ```text
//!   body or snapshot ─► input (raw, raw.zst, sparse; qcow2 by a spool file) ─► cairn_array::register ─► store
//!                                                                            │
//!                             segments durable ─► manifest durable ─► rows, in one transaction
//! ```
//!
//! Invariants: a version is listed only when its segments and its manifest are durable; whatever ends a registration
//! early, nothing of it is left, and after kill -9 the next start clears it away.

pub(crate) mod elsewhere;
mod export;
mod input;
mod live;
mod qcow2;
mod sink;
mod snapshot;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Context as _;
use axum::body::Body;
use bytes::Bytes;
use cairn_array::{
    map_reader::PriorVersion,
    peer::{Found, SegmentSource},
    random,
    register::{Counters, Registered, SourceError, register},
    store::{BlobName, Store, StoreError},
    tls::Member,
    wire::SegmentClass,
};
use cairn_core::{
    id::{SegmentId, VersionId},
    manifest::{Draft, Public, Secret, SegmentEntry},
    seal::SealKey,
    units::ByteCount,
};
use tokio_util::sync::CancellationToken;

pub use elsewhere::{ImageHost, Sources};
pub use export::export;
pub use live::{Listed, Registrations};

use crate::{
    app::App,
    bundle::segments_of,
    db::{
        image::{BeginError, ImageFormat, NewVersion, Registered as Row, VersionRow},
        segment::SegmentRow,
    },
    jobs::Kind,
    moment::Moment,
    volumes::snapshots::OpenSnapshot,
};
use sink::{Storing, StoringEnd};

/// An image on its way in.
#[derive(Debug)]
pub struct Upload {
    pub name: String,
    pub format: ImageFormat,
    /// The size of the disk image, when the sender declared it.
    pub size: Option<ByteCount>,
    /// Take bytes that look like no disk image at all.
    pub any_content: bool,
    pub content: Content,
}

/// Where an image's bytes come from.
#[derive(Debug)]
pub enum Content {
    Body(Body),
    /// A volume as it was.
    Snapshot(OpenSnapshot),
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
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Registers an upload.
///
/// # Errors
/// See [`RegisterError`].
pub async fn run(app: &App, upload: Upload) -> Result<Outcome, RegisterError> {
    let new = app.db.begin_version(&upload.name, upload.format, Moment::now()).await?;
    let counters = Arc::new(Counters::default());
    let _listed = app.registrations.list(&upload.name, new, upload.size, Arc::clone(&counters));
    let mut stored = Vec::new();
    let outcome = take(app, new, upload, &counters, &mut stored).await;
    let kept = matches!(outcome, Ok(Outcome::Added { .. }));
    if !kept {
        clear(app, new.version, &stored).await?;
    }
    outcome
}

async fn take(
    app: &App,
    new: NewVersion,
    upload: Upload,
    counters: &Arc<Counters>,
    stored: &mut Vec<SegmentId>,
) -> Result<Outcome, RegisterError> {
    let name = upload.name.clone();
    let prior = app.db.newest_version(&name).await.context("look for the version before")?;
    let prior = match prior {
        Some(prior) => Some(opened(app, &prior).await.context("open the version before")?),
        None => None,
    };
    let cancel = app.stop.child_token();
    let guard = cancel.clone().drop_guard();
    let done = convert(app, upload, prior, Arc::clone(counters), cancel, stored).await?;
    drop(guard);
    if let Some(number) = app
        .db
        .version_with_content(new.image, done.content)
        .await
        .context("look for equal content")?
    {
        return Ok(Outcome::Identical { number });
    }
    commit(app, &name, new, done, stored).await?;
    app.queue(Kind::Scatter { set: new.image.into() }).await.context("queue the scatter")?;
    Ok(Outcome::Added { number: new.number })
}

/// Runs the blocking pipeline on a thread of its own, with the store behind it.
async fn convert(
    app: &App,
    upload: Upload,
    prior: Option<Opened>,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    stored: &mut Vec<SegmentId>,
) -> Result<Registered, RegisterError> {
    let source = input::prepare(app, upload).await?;
    let (mut sink, storing) = Storing::start(Arc::clone(&app.store));
    let store = Arc::clone(&app.store);
    let runtime = tokio::runtime::Handle::current();
    let converted = tokio::task::spawn_blocking(move || {
        let input = source.open()?;
        let fetch = |entry: &SegmentEntry| {
            runtime
                .block_on(store.get_segment(entry.id))
                .with_context(|| format!("read segment {}", entry.id))
        };
        let prior = prior.as_ref().map(|opened| PriorVersion {
            public: &opened.public,
            secret: &opened.secret,
            fetch: &fetch,
        });
        let done = register(input, prior, &mut sink, &counters, &cancel);
        drop(sink);
        done
    })
    .await
    .context("wait for the registration's thread")?;
    let StoringEnd { segments, error } = storing.await.context("wait for the store")?;
    *stored = segments;
    if let Some(error) = error {
        return Err(RegisterError::Failed(anyhow::Error::from(error).context("store a segment")));
    }
    converted.map_err(|error| match error.downcast::<SourceError>() {
        Ok(source) => RegisterError::Source(source),
        Err(other) => RegisterError::Failed(other),
    })
}

/// Makes it a version: the manifest, then the rows.
async fn commit(
    app: &App,
    name: &str,
    new: NewVersion,
    done: Registered,
    stored: &[SegmentId],
) -> Result<(), RegisterError> {
    let content_key = SealKey(random::array()?);
    let wrapped_key = app.site.wrap_content_key(&content_key)?;
    let row = |entry: &SegmentEntry| SegmentRow {
        id: entry.id,
        bytes: entry.bytes,
        class: SegmentClass::Data,
    };
    let segments: Vec<_> = done.data.iter().chain(&done.map).map(row).collect();
    let all = segments.iter().map(|segment| u64::from(segment.bytes)).sum();
    let fresh: std::collections::HashSet<_> = stored.iter().collect();
    let added = segments.iter().filter(|s| fresh.contains(&s.id)).map(|s| u64::from(s.bytes)).sum();
    let registered_at =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (size, content) = (done.size, done.content);
    let draft = Draft {
        image: new.image,
        version: new.version,
        size,
        data: done.data,
        map: done.map,
        wrapped_key: wrapped_key.clone(),
        secret: Secret {
            name: name.to_owned(),
            number: new.number,
            registered_at,
            data_blocks: done.data_blocks,
            data_keys: done.data_keys,
            map_keys: done.map_keys,
        },
    };
    let manifest = draft.seal(&content_key, app.site.signer());
    keep_manifest(&app.store, new.version, manifest.into()).await?;
    app.store.flush().await.context("make the image durable")?;
    let row = Row {
        size,
        stored: ByteCount(all),
        added: ByteCount(added),
        content,
        content_key: &wrapped_key,
        segments: &segments,
    };
    app.db.finish_version(new, row).await.context("write down the version")?;
    Ok(())
}

/// Puts the signed manifest of a version into the store.
///
/// # Errors
/// When the store fails.
pub(crate) async fn keep_manifest(
    store: &Store,
    version: VersionId,
    signed: Bytes,
) -> anyhow::Result<()> {
    store.put_blob(&manifest_name(version)?, signed).await.context("store the manifest")
}

fn manifest_name(version: VersionId) -> anyhow::Result<BlobName> {
    format!("manifest-{version}").parse().context("name the manifest")
}

/// Takes back what a registration stored.
async fn clear(app: &App, version: VersionId, stored: &[SegmentId]) -> anyhow::Result<()> {
    for id in stored {
        app.store
            .delete_segment(*id)
            .await
            .context("delete a segment of a registration that failed")?;
    }
    app.store.delete_blob(&manifest_name(version)?).await.context("delete the manifest")?;
    app.db.abandon_version(version).await.context("forget the registration")
}

/// Clears away the rows that a kill left of registrations; false when there are none. Called at the start, before any
/// begins.
///
/// # Errors
/// When the store or the database fails.
pub async fn clear_away(app: &App) -> anyhow::Result<bool> {
    let cut_short = app.db.registrations_cut_short().await?;
    let any = !cut_short.is_empty();
    for version in cut_short {
        clear(app, version, &[]).await?;
        tracing::info!(%version, "a registration that was cut short is cleared away: add the image again");
    }
    Ok(any)
}

/// Deletes what a kill left in the store of registrations and of volumes, as it was before `begun`.
///
/// # Errors
/// When the store or the database fails.
pub(crate) async fn delete_leftovers(app: &App, begun: SystemTime) -> anyhow::Result<()> {
    // What nobody refers to is only known when every volume says what it refers to.
    let Some(of_volumes) = crate::volumes::segments(app) else { return Ok(()) };
    let mut known = app.db.all_segments().await?;
    known.extend(of_volumes);
    known.extend(segments_of(&app.db.bundles().await?).into_iter().map(|segment| segment.id));
    let deleted = app.store.delete_unreferenced(known, begun).await.context("delete leftovers")?;
    tracing::info!(
        segments = deleted.segments,
        bytes = deleted.bytes.0,
        "leftovers are deleted from the store"
    );
    Ok(())
}

/// The signed manifest of a version.
///
/// # Errors
/// When the store cannot be read.
pub async fn manifest(app: &App, version: VersionId) -> anyhow::Result<Option<Bytes>> {
    match app.store.get_blob(&manifest_name(version)?).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error).context("read the manifest"),
    }
}

/// Deletes the manifest of a version that is being taken apart.
///
/// # Errors
/// When the store fails.
pub(crate) async fn forget_manifest(app: &App, version: VersionId) -> anyhow::Result<()> {
    app.store.delete_blob(&manifest_name(version)?).await.context("delete the manifest")?;
    Ok(())
}

/// A version's manifest, opened.
pub(crate) async fn opened_parts(
    app: &App,
    version: &VersionRow,
) -> anyhow::Result<(Public, Secret)> {
    let Opened { public, secret } = opened(app, version).await?;
    Ok((public, secret))
}

/// A version with its secrets, as only the server may have it.
struct Opened {
    public: Public,
    secret: Secret,
}

async fn opened(app: &App, version: &VersionRow) -> anyhow::Result<Opened> {
    let signed = manifest(app, version.id).await?.context("find the manifest")?;
    let public = Public::open(&app.site.verifying_key(), &signed).context("read the manifest")?;
    let key = app.site.open_content_key(&version.content_key)?;
    let secret = public.open_secret(&key).context("open the manifest")?;
    Ok(Opened { public, secret })
}

/// The server's store as its peer service sees it.
#[derive(Clone, Debug)]
pub struct StoreSource(pub App);

impl SegmentSource for StoreSource {
    async fn segment(&self, id: SegmentId, asker: Member) -> anyhow::Result<Found> {
        if let Member::Target(install) = asker
            && !self.0.swarms.give(id, install, Instant::now())
        {
            return Ok(Found::Elsewhere);
        }
        match self.0.store.get_segment(id).await {
            Ok(bytes) => Ok(Found::Here(bytes)),
            Err(StoreError::NotFound { .. }) => {
                // What clients are to hold they may have lost: it is made again from the rest.
                let found = self.0.finder.elsewhere(id).await?;
                Ok(found.map_or(Found::NotHere, Found::Here))
            }
            Err(error) => Err(error).context("read a segment"),
        }
    }
}
