//! Fills the page of machines: who waits and what can be installed where.

use std::collections::HashMap;

use axum::{
    Form,
    response::{Html, IntoResponse as _, Response},
};
use cairn_web::{
    groups::Filter,
    machine::{Card, MachinePage},
    machines::{Choice, Disk, Identity, Known, MachineState, Machines, Targets, Waiting, Wish},
    shell::{self, Place},
    text::Bytes,
};
use serde::Deserialize;

use super::{ago, answer, deployments, groups, image_label, overview, rendered, visit::Visit};
use crate::{
    api::{
        self,
        deployment::DeploymentRequest,
        error::ApiError,
        extract,
        machine::{Machine, MachineCard, MachineDisk, MachineName},
        scope,
    },
    app::App,
    db::target::{TargetRow, TargetState},
    moment::Moment,
    targets::approval,
};

/// Machines on a page.
const SHOWN: usize = 25;
/// Waiting ones that are shown.
const WAITING_SHOWN: usize = 12;

pub(super) async fn view(app: &App, mut filter: Filter) -> Result<Machines, ApiError> {
    let now = Moment::now();
    let machines = api::machine::all(app).await?;
    let images = api::image::all(app).await?;
    let versions = choices(&images);
    let (waiting, waiting_more) = waiting(app, &machines, &versions).await?;
    let groups = groups::all(app, &machines).await?;
    let shown = machines.into_iter().filter(|machine| groups::shows(&filter, machine));
    let shown: Vec<_> = shown.collect();
    let found = shown.len();
    let pages = found.div_ceil(SHOWN);
    filter.page = filter.page.min(pages.saturating_sub(1));
    let known = shown.into_iter().skip(filter.page * SHOWN).take(SHOWN).map(|machine| {
        let waits = waiting.iter().any(|waiting| waiting.machine == machine.id);
        know(machine, waits, now)
    });
    Ok(Machines {
        known: known.collect(),
        waiting,
        waiting_more,
        groups,
        images: images.into_iter().map(|image| image.name).collect(),
        filter,
        found,
        pages,
        versions,
    })
}

/// The machines that wait for somebody, and how many more do.
async fn waiting(
    app: &App,
    machines: &[Machine],
    versions: &[Choice],
) -> Result<(Vec<Waiting>, usize), ApiError> {
    let mut waiting = Vec::new();
    let mut more = 0;
    let by_id: HashMap<&str, &Machine> =
        machines.iter().map(|machine| (machine.id.as_str(), machine)).collect();
    for target in app.db.live_targets(Moment::now()).await? {
        let id = target.machine.to_string();
        let Some(&machine) = by_id.get(id.as_str()) else { continue };
        if !waits(&target, machine) {
            continue;
        }
        if waiting.len() == WAITING_SHOWN {
            more += 1;
            continue;
        }
        let wish = match (&target.image, &machine.install) {
            (_, Some(_)) => {
                let open = app.db.open_install_of_machine(target.machine).await?;
                open.map_or(Wish::Open, |open| {
                    Wish::Scheduled(format!("{}@{}", open.image, open.number))
                })
            }
            (Some(image), None) => Wish::Asked(image.clone()),
            (None, None) => Wish::Open,
        };
        waiting.push(wait(&target, machine, wish, versions));
    }
    Ok((waiting, more))
}

/// Whether somebody has to do something before this run of the installer goes on.
pub(super) fn waits(target: &TargetRow, machine: &Machine) -> bool {
    match target.state {
        TargetState::Waiting => true,
        TargetState::Approved => {
            target.install.is_none() && machine.install.is_none() && machine.volume.is_none()
        }
        TargetState::Refused | TargetState::Ended => false,
    }
}

fn wait(target: &TargetRow, machine: &Machine, wish: Wish, versions: &[Choice]) -> Waiting {
    Waiting {
        machine: machine.id.clone(),
        code: target.code.clone(),
        identity: identity(machine),
        address: target.address.ip().to_canonical().to_string(),
        disks: machine.disks.iter().map(disk).collect(),
        targets: targets(&machine.disks),
        version: first_offer(machine, versions),
        wish,
        approved: target.state == TargetState::Approved,
    }
}

/// What the machine has now in the version that its name stands for, else the first of all.
fn first_offer(machine: &Machine, versions: &[Choice]) -> Option<String> {
    let name = machine.installed.as_deref().and_then(|installed| installed.rsplit_once('@'));
    let same = name.and_then(|(name, _)| {
        versions
            .iter()
            .find(|choice| choice.value.rsplit_once('@').is_some_and(|(other, _)| other == name))
    });
    same.or_else(|| versions.first()).map(|choice| choice.value.clone())
}

