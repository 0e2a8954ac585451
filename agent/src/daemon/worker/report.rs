//! What the server is to be told about this agent's segments, kept until it was told.

use cairn_array::{
    dsf::DsfHandle,
    wire::{BadSegment, Holdings},
};
use cairn_core::{id::SegmentId, units::Generation};

use crate::link::ServerLink;

/// Beyond this a full list says it shorter.
const MAX_NEWS: usize = 65_536;

#[derive(Debug)]
pub(super) struct Report {
    link: ServerLink,
    dsf: DsfHandle,
    /// Not yet told; `full` when a list of everything is to take the place of the changes.
    news: Holdings,
    problem: Option<String>,
}

impl Report {
    /// Starts with a full list to tell.
    pub(super) fn new(link: ServerLink, dsf: DsfHandle) -> Self {
        Self { link, dsf, news: Holdings { full: true, ..Holdings::default() }, problem: None }
    }

    pub(super) const fn want_full_list(&mut self) {
        self.news.full = true;
    }

    pub(super) fn stored(&mut self, id: SegmentId) {
        self.news.stored.push(id);
        self.bound();
    }

    pub(super) fn dropped(&mut self, ids: &[SegmentId]) {
        // Stored and dropped again since the last report: the last of the two counts.
        if !self.news.stored.is_empty() {
            self.news.stored.retain(|stored| !ids.contains(stored));
        }
        self.news.dropped.extend_from_slice(ids);
        self.bound();
    }

    pub(super) fn bad(&mut self, bad: BadSegment) {
        if self.news.bad.len() < MAX_NEWS && !self.news.bad.contains(&bad) {
            self.news.bad.push(bad);
        }
    }

    pub(super) const fn fulfils(&mut self, number: Generation) {
        self.news.fulfils = Some(number);
    }

    pub(super) const fn no_room(&mut self, number: Generation) {
        self.news.no_room = Some(number);
    }

    /// Tells the server; false when it has to be tried again.
    pub(super) async fn send(&mut self) -> bool {
        let mut report = std::mem::take(&mut self.news);
        if report.full {
            report.stored = self.dsf.list().iter().map(|held| held.id).collect();
            report.dropped.clear();
        }
        // A segment that was dropped and came back is there.
        let stored: std::collections::HashSet<_> = report.stored.iter().copied().collect();
        report.dropped.retain(|id| !stored.contains(id));
        let nothing = !report.full
            && report.stored.is_empty()
            && report.dropped.is_empty()
            && report.bad.is_empty()
            && report.fulfils.is_none()
            && report.no_room.is_none();
        if nothing {
            return true;
        }
        match self.link.tell("/agent/v1/holdings", &report).await {
            Ok(()) => {
                self.problem = None;
                true
            }
            Err(error) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                if self.problem.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "the server was not told what is stored here");
                    self.problem = Some(text);
                }
                self.news = report;
                if self.news.full {
                    self.news.stored.clear();
                }
                false
            }
        }
    }

    fn bound(&mut self) {
        if self.news.full || self.news.stored.len() + self.news.dropped.len() > MAX_NEWS {
            self.news.full = true;
            self.news.stored.clear();
            self.news.dropped.clear();
        }
    }
}
