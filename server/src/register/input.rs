//! From an upload's body to blocks, by the declared format.

use std::{
    fs::File,
    io::{self, BufRead},
};

use anyhow::Context as _;
use cairn_array::register::{Input, MAX_IMAGE_BYTES, RawSource, SourceError, SparseSource};
use cairn_core::units::ByteCount;
use futures::TryStreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{Content, RegisterError, Upload, qcow2::Qcow2Source, snapshot::SnapshotSource};
use crate::{app::App, db::image::ImageFormat, volumes::snapshots::OpenSnapshot};

/// An upload that can be opened on the thread that will read it.
pub(super) struct Prepared {
    bytes: Origin,
    format: ImageFormat,
    size: Option<ByteCount>,
    any_content: bool,
}

enum Origin {
    Body(Box<dyn BufRead + Send>),
    /// A nameless file that holds the whole upload.
    Spool(File),
    Snapshot(OpenSnapshot),
}

/// Makes an upload readable. Qcow2 is not a stream: it is spooled first.
pub(super) async fn prepare(app: &App, upload: Upload) -> Result<Prepared, RegisterError> {
    let (format, size, any_content) = (upload.format, upload.size, upload.any_content);
    let body = match upload.content {
        Content::Body(body) => body,
        Content::Snapshot(snapshot) => {
            let bytes = Origin::Snapshot(snapshot);
            return Ok(Prepared { bytes, format, size, any_content });
        }
    };
    let stream = body.into_data_stream().map_err(io::Error::other);
    let mut reader = StreamReader::new(stream);
    let bytes = if format == ImageFormat::Qcow2 {
        let file = tempfile::tempfile_in(&app.data_dir).context("make a spool file")?;
        let mut spool = tokio::fs::File::from_std(file);
        spool_body(&mut reader, &mut spool).await?;
        Origin::Spool(spool.into_std().await)
    } else {
        Origin::Body(Box::new(SyncIoBridge::new(reader)))
    };
    Ok(Prepared { bytes, format, size, any_content })
}

async fn spool_body(
    reader: &mut (impl tokio::io::AsyncBufRead + Unpin),
    spool: &mut tokio::fs::File,
) -> Result<(), RegisterError> {
    use tokio::io::AsyncBufReadExt as _;
    let mut length = 0;
    loop {
        let chunk = reader.fill_buf().await.map_err(SourceError::Read)?;
        let count = chunk.len();
        if count == 0 {
            break;
        }
        length += count as u64;
        if length > MAX_IMAGE_BYTES {
            return Err(SourceError::TooLarge { limit: ByteCount(MAX_IMAGE_BYTES) }.into());
        }
        spool.write_all(chunk).await.context("write the spool file: is the disk full?")?;
        reader.consume(count);
    }
    spool.flush().await.context("write the spool file: is the disk full?")?;
    Ok(())
}

impl Prepared {
    /// Opens the source. Blocks: to be called on the thread that reads it.
    pub(super) fn open(self) -> anyhow::Result<Input> {
        let source: Box<dyn cairn_array::register::BlockSource> = match (self.bytes, self.format) {
            (Origin::Snapshot(snapshot), _) => Box::new(SnapshotSource::open(snapshot)?),
            (Origin::Spool(file), _) => Box::new(Qcow2Source::open(file)?),
            (Origin::Body(body), ImageFormat::Sparse) => Box::new(SparseSource::open(body)?),
            (Origin::Body(body), ImageFormat::RawZst) => {
                let plain = zstd::stream::read::Decoder::with_buffer(body)
                    .context("make a zstd decoder")?;
                Box::new(RawSource::new(plain, self.size))
            }
            (Origin::Body(body), ImageFormat::Raw | ImageFormat::Qcow2) => {
                Box::new(RawSource::new(body, self.size))
            }
        };
        Ok(Input { source, any_content: self.any_content })
    }
}
