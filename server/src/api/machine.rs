//! Machines: what showed up, with the code that its screen shows.

use std::collections::HashMap;

use axum::{Json, extract::State, http::StatusCode};
use cairn_array::wire::{CardLine, DiskLine, Firmware};
use cairn_core::id::{InstallId, MachineId, VersionId, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Params, Place},
    group,
    part::{Listed, Part, Placed},
};
use crate::{
    app::App,
    db::{
        group::Membership,
        image::VersionRow,
        machine::{MachineRow, NameError, RootError},
        target::{TargetRow, TargetState},
    },
    events::Event,
    moment::Moment,
    targets::approval,
};

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    pub id: String,
    pub name: Option<String>,
    pub uuid: Option<String>,
    pub serial: Option<String>,
    pub vendor: Option<String>,
    pub product: Option<String>,
    pub macs: Vec<String>,
    /// `bios` or `uefi`
    pub firmware: Option<String>,
    /// Its firmware said that it verified what it booted; a machine without that is `unverified`.
    pub secure_boot: bool,
    pub disks: Vec<MachineDisk>,
    /// Bytes of memory that its kernel has to give.
    #[serde(default)]
    pub memory: Option<u64>,
    #[serde(default)]
    pub processor: Option<String>,
    /// Threads that run at once.
    #[serde(default)]
    pub processors: Option<u32>,
    #[serde(default)]
    pub cards: Vec<MachineCard>,
    /// `waiting` (for approval), `approved` (waits for a deployment), `installing`, `diskless` (comes up from a volume),
    /// `installed` or `known`
    pub state: String,
    /// What its screen shows while it waits. Compare before you approve.
    pub codes: Vec<String>,
    /// The image it asks for, when its operator named one.
    pub wants: Option<String>,
    /// What it was last installed with, `NAME@N`.
    pub installed: Option<String>,
    /// What a group says that it is to run, `NAME@N`.
    #[serde(default)]
    pub wanted: Option<String>,
    #[serde(default)]
    pub groups: Vec<String>,
    /// The install that is not over.
    pub install: Option<String>,
    /// The volume that it comes up from when it boots from the network; none when it boots from its own disk.
    pub volume: Option<String>,
    /// It gets that volume without being approved by the code on its screen.
    #[serde(default)]
    pub unattended: bool,
    /// When it was first seen, or expected.
    #[serde(default)]
    pub created: String,
    pub seen: String,
}

impl Machine {
    /// It was not installed last with what a group says that it is to run.
    #[must_use]
    pub fn has_drifted(&self) -> bool {
        self.wanted.is_some() && self.installed != self.wanted
    }
}

/// A disk as its machine described it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MachineDisk {
    pub path: String,
    pub size: u64,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub wwn: Option<String>,
    pub read_only: bool,
    pub removable: bool,
    pub rotational: bool,
    pub busy: bool,
    /// Bytes of the partition in which a client keeps its storage across installs.
    pub storage: Option<u64>,
}

impl From<DiskLine> for MachineDisk {
    fn from(line: DiskLine) -> Self {
        Self {
            path: line.path,
            size: line.size.0,
            model: line.model,
            serial: line.serial,
            wwn: line.wwn,
            read_only: line.read_only,
            removable: line.removable,
            rotational: line.rotational,
            busy: line.busy,
            storage: line.storage.map(|size| size.0),
        }
    }
}

/// A network card as its machine described it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MachineCard {
    pub name: String,
    pub mac: Option<String>,
    pub driver: Option<String>,
    /// Of its link, when it had one.
    pub megabits: Option<u32>,
}

impl From<CardLine> for MachineCard {
    fn from(line: CardLine) -> Self {
        let CardLine { name, mac, driver, megabits } = line;
        Self { name, mac, driver, megabits }
    }
}

/// A machine's new name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MachineName {
    pub name: String,
}

/// What a machine comes up from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootRequest {
    /// A volume's name.
    pub volume: String,
    /// Whoever says to be this machine on the boot network gets the volume, without being approved by the code on its screen.
    #[serde(default)]
    pub unattended: bool,
}

/// What is known of machines beside themselves, looked up once for all of them.
struct Around {
    /// All runs of installers that are there now.
    live: HashMap<MachineId, Vec<TargetRow>>,
    /// The install of each machine that is not over, and whether it began.
    open: HashMap<MachineId, (InstallId, bool)>,
    /// `NAME@N`
    versions: HashMap<VersionId, String>,
    volumes: HashMap<VolumeId, String>,
    groups: HashMap<MachineId, Vec<Membership>>,
}

