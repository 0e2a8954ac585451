//! The signed directory: made anew, with the next number, whenever its content changes.

use std::{
    net::SocketAddr,
    sync::{PoisonError, RwLock},
};

use anyhow::Context as _;
use axum::{
    Extension,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use cairn_array::{
    tls::{Member, Peer},
    wire::MemberState,
};
use cairn_core::{
    directory::{Directory, MemberEntry},
    id::InstallId,
    units::Generation,
};

use super::agent_of;
use crate::{
    api::error::ApiError,
    app::App,
    db::{Db, deployment::InstallState},
    site::Site,
};

pub(crate) const SETTING: &str = "directory";

/// The newest directory.
#[derive(Debug)]
pub(crate) struct DirectoryKeeper {
    present: RwLock<Present>,
    /// One rebuild at a time: numbers must not be given twice.
    rebuilding: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Present {
    directory: Directory,
    signed: Bytes,
}

impl DirectoryKeeper {
    /// Takes up the directory that the database keeps; makes the first one when there is none.
    pub(crate) async fn open(db: &Db, site: &Site) -> anyhow::Result<Self> {
        let present = match db.setting(SETTING).await? {
            Some(signed) => {
                let directory = Directory::open(&site.verifying_key(), &signed)
                    .context("read the kept directory")?;
                Present { directory, signed: signed.into() }
            }
            None => {
                let directory = Directory {
                    site: site.id(),
                    number: Generation(1),
                    authority: site.sealed_keys().to_vec(),
                    server: None,
                    bundle: Vec::new(),
                    members: Vec::new(),
                    revoked: Vec::new(),
                };
                let signed = directory.seal(site.signer());
                db.keep_setting(SETTING, &signed).await?;
                Present { directory, signed: signed.into() }
            }
        };
        Ok(Self { present: RwLock::new(present), rebuilding: tokio::sync::Mutex::default() })
    }

    /// The number of the newest directory.
    pub(crate) fn number(&self) -> Generation {
        self.present.read().unwrap_or_else(PoisonError::into_inner).directory.number
    }

    /// Where the newest says that the server is.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        self.present().directory.server
    }

    /// The newest directory, signed.
    pub(crate) fn signed(&self) -> Bytes {
        self.present().signed
    }

    fn present(&self) -> Present {
        self.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Makes the directory anew from the database. When that changes nothing, the old one stays.
pub(crate) async fn rebuild(app: &App) -> anyhow::Result<()> {
    let keeper = &app.directory;
    let _one_at_a_time = keeper.rebuilding.lock().await;
    let agents = app.db.agents().await?;
    let members: Vec<_> = agents
        .iter()
        .filter(|agent| agent.state == MemberState::Approved)
        .map(|agent| MemberEntry { agent: agent.id, name: agent.name.clone(), addr: agent.address })
        .collect();
    let revoked: Vec<_> = agents
        .iter()
        .filter(|agent| matches!(agent.state, MemberState::Revoked | MemberState::Left))
        .map(|agent| agent.id)
        .collect();
    let bundles = app.db.bundles().await?;
    let published = bundles.into_iter().find(|bundle| bundle.published);
    let bundle = published.map(|bundle| bundle.segments).unwrap_or_default();
    let old = keeper.present().directory;
    let directory = Directory {
        site: app.site.id(),
        number: old.number,
        // Sealed anew it would differ every time.
        authority: old.authority.clone(),
        server: Some(app.address),
        bundle,
        members,
        revoked,
    };
    if directory == old {
        return Ok(());
    }
    let directory = Directory { number: Generation(old.number.0 + 1), ..directory };
    let signed = directory.seal(app.site.signer());
    app.db.keep_setting(SETTING, &signed).await?;
    for agent in &agents {
        let member = Member::Agent(agent.id);
        match agent.address.filter(|_| agent.state == MemberState::Approved) {
            Some(address) => app.names.set(member, address),
            None => app.names.remove(&member),
        }
    }
    *keeper.present.write().unwrap_or_else(PoisonError::into_inner) =
        Present { directory, signed: signed.into() };
    app.agents_changed.notify();
    Ok(())
}

/// `GET /agent/v1/directory`: for approved agents and for targets whose install is under way.
pub(super) async fn directory(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
) -> Result<Response, ApiError> {
    let peer = peer.map(|Extension(peer)| peer);
    match peer.and_then(|peer| peer.member) {
        Some(Member::Target(install)) => require_target(&app, install).await?,
        _ => {
            let agent = agent_of(&app, peer.as_ref()).await?;
            if agent.state != MemberState::Approved {
                return Err(ApiError::forbidden(
                    "agent_pending",
                    "this agent is not approved yet: an administrator runs `cairn-server agent approve`",
                ));
            }
        }
    }
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind)], app.directory.signed()).into_response())
}

/// Refuses a target whose install is not under way: its certificate outlives it by hours.
pub(crate) async fn require_target(app: &App, install: InstallId) -> Result<(), ApiError> {
    let state = app.db.install(install).await?.map(|install| install.state);
    if matches!(state, Some(InstallState::Ticketed | InstallState::Running)) {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "install_over",
        "the install of this certificate is over: start the installer again",
    ))
}
