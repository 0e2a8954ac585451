//! When clients are there, and how they come and go.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use cairn_core::availability::HourOfWeek;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use crate::{app::App, moment::Moment, presence};

/// Days that are told of.
const DAYS: i64 = 14;
const DAY: i64 = 24 * 60 * 60 * 1000;

/// When clients are there, and how they come and go.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Availability {
    /// Of each hour of the week, Monday 00:00 UTC first: how many percent of the clients are there; empty before any was looked
    /// for.
    pub hours: Vec<u8>,
    /// The last two weeks; the last one is today.
    pub days: Vec<Day>,
}

/// How the fleet changed on a day.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Day {
    /// UTC.
    #[schema(example = "2026-11-18")]
    pub date: String,
    /// Times that a client came, or went: was switched on or off, or lost its network. Once a minute it is looked.
    pub came: u64,
    pub went: u64,
    /// Clients that were approved, and that left, were revoked or forgotten.
    pub joined: u64,
    pub gone: u64,
}

/// Show when clients are there, and how they come and go
#[utoipa::path(get, path = "/api/v1/availability", tag = "agents", responses((status = 200, body = Availability)))]
pub(crate) async fn show(State(app): State<App>) -> Result<Json<Availability>, ApiError> {
    Ok(Json(look(&app).await?))
}

pub(crate) async fn look(app: &App) -> Result<Availability, ApiError> {
    Ok(Availability { hours: hours(app).await?, days: days(app).await? })
}

async fn hours(app: &App) -> Result<Vec<u8>, ApiError> {
    let members = app.db.approved_agents().await?;
    let weeks = app.db.weeks().await?;
    let weeks: Vec<_> = members.iter().filter_map(|agent| weeks.get(&agent.id)).collect();
    if weeks.is_empty() {
        return Ok(Vec::new());
    }
    let hours = (0..).map_while(HourOfWeek::new);
    #[expect(clippy::cast_precision_loss, reason = "a count of clients")]
    let share =
        |hour| weeks.iter().map(|week| week.estimate(hour)).sum::<f64>() / weeks.len() as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let percent = hours.map(|hour| (share(hour) * 100.0).round().clamp(0.0, 100.0) as u8);
    Ok(percent.collect())
}

async fn days(app: &App) -> Result<Vec<Day>, ApiError> {
    let today = presence::day(Moment::now());
    let first = today - DAYS + 1;
    let known: BTreeMap<_, _> = app.db.churn_since(first).await?.into_iter().collect();
    let day = |day: i64| {
        let of = known.get(&day).copied().unwrap_or_default();
        let date = Moment(day.saturating_mul(DAY)).to_text();
        let date = date.split('T').next().unwrap_or_default().to_owned();
        Day { date, came: of.came, went: of.went, joined: of.joined, gone: of.gone }
    };
    Ok((first..=today).map(day).collect())
}
