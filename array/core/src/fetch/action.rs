//! The words in which scheduler and driver speak.

use serde::{Deserialize, Serialize};

use super::hosts::Source;
use super::jobs::JobId;
use crate::id::SegmentId;
use crate::stripe_map::ShardPlace;

/// A segment that the image needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub id: SegmentId,
    /// Sealed bytes.
    pub bytes: u32,
}

/// How much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fetches under way, over all sources.
    pub in_flight: usize,
    /// Fetches under way from one peer, while there are enough peers.
    pub per_peer: usize,
    /// Fetches beyond these for what only the server has, since that is the rarest.
    pub server_share: usize,
    /// Bytes kept for stripes that are being rebuilt. One stripe is always allowed.
    pub rebuild_bytes: u64,
    /// Failures in a row after which a source counts as gone. Each is followed by a longer pause.
    pub gone_after: u32,
}

impl Default for Limits {
    /// Limits that keep a link busy.
    fn default() -> Self {
        Self { in_flight: 4, per_peer: 2, server_share: 1, rebuild_bytes: 160 << 20, gone_after: 7 }
    }
}

/// Names an action until its outcome is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What the driver shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a source for a turn: it is granted when the source can send.
    Ask { ticket: Ticket, from: Source },
    /// Give a granted turn back.
    Pass { turn: Ticket },
    /// Use a turn to fetch a segment, and check its hash. `install`: the image needs it. `keep`: hold its sealed bytes for this job until
    /// [`Action::Rebuild`] or [`Action::Forget`].
    Fetch {
        ticket: Ticket,
        turn: Option<Ticket>,
        segment: SegmentId,
        bytes: u32,
        from: Source,
        install: bool,
        keep: Option<JobId>,
    },
    /// Compute missing segments from the kept ones, check their hashes, install them, and drop what was kept.
    Rebuild { ticket: Ticket, plan: RebuildPlan },
    /// End this fetch, or ask for this turn no more: it is not needed. There is no outcome to report.
    Cancel { ticket: Ticket },
    /// Drop what was kept for a job: it came to nothing. There is no outcome to report.
    Forget { job: JobId },
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Act(Action),
    /// Nothing to do before an outcome is reported or this time comes, whichever is first.
    Wait {
        until_ms: Option<u64>,
    },
    /// Every wanted segment was installed.
    Done,
    /// Nothing is under way and nobody is left who could deliver these.
    Stuck(Stuck),
}

/// Why an action failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The source did not answer in time.
    Timeout,
    /// The source could not be reached or would not serve.
    Refused,
    /// The source answers, and has not got the segment.
    Missing,
    /// The bytes were not the segment's. The source is reported.
    Bad,
    /// The source has as much to do as it takes on.
    Busy,
    /// The server has just given the segment to another target, which will announce it.
    Elsewhere,
}

/// What a source did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The bytes were not the segment's.
    Damaged,
    /// Another source delivered long before it.
    Slow,
    /// It announced segments and has none of them; or the map names it and it has not.
    Empty,
}

/// A source that did wrong, and with which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BadSource {
    pub source: Source,
    pub segment: SegmentId,
    pub fault: Fault,
}

/// Why an install cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} segments have no source left, the first is {}; {} sources did not answer, {} delivered damaged segments",
    segments.len(),
    segments.first().map_or_else(String::new, ToString::to_string),
    silent.len(),
    damaged.len()
)]
pub struct Stuck {
    /// The segments without a source, in the order of the image.
    pub segments: Vec<SegmentId>,
    /// Sources that were given up because they did not answer.
    pub silent: Vec<Source>,
    /// Sources that delivered something wrong.
    pub damaged: Vec<Source>,
}

/// How far an install is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub wanted_segments: usize,
    pub done_segments: usize,
    pub wanted_bytes: u64,
    pub done_bytes: u64,
    /// Received from peers, parity and second fetches included.
    pub from_peers: u64,
    pub from_server: u64,
    /// Computed from others.
    pub rebuilt: u64,
}

/// What to compute from what, in the order in which [`crate::erasure::Recipe`] takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildPlan {
    pub job: JobId,
    /// Data places of the stripe.
    pub k: u8,
    /// Data shards of the stripe.
    pub data: u8,
    /// What was kept for the job, by place: as many as the stripe has data shards.
    pub sources: Vec<(ShardPlace, SegmentId)>,
    /// What to compute, with sealed bytes.
    pub wanted: Vec<(ShardPlace, SegmentId, u32)>,
}
