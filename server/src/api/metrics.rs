//! `/metrics`: the fleet in numbers, in the OpenMetrics text format, for Prometheus and what reads the same.
//!
//! Everything is read at the moment it is asked for; nothing is kept for it.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    error::{ApiError, Problem},
    status::{self, Status},
    volume::{self, Condition, Volume},
};
use crate::{app::App, scrub};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What tells the lines of one metric apart.
type Labels = Vec<(&'static str, String)>;

struct Page(Registry);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Gauge::<i64>::default();
        gauge.set(signed(value));
        self.0.register(name, help, gauge);
    }

    fn gauges(&mut self, name: &str, help: &str, lines: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in lines {
            family.get_or_create(&labels).set(signed(value));
        }
        self.0.register(name, help, family);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }

    fn counters(&mut self, name: &str, help: &str, lines: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in lines {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

/// The fleet in numbers, for Prometheus
///
/// OpenMetrics text. It takes an API token, as everything does that tells of the fleet.
#[utoipa::path(get, path = "/metrics", tag = "status",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"),
    (status = 401, body = Problem)))]
pub(crate) async fn show(State(app): State<App>) -> Result<Response, ApiError> {
    let mut page = Page(Registry::with_prefix("cairn"));
    let status = status::summary(&app).await?;
    fleet(&mut page, &status);
    images(&mut page, &status);
    boot(&mut page, &status);
    let mut volumes = Vec::new();
    for row in app.db.volumes().await? {
        volumes.push(volume::view(&app, row).await?);
    }
    of_volumes(&mut page, &volumes);
    let scrubbed = scrub::last(&app).await?.unwrap_or_default();
    page.gauge("scrub_passes", "Passes over the store that ended", scrubbed.passes);
    let ended = u64::try_from(scrubbed.ended / 1000).unwrap_or(0);
    page.gauge("scrub_ended_seconds", "When the last pass ended, since 1970; 0 for never", ended);
    let lost = scrubbed.damaged.saturating_sub(scrubbed.repaired);
    page.gauge("scrub_unrepaired_segments", "Damaged in the last pass and not mended", lost);
    let mut text = String::new();
    encode(&mut text, &page.0).map_err(anyhow::Error::from)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn fleet(page: &mut Page, status: &Status) {
    page.gauges("info", "This server", [(label("version", &*status.version), 1)]);
    let states = [
        ("pending", status.agents.pending),
        ("approved", status.agents.approved),
        ("online", status.agents.online),
    ];
    let states = states.map(|(state, count)| (label("state", state), count));
    page.gauges("agents", "Clients; online are those approved ones heard within a minute", states);
    page.gauge("lent_bytes", "What approved clients lend", status.lent);
    page.gauge("used_bytes", "What segments take of it", status.used);
    page.gauge("stored_bytes", "Sealed data segments, before parity", status.stored);
    page.gauge("machines_waiting", "Machines that wait to be approved", status.machines_waiting);
    let installs = [("running", status.installs_running), ("scheduled", status.installs_scheduled)];
    let installs = installs.map(|(state, count)| (label("state", state), count));
    page.gauges("installs", "Installs that are not over", installs);
    let jobs = [
        ("queued", status.jobs.queued),
        ("running", status.jobs.running),
        ("failed", status.jobs.failed),
    ];
    let jobs = jobs.map(|(state, count)| (label("state", state), count));
    page.gauges("jobs", "Work in the background", jobs);
    let registrations = status.registrations.len() as u64;
    page.gauge("registrations", "Images that are being registered", registrations);
    page.gauge("directory_number", "Of the newest directory", status.directory);
    page.gauge(
        "bundle_bytes",
        "What the site goes on with without this server",
        status.bundle.bytes,
    );
    page.gauge("bundle_clients", "Clients that hold all of it", status.bundle.clients);
    let payload = u64::from(status.boot_kernel.is_some());
    page.gauge("boot_payload", "Whether there is a kernel for blank machines", payload);
}

fn images(page: &mut Page, status: &Status) {
    let of = |value: fn(&super::image::Image) -> u64| {
        status.images.iter().map(move |image| (label("image", &*image.name), value(image)))
    };
    page.gauges("image_versions", "Versions of an image", of(|image| image.versions.len() as u64));
    let complete = of(|image| image.scatter.complete.into());
    page.gauges(
        "image_scattered",
        "Whether clients hold all that they are to hold of it",
        complete,
    );
    let wanted = of(|image| image.scatter.wanted_bytes);
    page.gauges("image_wanted_bytes", "What clients are to hold of it", wanted);
    let held = of(|image| image.scatter.held_bytes);
    page.gauges("image_held_bytes", "What they hold of that", held);
}

fn of_volumes(page: &mut Page, volumes: &[Volume]) {
    let of = |value: fn(&Volume) -> u64| {
        volumes.iter().map(move |volume| (label("volume", &*volume.name), value(volume)))
    };
    page.gauges("volume_size_bytes", "A volume's size", of(|volume| volume.size));
    page.gauges("volume_live_bytes", "Its blocks that are not zeros", of(|volume| volume.live));
    page.gauges(
        "volume_stored_bytes",
        "What it has sealed in the store",
        of(|volume| volume.stored),
    );
    page.gauges("volume_journal_bytes", "What waits to be sealed", of(|volume| volume.journal));
    page.gauges("volume_connections", "By NBD", of(|volume| volume.connections));
    let well =
        of(|volume| u64::from(matches!(volume.state, Condition::Well | Condition::Changing)));
    page.gauges("volume_well", "0 when its state says what is wrong", well);
    let scattered = volumes.iter().filter_map(|volume| {
        let complete = volume.scatter.as_ref()?.complete;
        Some((label("volume", &*volume.name), complete.into()))
    });
    page.gauges("volume_scattered", "Whether clients hold it up to its last checkpoint", scattered);
}

/// What the boot services counted since the start.
fn boot(page: &mut Page, status: &Status) {
    for (name, value) in status.boot.as_object().into_iter().flatten() {
        let name = format!("boot_{}", name.trim_start_matches("boot_"));
        if let Some(count) = value.as_u64() {
            page.counter(&name, "Counted by the boot services since the start", count);
        } else if let Some(reasons) = value.as_object() {
            let lines = reasons
                .iter()
                .filter_map(|(reason, count)| Some((label("reason", &**reason), count.as_u64()?)));
            page.counters(&name, "By reason", lines);
        }
    }
}
