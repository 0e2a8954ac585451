//! Reading an image's map, one map segment at a time.

use bytes::Bytes;
use cairn_core::{
    bytes::DecodeError,
    manifest::{Public, Secret, SegmentEntry},
    map::MapPage,
    seal::SealKey,
};

use crate::frame::{FrameError, FrameReader, OpenSegment};

/// A map segment that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("map segment is malformed")]
    Segment(#[source] DecodeError),
    #[error("map frame cannot be read")]
    Frame(#[from] FrameError),
    #[error("map page is malformed")]
    Page(#[source] DecodeError),
    #[error("map pages are out of order")]
    Order,
}

/// The pages in one map segment of an image with `segments` data segments.
///
/// # Errors
/// When the bytes are not what the manifest's signer stored.
pub fn pages_of(bytes: &[u8], key: &SealKey, segments: usize) -> Result<Vec<MapPage>, MapError> {
    let segment = OpenSegment::new(bytes, key).map_err(MapError::Segment)?;
    let mut reader = FrameReader::new().map_err(|_| MapError::Segment(DecodeError::Unsealable))?;
    let mut pages: Vec<MapPage> = Vec::new();
    for frame in segment.frames() {
        let page =
            MapPage::decode(reader.read(&segment, frame)?, segments).map_err(MapError::Page)?;
        if pages.last().is_some_and(|last| last.first >= page.first) {
            return Err(MapError::Order);
        }
        pages.push(page);
    }
    Ok(pages)
}

/// An opened version whose segments can be had.
#[derive(Clone, Copy)]
pub struct PriorVersion<'a> {
    pub public: &'a Public,
    pub secret: &'a Secret,
    /// Gets a segment's sealed bytes, checked against its id.
    pub fetch: &'a dyn Fn(&SegmentEntry) -> anyhow::Result<Bytes>,
}

impl std::fmt::Debug for PriorVersion<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PriorVersion({})", self.public.version)
    }
}

impl PriorVersion<'_> {
    /// Shows each page of the map, in ascending order.
    ///
    /// # Errors
    /// When a map segment cannot be had or read, or `show` fails.
    pub fn for_each_page(
        &self,
        mut show: impl FnMut(&MapPage) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for (entry, key) in self.public.map.iter().zip(&self.secret.map_keys) {
            let bytes = (self.fetch)(entry)?;
            for page in pages_of(&bytes, &key.key, self.public.data.len())? {
                show(&page)?;
            }
        }
        Ok(())
    }
}
