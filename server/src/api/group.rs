//! Groups of machines: what is deployed to together, and what those machines are to run.

use axum::{Extension, Json, extract::State, http::StatusCode};
use cairn_core::id::{ImageId, MachineId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    auth::Actor,
    error::{ApiError, Problem},
    extract::{Body, Params, Place},
    image, machine,
    part::{Listed, Part, Placed},
    scope,
};
use crate::{
    app::App,
    db::group::{GroupError, GroupRow},
    events::Event,
    moment::Moment,
    targets::approval,
};

/// The most groups: more are not looked through by people.
const MOST: usize = 1000;
/// The most machines that are put into a group at once.
const MOST_AT_ONCE: usize = 1000;

/// A group of machines.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Group {
    pub name: String,
    /// The image that its machines are to run.
    pub image: Option<String>,
    /// The version that the image's name stands for now, `NAME@N`.
    pub wanted: Option<String>,
    /// How many machines are in it.
    pub machines: u64,
    pub created: String,
}

/// A group to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// 1 to 63 letters, digits, dots, dashes and underscores.
    pub name: String,
    /// The image that its machines are to run, if anything is to be said about that.
    #[serde(default)]
    pub image: Option<String>,
}

/// What the machines of a group are to run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupImage {
    /// None: nothing is said about that.
    pub image: Option<String>,
}

/// Machines for a group.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupMachines {
    /// By id, code, name, MAC or UUID.
    pub machines: Vec<String>,
}

/// A version as people write it.
pub(crate) fn label((name, number): (String, u32)) -> String {
    format!("{name}@{number}")
}

impl From<GroupRow> for Group {
    fn from(row: GroupRow) -> Self {
        Self {
            name: row.name,
            image: row.wanted.as_ref().map(|(image, _)| image.clone()),
            wanted: row.wanted.map(label),
            machines: row.machines,
            created: row.created.to_text(),
        }
    }
}

pub(crate) fn unknown(name: &str) -> ApiError {
    let name: String = name.chars().take(80).collect();
    ApiError::not_found(
        "group_unknown",
        format!("there is no group {name:?}: `cairn-server group list` shows them"),
    )
}

fn refuse(name: &str, error: GroupError) -> ApiError {
    match error {
        GroupError::NameTaken => ApiError::conflict(
            "group_exists",
            format!("there is a group {name} already: choose another name"),
        ),
        GroupError::Unknown => unknown(name),
        GroupError::TwoImages { machine, other } => ApiError::conflict(
            "two_images",
            format!(
                "machine {machine} is in {other} too, and both groups would say what it is to run: take it out of one, or the image off one (`cairn-server group image {other} --none`)"
            ),
        ),
        GroupError::Db(error) => error.into(),
    }
}

async fn find_image(app: &App, name: Option<&str>) -> Result<Option<ImageId>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    let row = app.db.image_named(name).await?.ok_or_else(|| image::unknown(name))?;
    Ok(Some(row.id))
}

async fn one(app: &App, name: &str) -> Result<Json<Group>, ApiError> {
    let row = app.db.group(name).await?.ok_or_else(|| unknown(name))?;
    Ok(Json(row.into()))
}

/// All groups as the API shows them.
pub(crate) async fn all(app: &App) -> Result<Vec<Group>, ApiError> {
    Ok(app.db.groups().await?.into_iter().map(Group::from).collect())
}

impl Placed for Group {
    fn place(&self) -> String {
        self.name.clone()
    }
}

