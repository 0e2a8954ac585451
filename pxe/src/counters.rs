//! What was served and what was not, for `/metrics` and `status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::dhcp::IgnoreReason;
use crate::trail::Trails;

/// What the boot services did since the start, and for whom.
#[derive(Debug, Default)]
pub struct Record {
    pub counters: Counters,
    pub trails: Trails,
}

/// Counts since the start. Shared by reference; every field only grows.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) dhcp_offers: Counter,
    pub(crate) dhcp_acks: Counter,
    pub(crate) dhcp_naks: Counter,
    pub(crate) dhcp_send_failures: Counter,
    dhcp_ignored: [Counter; IgnoreReason::ALL.len()],
    pub(crate) tftp_transfers: Counter,
    pub(crate) tftp_probes: Counter,
    pub(crate) tftp_not_found: Counter,
    pub(crate) tftp_refused: Counter,
    pub(crate) tftp_malformed: Counter,
    pub(crate) tftp_busy: Counter,
    pub(crate) tftp_failures: Counter,
    pub(crate) http_requests: Counter,
    pub(crate) http_not_found: Counter,
    pub(crate) http_refused: Counter,
    pub(crate) boot_scripts: Counter,
    files: FileCounters,
}

/// How often each file of the table was begun to be sent, by TFTP or HTTP.
#[derive(Debug, Default)]
struct FileCounters {
    kernel: Counter,
    initrd: Counter,
    loader: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// The counts at one moment; the names are those of the metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    pub dhcp_offers: u64,
    pub dhcp_acks: u64,
    pub dhcp_naks: u64,
    pub dhcp_send_failures: u64,
    /// By reason; every reason is there.
    pub dhcp_ignored: BTreeMap<&'static str, u64>,
    /// Transfers that reached their last block.
    pub tftp_transfers: u64,
    /// Requests that only asked for a size.
    pub tftp_probes: u64,
    pub tftp_not_found: u64,
    /// Writes, and modes other than octet.
    pub tftp_refused: u64,
    pub tftp_malformed: u64,
    /// Requests not served because too many transfers ran.
    pub tftp_busy: u64,
    /// Transfers the client broke off or fell silent in.
    pub tftp_failures: u64,
    pub http_requests: u64,
    pub http_not_found: u64,
    /// Methods other than GET and HEAD, ranges that cannot be, queries that are not well-formed.
    pub http_refused: u64,
    /// Scripts that told a machine what to do.
    pub boot_scripts: u64,
    pub kernels_sent: u64,
    pub initrds_sent: u64,
    pub loaders_sent: u64,
}

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn ignored(&self, reason: IgnoreReason) {
        if let Some(counter) = self.dhcp_ignored.get(reason as usize) {
            counter.add();
        }
    }

    /// Counts a file by its normalised name.
    pub(crate) fn sent(&self, name: &str) {
        match name {
            "vmlinuz" => self.files.kernel.add(),
            "initrd" => self.files.initrd.add(),
            _ => self.files.loader.add(),
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let ignored = IgnoreReason::ALL.iter().zip(&self.dhcp_ignored);
        Snapshot {
            dhcp_offers: self.dhcp_offers.get(),
            dhcp_acks: self.dhcp_acks.get(),
            dhcp_naks: self.dhcp_naks.get(),
            dhcp_send_failures: self.dhcp_send_failures.get(),
            dhcp_ignored: ignored.map(|(reason, count)| (reason.name(), count.get())).collect(),
            tftp_transfers: self.tftp_transfers.get(),
            tftp_probes: self.tftp_probes.get(),
            tftp_not_found: self.tftp_not_found.get(),
            tftp_refused: self.tftp_refused.get(),
            tftp_malformed: self.tftp_malformed.get(),
            tftp_busy: self.tftp_busy.get(),
            tftp_failures: self.tftp_failures.get(),
            http_requests: self.http_requests.get(),
            http_not_found: self.http_not_found.get(),
            http_refused: self.http_refused.get(),
            boot_scripts: self.boot_scripts.get(),
            kernels_sent: self.files.kernel.get(),
            initrds_sent: self.files.initrd.get(),
            loaders_sent: self.files.loader.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_count() {
        let counters = Counters::default();
        for (at, reason) in IgnoreReason::ALL.into_iter().enumerate() {
            for _ in 0..=at {
                counters.ignored(reason);
            }
        }
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.dhcp_ignored.len(), IgnoreReason::ALL.len());
        for (at, reason) in IgnoreReason::ALL.into_iter().enumerate() {
            assert_eq!(snapshot.dhcp_ignored[reason.name()], at as u64 + 1);
        }
    }
}
