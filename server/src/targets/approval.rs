//! What an administrator decides about machines: find one, approve, refuse, deploy, cancel.

use std::collections::HashSet;

use cairn_array::{
    pace::Rate,
    tidy::{tidy_mac, tidy_uuid},
    wire::{AfterInstall, DiskSelector, MachineIdentity, split_name},
};
use cairn_core::{
    id::{InstallId, MachineId},
    units::ByteCount,
};

use crate::{
    api::{self, error::ApiError},
    app::App,
    db::{
        deployment::{DeployError, InstallRow, NewDeployment},
        machine::{MeetError, RootError},
        target::{TargetRow, TargetState},
    },
    deployments::InstallEvent,
    events::Event,
    moment::Moment,
    secret, volumes, wake,
};

/// The most machines in one deployment.
const MAX_MACHINES: usize = 1000;

/// A machine that somebody named, and the run of the installer when it was named by its code.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) machine: MachineId,
    target: Option<TargetRow>,
}

/// What is to be deployed.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// `NAME` or `NAME@N`
    pub(crate) image: String,
    pub(crate) disk: DiskSelector,
    pub(crate) after: AfterInstall,
    pub(crate) preapproved: bool,
    pub(crate) at_once: bool,
    pub(crate) storage: Option<ByteCount>,
    pub(crate) rate_limit: Option<Rate>,
}

/// Whether a text has the shape of a code: `XXXX-XXXX`.
pub(crate) fn looks_like_code(text: &str) -> bool {
    text.len() == 9
        && text.char_indices().all(|(place, sign)| match place {
            4 => sign == '-',
            _ => sign.is_ascii_alphanumeric(),
        })
}

/// The machine with this id, code, name, MAC or UUID.
pub(crate) async fn find_machine(app: &App, text: &str) -> Result<Option<Found>, ApiError> {
    let text = text.trim();
    if looks_like_code(text) {
        let code = text.to_ascii_uppercase();
        let live = app.db.live_targets(Moment::now()).await?;
        let target = live.into_iter().find(|target| target.code == code);
        if let Some(target) = target {
            return Ok(Some(Found { machine: target.machine, target: Some(target) }));
        }
    }
    let identity = identity_of(text);
    let machine = if let Ok(id) = text.parse::<MachineId>() {
        app.db.machine(id).await?.map(|machine| machine.id)
    } else if let Some(identity) = identity {
        match app.db.machine_with(&identity).await? {
            Some(id) => Some(id),
            None => seen_with(app, &identity).await?,
        }
    } else {
        let all = app.db.machines().await?;
        all.into_iter()
            .find(|machine| machine.name.as_deref() == Some(text))
            .map(|machine| machine.id)
    };
    Ok(machine.map(|machine| Found { machine, target: None }))
}

/// The only machine with this MAC or UUID. An administrator's word needs less care than a machine's.
async fn seen_with(app: &App, identity: &MachineIdentity) -> Result<Option<MachineId>, ApiError> {
    let all = app.db.machines().await?;
    let mut matching = all.iter().filter(|machine| {
        let uuid = identity.uuid.is_some() && machine.identity.uuid == identity.uuid;
        uuid || identity.macs.iter().any(|mac| machine.identity.macs.contains(mac))
    });
    match (matching.next(), matching.next()) {
        (Some(one), None) => Ok(Some(one.id)),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(ApiError::conflict(
            "machine_ambiguous",
            "several machines have this UUID: name the one you mean by its MAC or id",
        )),
    }
}

fn identity_of(text: &str) -> Option<MachineIdentity> {
    if let Some(mac) = tidy_mac(text) {
        return Some(MachineIdentity { macs: vec![mac], ..MachineIdentity::default() });
    }
    let uuid = tidy_uuid(text)?;
    Some(MachineIdentity { uuid: Some(uuid), ..MachineIdentity::default() })
}

/// The run of the installer that waits on a machine. None when none does; an error when several do.
async fn waiting_target(app: &App, found: &Found) -> Result<Option<TargetRow>, ApiError> {
    if let Some(target) = &found.target {
        return Ok(Some(target.clone()));
    }
    let live = app.db.live_targets(Moment::now()).await?;
    let mut waiting = live
        .into_iter()
        .filter(|target| target.machine == found.machine && target.state == TargetState::Waiting);
    let one = waiting.next();
    let others: Vec<_> = waiting.map(|target| target.code).collect();
    match (one, others.is_empty()) {
        (one, true) => Ok(one),
        (one, false) => {
            let first = one.map(|target| target.code).into_iter();
            let codes = first.chain(others).collect::<Vec<_>>().join(", ");
            Err(ApiError::conflict(
                "code_needed",
                format!(
                    "several installers wait there ({codes}): name the code that the right screen shows"
                ),
            ))
        }
    }
}