/// List groups of machines
#[utoipa::path(get, path = "/api/v1/groups", tag = "groups", params(Part),
    responses((status = 200, body = Vec<Group>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Group>, ApiError> {
    part.of(all(&app).await?)
}

/// Make a group of machines
#[utoipa::path(post, path = "/api/v1/groups", tag = "groups", request_body = GroupRequest,
    responses((status = 201, body = Group), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<GroupRequest>,
) -> Result<(StatusCode, Json<Group>), ApiError> {
    let name = &request.name;
    if !image::is_name(name) {
        return Err(ApiError::bad_request(
            "bad_name",
            "a group's name has 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit",
        ));
    }
    if app.db.groups().await?.len() >= MOST {
        return Err(ApiError::conflict(
            "too_many_groups",
            format!("there are {MOST} groups: remove one first"),
        ));
    }
    let image = find_image(&app, request.image.as_deref()).await?;
    app.db.add_group(name, image, Moment::now()).await.map_err(|error| refuse(name, error))?;
    app.events.emit(Event::GroupChanged { name: name.clone() }).await;
    Ok((StatusCode::CREATED, one(&app, name).await?))
}

/// Show a group of machines
#[utoipa::path(get, path = "/api/v1/groups/{group}", tag = "groups", params(("group" = String, Path)),
    responses((status = 200, body = Group), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(group): Place<String>,
) -> Result<Json<Group>, ApiError> {
    one(&app, &group).await
}

/// Remove a group; its machines stay
#[utoipa::path(delete, path = "/api/v1/groups/{group}", tag = "groups", params(("group" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn remove(
    State(app): State<App>,
    Place(group): Place<String>,
) -> Result<StatusCode, ApiError> {
    let members = app.db.members(&group).await?;
    if !app.db.remove_group(&group).await? {
        return Err(unknown(&group));
    }
    app.events.emit(Event::GroupChanged { name: group }).await;
    tell(&app, &members).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Say what the machines of a group are to run
#[utoipa::path(put, path = "/api/v1/groups/{group}/image", tag = "groups", params(("group" = String, Path)),
    request_body = GroupImage, responses((status = 200, body = Group), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn set_image(
    State(app): State<App>,
    Place(group): Place<String>,
    Body(request): Body<GroupImage>,
) -> Result<Json<Group>, ApiError> {
    let image = find_image(&app, request.image.as_deref()).await?;
    app.db.set_group_image(&group, image).await.map_err(|error| refuse(&group, error))?;
    app.events.emit(Event::GroupChanged { name: group.clone() }).await;
    tell(&app, &app.db.members(&group).await?).await?;
    one(&app, &group).await
}

/// Put machines into a group
///
/// All of them or none. A machine may be in several groups; one of these at most has an image.
#[utoipa::path(post, path = "/api/v1/groups/{group}/machines", tag = "groups", params(("group" = String, Path)),
    request_body = GroupMachines, responses((status = 200, body = Group), (status = 400, body = Problem),
    (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn add_machines(
    State(app): State<App>,
    Extension(actor): Extension<Actor>,
    Place(group): Place<String>,
    Body(request): Body<GroupMachines>,
) -> Result<Json<Group>, ApiError> {
    if request.machines.is_empty() || request.machines.len() > MOST_AT_ONCE {
        return Err(ApiError::bad_request(
            "bad_machines",
            format!("name 1 to {MOST_AT_ONCE} machines"),
        ));
    }
    scope::require_group(&actor, &group)?;
    scope::require(&app, &actor, &request.machines).await?;
    let mut machines = Vec::new();
    for text in &request.machines {
        let found = approval::find_machine(&app, text).await?.ok_or_else(machine::unknown)?;
        machines.push(found.machine);
    }
    app.db.add_members(&group, &machines).await.map_err(|error| refuse(&group, error))?;
    tell(&app, &machines).await?;
    one(&app, &group).await
}

/// Take a machine out of a group
#[utoipa::path(delete, path = "/api/v1/groups/{group}/machines/{machine}", tag = "groups",
    params(("group" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Group), (status = 404, body = Problem)))]
pub(crate) async fn remove_machine(
    State(app): State<App>,
    Place((group, machine)): Place<(String, String)>,
) -> Result<Json<Group>, ApiError> {
    let known = one(&app, &group).await?;
    let found = approval::find_machine(&app, &machine).await?.ok_or_else(machine::unknown)?;
    if !app.db.remove_member(&known.name, found.machine).await? {
        return Err(ApiError::not_found(
            "not_in_group",
            format!("this machine is not in {}", known.name),
        ));
    }
    tell(&app, &[found.machine]).await?;
    one(&app, &group).await
}

async fn tell(app: &App, machines: &[MachineId]) -> Result<(), ApiError> {
    for machine in machines {
        machine::tell(app, *machine).await?;
    }
    Ok(())
}
