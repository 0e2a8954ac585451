//! Making the DSF hold what the assignment names, and telling the server what it holds.
//!
//! The worker is the only one who puts into and removes from the DSF. Its loop: compare, drop, fetch, report;
//! then wait for a newer assignment, for rot, or for the time to try again what could not be fetched.
//!
//! Invariants: nothing that the newest known assignment names is dropped (unless it rotted); "fulfilled" is said
//! only after every segment of the assignment is durable; a report that did not arrive is said again, or replaced
//! by a full list.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use cairn_array::{
    dsf::{DsfHandle, GetError, HandleError, PutError, SegmentClass as SlotClass},
    peer::PeerClient,
    wire::{AssignedSegment, Assignment, BadSegment, SegmentClass},
};
use cairn_core::{
    id::{AgentId, SegmentId},
    units::Generation,
};
use futures::{StreamExt as _, stream};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    fetch::{Fetched, Fetcher, Outcome},
    report::Report,
};
use super::{
    Event,
    difference::{Difference, difference},
    guest::Seen,
};
use crate::link::ServerLink;

mod fetch;
mod report;

/// What was stored is told at least this often while a scatter runs.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Removals that share one pair of syncs.
const DROPS_AT_ONCE: usize = 1024;
/// Until what could not be fetched is tried again; doubled up to [`MOST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
const MOST_RETRY: Duration = Duration::from_secs(60);

/// How the work stands.
#[derive(Clone, Debug, Default)]
pub struct WorkStatus {
    pub missing: usize,
    pub fulfilled: Generation,
    pub problem: Option<String>,
}

pub(super) struct Parts {
    pub(super) me: AgentId,
    pub(super) dsf: DsfHandle,
    pub(super) peers: PeerClient,
    pub(super) link: ServerLink,
    pub(super) assignment: watch::Receiver<Option<Arc<Assignment>>>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) guest: Seen,
    pub(super) status: watch::Sender<WorkStatus>,
}

pub(super) struct Worker {
    me: AgentId,
    dsf: DsfHandle,
    fetcher: Fetcher,
    report: Report,
    assignment: watch::Receiver<Option<Arc<Assignment>>>,
    events: mpsc::Receiver<Event>,
    guest: Seen,
    status: watch::Sender<WorkStatus>,
    /// The server takes reports: it gave an assignment or asked for a list, so this agent is approved.
    heard_of: bool,
}