/// Every version, each image's newest first.
fn choices(images: &[api::image::Image]) -> Vec<Choice> {
    let mut choices = Vec::new();
    for image in images {
        // What its name stands for comes first.
        let current = image.versions.iter().filter(|version| version.number == image.current);
        let others = image.versions.iter().rev().filter(|version| version.number != image.current);
        for version in current.chain(others) {
            let mark = match (version.number == image.current, image.promoted) {
                (true, true) => " (promoted)",
                (true, false) if image.versions.len() > 1 => " (newest)",
                _ => "",
            };
            let size = Bytes(version.size);
            choices.push(Choice {
                value: format!("{}@{}", image.name, version.number),
                label: format!("{}, version {}{mark}, {size}", image.name, version.number),
            });
        }
    }
    choices
}

pub(super) fn label(machine: &Machine) -> String {
    let made = [machine.vendor.as_deref(), machine.product.as_deref()];
    let made = made.into_iter().flatten().collect::<Vec<_>>().join(" ");
    machine
        .name
        .clone()
        .or_else(|| (!made.is_empty()).then_some(made))
        .or_else(|| machine.macs.first().cloned())
        .unwrap_or_else(|| machine.id.clone())
}

fn identity(machine: &Machine) -> Identity {
    Identity {
        label: label(machine),
        product: machine.product.clone(),
        serial: machine.serial.clone(),
        uuid: machine.uuid.clone(),
        macs: machine.macs.clone(),
        firmware: machine.firmware.as_deref().map(str::to_ascii_uppercase),
        secure_boot: machine.secure_boot,
    }
}

/// Why a disk is not installed to.
const fn unfit(disk: &MachineDisk) -> Option<&'static str> {
    if disk.busy {
        Some("in use")
    } else if disk.read_only {
        Some("read-only")
    } else if disk.removable {
        Some("removable")
    } else {
        None
    }
}

fn disk(disk: &MachineDisk) -> Disk {
    let serial = disk.serial.as_ref().map(|serial| format!("serial {serial}"));
    let kind = if disk.rotational { "hard disk" } else { "solid state" };
    let what = [disk.model.clone(), serial, Some(kind.to_owned())]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    Disk {
        path: disk.path.clone(),
        size: Bytes(disk.size),
        what: what.join(" · "),
        unfit: unfit(disk),
    }
}

/// Which disks can be installed to, each named by something that stays: a path is another disk after the next boot.
fn targets(disks: &[MachineDisk]) -> Targets {
    let fit: Vec<_> = disks.iter().filter(|disk| unfit(disk).is_none()).collect();
    let text = |disk: &MachineDisk| {
        let model = disk.model.as_ref().map(|model| format!(", {model}")).unwrap_or_default();
        format!("{}, {}{model}", disk.path, Bytes(disk.size))
    };
    match fit.as_slice() {
        [] => Targets::None,
        [one] => Targets::One(Choice { value: "only".to_owned(), label: text(one) }),
        many => {
            let alone = |size| many.iter().filter(|disk| disk.size == size).count() == 1;
            let value = |disk: &MachineDisk| match (&disk.serial, &disk.wwn) {
                (Some(serial), _) => Some(format!("serial:{serial}")),
                (None, Some(wwn)) => Some(format!("wwn:{wwn}")),
                (None, None) if alone(disk.size) => Some(format!("size:{}", disk.size)),
                (None, None) => None,
            };
            let choices = many
                .iter()
                .filter_map(|disk| Some(Choice { value: value(disk)?, label: text(disk) }));
            let choices: Vec<_> = choices.collect();
            if choices.is_empty() { Targets::None } else { Targets::Many(choices) }
        }
    }
}

fn know(machine: Machine, waits: bool, now: Moment) -> Known {
    let state = match (machine.state.as_str(), &machine.install) {
        _ if waits => MachineState::Waiting,
        ("installing", _) => MachineState::Installing,
        (_, Some(_)) => MachineState::Scheduled,
        ("diskless", _) => MachineState::Diskless,
        _ => MachineState::Idle,
    };
    Known {
        identity: identity(&machine),
        installed: machine.installed.as_deref().map(image_label),
        drift: machine.wanted.as_deref().filter(|_| machine.has_drifted()).map(image_label),
        groups: machine.groups.clone(),
        state,
        seen: ago(&machine.seen, now),
        name: machine.name,
        id: machine.id,
    }
}