async fn waiting(app: &App, text: &str) -> Result<TargetRow, ApiError> {
    let found = find_machine(app, text).await?.ok_or_else(api::machine::unknown)?;
    waiting_target(app, &found).await?.ok_or_else(|| {
        ApiError::conflict(
            "not_waiting",
            "this machine does not wait for approval now: boot it from the network, then approve the code it shows",
        )
    })
}

/// Approves the run that waits. When its operator asked for an image by name, that image is deployed to it.
pub(crate) async fn approve(app: &App, text: &str) -> Result<MachineId, ApiError> {
    let target = waiting(app, text).await?;
    if let Some(image) = &target.image {
        let open = app.db.open_install_of_machine(target.machine).await?;
        if open.is_none() {
            let wish = Wish {
                image: image.clone(),
                disk: DiskSelector::Only,
                after: AfterInstall::Exit,
                preapproved: false,
                at_once: false,
                storage: None,
                rate_limit: None,
            };
            make_deployment(app, &wish, &[target.machine]).await?;
        }
    }
    approve_target(app, &target).await?;
    Ok(target.machine)
}

async fn approve_target(app: &App, target: &TargetRow) -> Result<(), ApiError> {
    let from = [TargetState::Waiting, TargetState::Approved, TargetState::Refused];
    if !app.db.move_target(target.hash, &from, TargetState::Approved).await? {
        return Err(ApiError::conflict(
            "run_ended",
            "this run of the installer is over: wait for the next one",
        ));
    }
    tracing::info!(machine = %target.machine, code = target.code, "a machine was approved");
    app.targets_changed.notify();
    api::machine::tell(app, target.machine).await
}

/// Refuses the run that waits.
pub(crate) async fn refuse(app: &App, text: &str) -> Result<MachineId, ApiError> {
    let target = waiting(app, text).await?;
    let from = [TargetState::Waiting, TargetState::Approved];
    app.db.move_target(target.hash, &from, TargetState::Refused).await?;
    app.targets_changed.notify();
    api::machine::tell(app, target.machine).await?;
    Ok(target.machine)
}

/// Deploys to machines; those that wait now are approved by it. Returns the deployment and the approved codes.
pub(crate) async fn deploy(
    app: &App,
    wish: &Wish,
    names: &[String],
) -> Result<(i64, Vec<String>), ApiError> {
    if names.is_empty() || names.len() > MAX_MACHINES {
        return Err(ApiError::bad_request(
            "bad_machines",
            format!("name 1 to {MAX_MACHINES} machines"),
        ));
    }
    version_of(app, &wish.image).await?;
    let mut machines = Vec::new();
    let mut approved = Vec::new();
    for name in names {
        let found = match find_machine(app, name).await? {
            Some(found) => found,
            None => expect(app, name).await?,
        };
        if !machines.contains(&found.machine) {
            approved.extend(waiting_target(app, &found).await?);
            machines.push(found.machine);
        }
    }
    let deployment = make_deployment(app, wish, &machines).await?;
    for target in &approved {
        approve_target(app, target).await?;
    }
    Ok((deployment, approved.into_iter().map(|target| target.code).collect()))
}

/// The machines of these groups, by id; with `drifted` only those that do not run this image's version.
pub(crate) async fn machines_of(
    app: &App,
    image: &str,
    groups: &[String],
    drifted: bool,
) -> Result<Vec<String>, ApiError> {
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let version = version_of(app, image).await?;
    let mut members = Vec::new();
    for group in groups {
        if app.db.group(group).await?.is_none() {
            return Err(api::group::unknown(group));
        }
        members.extend(app.db.members(group).await?);
    }
    if members.is_empty() {
        return Err(ApiError::conflict(
            "group_empty",
            "there is no machine in it: put some in (`cairn-server group add GROUP MACHINE…`)",
        ));
    }
    if drifted {
        let all = app.db.machines().await?.into_iter();
        let right = all.filter(|row| row.installed == Some(version.id)).map(|row| row.id);
        let right: HashSet<_> = right.collect();
        members.retain(|machine| !right.contains(machine));
        if members.is_empty() {
            return Err(ApiError::conflict(
                "no_drift",
                format!("all machines run {}@{} already", version.name, version.number),
            ));
        }
    }
    Ok(members.iter().map(ToString::to_string).collect())
}

