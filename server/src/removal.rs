//! Takes a version apart: first the fleet lets go of its segments, then the store, then the database.
//!
//! In that order because a stripe's parity must be made without the dead segments before they go, and because a crash in
//! between must leave rows that say what is still to be done.

use cairn_core::id::VersionId;

use crate::{
    app::App,
    jobs::{JobHandle, Kind},
};

/// Removes a version that [`crate::db::Db::begin_removal`] marked. Doing it again does no harm.
pub(crate) async fn remove(app: &App, version: VersionId, job: &JobHandle) -> anyhow::Result<()> {
    let Some(image) = app.db.image_of_removal(version).await? else { return Ok(()) };
    crate::scatter::converge(app, image.into(), job).await?;
    let unused = app.db.unused_data_segments(image).await?;
    crate::scatter::forget_bytes(app, version, &unused).await?;
    app.db.forget_version(version).await?;
    Ok(app.queue(Kind::Bundle).await?)
}
