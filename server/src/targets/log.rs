//! What happened in an install, in words that its machine's page shows later.

use cairn_array::{
    peer::Source,
    size,
    wire::{InstallPhase, InstallProgress},
};
use cairn_core::{fetch::Fault, id::InstallId, units::ByteCount};

use crate::{app::App, moment::Moment};

/// Adds a line. That it was not kept hinders no install.
pub(crate) async fn add(app: &App, install: InstallId, text: &str) {
    if let Err(error) = app.db.log_install(install, Moment::now(), text).await {
        tracing::warn!(%install, error = &error as &dyn std::error::Error, "keep a line of an install's log");
    }
}

/// What is to be said of a report, when it tells of another phase than the one before.
pub(super) fn turn(before: Option<&InstallProgress>, now: &InstallProgress) -> Option<String> {
    if before.is_some_and(|before| before.phase == now.phase) {
        return None;
    }
    let of = |bytes: ByteCount| size::show(bytes);
    Some(match now.phase {
        InstallPhase::Planning => "looks at what is on the disk already".to_owned(),
        InstallPhase::Writing => format!("fetches {} and writes", of(now.total)),
        InstallPhase::Verifying => "reads back what was written".to_owned(),
        InstallPhase::Finishing => "makes it bootable".to_owned(),
        InstallPhase::Done => format!(
            "done after {} s: {} from peers, {} from the server, {} rebuilt, {} right before, {} written",
            now.milliseconds / 1000,
            of(now.from_peers),
            of(now.from_server),
            of(now.rebuilt),
            of(now.already),
            of(now.written)
        ),
        InstallPhase::Failed => {
            format!("failed: {}", now.error.as_deref().unwrap_or("no reason was given"))
        }
    })
}

/// What is to be said of a complaint.
pub(super) async fn complaint(app: &App, source: Source, fault: Fault) -> String {
    let who = match source {
        Source::Peer(agent) => match app.db.agent(agent).await {
            Ok(Some(row)) => format!("client {}", row.name),
            _ => format!("client {agent}"),
        },
        Source::Server => "the server".to_owned(),
        Source::Target(install) => match app.db.install(install).await {
            Ok(Some(row)) => match app.db.machine_labels(Some(row.machine)).await {
                Ok(labels) => labels.get(&row.machine).map_or_else(
                    || format!("machine {}", row.machine),
                    |label| format!("machine {label}"),
                ),
                Err(_) => format!("machine {}", row.machine),
            },
            _ => format!("install {install}"),
        },
    };
    match fault {
        Fault::Damaged => format!("{who} sent a damaged segment: it was fetched elsewhere"),
        Fault::Empty => format!("{who} has not what it is to have: asked elsewhere"),
        Fault::Slow => format!("{who} is far slower than others: asked elsewhere"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: InstallPhase, error: Option<&str>) -> InstallProgress {
        InstallProgress {
            phase,
            total: ByteCount(3 << 20),
            from_peers: ByteCount(2 << 20),
            from_server: ByteCount(1 << 20),
            rebuilt: ByteCount(0),
            already: ByteCount(0),
            written: ByteCount(5 << 20),
            milliseconds: 12_345,
            percent: None,
            bottleneck: None,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn a_line_is_said_at_each_turn_and_not_between() {
        let writing = progress(InstallPhase::Writing, None);
        assert_eq!(turn(Some(&writing), &writing), None);
        let begun = turn(None, &writing).unwrap();
        assert!(begun.starts_with("fetches 3.0 MiB"), "{begun}");
        let done = turn(Some(&writing), &progress(InstallPhase::Done, None)).unwrap();
        assert!(
            done.contains("done after 12 s: 2.0 MiB from peers, 1.0 MiB from the server"),
            "{done}"
        );
        let failed = progress(InstallPhase::Failed, Some("the disk is gone"));
        assert_eq!(turn(Some(&writing), &failed).unwrap(), "failed: the disk is gone");
    }
}
