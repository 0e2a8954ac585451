//! The units of the packages, as systemctl(1) starts them.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// There while systemd is the service manager, as sd_booted(3) says.
const BOOTED: &str = "/run/systemd/system";

/// A unit like `cairn-server.service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit(pub &'static str);

impl Unit {
    /// Whether systemd runs here and knows the unit.
    #[must_use]
    pub fn is_installed(self) -> bool {
        Path::new(BOOTED).is_dir() && self.holds("cat")
    }

    #[must_use]
    pub fn is_active(self) -> bool {
        self.holds("is-active")
    }

    #[must_use]
    pub fn is_enabled(self) -> bool {
        self.holds("is-enabled")
    }

    #[must_use]
    pub fn has_failed(self) -> bool {
        self.holds("is-failed")
    }

    /// Starts it now and at every start of the machine.
    ///
    /// # Errors
    /// When systemctl says no; the error has what it said.
    pub fn enable_now(self) -> Result<()> {
        if self.has_failed() {
            // Otherwise one that failed often is not started.
            self.ask(&["reset-failed"])?;
        }
        self.ask(&["enable", "--now"])
    }

    /// # Errors
    /// As [`Self::enable_now`].
    pub fn restart(self) -> Result<()> {
        self.ask(&["restart"])
    }

    fn holds(self, question: &str) -> bool {
        let mut command = Command::new("systemctl");
        command.args([question, self.0]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn ask(self, words: &[&str]) -> Result<()> {
        let line = || format!("systemctl {} {}", words.join(" "), self.0);
        let mut command = Command::new("systemctl");
        let output = command.args(words).arg(self.0).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run `{}`", line()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed: {}; see `journalctl -e -u {}`", line(), said.trim(), self.0);
        }
        Ok(())
    }
}
