//! A version's plain bytes as a stream: what an installer would write to a blank disk.

use std::collections::HashMap;

use anyhow::Context as _;
use axum::body::Body;
use bytes::Bytes;
use cairn_array::{
    frame::{FrameReader, OpenSegment},
    map_reader::pages_of,
};
use cairn_core::{
    id::VersionId,
    map::{Extent, MapPage, Origin, PAGE_BLOCKS},
    units::{BLOCK_BYTES, BlockIndex},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Opened, opened};
use crate::app::App;

/// Pages ahead of the reader.
const AHEAD: usize = 2;
/// Segments kept open: deduplicated blocks are often near each other.
const KEPT_SEGMENTS: usize = 16;

/// The plain bytes of a version, free space as zeros.
///
/// # Errors
/// When the version cannot be opened. A failure later breaks the stream off.
pub async fn export(app: &App, version: VersionId) -> anyhow::Result<Body> {
    let row = app.db.version(version).await?.context("find the version")?;
    let opened = opened(app, &row).await?;
    let (sender, receiver) = mpsc::channel::<anyhow::Result<Bytes>>(AHEAD);
    let worker = app.clone();
    app.tasks.spawn(async move {
        let result =
            Exporter { app: worker, opened, sender: sender.clone(), next: 0, kept: HashMap::new() }
                .run()
                .await;
        if let Err(error) = result
            && sender.send(Err(error)).await.is_err()
        {
            tracing::debug!("an export's reader went away");
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(receiver)))
}

/// The stream's reader went away.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the reader of the export went away")]
struct ReaderGone;

struct Exporter {
    app: App,
    opened: Opened,
    sender: mpsc::Sender<anyhow::Result<Bytes>>,
    /// The next byte to send.
    next: u64,
    kept: HashMap<u32, Bytes>,
}

impl Exporter {
    async fn run(mut self) -> anyhow::Result<()> {
        let size = self.opened.public.size.0;
        for number in 0..self.opened.public.map.len() {
            for page in self.pages(number).await? {
                self.zeros_until(page.first.byte_offset()).await?;
                let mut plain = vec![0; BLOCK_BYTES * usize::try_from(PAGE_BLOCKS)?];
                for extent in &page.extents {
                    self.fill(&mut plain, &page, extent).await?;
                }
                plain.truncate(usize::try_from((size - self.next).min(plain.len() as u64))?);
                self.send(plain.into()).await?;
            }
        }
        self.zeros_until(size).await
    }

    async fn pages(&self, number: usize) -> anyhow::Result<Vec<MapPage>> {
        let entry = self.opened.public.map.get(number).context("find the map segment")?;
        let key = self.opened.secret.map_keys.get(number).context("find the map segment's key")?;
        let bytes = self.app.store.get_segment(entry.id).await.context("read a map segment")?;
        Ok(pages_of(&bytes, &key.key, self.opened.public.data.len())?)
    }

    /// Copies one extent's blocks into its page.
    async fn fill(
        &mut self,
        plain: &mut [u8],
        page: &MapPage,
        extent: &Extent,
    ) -> anyhow::Result<()> {
        let Origin::Segment { segment, frame, block } = extent.origin else { return Ok(()) };
        let bytes = self.segment(segment.0).await?;
        let key = self
            .opened
            .secret
            .data_keys
            .get(segment.0 as usize)
            .context("find the segment's key")?;
        let opened = OpenSegment::new(&bytes, key)?;
        let mut frames = FrameReader::new()?;
        let frame = frames.read(&opened, frame)?;
        let from = usize::from(block) * BLOCK_BYTES;
        let length = usize::from(extent.blocks) * BLOCK_BYTES;
        let to = usize::try_from(BlockIndex(extent.first.0 - page.first.0).byte_offset())?;
        let source = frame.get(from..from + length).context("find the blocks in their frame")?;
        plain
            .get_mut(to..to + length)
            .context("find the blocks in their page")?
            .copy_from_slice(source);
        Ok(())
    }

    async fn segment(&mut self, index: u32) -> anyhow::Result<Bytes> {
        if let Some(bytes) = self.kept.get(&index) {
            return Ok(bytes.clone());
        }
        let entry = self.opened.public.data.get(index as usize).context("find the segment")?;
        let bytes = self.app.store.get_segment(entry.id).await.context("read a segment")?;
        if self.kept.len() >= KEPT_SEGMENTS {
            self.kept.clear();
        }
        self.kept.insert(index, bytes.clone());
        Ok(bytes)
    }

    async fn zeros_until(&mut self, end: u64) -> anyhow::Result<()> {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        while self.next < end {
            let count = usize::try_from((end - self.next).min(ZEROS.len() as u64))?;
            self.send(Bytes::from_static(&ZEROS[..count])).await?;
        }
        Ok(())
    }

    async fn send(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        self.next += bytes.len() as u64;
        self.sender.send(Ok(bytes)).await.map_err(|_| ReaderGone.into())
    }
}
