//! How machines boot from the network: how far each came, where it stopped, and who else answers there.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State};
use cairn_pxe::{Standing, Step, Stop, Trail, dhcp::Architecture};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, Problem};
use crate::{
    app::App,
    boot_build,
    config::DhcpChoice,
    db::machine::CardOwner,
    doctor::{self, Verdict},
    moment::Moment,
};

/// How machines boot from the network.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Boot {
    /// Where machines are answered; none: boot files are served, and nobody is answered by DHCP.
    pub interface: Option<String>,
    /// Where loaders, kernel and initramfs are served by HTTP, for DHCP servers of others to name.
    pub url: String,
    /// `proxy`, `full` or `off`
    pub dhcp: String,
    /// The kernel that blank machines boot; none until `cairn-server boot build` made it.
    pub kernel: Option<String>,
    /// Other DHCP servers that machines were seen to take addresses from.
    pub dhcp_servers: Vec<DhcpServer>,
    /// What the last look at who else answers found.
    pub survey: Option<Survey>,
    /// Machines that booted since the server started, the latest first; 1,024 at most.
    pub machines: Vec<Booting>,
}

/// Another DHCP server.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DhcpServer {
    pub address: String,
    /// When a machine last took an address from it.
    pub seen: String,
}

/// What a look at who else answers machines that boot found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Survey {
    pub at: String,
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub finding: String,
}

/// The last way of a machine from its firmware to the agent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Booting {
    pub mac: String,
    /// The machine with this address, when it is known.
    pub machine: Option<String>,
    pub name: Option<String>,
    /// Whether its firmware verified what it booted, as its agent said last.
    pub secure_boot: Option<bool>,
    /// `bios`, `uefi` or `uefi-http`
    pub firmware: Option<String>,
    pub address: Option<String>,
    /// The DHCP server whose address it took.
    pub dhcp_server: Option<String>,
    /// `on-its-way`, `arrived`, `own-disk`, `waits` or `stopped`
    pub state: String,
    /// The steps that it took, in order; what it had no need of is not there.
    pub steps: Vec<BootStep>,
    /// Why it does not go on, and what to do.
    pub stopped: Option<Stopped>,
}

/// A step on the way.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BootStep {
    /// `asked`, `answered`, `loader`, `loader-ran`, `told`, `kernel`, `initramfs` or `agent`
    pub step: String,
    pub at: String,
}

/// Why a machine does not go on.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Stopped {
    pub code: String,
    pub why: String,
    pub fix: String,
}

/// How a step is called.
pub(crate) const fn step_word(step: Step) -> &'static str {
    match step {
        Step::Asked => "asked",
        Step::Answered => "answered",
        Step::Loader => "loader",
        Step::LoaderRan => "loader-ran",
        Step::Told => "told",
        Step::Kernel => "kernel",
        Step::Initramfs => "initramfs",
        Step::Agent => "agent",
    }
}

/// Why a machine does not go on: a code, why, and what to do.
const fn explain(stop: Stop) -> (&'static str, &'static str, &'static str) {
    match stop {
        Stop::NoLoader => (
            "no-loader",
            "There is no loader for its kind of firmware: BIOS and 64-bit UEFI of PCs are answered.",
            "Choose another way of booting in its setup (legacy PXE, or UEFI with IPv4 PXE); machines that are no PCs cannot be installed.",
        ),
        Stop::NoAddress => (
            "no-address",
            "All addresses of the pool are taken.",
            "Start the server with a larger --dhcp-pool.",
        ),
        Stop::NotFetched => (
            "not-fetched",
            "It asked, and did not fetch the loader that it was offered.",
            "Look who else answers on this network: the other's offer may have won, or nobody gives it an address. Then see whether a firewall stops UDP ports 67, 69 and 4011, and whether the network is first in its boot order.",
        ),
        Stop::BrokeOff => (
            "broke-off",
            "It broke the loader's transfer off.",
            "Its link loses packets, or a firewall stops the server's answers, which come from ports of their own: see cable, switch (spanning tree without fast start) and firewall, then switch it on again.",
        ),
        Stop::NotRun => (
            "not-run",
            "It has the loader, and does not run it.",
            "Under Secure Boot firmware refuses loaders that nobody signed for it, as these are: switch Secure Boot off in its setup.",
        ),
        Stop::NoScript => (
            "no-script",
            "Its loader runs, and does not reach the server by HTTP.",
            "See whether it gets an address (its screen says so) and whether a firewall stops the port of --boot-listen.",
        ),
        Stop::NoPayload => (
            "no-payload",
            "There is nothing to boot yet.",
            "Run cairn-server boot build on the server; the machine asks again by itself.",
        ),
        Stop::NoKernel => (
            "no-kernel",
            "It was told what to boot, and did not fetch the kernel.",
            "See its screen: the loader says why. A firewall may stop the port of --boot-listen.",
        ),
        Stop::NoInitramfs => (
            "no-initramfs",
            "It has the kernel, and did not fetch the initramfs.",
            "See its screen: the loader says why; most often its memory is too small.",
        ),
        Stop::NoHello => (
            "no-hello",
            "It has all that it is to boot, and its agent did not say hello.",
            "See its screen: the kernel may lack a driver for its network card, or it has less than 1 GiB of memory. The agent must reach the server's HTTPS port.",
        ),
    }
}