/// Has a machine come up from a volume; a run that waits on it is approved by that.
pub(crate) async fn boot_volume(
    app: &App,
    machine: &str,
    volume: &str,
    unattended: bool,
) -> Result<MachineId, ApiError> {
    let found = match find_machine(app, machine).await? {
        Some(found) => found,
        None => expect(app, machine).await?,
    };
    let waiting = waiting_target(app, &found).await?;
    let given = volumes::give_to(app, found.machine, volume, unattended).await;
    match given.map_err(|error| api::volume::refuse_use(volume, error))? {
        Ok(true) => {}
        Ok(false) => return Err(api::machine::unknown()),
        Err(RootError::Taken) => {
            return Err(ApiError::conflict(
                "volume_taken",
                format!(
                    "another machine comes up from {volume}: two would destroy it. Clone it for this one"
                ),
            ));
        }
        Err(RootError::Db(error)) => return Err(error.into()),
    }
    if let Some(target) = waiting {
        approve_target(app, &target).await?;
    }
    app.targets_changed.notify();
    api::machine::tell(app, found.machine).await?;
    Ok(found.machine)
}

/// A machine that was never seen can be expected by its MAC or UUID.
async fn expect(app: &App, name: &str) -> Result<Found, ApiError> {
    let identity = identity_of(name.trim()).ok_or_else(api::machine::unknown)?;
    let fresh = MachineId(secret::random()?);
    match app.db.expect_machine(fresh, &identity, Moment::now()).await {
        Ok(machine) => Ok(Found { machine, target: None }),
        Err(MeetError::TooMany) => Err(ApiError::conflict(
            "too_many_machines",
            "too many unknown machines are kept: forget some first (`cairn-server machine list`)",
        )),
        Err(MeetError::Db(error)) => Err(error.into()),
    }
}

async fn version_of(app: &App, image: &str) -> Result<crate::db::image::VersionRow, ApiError> {
    let (name, number) = split_name(image).ok_or_else(|| api::image::unknown(image))?;
    app.db.version_named(name, number).await?.ok_or_else(|| api::image::unknown(image))
}

async fn make_deployment(app: &App, wish: &Wish, machines: &[MachineId]) -> Result<i64, ApiError> {
    let version = version_of(app, &wish.image).await?;
    let mut installs = Vec::with_capacity(machines.len());
    for machine in machines {
        installs.push((InstallId(secret::random()?), *machine));
    }
    let new = NewDeployment {
        version: version.id,
        disk: &wish.disk,
        after: wish.after,
        preapproved: wish.preapproved,
        at_once: wish.at_once,
        storage: wish.storage,
        rate_limit: wish.rate_limit,
        installs: &installs,
    };
    let id = app.db.deploy(&new, Moment::now()).await.map_err(|error| match error {
        DeployError::Busy { machine } => ApiError::conflict(
            "machine_busy",
            format!("machine {machine} has an install that is not over: wait for it, or cancel its deployment"),
        ),
        DeployError::Gone => api::image::unknown(&wish.image),
        DeployError::Db(error) => error.into(),
    })?;
    if let Err(error) = wake::holders(app, version.image).await {
        tracing::warn!(error = format!("{error:#}"), "the holders of the image were not woken");
    }
    app.targets_changed.notify();
    app.events.emit(Event::DeploymentChanged { id }).await;
    Ok(id)
}

/// Cancels what is not over of a deployment; a target at work learns it with its next report.
pub(crate) async fn cancel(app: &App, deployment: i64) -> Result<(), ApiError> {
    let installs = app.db.installs_of_deployment(deployment).await?;
    cancel_installs(app, deployment, &installs).await
}

/// Cancels one install; the others of its deployment go on.
pub(crate) async fn cancel_install(app: &App, install: &InstallRow) -> Result<(), ApiError> {
    cancel_installs(app, install.deployment, std::slice::from_ref(install)).await
}

async fn cancel_installs(
    app: &App,
    deployment: i64,
    installs: &[InstallRow],
) -> Result<(), ApiError> {
    for install in installs {
        let state = app.db.advance_install(install.id, InstallEvent::Cancel, Moment::now()).await?;
        if state.is_some() {
            super::log::add(app, install.id, "cancelled").await;
            super::ticket::tell_install(app, install.id).await?;
            api::machine::tell(app, install.machine).await?;
        }
    }
    app.targets_changed.notify();
    app.events.emit(Event::DeploymentChanged { id: deployment }).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_told_from_other_names() {
        assert!(looks_like_code("Q9W1-DFWF"));
        assert!(looks_like_code("q9w1-dfwf"));
        for text in ["Q9W1DFWF", "Q9W1-DFW", "Q9W1_DFWF", "52:54:00:00:00:01", "room-12"] {
            assert!(!looks_like_code(text), "{text}");
        }
    }
}
