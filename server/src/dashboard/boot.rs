//! Fills the page of boot and network.

use axum::response::Response;
use cairn_web::{
    boot::{Boot, Booting, Dhcp, Server, Standing, Step, Survey},
    shell::Place,
};

use super::{ago, answer, visit::Visit};
use crate::{
    api::{self, error::ApiError},
    app::App,
    doctor::Verdict,
    moment::Moment,
};

/// Machines that are shown.
const SHOWN: usize = 50;

fn booting(machine: api::boot::Booting, now: Moment) -> Booting {
    let firmware = machine.firmware.as_deref().map(|firmware| match firmware {
        "bios" => "BIOS",
        "uefi-http" => "UEFI, by HTTP",
        _ => "UEFI",
    });
    let from = machine.dhcp_server.map(|server| format!("address from {server}"));
    let details = [firmware.map(str::to_owned), machine.address, from].into_iter().flatten();
    Booting {
        details: details.collect(),
        mac: machine.mac,
        name: machine.name,
        secure_boot: machine.secure_boot,
        standing: match machine.state.as_str() {
            "arrived" => Standing::Arrived,
            "own-disk" => Standing::OwnDisk,
            "waits" => Standing::Waits,
            "stopped" => Standing::Stopped,
            _ => Standing::OnItsWay,
        },
        at: machine.steps.last().map(|step| ago(&step.at, now)),
        steps: machine.steps.iter().filter_map(|step| Step::of_word(&step.step)).collect(),
        stopped: machine.stopped.map(|stopped| (stopped.why, stopped.fix)),
    }
}

pub(super) async fn view(app: &App) -> Result<Boot, ApiError> {
    let now = Moment::now();
    let found = api::boot::find(app).await?;
    let mut machines: Vec<_> =
        found.machines.into_iter().map(|machine| booting(machine, now)).collect();
    // Stable: the latest stay first among those that stopped, and among the others.
    machines.sort_by_key(|machine| machine.standing != Standing::Stopped);
    let more = machines.len().saturating_sub(SHOWN);
    machines.truncate(SHOWN);
    let servers = found.dhcp_servers.into_iter();
    Ok(Boot {
        interface: found.interface,
        url: found.url,
        dhcp: match found.dhcp.as_str() {
            "proxy" => Dhcp::Proxy,
            "full" => Dhcp::Full,
            _ => Dhcp::Off,
        },
        kernel: found.kernel,
        servers: servers
            .map(|server| Server { seen: ago(&server.seen, now), address: server.address })
            .collect(),
        survey: found.survey.map(|survey| Survey {
            at: ago(&survey.at, now),
            tone: match survey.verdict {
                Verdict::Good => "good",
                Verdict::Note => "warn",
                Verdict::Bad => "bad",
            },
            finding: survey.finding,
        }),
        machines,
        more,
    })
}

/// Looks who else answers.
pub(super) async fn survey(visit: Visit) -> Result<Response, ApiError> {
    let done = api::boot::survey(visit.state()).await;
    answer(&visit, Place::Boot, done).await
}
