//! What a machine that boots from the network is told: the payload, which installs it or brings it up from its volume, or its
//! own disk.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use cairn_array::wire::{MachineIdentity, boot_cmdline};
use cairn_pxe::{BootDecider, BootDecision, DecisionFuture, DiskFuture, MachineHint, Record};

use crate::{api::boot::Survey, app::App, config::DhcpChoice, db, disks, moment::Moment};

/// How machines are answered, and what came of it.
#[derive(Debug)]
pub(crate) struct BootNet {
    pub(crate) record: Arc<Record>,
    /// Where machines are answered.
    pub(crate) interface: Option<String>,
    pub(crate) dhcp: DhcpChoice,
    /// Held by who looks who else answers.
    pub(crate) surveying: tokio::sync::Mutex<()>,
    survey: Mutex<Option<Survey>>,
}

impl BootNet {
    pub(crate) fn new(interface: Option<String>, dhcp: DhcpChoice) -> Self {
        Self {
            record: Arc::default(),
            interface,
            dhcp,
            surveying: tokio::sync::Mutex::default(),
            survey: Mutex::default(),
        }
    }

    /// What the last look at who else answers found.
    pub(crate) fn surveyed(&self) -> Option<Survey> {
        self.survey.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn keep(&self, survey: Survey) {
        *self.survey.lock().unwrap_or_else(PoisonError::into_inner) = Some(survey);
    }
}

/// What is known about a machine that boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unknown,
    Known { installed: bool, has_open_install: bool, waits: bool, has_volume: bool },
}

/// A machine goes to its own disk only when it was installed and nothing else is wanted of it.
const fn goes_to_its_disk(standing: Standing) -> bool {
    matches!(
        standing,
        Standing::Known {
            installed: true,
            has_open_install: false,
            waits: false,
            has_volume: false
        }
    )
}

/// Decides from what the database knows.
#[derive(Debug)]
pub(crate) struct Decider {
    app: App,
    /// The server as machines on the boot net reach it.
    server: SocketAddr,
}

impl Decider {
    pub(crate) const fn new(app: App, server: SocketAddr) -> Self {
        Self { app, server }
    }

    async fn standing(&self, hint: &MachineHint) -> db::Result<Standing> {
        let identity = MachineIdentity {
            uuid: hint.uuid.and_then(|uuid| cairn_array::tidy::tidy_uuid(&uuid.to_string())),
            macs: vec![hint.mac.to_string()],
            ..MachineIdentity::default()
        };
        let db = &self.app.db;
        let Some(id) = db.machine_with(&identity).await? else { return Ok(Standing::Unknown) };
        let Some(machine) = db.machine(id).await? else { return Ok(Standing::Unknown) };
        let live = db.live_targets(Moment::now()).await?;
        Ok(Standing::Known {
            installed: machine.installed.is_some(),
            has_open_install: db.open_install_of_machine(id).await?.is_some(),
            has_volume: machine.root.is_some(),
            waits: live.iter().any(|target| target.machine == id && target.install.is_none()),
        })
    }
}

impl BootDecider for Decider {
    fn decide(&self, hint: MachineHint) -> DecisionFuture<'_> {
        Box::pin(async move {
            match self.standing(&hint).await {
                Ok(standing) if goes_to_its_disk(standing) => BootDecision::LocalDisk,
                Ok(_) => BootDecision::Agent {
                    cmdline: boot_cmdline(self.server, self.app.site.fingerprint()),
                },
                Err(error) => {
                    tracing::error!(mac = %hint.mac, error = &error as &dyn std::error::Error, "decide what a machine boots");
                    BootDecision::Wait { seconds: 10 }
                }
            }
        })
    }

    fn disk(&self, path: String) -> DiskFuture<'_> {
        Box::pin(async move { disks::find(&self.app, &path).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_installed_machine_without_an_order_goes_to_its_disk() {
        assert!(!goes_to_its_disk(Standing::Unknown));
        for installed in [false, true] {
            for has_open_install in [false, true] {
                for (waits, has_volume) in
                    [(false, false), (false, true), (true, false), (true, true)]
                {
                    let standing =
                        Standing::Known { installed, has_open_install, waits, has_volume };
                    let wanted = installed && !has_open_install && !waits && !has_volume;
                    assert_eq!(goes_to_its_disk(standing), wanted, "{standing:?}");
                }
            }
        }
    }
}
