//! What machines boot from the stand-in: the files of the bundle, and the way to this process.

use std::{fs, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use cairn_array::{tls::Fingerprint, wire::boot_cmdline};
use cairn_pxe::{
    BootDecider, BootDecision, Bound, DecisionFuture, DhcpMode, IPXE_PACKAGE, LOADERS, MachineHint,
    PayloadFiles, PxeConfig,
};

use super::{Options, targets::Targets};
use crate::{dark::DarkSite, home::Home};

/// Where the distribution's iPXE binaries are, for a site whose server had none.
const IPXE_DIR: &str = "/usr/lib/ipxe";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";

/// The boot files on this machine's disk, as long as it stands in: they are public, and served by name.
#[derive(Debug)]
pub(super) struct Boot {
    folder: PathBuf,
    ipxe_dir: PathBuf,
    fingerprint: Fingerprint,
}

impl Boot {
    /// Writes the boot files.
    ///
    /// # Errors
    /// When machines are to boot and the bundle has nothing for them, or the disk is full.
    pub(super) fn prepare(home: &Home, site: &DarkSite, needed: bool) -> Result<Self> {
        let folder = home.stand_in_folder();
        let this = Self { ipxe_dir: folder.clone(), folder, fingerprint: site.fingerprint };
        this.clear()?;
        let has = |name: &str| site.boot_files.iter().any(|file| file.name == name);
        if !needed {
            return Ok(this);
        }
        ensure!(
            has(KERNEL) && has(INITRD),
            "the clients hold no boot files: the server had none (`cairn-server boot build`). Without --interface this \
             still installs machines that reach it otherwise"
        );
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&this.folder)
            .with_context(|| format!("make folder {}", this.folder.display()))?;
        let names = LOADERS.iter().copied().chain([KERNEL, INITRD]);
        let files =
            site.boot_files.iter().filter(|file| names.clone().any(|name| name == file.name));
        for file in files {
            let path = this.folder.join(&file.name);
            fs::write(&path, &file.content)
                .with_context(|| format!("write boot file {}", path.display()))?;
        }
        if LOADERS.iter().all(|name| has(name)) {
            return Ok(this);
        }
        let ipxe_dir = PathBuf::from(IPXE_DIR);
        ensure!(
            LOADERS.iter().all(|name| ipxe_dir.join(name).is_file()),
            "the clients hold no iPXE binaries and this machine has none: install the package `{IPXE_PACKAGE}` here"
        );
        Ok(Self { ipxe_dir, ..this })
    }

    /// Opens the sockets that machines boot from.
    ///
    /// # Errors
    /// When a port is taken, or the interface has no address.
    pub(super) async fn bind(
        &self,
        interface: &str,
        options: &Options,
        server: SocketAddr,
        targets: Arc<Targets>,
    ) -> Result<Bound> {
        let config = PxeConfig {
            interface: Some(interface.to_owned()),
            server_addr: cairn_pxe::address_of_interface(interface)?,
            http_addr: options.boot_listen,
            dhcp: if options.dhcp { DhcpMode::Proxy } else { DhcpMode::Off },
            ipxe_dir: self.ipxe_dir.clone(),
            files: PayloadFiles {
                kernel: self.folder.join(KERNEL),
                initrd: self.folder.join(INITRD),
            },
            state_dir: self.folder.clone(),
        };
        let decider = Decider { targets, cmdline: boot_cmdline(server, self.fingerprint) };
        cairn_pxe::bind(config, Arc::new(decider), Arc::default()).await
    }

    /// Removes the boot files.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub(super) fn clear(&self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Every machine gets the installer, until it was installed here.
#[derive(Debug)]
struct Decider {
    targets: Arc<Targets>,
    cmdline: String,
}

impl BootDecider for Decider {
    fn decide(&self, hint: MachineHint) -> DecisionFuture<'_> {
        Box::pin(async move {
            if self.targets.is_done(&hint.mac.to_string()) {
                BootDecision::LocalDisk
            } else {
                BootDecision::Agent { cmdline: self.cmdline.clone() }
            }
        })
    }
}
