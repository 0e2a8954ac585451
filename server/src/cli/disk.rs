//! Addresses of disks, for `image url` and `volume url`.

use super::{client::Client, output::line};
use crate::api::disk::{DiskUrl, UrlRequest};

/// How long an address holds.
#[derive(Debug, clap::Args)]
pub(super) struct Life {
    /// How long it holds; whoever has it can read the disk until then
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8760))]
    hours: u32,
}

impl Life {
    /// Asks for the address of what is at `path`, and says it.
    pub(super) async fn url(&self, client: &Client, path: &str) -> anyhow::Result<()> {
        let request = UrlRequest { hours: self.hours };
        let made: DiskUrl = client.post_json(&format!("{path}/url"), &request).await?;
        line(&made.url)
    }
}