/// The page of one machine.
pub(super) async fn show(
    visit: Visit,
    machine: extract::Place<String>,
) -> Result<Response, ApiError> {
    let found =
        approval::find_machine(&visit, &machine.0).await?.ok_or_else(api::machine::unknown)?;
    let machine = api::machine::one(&visit, found.machine).await?;
    let count = machine.processors.map(|count| format!("{count} × "));
    let processor = machine.processor.as_ref();
    let card = |card: &MachineCard| Card {
        name: card.name.clone(),
        mac: card.mac.clone(),
        driver: card.driver.clone(),
        megabits: card.megabits,
    };
    let waits = machine.state == "waiting";
    let view = MachinePage {
        processor: processor.map(|processor| count.unwrap_or_default() + processor),
        memory: machine.memory.map(Bytes),
        disks: machine.disks.iter().map(disk).collect(),
        cards: machine.cards.iter().map(card).collect(),
        installs: deployments::of_machine(&visit, found.machine).await?,
        known: know(machine, waits, Moment::now()),
    };
    let nav = overview::nav(&visit, Place::Machines).await?;
    Ok(Html(rendered(shell::page(&nav, None, &view))?).into_response())
}

#[derive(Deserialize)]
pub(super) struct InstallForm {
    code: String,
    version: String,
    #[serde(default)]
    disk: String,
}

/// Deploys to the run that shows this code, and approves it.
pub(super) async fn install(
    visit: Visit,
    extract::Place(_machine): extract::Place<String>,
    Form(form): Form<InstallForm>,
) -> Result<Response, ApiError> {
    let request = DeploymentRequest {
        image: form.version,
        machines: vec![form.code],
        disk: Some(form.disk),
        ..DeploymentRequest::default()
    };
    let done = api::deployment::create(visit.state(), visit.who(), extract::Body(request)).await;
    let place = if done.is_ok() { Place::Deployments } else { Place::Machines };
    answer(&visit, place, done).await
}

#[derive(Deserialize)]
pub(super) struct CodeForm {
    code: String,
}

pub(super) async fn approve(
    visit: Visit,
    extract::Place(_machine): extract::Place<String>,
    Form(form): Form<CodeForm>,
) -> Result<Response, ApiError> {
    let done = match scope::require(&visit, &visit.actor, std::slice::from_ref(&form.code)).await {
        Ok(()) => api::machine::approve(visit.state(), extract::Place(form.code)).await,
        Err(error) => Err(error),
    };
    answer(&visit, Place::Machines, done).await
}

pub(super) async fn refuse(
    visit: Visit,
    extract::Place(_machine): extract::Place<String>,
    Form(form): Form<CodeForm>,
) -> Result<Response, ApiError> {
    let done = match scope::require(&visit, &visit.actor, std::slice::from_ref(&form.code)).await {
        Ok(()) => api::machine::refuse(visit.state(), extract::Place(form.code)).await,
        Err(error) => Err(error),
    };
    answer(&visit, Place::Machines, done).await
}

pub(super) async fn name(
    visit: Visit,
    machine: extract::Place<String>,
    Form(new): Form<MachineName>,
) -> Result<Response, ApiError> {
    let done = api::machine::name(visit.state(), machine, extract::Body(new)).await;
    answer(&visit, Place::Machines, done).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &str, serial: Option<&str>, size: u64) -> MachineDisk {
        MachineDisk {
            path: path.into(),
            size,
            model: None,
            serial: serial.map(str::to_owned),
            wwn: None,
            read_only: false,
            removable: false,
            rotational: false,
            busy: false,
            storage: None,
        }
    }

    fn values(disks: &[MachineDisk]) -> Vec<String> {
        match targets(disks) {
            Targets::None => vec![],
            Targets::One(choice) => vec![choice.value],
            Targets::Many(choices) => choices.into_iter().map(|choice| choice.value).collect(),
        }
    }

    #[test]
    fn the_only_disk_is_the_default_and_others_are_named_by_what_stays() {
        let mut stick = disk("/dev/sdb", Some("X"), 8);
        stick.removable = true;
        assert_eq!(values(&[disk("/dev/sda", Some("A"), 100), stick]), ["only"]);
        assert_eq!(
            values(&[disk("/dev/sda", Some("A"), 100), disk("/dev/sdb", None, 200)]),
            ["serial:A", "size:200"]
        );
        // Two that nothing tells apart cannot be chosen.
        assert_eq!(values(&[disk("/dev/sda", None, 100), disk("/dev/sdb", None, 100)]), [""; 0]);
        assert_eq!(values(&[]), [""; 0]);
        for choice in values(&[disk("/dev/sda", Some("A"), 100), disk("/dev/sdb", None, 200)]) {
            assert!(api::deployment::parse_disk(&choice).is_some(), "{choice}");
        }
    }
}
