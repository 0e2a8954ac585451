//! Groups of machines: which machines a page shows, and what is done with all of them.

use axum::{
    Form,
    response::{IntoResponse as _, Redirect, Response},
};
use cairn_web::{
    groups::{Filter, Group},
    shell::Place,
};
use serde::Deserialize;

use super::{answer, image_label, machines::label, visit::Visit};
use crate::{
    api::{
        self,
        deployment::DeploymentRequest,
        error::ApiError,
        extract,
        group::{GroupImage, GroupMachines, GroupRequest},
        machine::Machine,
        scope,
    },
    app::App,
};

/// Longer ones find nothing.
const MAX_TEXT: usize = 100;

/// A filter as a form or an address has it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    q: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    drifted: String,
    #[serde(default)]
    page: usize,
}

impl From<Asked> for Filter {
    fn from(asked: Asked) -> Self {
        let text = asked.q.trim().chars().take(MAX_TEXT).collect();
        let Asked { group, drifted, page, .. } = asked;
        Self { text, group, drifted: !drifted.is_empty(), page }
    }
}

/// Whether a machine is one of those that are shown.
pub(super) fn shows(filter: &Filter, machine: &Machine) -> bool {
    let in_group = filter.group.is_empty() || machine.groups.contains(&filter.group);
    in_group && (!filter.drifted || machine.has_drifted()) && has_text(machine, &filter.text)
}

/// All words are somewhere in what is known of it.
fn has_text(machine: &Machine, text: &str) -> bool {
    let name = label(machine);
    let known = [
        Some(&name),
        machine.product.as_ref(),
        machine.vendor.as_ref(),
        machine.serial.as_ref(),
        machine.uuid.as_ref(),
        machine.installed.as_ref(),
        machine.wanted.as_ref(),
        machine.volume.as_ref(),
    ];
    let known = known.into_iter().flatten().chain(&machine.macs).chain(&machine.groups);
    let known: Vec<String> = known.map(|text| text.to_lowercase()).collect();
    text.to_lowercase().split_whitespace().all(|word| known.iter().any(|text| text.contains(word)))
}

pub(super) async fn all(app: &App, machines: &[Machine]) -> Result<Vec<Group>, ApiError> {
    let fill = |group: api::group::Group| Group {
        drifted: machines
            .iter()
            .filter(|machine| machine.groups.contains(&group.name) && machine.has_drifted())
            .count() as u64,
        machines: group.machines,
        wanted: group.wanted.as_deref().map(image_label),
        image: group.image,
        name: group.name,
    };
    Ok(api::group::all(app).await?.into_iter().map(fill).collect())
}

#[derive(Deserialize)]
pub(super) struct NewForm {
    name: String,
    image: String,
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

pub(super) async fn create(
    visit: Visit,
    Form(NewForm { name, image }): Form<NewForm>,
) -> Result<Response, ApiError> {
    let request =
        GroupRequest { name: name.trim().to_owned(), image: some(image.trim().to_owned()) };
    let done = api::group::create(visit.state(), extract::Body(request)).await;
    answer(&visit, Place::Machines, done).await
}

pub(super) async fn remove(
    visit: Visit,
    group: extract::Place<String>,
) -> Result<Response, ApiError> {
    let done = api::group::remove(visit.state(), group).await;
    answer(&visit, Place::Machines, done).await
}

#[derive(Deserialize)]
pub(super) struct ImageForm {
    image: String,
}

pub(super) async fn set_image(
    visit: Visit,
    group: extract::Place<String>,
    Form(ImageForm { image }): Form<ImageForm>,
) -> Result<Response, ApiError> {
    let request = extract::Body(GroupImage { image: some(image.trim().to_owned()) });
    let done = api::group::set_image(visit.state(), group, request).await;
    answer(&visit, Place::Machines, done).await
}

/// What is done with all machines that a page has shown.
#[derive(Deserialize)]
pub(super) struct ManyForm {
    #[serde(default)]
    q: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    drifted: String,
    /// How many there were.
    count: usize,
    /// A group, or a version.
    #[serde(default)]
    with: String,
}

pub(super) async fn many(
    visit: Visit,
    extract::Place(action): extract::Place<String>,
    Form(form): Form<ManyForm>,
) -> Result<Response, ApiError> {
    let ManyForm { q, group, drifted, count, with } = form;
    let filter = Filter::from(Asked { q, group, drifted, page: 0 });
    match apply(&visit, &filter, count, &action, with).await {
        Ok(place) => Ok(Redirect::to(&place).into_response()),
        Err(error) => answer::<()>(&visit, Place::Machines, Err(error)).await,
    }
}

/// Where to go then.
async fn apply(
    visit: &Visit,
    filter: &Filter,
    count: usize,
    action: &str,
    with: String,
) -> Result<String, ApiError> {
    let machines = api::machine::all(visit).await?.into_iter();
    let machines: Vec<_> =
        machines.filter(|machine| shows(filter, machine)).map(|machine| machine.id).collect();
    if machines.len() != count {
        return Err(ApiError::conflict(
            "machines_changed",
            format!(
                "there were {count} machines and now there are {}: look at them, and try again",
                machines.len()
            ),
        ));
    }
    let there = format!("{}{}", Place::Machines.path(), filter.query());
    match action {
        "add" => {
            let request = extract::Body(GroupMachines { machines });
            drop(
                api::group::add_machines(visit.state(), visit.who(), extract::Place(with), request)
                    .await?,
            );
            Ok(there)
        }
        "take" => {
            scope::require_group(&visit.actor, &filter.group)?;
            for machine in machines {
                let from = extract::Place((filter.group.clone(), machine));
                drop(api::group::remove_machine(visit.state(), from).await?);
            }
            Ok(there)
        }
        "install" => {
            let request =
                DeploymentRequest { image: with, machines, ..DeploymentRequest::default() };
            drop(
                api::deployment::create(visit.state(), visit.who(), extract::Body(request)).await?,
            );
            Ok(Place::Deployments.path().to_owned())
        }
        _ => Err(ApiError::not_found(
            "unknown_action",
            "machines are put into a group, taken out of one, or installed",
        )),
    }
}
