//! What would be lost if the server and some clients were gone.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use cairn_core::{
    id::{AgentId, SegmentId, StripeSetId},
    loss::left,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::Params,
};
use crate::{
    app::App,
    scatter::{is_lost, present_map},
};

/// Who is gone.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Gone {
    /// Clients by id or name, with commas between them; the server is gone in any case.
    #[serde(default)]
    pub clients: String,
}

/// What would become of the site.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Losses {
    /// Clients that would be there.
    pub clients_left: u64,
    pub images: Vec<Loss>,
    /// Those that clients hold a part of; others are lost with the server.
    pub volumes: Vec<Loss>,
}

/// What would become of an image, or a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    pub name: String,
    /// All of it could be read from the clients that are left.
    pub readable: bool,
    /// Stripes that it consists of, and those of them that could not be read.
    pub stripes: u64,
    pub unreadable: u64,
}

/// Say what could be read without the server and without some clients
///
/// Nothing is tried: it follows from what clients said that they hold.
#[utoipa::path(get, path = "/api/v1/losses", tag = "agents", params(Gone),
    responses((status = 200, body = Losses), (status = 400, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Params(gone): Params<Gone>,
) -> Result<Json<Losses>, ApiError> {
    let names = gone.clients.split(',').map(str::trim).filter(|name| !name.is_empty());
    Ok(Json(foresee(&app, &names.collect::<Vec<_>>()).await?))
}

/// What would become of the site without these clients and the server.
pub(crate) async fn foresee(app: &App, gone: &[&str]) -> Result<Losses, ApiError> {
    let fleet = app.db.approved_agents().await?;
    let mut absent = BTreeSet::new();
    for name in gone {
        let meant = |id: AgentId, known: &str| known == *name || id.to_string() == *name;
        let found: Vec<_> = fleet
            .iter()
            .filter(|agent| meant(agent.id, &agent.name))
            .map(|agent| agent.id)
            .collect();
        if found.is_empty() {
            return Err(ApiError::bad_request(
                "agent_unknown",
                "no client has this id or name: `cairn-server agent list` shows them",
            ));
        }
        absent.extend(found);
    }
    let lost = fleet.iter().filter(|agent| is_lost(agent)).map(|agent| agent.id);
    absent.extend(lost.collect::<Vec<_>>());
    let there: BTreeSet<AgentId> =
        fleet.iter().map(|agent| agent.id).filter(|id| !absent.contains(id)).collect();
    let (mut images, mut volumes) = (Vec::new(), Vec::new());
    for image in app.db.images().await? {
        let found = loss(app, image.id.into(), image.name.clone(), &there).await?;
        // Without a map nothing of it left the server.
        let nothing = Loss { name: image.name, readable: false, stripes: 0, unreadable: 0 };
        images.push(found.unwrap_or(nothing));
    }
    for volume in app.db.volumes().await? {
        volumes.extend(loss(app, volume.id.into(), volume.name, &there).await?);
    }
    Ok(Losses { clients_left: there.len() as u64, images, volumes })
}

async fn loss(
    app: &App,
    set: StripeSetId,
    name: String,
    there: &BTreeSet<AgentId>,
) -> anyhow::Result<Option<Loss>> {
    let Some(map) = present_map(app, set).await? else { return Ok(None) };
    let held = app.db.holders_of_set(set).await?;
    let holds =
        |agent: AgentId, id: SegmentId| held.get(&id).is_some_and(|all| all.contains(&agent));
    let left = left(&map, holds, |agent| !there.contains(&agent));
    let (stripes, unreadable) = (left.stripes as u64, left.unreadable as u64);
    // Of a map without stripes nothing is with clients.
    Ok(Some(Loss { name, readable: stripes > 0 && unreadable == 0, stripes, unreadable }))
}
