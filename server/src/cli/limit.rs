//! `cairn-server limit`

use cairn_array::pace::{BadRate, Rate, Rates};

use super::{
    client::Remote,
    output::{json, line},
};
use crate::api::limits::Limits;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    /// Of what a machine sends: a rate like 50Mbit/s or 10MB/s, or `none`
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload: Option<Wanted>,
    /// Of what a machine receives
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download: Option<Wanted>,
    #[arg(long)]
    json: bool,
}

/// Bytes a second; none: no limit.
#[derive(Clone, Copy, Debug)]
struct Wanted(Option<u64>);

fn rate(text: &str) -> Result<Wanted, BadRate> {
    match text {
        "none" => Ok(Wanted(None)),
        text => text.parse().map(|rate: Rate| Wanted(Some(rate.bytes()))),
    }
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let mut limits: Limits = client.get("/api/v1/limits").await?;
        if self.upload.is_some() || self.download.is_some() {
            let wanted = Limits {
                upload: self.upload.map_or(limits.upload, |wanted| wanted.0),
                download: self.download.map_or(limits.download, |wanted| wanted.0),
            };
            limits = client.put_json("/api/v1/limits", &wanted).await?;
        }
        if self.json {
            return json(&limits);
        }
        line(&format!("each machine of the site: {}", Rates::try_from(limits)?))
    }
}