impl Around {
    /// Of this machine, or of all.
    async fn look(app: &App, only: Option<&MachineRow>) -> Result<Self, ApiError> {
        let now = Moment::now();
        let targets = match only {
            None => app.db.live_targets(now).await?,
            Some(row) => app.db.live_targets_of(row.id, now).await?,
        };
        let mut live = HashMap::<MachineId, Vec<TargetRow>>::new();
        for target in targets {
            live.entry(target.machine).or_default().push(target);
        }
        let versions = match only {
            None => app.db.versions().await?,
            Some(row) => match row.installed {
                Some(version) => app.db.version(version).await?.into_iter().collect(),
                None => Vec::new(),
            },
        };
        let label = |row: VersionRow| (row.id, group::label((row.name, row.number)));
        let volumes = match only {
            Some(row) if row.root.is_none() => Vec::new(),
            _ => app.db.volumes().await?,
        };
        let only = only.map(|row| row.id);
        Ok(Self {
            live,
            open: app.db.open_installs(only).await?,
            versions: versions.into_iter().map(label).collect(),
            volumes: volumes.into_iter().map(|volume| (volume.id, volume.name)).collect(),
            groups: app.db.memberships(only).await?,
        })
    }
}

/// A machine as the API shows it.
fn view(row: MachineRow, around: &Around) -> Machine {
    let mine = around.live.get(&row.id).map(Vec::as_slice).unwrap_or_default();
    let open = around.open.get(&row.id);
    let installed = row.installed.and_then(|version| around.versions.get(&version));
    let volume = row.root.and_then(|root| around.volumes.get(&root.volume));
    let groups = around.groups.get(&row.id).map(Vec::as_slice).unwrap_or_default();
    let has = |state| mine.iter().any(|target| target.state == state);
    let state = if open.is_some_and(|(_, began)| *began) {
        "installing"
    } else if has(TargetState::Waiting) {
        "waiting"
    } else if has(TargetState::Approved) {
        "approved"
    } else if volume.is_some() {
        "diskless"
    } else if installed.is_some() {
        "installed"
    } else {
        "known"
    };
    let waiting = || mine.iter().filter(|target| target.state == TargetState::Waiting);
    Machine {
        id: row.id.to_string(),
        name: row.name,
        uuid: row.identity.uuid,
        serial: row.identity.serial,
        vendor: row.identity.vendor,
        product: row.identity.product,
        macs: row.identity.macs,
        firmware: row.firmware.map(|firmware| {
            match firmware {
                Firmware::Bios => "bios",
                Firmware::Uefi => "uefi",
            }
            .to_owned()
        }),
        secure_boot: row.secure_boot,
        disks: row.disks.into_iter().map(MachineDisk::from).collect(),
        memory: Some(row.inventory.memory.0).filter(|bytes| *bytes > 0),
        processor: row.inventory.processor,
        processors: Some(row.inventory.processors).filter(|count| *count > 0),
        cards: row.inventory.cards.into_iter().map(MachineCard::from).collect(),
        state: state.to_owned(),
        codes: waiting().map(|target| target.code.clone()).collect(),
        wants: waiting().find_map(|target| target.image.clone()),
        installed: installed.cloned(),
        wanted: groups.iter().find_map(|(_, wanted)| wanted.clone()).map(group::label),
        groups: groups.iter().map(|(name, _)| name.clone()).collect(),
        install: open.map(|(install, _)| install.to_string()),
        volume: volume.cloned(),
        unattended: row.root.is_some_and(|root| root.unattended),
        created: row.created.to_text(),
        seen: row.seen.to_text(),
    }
}

/// All machines as the API shows them.
pub(crate) async fn all(app: &App) -> Result<Vec<Machine>, ApiError> {
    let around = Around::look(app, None).await?;
    Ok(app.db.machines().await?.into_iter().map(|row| view(row, &around)).collect())
}

/// One machine as the API shows it.
pub(crate) async fn one(app: &App, id: MachineId) -> Result<Machine, ApiError> {
    let row = app.db.machine(id).await?.ok_or_else(unknown)?;
    let around = Around::look(app, Some(&row)).await?;
    Ok(view(row, &around))
}

/// Tells listeners how a machine is now.
pub(crate) async fn tell(app: &App, id: MachineId) -> Result<(), ApiError> {
    let machine = one(app, id).await?;
    app.events.emit(Event::MachineChanged(Box::new(machine))).await;
    Ok(())
}

pub(crate) fn unknown() -> ApiError {
    ApiError::not_found(
        "machine_unknown",
        "no machine has this id, code, name, MAC or UUID: `cairn-server machine list` shows them",
    )
}

impl Placed for Machine {
    fn place(&self) -> String {
        format!("{} {}", self.created, self.id)
    }
}

/// List machines
#[utoipa::path(get, path = "/api/v1/machines", tag = "machines", params(Part),
    responses((status = 200, body = Vec<Machine>), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Params(part): Params<Part>,
) -> Result<Listed<Machine>, ApiError> {
    part.of(all(&app).await?)
}

/// Show a machine, by id, code, name, MAC or UUID
#[utoipa::path(get, path = "/api/v1/machines/{machine}", tag = "machines", params(("machine" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(machine): Place<String>,
) -> Result<Json<Machine>, ApiError> {
    let found = approval::find_machine(&app, &machine).await?.ok_or_else(unknown)?;
    Ok(Json(one(&app, found.machine).await?))
}

