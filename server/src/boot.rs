//! What a machine that boots from the network is told: the installer, or its own disk.

use std::net::SocketAddr;

use cairn_array::{tls::Fingerprint, wire::MachineIdentity};
use cairn_pxe::{BootDecider, BootDecision, DecisionFuture, MachineHint};

use crate::{app::App, db, moment::Moment};

/// What is known about a machine that boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unknown,
    Known { installed: bool, has_open_install: bool, waits: bool },
}

/// A machine goes to its own disk only when it was installed and nothing else is wanted of it.
const fn goes_to_its_disk(standing: Standing) -> bool {
    matches!(standing, Standing::Known { installed: true, has_open_install: false, waits: false })
}

/// The kernel command line of the installer: where the server is, how to know it, and both consoles.
fn cmdline(server: SocketAddr, ca: Fingerprint) -> String {
    format!("cairn.server={server} cairn.ca={ca} console=tty0 console=ttyS0,115200n8")
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
            uuid: hint.uuid.and_then(|uuid| crate::machines::tidy_uuid(&uuid.to_string())),
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
                    cmdline: cmdline(self.server, self.app.site.fingerprint()),
                },
                Err(error) => {
                    tracing::error!(mac = %hint.mac, error = &error as &dyn std::error::Error, "decide what a machine boots");
                    BootDecision::Wait { seconds: 10 }
                }
            }
        })
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
                for waits in [false, true] {
                    let standing = Standing::Known { installed, has_open_install, waits };
                    let wanted = installed && !has_open_install && !waits;
                    assert_eq!(goes_to_its_disk(standing), wanted, "{standing:?}");
                }
            }
        }
    }

    #[test]
    fn the_command_line_names_the_server_and_its_ca() {
        let text = cmdline("10.77.0.2:8440".parse().unwrap(), Fingerprint([0xab; 32]));
        let ca = "ab".repeat(32);
        assert_eq!(
            text,
            format!(
                "cairn.server=10.77.0.2:8440 cairn.ca={ca} console=tty0 console=ttyS0,115200n8"
            )
        );
    }
}
