//! The signals that end a program.

use std::future::Future;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Listens from now on; what it returns ends with the first signal to stop.
///
/// # Errors
/// When the system does not let it listen.
pub fn stop_signals() -> Result<impl Future<Output = Result<()>>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
