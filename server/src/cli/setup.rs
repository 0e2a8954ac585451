//! `cairn-server setup`

use std::net::SocketAddr;

use cairn_array::settings::Place;
use clap::ValueEnum as _;

use crate::{
    config::{DhcpChoice, Pool},
    setup::{self, Wishes},
};

/// What goes into the configuration file; everything else in it stays as it is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The interface on which machines boot from the network (default: the one with the default route)
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Beside an existing DHCP server, as the net's only one, or not at all
    #[arg(long, value_enum)]
    dhcp: Option<DhcpChoice>,
    /// The addresses that full DHCP gives, first and last
    #[arg(long, value_name = "A-B")]
    dhcp_pool: Option<Pool>,
    /// HTTPS: dashboard, API, agents
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

impl Args {
    pub(super) async fn run(self, place: Place) -> anyhow::Result<()> {
        let dhcp = self.dhcp.and_then(|dhcp| dhcp.to_possible_value());
        let values = [
            ("dhcp", dhcp.map(|dhcp| dhcp.get_name().to_owned())),
            ("dhcp_pool", self.dhcp_pool.map(|pool| pool.to_string())),
            ("listen", self.listen.map(|listen| listen.to_string())),
        ];
        let values = values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        setup::run(Wishes { interface: self.interface, values }, &place).await
    }
}