/// How far one round came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Everything that is assigned is here.
    Complete,
    /// Some of it could not be had.
    Lacking,
    /// A newer assignment came meanwhile.
    Overtaken,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let fetcher = Fetcher::new(parts.me, parts.dsf.clone(), parts.peers);
        // A kill between storing and telling is healed by telling everything once at the start.
        let report = Report::new(parts.link, parts.dsf.clone());
        Self {
            me: parts.me,
            dsf: parts.dsf,
            fetcher,
            report,
            assignment: parts.assignment,
            events: parts.events,
            guest: parts.guest,
            status: parts.status,
            heard_of: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let guard = stop.clone();
        tokio::select! {
            () = guard.cancelled() => Ok(()),
            outcome = self.work() => outcome,
        }
    }

    async fn work(&mut self) -> Result<()> {
        let mut retry = FIRST_RETRY;
        loop {
            let assignment = self.assignment.borrow_and_update().clone();
            let mut lacking = false;
            if let Some(assignment) = assignment {
                self.heard_of = true;
                match self.round(&assignment).await? {
                    Round::Overtaken => continue,
                    Round::Lacking => lacking = true,
                    Round::Complete => retry = FIRST_RETRY,
                }
            }
            if self.heard_of {
                lacking |= !self.report.send().await;
            }
            let again = async {
                if lacking {
                    tokio::time::sleep(retry).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                changed = self.assignment.changed() => if changed.is_err() { return Ok(()) },
                event = self.events.recv() => match event {
                    Some(event) => self.hear(event).await?,
                    None => return Ok(()),
                },
                gone = self.guest.given_up.recv() => match gone {
                    Some(gone) => self.report.dropped(&gone),
                    None => return Ok(()),
                },
                () = again => retry = (retry * 2).min(MOST_RETRY),
            }
        }
    }

    async fn hear(&mut self, event: Event) -> Result<()> {
        match event {
            Event::ListWanted => {
                self.heard_of = true;
                self.report.want_full_list();
            }
            Event::Rotten(id) => {
                self.check(id).await?;
            }
        }
        Ok(())
    }

    /// What others say they got damaged from here: told as stored when it is right after all; else it is removed
    /// and this round fetches it again.
    async fn recheck(&mut self, ids: &[SegmentId]) -> Result<()> {
        for id in ids {
            if self.check(*id).await? {
                self.report.stored(*id);
            }
        }
        Ok(())
    }

    /// Reads a segment back and removes it when it is rotten; whether it is here and right.
    async fn check(&mut self, id: SegmentId) -> Result<bool> {
        match self.dsf.get(id).await {
            Ok(_) => Ok(true),
            Err(GetError::Rotten { .. }) => {
                tracing::warn!(segment = %id, "rotten on disk: removed, to be fetched again");
                self.dsf.remove(vec![id]).await.context("remove a rotten segment")?;
                self.report.bad(BadSegment { segment: id, holder: Some(self.me) });
                self.report.dropped(&[id]);
                Ok(false)
            }
            Err(GetError::NotHeld(_)) => Ok(false),
            Err(closed @ GetError::Closed) => Err(closed).context("read a segment back"),
        }
    }

    async fn round(&mut self, assignment: &Arc<Assignment>) -> Result<Round> {
        self.recheck(&assignment.recheck).await?;
        let held = self.dsf.list();
        let ids: HashSet<SegmentId> = held.iter().map(|held| held.id).collect();
        let work = difference(&ids, assignment);
        self.revalue(assignment, &held).await.context("note what segments are worth")?;
        self.status.send_modify(|status| status.missing = work.fetch.len());
        self.drop_all(&work).await.context("remove segments that are not assigned any more")?;
        let room = self.room();
        let (fits, too_much) = work.fetch.split_at(room.min(work.fetch.len()));
        let mut round = self.fetch_all(fits.to_vec(), assignment.number).await?;
        if round == Round::Complete && !too_much.is_empty() {
            round = Round::Lacking;
            let problem =
                "the disk's owner needs the room: the server assigned more than is lent now";
            self.problem(problem.to_owned());
            self.report.no_room(assignment.number);
        }
        if round == Round::Complete {
            self.report.fulfils(assignment.number);
            self.status.send_modify(|status| {
                status.fulfilled = assignment.number;
                status.problem = None;
            });
        }
        Ok(round)
    }

    async fn drop_all(&mut self, work: &Difference) -> Result<(), HandleError> {
        for ids in work.drop.chunks(DROPS_AT_ONCE) {
            self.dsf.remove(ids.to_vec()).await?;
            self.report.dropped(ids);
        }
        Ok(())
    }

    /// Segments that are worth something else in this assignment than when they were stored.
    async fn revalue(
        &self,
        assignment: &Assignment,
        held: &[cairn_array::dsf::Held],
    ) -> Result<(), HandleError> {
        let parity: HashSet<SegmentId> = assignment
            .segments
            .iter()
            .filter(|segment| segment.class == SegmentClass::Parity)
            .map(|segment| segment.id)
            .collect();
        for class in [SlotClass::Parity, SlotClass::Data] {
            let wanted = |id| parity.contains(&id) == (class == SlotClass::Parity);
            let changed = held.iter().filter(|held| wanted(held.id) && held.class != class);
            let changed: Vec<SegmentId> = changed.map(|held| held.id).collect();
            if !changed.is_empty() {
                self.dsf.set_class(changed, class).await?;
            }
        }
        Ok(())
    }

    /// Slots that are free now.
    fn room(&self) -> usize {
        let stats = self.dsf.stats();
        stats.capacity.0.saturating_sub(stats.used.0) as usize
    }

    async fn fetch_all(
        &mut self,
        segments: Vec<AssignedSegment>,
        number: Generation,
    ) -> Result<Round> {
        let fetcher = self.fetcher.clone();
        let guest = self.guest.status.clone();
        // Segments on their way at once, 24 MiB at most.
        let at_once = guest.borrow().medium.class.fetches_at_once();
        let fetches = segments.into_iter().map(|segment| {
            let (fetcher, guest) = (fetcher.clone(), guest.clone());
            async move {
                // Asked when its turn comes, not when the round began.
                let no_writes = guest.borrow().no_writes();
                match no_writes {
                    None => fetcher.fetch(&segment).await,
                    Some(why) => Fetched::not_now(segment.id, why),
                }
            }
        });
        let mut fetches = std::pin::pin!(stream::iter(fetches).buffer_unordered(at_once));
        let mut round = Round::Complete;
        let mut reported = Instant::now();
        loop {
            let fetched = tokio::select! {
                // A closed channel means that all ends; the token says so too.
                Ok(()) = self.assignment.changed() => {
                    round = Round::Overtaken;
                    break;
                }
                Some(gone) = self.guest.given_up.recv() => {
                    self.report.dropped(&gone);
                    continue;
                }
                fetched = fetches.next() => fetched,
            };
            let Some(fetched) = fetched else { break };
            fetched.bad.iter().for_each(|bad| self.report.bad(*bad));
            match fetched.outcome {
                Outcome::Stored(bytes) => {
                    self.guest.writes.add(bytes);
                    self.report.stored(fetched.id);
                    self.status
                        .send_modify(|status| status.missing = status.missing.saturating_sub(1));
                }
                Outcome::Unavailable(why) => {
                    round = Round::Lacking;
                    self.problem(format!("segment {}: {why}", fetched.id));
                }
                Outcome::NotNow(why) => {
                    // Nor will the rest be fetched.
                    round = Round::Lacking;
                    self.problem(why.to_owned());
                    break;
                }
                Outcome::NoRoom(error) => {
                    // What else would be fetched does not fit either.
                    round = Round::Lacking;
                    self.problem(no_room(&error));
                    self.report.no_room(number);
                    break;
                }
                Outcome::Broken(error) => return Err(error).context("store a segment"),
            }
            if reported.elapsed() >= REPORT_EVERY {
                self.report.send().await;
                reported = Instant::now();
            }
        }
        Ok(round)
    }

    fn problem(&self, text: String) {
        self.status.send_if_modified(|status| {
            let news = status.problem.as_ref() != Some(&text);
            if news {
                tracing::warn!(
                    problem = text,
                    "not everything assigned is here; trying again later"
                );
                status.problem = Some(text);
            }
            news
        });
    }
}

fn no_room(error: &PutError) -> String {
    match error {
        PutError::Full => {
            "the disk is full: free space on the file system of the state folder".to_owned()
        }
        other => format!("{other}: the server assigned more than is lent"),
    }
}
