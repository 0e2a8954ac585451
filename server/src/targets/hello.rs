//! `POST /target/v1/hello`: a machine introduces itself and gets a bearer for this run.

use std::time::SystemTime;

use axum::{Extension, Json, extract::State};
use cairn_array::{
    tidy::tidy,
    tls::{Peer, public_key_of_csr},
    wire::{HelloReply, TargetHello, code_of, split_name},
};
use cairn_core::id::MachineId;

use crate::{
    api::{self, error::ApiError, extract::Body, image::is_name},
    app::App,
    db::{
        machine::MeetError,
        target::{HelloError, TargetRow, TargetState},
    },
    moment::Moment,
    secret,
};

pub(super) async fn hello(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Body(mut hello): Body<TargetHello>,
) -> Result<Json<HelloReply>, ApiError> {
    tidy(&mut hello);
    let names = |image: &String| split_name(image).is_some_and(|(name, _)| is_name(name));
    if hello.image.as_ref().is_some_and(|image| !names(image)) {
        return Err(ApiError::bad_request(
            "bad_image",
            "an image is NAME or NAME@N: ask for one that `cairn-server image list` shows",
        ));
    }
    // Elliptic curves cost: off the threads that serve others.
    let csr = hello.csr_pem.clone();
    let public_key = tokio::task::spawn_blocking(move || public_key_of_csr(&csr))
        .await
        .map_err(anyhow::Error::from)?
        .map_err(|error| {
            ApiError::bad_request(
                "bad_csr",
                format!("the certificate request is no good: {error:#}"),
            )
        })?;
    let now = Moment::now();
    let fresh = MachineId(secret::random()?);
    let machine = app.db.meet_machine(fresh, &hello, now).await.map_err(|error| match error {
        MeetError::TooMany => too_many(),
        MeetError::Db(error) => error.into(),
    })?;
    let session = secret::random_text()?;
    let target = TargetRow {
        hash: secret::hash(&session),
        machine,
        code: code_of(&public_key),
        public_key,
        state: TargetState::Waiting,
        image: hello.image,
        address: peer.addr,
        install: None,
    };
    app.db.begin_target(&target, now).await.map_err(|error| match error {
        HelloError::TooMany => too_many(),
        HelloError::Db(error) => error.into(),
    })?;
    tracing::info!(machine = %machine, code = target.code, from = %peer.addr, "a target said hello");
    app.boot
        .record
        .trails
        .arrived(hello.identity.macs.iter().map(String::as_str), SystemTime::now());
    app.targets_changed.notify();
    api::machine::tell(&app, machine).await?;
    Ok(Json(HelloReply { session, machine, code: target.code }))
}

fn too_many() -> ApiError {
    ApiError::too_many(
        "too_many_machines",
        "too many unknown machines have shown up: an administrator forgets some (`cairn-server machine list`), then try again",
    )
}
