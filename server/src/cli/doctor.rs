//! `cairn-server doctor`

use anyhow::bail;

use super::output::{json, line};
use crate::{
    config::ServeOptions,
    doctor::{self, Verdict},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    serve: ServeOptions,
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) const fn serve(&self) -> &ServeOptions {
        &self.serve
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let checks = doctor::examine(&self.serve).await;
        if self.json {
            json(&checks)?;
        } else {
            for check in &checks {
                let mark = match check.verdict {
                    Verdict::Good => "ok  ",
                    Verdict::Note => "note",
                    Verdict::Bad => "BAD ",
                };
                line(&format!("{mark}  {:14} {}", check.name, check.finding))?;
            }
        }
        match checks.iter().filter(|check| check.verdict == Verdict::Bad).count() {
            0 => Ok(()),
            1 => bail!("1 thing is to be mended before this server does its work"),
            count => bail!("{count} things are to be mended before this server does its work"),
        }
    }
}
