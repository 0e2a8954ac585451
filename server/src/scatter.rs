//! Brings what the fleet holds of an image to what the planner wants.

use cairn_core::id::{ImageId, SegmentId, VersionId};

use crate::{app::App, jobs::JobHandle};

/// Scattering is not built yet.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("scattering is not built yet")]
pub struct NotBuilt;

/// Makes stripes, parity and assignments of an image what the planner wants for the present fleet.
///
/// # Errors
/// When the store or the database fails.
#[expect(clippy::unused_async, reason = "it will wait for the store")]
pub async fn converge(_app: &App, _image: ImageId, _job: &JobHandle) -> anyhow::Result<()> {
    Err(NotBuilt.into())
}

/// Deletes the manifest of a version that is being taken apart and the bytes of segments that only it used.
///
/// # Errors
/// When the store fails.
#[expect(clippy::unused_async, reason = "it will wait for the store")]
pub async fn forget_bytes(
    _app: &App,
    _version: VersionId,
    _segments: &[SegmentId],
) -> anyhow::Result<()> {
    Err(NotBuilt.into())
}
