//! `cairn-server recover`

use anyhow::bail;

use super::output::{line, note};
use crate::recover::{self, Options, Outcome};

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    // Progress: a closed terminal is no reason to end a recovery.
    let tell = |text: &str| drop(note(text));
    let Outcome { back, lost, clients } = recover::run(options, tell).await?;
    for name in &back {
        line(&format!("back:  {name}"))?;
    }
    for reason in &lost {
        line(&format!("lost:  {reason}"))?;
    }
    line(&format!(
        "This site is whole again with {clients} clients: start `cairn-server serve` with the same folder. \
         They find it by themselves within a minute, or are told."
    ))?;
    if lost.is_empty() {
        return Ok(());
    }
    bail!("{} of {} image versions and volumes are lost", lost.len(), lost.len() + back.len())
}