/// Approve a machine that waits, by the code on its screen
///
/// Its id, name, MAC or UUID will do when only one run of the installer waits there.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/approve", tag = "machines", params(("machine" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn approve(
    State(app): State<App>,
    Place(machine): Place<String>,
) -> Result<Json<Machine>, ApiError> {
    let id = approval::approve(&app, &machine).await?;
    Ok(Json(one(&app, id).await?))
}

/// Refuse a machine that waits
#[utoipa::path(post, path = "/api/v1/machines/{machine}/refuse", tag = "machines", params(("machine" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn refuse(
    State(app): State<App>,
    Place(machine): Place<String>,
) -> Result<Json<Machine>, ApiError> {
    let id = approval::refuse(&app, &machine).await?;
    Ok(Json(one(&app, id).await?))
}

/// Name a machine
#[utoipa::path(put, path = "/api/v1/machines/{machine}/name", tag = "machines", params(("machine" = String, Path)),
    request_body = MachineName, responses((status = 200, body = Machine), (status = 400, body = Problem),
    (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn name(
    State(app): State<App>,
    Place(machine): Place<String>,
    Body(new): Body<MachineName>,
) -> Result<Json<Machine>, ApiError> {
    let found = approval::find_machine(&app, &machine).await?.ok_or_else(unknown)?;
    if !is_name(&new.name) {
        return Err(ApiError::bad_request(
            "bad_name",
            "a machine's name has 1 to 63 letters, digits, dots and dashes, and begins with a letter",
        ));
    }
    match app.db.name_machine(found.machine, &new.name).await {
        Ok(true) => {}
        Ok(false) => return Err(unknown()),
        Err(NameError::Taken) => {
            return Err(ApiError::conflict(
                "name_taken",
                "another machine has this name: choose another",
            ));
        }
        Err(NameError::Db(error)) => return Err(error.into()),
    }
    tell(&app, found.machine).await?;
    Ok(Json(one(&app, found.machine).await?))
}

/// Have a machine come up from a volume whenever it boots from the network
///
/// A machine that waits now is approved by it. One that was never seen can be named by its MAC or UUID.
#[utoipa::path(put, path = "/api/v1/machines/{machine}/volume", tag = "machines", params(("machine" = String, Path)),
    request_body = BootRequest, responses((status = 200, body = Machine), (status = 400, body = Problem),
    (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn boot_volume(
    State(app): State<App>,
    Place(machine): Place<String>,
    Body(request): Body<BootRequest>,
) -> Result<Json<Machine>, ApiError> {
    let BootRequest { volume, unattended } = request;
    let id = approval::boot_volume(&app, &machine, &volume, unattended).await?;
    Ok(Json(one(&app, id).await?))
}

/// Have a machine boot from its own disk again
#[utoipa::path(delete, path = "/api/v1/machines/{machine}/volume", tag = "machines", params(("machine" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem)))]
pub(crate) async fn boot_own_disk(
    State(app): State<App>,
    Place(machine): Place<String>,
) -> Result<Json<Machine>, ApiError> {
    let found = approval::find_machine(&app, &machine).await?.ok_or_else(unknown)?;
    match app.db.set_root_volume(found.machine, None).await {
        Ok(true) => {}
        Ok(false) => return Err(unknown()),
        Err(RootError::Taken) => return Err(anyhow::anyhow!("no volume is taken").into()),
        Err(RootError::Db(error)) => return Err(error.into()),
    }
    app.targets_changed.notify();
    tell(&app, found.machine).await?;
    Ok(Json(one(&app, found.machine).await?))
}

/// A name that cannot be mistaken for an id, a code, a MAC or a UUID.
fn is_name(text: &str) -> bool {
    let plain = (1..=63).contains(&text.len())
        && text.starts_with(|sign: char| sign.is_ascii_alphabetic())
        && text.chars().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '.' | '-'));
    plain
        && !approval::looks_like_code(text)
        && text.parse::<MachineId>().is_err()
        && cairn_array::tidy::tidy_uuid(text).is_none()
        && cairn_array::tidy::tidy_mac(text).is_none()
}

/// Forget a machine, its installs and its history
#[utoipa::path(delete, path = "/api/v1/machines/{machine}", tag = "machines", params(("machine" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn forget(
    State(app): State<App>,
    Place(machine): Place<String>,
) -> Result<StatusCode, ApiError> {
    let found = approval::find_machine(&app, &machine).await?.ok_or_else(unknown)?;
    if app.db.open_install_of_machine(found.machine).await?.is_some() {
        return Err(ApiError::conflict(
            "machine_busy",
            "this machine has an install that is not over: cancel its deployment first",
        ));
    }
    if app.db.forget_machine(found.machine).await? {
        app.targets_changed.notify();
        app.events.emit(Event::MachineForgotten { id: found.machine.to_string() }).await;
    }
    Ok(StatusCode::NO_CONTENT)
}
