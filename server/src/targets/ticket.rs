//! `GET /target/v1/ticket`: held until there is something to say, then all that an install needs.

use axum::{Json, extract::State};
use cairn_array::{
    tls::Member,
    wire::{AfterInstall, SYNC_HOLD, Ticket, TicketReply, VolumeTicket, split_name},
};
use cairn_core::id::{InstallId, VolumeId};
use tokio::time::Instant;

use super::{log, session::Session};
use crate::{
    api::{self, error::ApiError},
    app::App,
    db::{
        deployment::{InstallRow, InstallState},
        target::TargetRow,
    },
    deployments::{Answer, Asker, Offer, answer},
    events::Event,
    moment::Moment,
    waves,
};

/// Why a machine whose deployment is paused does not begin.
pub(crate) const PAUSED: &str = "its deployment is paused";

pub(super) async fn ticket(
    State(app): State<App>,
    Session(target): Session,
) -> Result<Json<TicketReply>, ApiError> {
    let deadline = Instant::now() + SYNC_HOLD;
    let mut changes = app.targets_changed.watch();
    loop {
        let reply = reply(&app, target.hash).await?;
        let waits = matches!(
            reply,
            TicketReply::AwaitingApproval
                | TicketReply::AwaitingDeployment
                | TicketReply::AwaitingTurn { .. }
        );
        if !waits {
            return Ok(Json(reply));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(Json(reply)) },
            () = tokio::time::sleep_until(deadline) => return Ok(Json(reply)),
            () = app.stop.cancelled() => return Ok(Json(reply)),
        }
    }
}

fn offer(row: &InstallRow) -> Offer {
    Offer {
        install: row.id,
        state: row.state,
        image: row.image.clone(),
        preapproved: row.preapproved,
    }
}

async fn reply(app: &App, hash: [u8; 32]) -> Result<TicketReply, ApiError> {
    let now = Moment::now();
    let Some(target) = app.db.target_seen(hash, now).await? else {
        let reason = "this machine was forgotten: start the installer again".to_owned();
        return Ok(TicketReply::Refused { reason });
    };
    let bound = match target.install {
        Some(install) => app.db.install(install).await?,
        None => None,
    };
    let open = app.db.open_install_of_machine(target.machine).await?;
    let root = app.db.machine(target.machine).await?.and_then(|machine| machine.root);
    let (bound, open) = (bound.as_ref().map(offer), open.as_ref().map(offer));
    let asker = Asker {
        state: target.state,
        image: target.image.as_deref().and_then(split_name).map(|(name, _)| name),
        bound: bound.as_ref(),
        open: open.as_ref(),
        root: root.map(|root| root.unattended),
    };
    match answer(&asker) {
        Answer::AwaitApproval => Ok(TicketReply::AwaitingApproval),
        Answer::AwaitDeployment => Ok(TicketReply::AwaitingDeployment),
        Answer::Refuse(reason) => Ok(TicketReply::Refused { reason: reason.to_owned() }),
        Answer::Issue { install, take_over } => issue(app, &target, install, take_over).await,
        Answer::Volume => match root {
            Some(root) => issue_volume(app, &target, root.volume).await,
            None => Ok(TicketReply::AwaitingDeployment),
        },
    }
}

async fn issue_volume(
    app: &App,
    target: &TargetRow,
    id: VolumeId,
) -> Result<TicketReply, ApiError> {
    let refuse = |reason: String| Ok(TicketReply::Refused { reason });
    let Some(row) = app.db.volume(id).await? else {
        return refuse("the volume of this machine is gone".to_owned());
    };
    if app.nbd.ip().to_canonical().is_loopback() {
        return refuse(
            "volumes are served to the server itself only: start it with `--nbd 0.0.0.0:10809`"
                .to_owned(),
        );
    }
    if let Err(error) = app.volumes.condition(&row.name) {
        return Ok(TicketReply::AwaitingTurn {
            reason: format!("its volume {}: {error}", row.name),
        });
    }
    let certified = app.site.authority().certify(&Member::Volume(id), &target.public_key)?;
    tracing::info!(machine = %target.machine, code = target.code, volume = row.name, "a machine comes up from its volume");
    Ok(TicketReply::Volume(Box::new(VolumeTicket {
        volume: row.name,
        port: app.nbd.port(),
        certificate_pem: certified.certificate_pem,
        ca_pem: app.site.authority().ca_pem().to_owned(),
    })))
}

async fn issue(
    app: &App,
    target: &TargetRow,
    install: InstallId,
    take_over: bool,
) -> Result<TicketReply, ApiError> {
    let over = || TicketReply::Refused {
        reason: "this install is over: start the installer again".to_owned(),
    };
    let Some(row) = app.db.install(install).await? else { return Ok(over()) };
    if row.paused && row.state == InstallState::Scheduled {
        return Ok(TicketReply::AwaitingTurn { reason: PAUSED.to_owned() });
    }
    let Some(version) = app.db.version(row.version).await? else { return Ok(over()) };
    // On a running system the operator's installer overwrites another disk than the one that the agent uses.
    if target.image.is_none()
        && let Some(reason) = waves::take_turn(app, &row).await?
    {
        return Ok(TicketReply::AwaitingTurn { reason });
    }
    let content_key = app.site.open_content_key(&version.content_key)?;
    let certified = app.site.authority().certify(&Member::Target(install), &target.public_key)?;
    let handed = app.db.hand_install_to(install, target.hash, take_over, Moment::now()).await?;
    if handed.is_none() {
        return Ok(over());
    }
    tracing::info!(install = %install, machine = %target.machine, code = target.code, "a ticket was issued");
    let address = target.address.ip().to_canonical();
    log::add(app, install, &format!("begins, as {} at {address}", target.code)).await;
    // Another run of the same machine may wait for a ticket that it does not get any more.
    app.targets_changed.notify();
    tell_install(app, install).await?;
    // On a running system the operator's installer ends where it began.
    let then = if target.image.is_some() { AfterInstall::Exit } else { row.after };
    Ok(TicketReply::Ready(Box::new(Ticket {
        install,
        image: row.image,
        number: row.number,
        version: row.version,
        certificate_pem: certified.certificate_pem,
        ca_pem: app.site.authority().ca_pem().to_owned(),
        signing_key: app.site.verifying_key(),
        content_key: content_key.0,
        disk: row.disk,
        storage: row.storage,
        then,
    })))
}

/// Tells listeners how an install is now.
pub(super) async fn tell_install(app: &App, install: InstallId) -> Result<(), ApiError> {
    if let Some(row) = app.db.install(install).await? {
        let view = api::deployment::install_view(app, row).await?;
        app.events.emit(Event::InstallChanged(Box::new(view))).await;
    }
    Ok(())
}
