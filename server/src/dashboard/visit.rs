//! A request for a page: the server, and who looks.

use std::ops::Deref;

use anyhow::anyhow;
use axum::{
    Extension,
    extract::{FromRequestParts, State},
    http::request::Parts,
};

use crate::{
    api::{auth::Actor, error::ApiError},
    app::App,
};

/// What every handler of a page begins with.
pub(super) struct Visit {
    app: App,
    /// Who looks, as `guard` found.
    pub(super) actor: Actor,
}

impl Visit {
    pub(super) const fn new(app: App, actor: Actor) -> Self {
        Self { app, actor }
    }

    /// As functions of the API take who asks.
    pub(super) fn who(&self) -> Extension<Actor> {
        Extension(self.actor.clone())
    }

    /// As functions of the API take it.
    pub(super) fn state(&self) -> State<App> {
        State(self.app.clone())
    }
}

impl Deref for Visit {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl FromRequestParts<App> for Visit {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let actor = parts.extensions.get::<Actor>().cloned();
        let actor = actor.ok_or_else(|| anyhow!("a page was asked for past the door"))?;
        Ok(Self::new(app.clone(), actor))
    }
}
