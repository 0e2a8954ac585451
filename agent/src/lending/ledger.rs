//! How much was written today.

use std::time::{SystemTime, UNIX_EPOCH};

use cairn_core::units::ByteCount;
use serde::{Deserialize, Serialize};

/// A day, counted from 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Day(pub u64);

impl Day {
    /// What the system's clock says.
    #[must_use]
    pub fn today() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs() / 86_400)
    }
}

/// Bytes written on one day. An earlier day, from a clock that was set back, counts as the same one: setting the clock
/// to and fro must not buy more writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    day: Day,
    written: ByteCount,
}

impl Ledger {
    /// Counts bytes that were written.
    pub fn add(&mut self, today: Day, bytes: ByteCount) {
        *self = Self { day: self.day.max(today), written: self.written(today) };
        self.written.0 = self.written.0.saturating_add(bytes.0);
    }

    /// What was written on this day.
    #[must_use]
    pub fn written(&self, today: Day) -> ByteCount {
        if today > self.day { ByteCount(0) } else { self.written }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_day_starts_from_nothing_and_an_earlier_one_does_not() {
        let mut ledger = Ledger::default();
        ledger.add(Day(5), ByteCount(100));
        ledger.add(Day(5), ByteCount(20));
        assert_eq!(ledger.written(Day(5)), ByteCount(120));
        assert_eq!(ledger.written(Day(6)), ByteCount(0));
        // The clock was set back.
        assert_eq!(ledger.written(Day(4)), ByteCount(120));
        ledger.add(Day(4), ByteCount(1));
        assert_eq!(ledger.written(Day(5)), ByteCount(121));
        ledger.add(Day(6), ByteCount(7));
        assert_eq!(ledger.written(Day(6)), ByteCount(7));
    }
}
