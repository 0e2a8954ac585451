//! Makes a backup of a server that runs.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use anyhow::Context as _;
use axum::body::Body;
use bytes::Bytes;
use cairn_array::{
    store::{BlobName, StoreError},
    wrap::sealing,
};
use tempfile::NamedTempFile;
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{BLOBS, DATABASE, FORMAT, HEADER, Header, SECRETS};
use crate::{
    app::App,
    db::{DatabaseAddress, Db},
    moment::Moment,
    site::Secrets,
};

/// What the copy of the database is called while a backup is made.
const COPY: &str = "backup-";
const PIECE: usize = 256 << 10;
/// Pieces ahead of the reader.
const AHEAD: usize = 4;

/// A backup, as it is made.
///
/// # Errors
/// When the database cannot be copied. A failure later breaks the stream off.
pub(crate) async fn make(app: &App) -> anyhow::Result<Body> {
    let copy = copy_database(app).await.context("copy the database")?;
    let names = app.store.blobs().await.context("list blobs")?;
    let (sender, receiver) = mpsc::channel::<anyhow::Result<Bytes>>(AHEAD);
    let (worker, runtime) = (app.clone(), Handle::current());
    app.tasks.spawn_blocking(move || {
        let out = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
        if let Err(error) = write(&worker, &runtime, copy.as_file(), &names, out) {
            tracing::warn!(error = format!("{error:#}"), "a backup ended early");
            if sender.blocking_send(Err(error)).is_err() {
                tracing::debug!("a backup's reader went away");
            }
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(receiver)))
}

/// Removes what a killed server was copying.
///
/// # Errors
/// When the folder cannot be read, or a file in it not removed.
pub(crate) fn tidy(data_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(data_dir.join("run"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(COPY) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

async fn copy_database(app: &App) -> anyhow::Result<NamedTempFile> {
    let copy = tempfile::Builder::new().prefix(COPY).tempfile_in(app.data_dir.join("run"))?;
    let target = Db::open(&DatabaseAddress::Sqlite(copy.path().to_owned())).await?;
    app.db.copy_to(&target).await?;
    target.close().await;
    Ok(copy)
}

fn write(
    app: &App,
    runtime: &Handle,
    database: &File,
    blobs: &[BlobName],
    out: impl Write,
) -> anyhow::Result<()> {
    let sealed = sealing(out, app.site.recovery())?;
    let packed = zstd::Encoder::new(sealed, 0).context("begin a zstd frame")?;
    let mut archive = tar::Builder::new(packed);
    let header = Header {
        format: FORMAT,
        site: app.site.fingerprint().to_string(),
        made: Moment::now().0,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let header = serde_json::to_vec(&header).context("write the header")?;
    append(&mut archive, HEADER, header.len() as u64, header.as_slice())?;
    for (name, text) in Secrets::read(&app.data_dir)?.files() {
        append(&mut archive, &format!("{SECRETS}{name}"), text.len() as u64, text.as_bytes())?;
    }
    let length = database.metadata().context("measure the database")?.len();
    append(&mut archive, DATABASE, length, database)?;
    for name in blobs {
        match runtime.block_on(app.store.get_blob(name)) {
            Ok(blob) => {
                let length = blob.len() as u64;
                append(&mut archive, &format!("{BLOBS}{}", name.as_str()), length, &*blob)?;
            }
            // What it belongs to was deleted just now.
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error).context("read a blob"),
        }
    }
    let packed = archive.into_inner().context("end the archive")?;
    let sealed = packed.finish().context("end the zstd frame")?;
    let mut out = sealed.finish().context("end the age file")?;
    out.flush().context("send the last piece")
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    length: u64,
    content: impl Read,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(length);
    header.set_mode(0o600);
    let at = Moment::now().0 / 1000;
    header.set_mtime(u64::try_from(at).unwrap_or(0));
    archive.append_data(&mut header, name, content).with_context(|| format!("write {name}"))
}

/// Sends what is written.
struct Pieces(mpsc::Sender<anyhow::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::ErrorKind::BrokenPipe;
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
