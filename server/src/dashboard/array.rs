//! Fills the page of the array.

use axum::{Form, response::Response};
use cairn_array::size;
use cairn_web::{
    array::{Array, Device, LastScrub, Running, Scrub, Snapshot, Volume, VolumeState},
    shell::Place,
    text::{Bytes, Percent, Span},
};
use serde::Deserialize;

use super::{ago, answer, visit::Visit};
use crate::{
    api::{
        self,
        error::ApiError,
        extract::{self, Body},
        snapshot::SnapshotRequest,
        volume::{Condition, FlushDurability, VolumeRequest},
    },
    app::App,
    db::{
        job::{JobProgress, JobState, Kind},
        volume::VolumeLayout,
    },
    moment::Moment,
    scrub,
};

/// Jobs that are looked at.
const JOBS: u32 = 200;

pub(super) async fn view(app: &App) -> Result<Array, ApiError> {
    let now = Moment::now();
    let (devices, problem) = match app.store.space().await {
        Ok(spaces) => {
            let device = |space: cairn_array::store::DeviceSpace| Device {
                name: space.device,
                free: space.free.map(|free| Bytes(free.0)),
            };
            (spaces.into_iter().map(device).collect(), None)
        }
        Err(error) => (Vec::new(), Some(format!("{:#}", anyhow::Error::new(error)))),
    };
    let mut volumes = Vec::new();
    for volume in api::volume::all(app).await? {
        volumes.push(fill(app, volume, now).await?);
    }
    let evening = running(app, Kind::Rebalance).await?;
    Ok(Array { devices, problem, scrub: scrubbed(app, now).await?, evening, volumes })
}

/// What a new volume may begin as, newest versions first.
pub(super) async fn images(app: &App) -> Result<Vec<String>, ApiError> {
    let images = api::image::all(app).await?;
    let labels = images.iter().flat_map(|image| {
        let versions = image.versions.iter().rev();
        versions.map(|version| format!("{}@{}", image.name, version.number))
    });
    Ok(labels.collect())
}

/// How far the job of this kind is that runs, or is about to.
async fn running(app: &App, kind: Kind) -> Result<Option<Running>, ApiError> {
    let jobs = app.db.jobs(JOBS).await?;
    let job = jobs
        .into_iter()
        .find(|job| job.kind == kind && matches!(job.state, JobState::Queued | JobState::Running));
    let far = |progress: JobProgress| Running {
        share: Percent::of(progress.done, progress.total),
        left: progress.seconds_left.map(|seconds| Span { seconds }),
    };
    Ok(job.map(|job| job.progress.map_or_else(Running::default, far)))
}

async fn scrubbed(app: &App, now: Moment) -> Result<Scrub, ApiError> {
    let running = running(app, Kind::Scrub).await?;
    let last = scrub::last(app).await?.map(|last| LastScrub {
        ended: ago(&Moment(last.ended).to_text(), now),
        checked: last.checked,
        damaged: last.damaged,
        repaired: last.repaired,
    });
    Ok(Scrub { running, last })
}

async fn fill(app: &App, volume: api::volume::Volume, now: Moment) -> Result<Volume, ApiError> {
    let snapshots = api::snapshot::of_volume(app, &volume.name).await?;
    let id = api::volume::row(app, &volume.name).await?.id;
    let machine = app.db.machine_of_volume(id).await?;
    let placed = volume.scatter.as_ref().map(|scatter| match scatter.complete {
        true => Percent::ALL,
        false => Percent::of(scatter.held, scatter.wanted.max(scatter.held + 1)),
    });
    Ok(Volume {
        size: Bytes(volume.size),
        stored: Bytes(volume.stored),
        origin: volume.origin,
        layout: volume.layout.word().to_owned(),
        tail_holders: volume.tail_holders,
        redundancy: volume.redundancy,
        placed,
        state: match volume.state {
            Condition::Well => VolumeState::Well,
            Condition::StoreFull | Condition::StoreFails => VolumeState::Blocked,
            Condition::Faulty => VolumeState::Faulty,
            Condition::Unavailable => VolumeState::Unavailable,
            Condition::Changing => VolumeState::Changing,
        },
        reason: volume.reason,
        connections: volume.connections,
        machine: machine.map(|machine| machine.name.unwrap_or_else(|| machine.id.to_string())),
        address: format!("nbd://127.0.0.1:{}/{}", app.nbd.port(), volume.name),
        snapshots: snapshots
            .into_iter()
            .map(|snapshot| Snapshot {
                name: snapshot.name,
                created: ago(&snapshot.created, now),
                clones: snapshot.clones,
            })
            .collect(),
        name: volume.name,
    })
}

#[derive(Deserialize)]
pub(super) struct VolumeForm {
    name: String,
    image: String,
    size: String,
    layout: VolumeLayout,
    durability: FlushDurability,
}

pub(super) async fn create(
    visit: Visit,
    Form(form): Form<VolumeForm>,
) -> Result<Response, ApiError> {
    let size = match form.size.trim() {
        "" => Ok(None),
        text => size::parse(text).map(|size| Some(size.0)),
    };
    let done = match size {
        Err(why) => Err(ApiError::bad_request("bad_size", why.to_string())),
        Ok(size) => {
            let image = (!form.image.is_empty()).then_some(form.image);
            let VolumeForm { name, layout, durability, .. } = form;
            let request = VolumeRequest { name, size, image, snapshot: None, layout, durability };
            api::volume::create(visit.state(), Body(request)).await.map(drop)
        }
    };
    answer(&visit, Place::Array, done).await
}

pub(super) async fn remove(
    visit: Visit,
    volume: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::volume::remove(visit.state(), volume).await;
    answer(&visit, Place::Array, done).await
}

pub(super) async fn take(
    visit: Visit,
    volume: extract::Place<String>,
    Form(request): Form<SnapshotRequest>,
) -> Result<Response, ApiError> {
    let done = api::snapshot::take(visit.state(), volume, Body(request)).await;
    answer(&visit, Place::Array, done).await
}

pub(super) async fn forget(
    visit: Visit,
    snapshot: extract::Place<(String, String)>,
) -> Result<Response, ApiError> {
    let done = api::snapshot::remove(visit.state(), snapshot).await;
    answer(&visit, Place::Array, done).await
}

pub(super) async fn begin_scrub(visit: Visit) -> Result<Response, ApiError> {
    let done = api::scrub::begin(visit.state()).await;
    answer(&visit, Place::Array, done).await
}

pub(super) async fn begin_rebalance(visit: Visit) -> Result<Response, ApiError> {
    let done = api::rebalance::begin(visit.state()).await;
    answer(&visit, Place::Array, done).await
}
