//! `cairn-server job …`, and waiting for a job.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;

use super::{
    client::{Client, Remote},
    output::{json, note, table},
};
use crate::{
    api::job::Job,
    db::job::{JobProgress, JobState},
};

const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List what the server does by itself, newest first: how far it is, and how long it takes
    List {
        #[command(flatten)]
        remote: Remote,
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Verb::List { remote, json: as_json } = self.verb;
        let jobs: Vec<Job> = remote.connect()?.get("/api/v1/jobs").await?;
        if as_json {
            return json(&jobs);
        }
        let rows = jobs.into_iter().map(|job| {
            let is_running = job.state == JobState::Running;
            let far = job.progress.as_ref().filter(|_| is_running).map(far);
            let more = far.or(job.error).unwrap_or_default();
            vec![
                job.id.to_string(),
                job.kind,
                job.subject,
                job.state.to_string(),
                more,
                job.updated,
            ]
        });
        let head = ["ID", "KIND", "OF", "STATE", "PROGRESS", "SINCE"];
        table(&head, rows.collect(), "the server has had nothing to do")
    }
}

/// `40 % of the segments, 2 min left`
pub(super) fn far(progress: &JobProgress) -> String {
    let percent = progress.done * 100 / progress.total.max(1);
    let left = progress.seconds_left.map(|left| {
        let left = match left {
            0..60 => format!("{left} s"),
            60..3600 => format!("{} min", left.div_ceil(60)),
            _ => format!("{} h {} min", left / 3600, left / 60 % 60),
        };
        format!(", {left} left")
    });
    format!("{percent} % of the {}{}", progress.unit, left.unwrap_or_default())
}

/// Waits for the end of a job, and says about every tenth how far it is.
pub(super) async fn wait_for(client: &Client, id: i64) -> anyhow::Result<()> {
    let mut told = 0;
    loop {
        let jobs: Vec<Job> = client.get("/api/v1/jobs").await?;
        let job = jobs.into_iter().find(|job| job.id == id);
        let job =
            job.context("the server has forgotten the job: `cairn-server job list` shows others")?;
        match (job.state, job.error) {
            (JobState::Done, _) => return Ok(()),
            (JobState::Failed | JobState::Cancelled, error) => {
                anyhow::bail!(
                    "it failed: {}",
                    error.unwrap_or_else(|| "it was cancelled".to_owned())
                )
            }
            (JobState::Queued | JobState::Running, _) => {}
        }
        if let Some(progress) = job.progress {
            let percent = progress.done * 100 / progress.total.max(1);
            if percent >= told + 10 {
                told = percent;
                note(&far(&progress))?;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_with_the_time_that_is_left() {
        let progress = |seconds_left| JobProgress {
            done: 2,
            total: 5,
            unit: "segments".to_owned(),
            seconds_left,
        };
        assert_eq!(far(&progress(None)), "40 % of the segments");
        assert_eq!(far(&progress(Some(9))), "40 % of the segments, 9 s left");
        assert_eq!(far(&progress(Some(61))), "40 % of the segments, 2 min left");
        assert_eq!(far(&progress(Some(3720))), "40 % of the segments, 1 h 2 min left");
    }
}