pub(crate) const fn state_word(standing: Standing) -> &'static str {
    match standing {
        Standing::OnItsWay => "on-its-way",
        Standing::Arrived => "arrived",
        Standing::ToItsDisk => "own-disk",
        Standing::Waits => "waits",
        Standing::Stopped(_) => "stopped",
    }
}

fn moment(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).to_text()
}

/// A way as the API shows it; `machine` is whose card it is.
fn shown(
    trail: &Trail,
    machine: Option<(&CardOwner, Option<&String>)>,
    now: SystemTime,
) -> Booting {
    let standing = trail.standing(now);
    let text = |address: Option<Ipv4Addr>| address.map(|address| address.to_string());
    let firmware = trail.architecture.map(|architecture| match architecture {
        Architecture::Bios => "bios",
        Architecture::UefiX64 => "uefi",
        Architecture::UefiX64Http => "uefi-http",
    });
    let steps = trail.steps.iter();
    let mac = trail.mac.to_string();
    Booting {
        machine: machine.map(|(owner, _)| owner.machine.to_string()),
        // Without a name a machine is called by its card, which is said already.
        name: machine.and_then(|(_, name)| name.filter(|name| **name != mac).cloned()),
        secure_boot: machine.and_then(|(owner, _)| owner.secure_boot),
        firmware: firmware.map(str::to_owned),
        address: text(trail.address),
        dhcp_server: text(trail.dhcp_server),
        state: state_word(standing).to_owned(),
        mac,
        steps: steps
            .map(|(step, at)| BootStep { step: step_word(*step).to_owned(), at: moment(*at) })
            .collect(),
        stopped: match standing {
            Standing::Stopped(stop) => {
                let (code, why, fix) = explain(stop);
                Some(Stopped { code: code.to_owned(), why: why.to_owned(), fix: fix.to_owned() })
            }
            _ => None,
        },
    }
}

/// All of it.
pub(crate) async fn find(app: &App) -> Result<Boot, ApiError> {
    let now = SystemTime::now();
    let trails = app.boot.record.trails.all();
    let (machines, names) = if trails.is_empty() {
        (HashMap::new(), HashMap::new())
    } else {
        (app.db.card_owners().await?, app.db.machine_labels(None).await?)
    };
    let of = |trail: &Trail| {
        let owner = machines.get(&trail.mac.to_string())?;
        Some((owner, names.get(&owner.machine)))
    };
    let neighbours = app.boot.record.trails.neighbours().into_iter();
    Ok(Boot {
        interface: app.boot.interface.clone(),
        url: app.disks.served_at(),
        dhcp: match app.boot.dhcp {
            _ if app.boot.interface.is_none() => "off",
            DhcpChoice::Proxy => "proxy",
            DhcpChoice::Full => "full",
            DhcpChoice::Off => "off",
        }
        .to_owned(),
        kernel: boot_build::built(&app.boot_folder)?.map(|payload| payload.kernel),
        dhcp_servers: neighbours
            .map(|it| DhcpServer { address: it.address.to_string(), seen: moment(it.seen) })
            .collect(),
        survey: app.boot.surveyed(),
        machines: trails.iter().map(|trail| shown(trail, of(trail), now)).collect(),
    })
}

/// Show how machines boot from the network: how far each came, where it stopped and what to do
#[utoipa::path(get, path = "/api/v1/boot", tag = "machines", responses((status = 200, body = Boot)))]
pub(crate) async fn show(State(app): State<App>) -> Result<Json<Boot>, ApiError> {
    Ok(Json(find(&app).await?))
}

/// Look who else answers machines that boot
///
/// Asks as a machine that boots would, and listens for six seconds.
#[utoipa::path(post, path = "/api/v1/boot/survey", tag = "machines",
    responses((status = 200, body = Survey), (status = 409, body = Problem)))]
pub(crate) async fn survey(State(app): State<App>) -> Result<Json<Survey>, ApiError> {
    if app.boot.interface.is_none() {
        return Err(ApiError::conflict(
            "no_interface",
            "machines are answered on no network: start the server with --boot-interface",
        ));
    }
    let _alone = app.boot.surveying.lock().await;
    let check = doctor::neighbours(app.boot.interface.as_deref(), app.boot.dhcp).await;
    let found =
        Survey { at: Moment::now().to_text(), verdict: check.verdict, finding: check.finding };
    app.boot.keep(found.clone());
    Ok(Json(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_stopped_is_told_why_and_what_to_do_in_words_of_their_own() {
        use Stop::{
            BrokeOff, NoAddress, NoHello, NoInitramfs, NoKernel, NoLoader, NoPayload, NoScript,
            NotFetched, NotRun,
        };
        let all = [
            NoLoader,
            NoAddress,
            NotFetched,
            BrokeOff,
            NotRun,
            NoScript,
            NoPayload,
            NoKernel,
            NoInitramfs,
            NoHello,
        ];
        for stop in all {
            let (code, why, fix) = explain(stop);
            assert_eq!(all.iter().filter(|other| explain(**other).0 == code).count(), 1);
            assert!(why.ends_with('.') && fix.ends_with('.'), "{stop:?}");
            assert_eq!(all.iter().filter(|other| explain(**other).1 == why).count(), 1);
        }
    }
}
