//! `cairn-server limit`

use cairn_array::pace::{Limit, Rates};

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
    #[arg(long, value_name = "RATE")]
    upload: Option<Limit>,
    /// Of what a machine receives
    #[arg(long, value_name = "RATE")]
    download: Option<Limit>,
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        let before: Limits = client.get("/api/v1/limits").await?;
        let wanted = Limits::from(Rates::try_from(before)?.with(self.upload, self.download));
        let limits = if wanted == before {
            before
        } else {
            client.put_json("/api/v1/limits", &wanted).await?
        };
        if self.json {
            return json(&limits);
        }
        line(&format!("each machine of the site: {}", Rates::try_from(limits)?))
    }
}
