//! The bearer of a target's run, and the install it stands for.

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::{
    api::{auth, error::ApiError},
    app::App,
    db::{
        deployment::{InstallRow, InstallState},
        target::{TargetRow, TargetState},
    },
    moment::Moment,
    secret,
};

/// A target that said hello.
#[derive(Debug)]
pub(super) struct Session(pub(super) TargetRow);

/// A target with a ticket, and the install that it got.
#[derive(Debug)]
pub(super) struct Ticketed(pub(super) InstallRow);

impl FromRequestParts<App> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let bearer = auth::bearer(&parts.headers).ok_or_else(unknown)?;
        let target = app.db.target_seen(secret::hash(bearer), Moment::now()).await?;
        target.map(Self).ok_or_else(unknown)
    }
}

fn unknown() -> ApiError {
    ApiError::unauthorized(
        "session_unknown",
        "this run is not known: start the installer again, it says hello anew",
    )
}

impl FromRequestParts<App> for Ticketed {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Session(target) = Session::from_request_parts(parts, app).await?;
        if target.state == TargetState::Ended {
            return Err(ApiError::forbidden(
                "run_ended",
                "another run of the installer on this machine took over: this one stops here",
            ));
        }
        let install = match target.install {
            Some(install) => app.db.install(install).await?,
            None => None,
        };
        let install = install.ok_or_else(|| {
            ApiError::forbidden(
                "no_ticket",
                "this target has no ticket: an administrator approves and deploys first",
            )
        })?;
        // A cancelled install may still say how it ended; it gets nothing more.
        if install.state == InstallState::Cancelled && !parts.uri.path().ends_with("/progress") {
            return Err(ApiError::forbidden(
                "install_cancelled",
                "an administrator cancelled this install",
            ));
        }
        Ok(Self(install))
    }
}
