//! `cairn-server boot …`: what blank machines boot, built on this machine.

use std::path::PathBuf;

use clap::Subcommand;

use super::{
    client::Remote,
    output::{bytes, json, line, or_dash, table},
};
use crate::{
    api::boot::{Boot, Survey},
    boot_build::{self, BootBuildOptions, KernelSource},
    doctor::Verdict,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct BuildOptions {
    /// The data folder of the server that will serve them
    #[arg(long, env = "CAIRN_DATA_DIR", default_value = "./cairn-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Where they go (default: `boot` in the data folder)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A kernel, with --modules
    #[arg(long, value_name = "FILE", requires = "modules", conflicts_with = "package")]
    vmlinuz: Option<PathBuf>,
    /// The modules of that kernel, like /lib/modules/VERSION
    #[arg(long, value_name = "DIR", requires = "vmlinuz")]
    modules: Option<PathBuf>,
    /// A kernel package
    #[arg(long = "kernel-deb", alias = "package", value_name = "DEB")]
    package: Option<PathBuf>,
    /// The static cairn-agent
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where packages are kept and unpacked (default: `boot-cache` in the data folder)
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build kernel and initramfs from the distribution's kernel (or a given one) and the static agent
    Build(BuildOptions),
    /// Show how far each machine that booted from the network came, where it stopped and what to do
    Status {
        #[command(flatten)]
        remote: Remote,
        #[arg(long)]
        json: bool,
    },
    /// Look who else answers machines that boot; takes six seconds
    Survey {
        #[command(flatten)]
        remote: Remote,
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Build(options) => options.build(),
            Verb::Status { remote, json } => status(remote, json).await,
            Verb::Survey { remote, json } => survey(remote, json).await,
        }
    }
}

impl BuildOptions {
    fn build(self) -> anyhow::Result<()> {
        let Self { data_dir, out, vmlinuz, modules, package, agent, cache, json: as_json } = self;
        let kernel = match (vmlinuz, modules, package) {
            (Some(vmlinuz), Some(modules), _) => KernelSource::Files { vmlinuz, modules },
            (_, _, Some(package)) => KernelSource::Package(package),
            _ => KernelSource::Distribution,
        };
        let out = out.unwrap_or_else(|| data_dir.join("boot"));
        let cache = cache.unwrap_or_else(|| data_dir.join("boot-cache"));
        let payload = boot_build::run(BootBuildOptions { out: out.clone(), cache, kernel, agent })?;
        if as_json {
            return json(&payload);
        }
        line(&format!(
            "{}: kernel {} ({}), initramfs with {} modules ({})",
            out.display(),
            payload.kernel,
            bytes(payload.vmlinuz.bytes),
            payload.modules,
            bytes(payload.initrd.bytes)
        ))
    }
}

async fn status(remote: Remote, as_json: bool) -> anyhow::Result<()> {
    let boot: Boot = remote.connect()?.get("/api/v1/boot").await?;
    if as_json {
        return json(&boot);
    }
    match &boot.interface {
        Some(interface) => line(&format!("network   {interface}, DHCP {}", boot.dhcp))?,
        None => line("network   none: start the server with --boot-interface")?,
    }
    line(&format!("files     {}", boot.url))?;
    line(&format!("kernel    {}", boot.kernel.as_deref().unwrap_or("none: run `boot build`")))?;
    for server in &boot.dhcp_servers {
        line(&format!("DHCP      {} gave an address at {}", server.address, server.seen))?;
    }
    if let Some(survey) = &boot.survey {
        line(&format!("survey    {} ({})", survey.finding, survey.at))?;
    }
    let rows = boot.machines.iter().map(|machine| {
        let last = machine.steps.last();
        vec![
            machine.name.clone().unwrap_or_else(|| machine.mac.clone()),
            or_dash(machine.firmware.clone()),
            or_dash(machine.address.clone()),
            machine.state.clone(),
            or_dash(last.map(|step| step.step.clone())),
            or_dash(last.map(|step| step.at.clone())),
        ]
    });
    let header = ["MACHINE", "FIRMWARE", "ADDRESS", "STATE", "LAST STEP", "AT"];
    table(&header, rows.collect(), "no machine booted from the network since the server started")?;
    for machine in &boot.machines {
        if let Some(stopped) = &machine.stopped {
            let label = machine.name.as_ref().unwrap_or(&machine.mac);
            line(&format!("{label}: {} {}", stopped.why, stopped.fix))?;
        }
    }
    Ok(())
}

async fn survey(remote: Remote, as_json: bool) -> anyhow::Result<()> {
    let survey: Survey = remote.connect()?.post("/api/v1/boot/survey").await?;
    if as_json {
        json(&survey)?;
    } else {
        line(&survey.finding)?;
    }
    anyhow::ensure!(survey.verdict != Verdict::Bad, "machines may not boot from here");
    Ok(())
}
