//! `cairn-server boot …`: what blank machines boot, built on this machine.

use std::path::PathBuf;

use clap::Subcommand;

use super::output::{bytes, json, line};
use crate::boot_build::{self, BootBuildOptions, KernelSource};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build kernel and initramfs from the distribution's kernel (or a given one) and the static agent
    Build {
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
    },
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Verb::Build { data_dir, out, vmlinuz, modules, package, agent, cache, json: as_json } =
            self.verb;
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
