//! `cairn-server serve --standby`: a second server of a site, which takes the place of the one that serves when that is lost.
//!
//! The database and the buckets know who has them; a standby tries until they let it. What it needs besides are the site's
//! secrets, and journals that clients mirror ([`crate::volumes`]).

use std::{io::Write as _, time::Duration};

use anyhow::ensure;
use cairn_array::store::DeviceFault;
use tokio_util::sync::CancellationToken;

use crate::{
    config::ServeOptions,
    db::{DatabaseAddress, DbError},
    serve::{Running, notify_service_manager, start},
    site::secrets::Secrets,
};

/// Until a site is looked at again that cannot be looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Starts once no other server has the site; none when it is told to stop before.
///
/// # Errors
/// When it cannot take the site over, whoever has it.
pub(crate) async fn wait(
    options: &ServeOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Running>> {
    let database = options.database();
    ensure!(
        matches!(database, DatabaseAddress::Postgres(_)),
        "a standby takes over a site whose database outlives its server: name it with --database postgres://…"
    );
    ensure!(
        !Secrets::are_absent(&options.data_dir)?,
        "copy the folder `secrets` of the other server to {}",
        options.data_dir.join("secrets").display()
    );
    let mut out = std::io::stdout();
    writeln!(out, "standby: waits until no other server uses {database}")?;
    out.flush()?;
    // As a service, a standby is up while it waits: the start of its unit must not time out.
    notify_service_manager("standby");
    loop {
        // A start that finds the site in use has waited for it for a while.
        let started = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            started = start(options.clone(), stop.clone()) => started,
        };
        match started {
            Err(error) if is_in_use(&error) => {
                tracing::debug!(error = format!("{error:#}"), "another server has the site");
            }
            Err(error) if is_away(&error) => {
                tracing::warn!(error = format!("{error:#}"), "the site cannot be looked at");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            started => return started.map(Some),
        }
    }
}

/// Whether another server uses the database, or a device of the store.
fn is_in_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(DbError::InUse))
            || matches!(cause.downcast_ref(), Some(DeviceFault::InUse))
    })
}

/// Whether the database does not answer.
fn is_away(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(DbError::is_no_answer))
}
