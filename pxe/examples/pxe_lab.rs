//! Serves network boot on one interface and sends every machine to the payload, to try firmware by hand:
//!
//! ```text
//! pxe_lab INTERFACE proxy|full KERNEL INITRD [CMDLINE]
//! ```
//!
//! Counts are logged when it is interrupted. Leases are kept in the current folder.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context as _;
use cairn_pxe::{
    BootDecider, BootDecision, DecisionFuture, DhcpMode, FullDhcp, MachineHint, PayloadFiles,
    PxeConfig, Record,
};
use tokio_util::sync::CancellationToken;

struct Everyone {
    cmdline: String,
}

impl BootDecider for Everyone {
    fn decide(&self, _hint: MachineHint) -> DecisionFuture<'_> {
        Box::pin(async { BootDecision::Agent { cmdline: self.cmdline.clone() } })
    }
}

/// The upper half of the server's /24.
fn full(server: Ipv4Addr) -> DhcpMode {
    let [a, b, c, _] = server.octets();
    DhcpMode::Full(FullDhcp {
        pool_start: Ipv4Addr::new(a, b, c, 128),
        pool_end: Ipv4Addr::new(a, b, c, 254),
        mask: Ipv4Addr::new(255, 255, 255, 0),
        router: None,
        dns: Vec::new(),
        lease_seconds: 600,
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [interface, mode, kernel, initrd, cmdline @ ..] = args.as_slice() else {
        anyhow::bail!("usage: pxe_lab INTERFACE proxy|full KERNEL INITRD [CMDLINE]")
    };
    let server_addr = cairn_pxe::address_of_interface(interface)?;
    let config = PxeConfig {
        interface: Some(interface.clone()),
        server_addr,
        http_addr: (server_addr, 8441).into(),
        dhcp: if mode == "full" { full(server_addr) } else { DhcpMode::Proxy },
        ipxe_dir: "/usr/lib/ipxe".into(),
        files: PayloadFiles { kernel: kernel.into(), initrd: initrd.into() },
        state_dir: ".".into(),
    };
    let record = Arc::new(Record::default());
    let decider = Arc::new(Everyone { cmdline: cmdline.join(" ") });
    let bound = cairn_pxe::bind(config, decider, Arc::clone(&record)).await?;
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    let waiting = tokio::spawn(async move {
        let heard = tokio::signal::ctrl_c().await;
        interrupted.cancel();
        heard
    });
    bound.run(stop).await?;
    waiting.await?.context("wait for an interrupt")?;
    tracing::info!(counts = ?record.counters.snapshot(), "stopped");
    Ok(())
}
