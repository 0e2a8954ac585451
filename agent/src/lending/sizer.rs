//! How large the storage file is to be now.
//!
//! ```text
//!              reserve                          allowed = held + (available − reserve)
//!   ├───────────────┤╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┤    what the file may grow to without touching the reserve
//!   available < reserve          gives up slots at once, as many as are missing
//!   allowed a step below the size  promises less, gives nothing up
//!   allowed a step above it, a minute long   grows by a step: an eighth of what is lent
//!   other terms than a moment ago   as large as they and the disk allow, at once
//! ```
//!
//! Shrinking is decided at every look; growing back takes minutes, so that an owner who fills and empties his disk
//! does not make the fleet move segments to and fro.
//!
//! Invariants: the file is never larger than the terms allow; when it is as the sizer wants, the reserve is free or
//! the guest holds nothing; growing alone never leads to shrinking.

use std::time::{Duration, Instant};

use cairn_array::dsf::SlotCount;
use cairn_core::units::{ByteCount, SEGMENT_MAX_BYTES};

use super::{Space, Terms};

/// How long the disk must have room before the storage file grows by a step.
const QUIET: Duration = Duration::from_secs(60);
/// Steps from nothing to everything that is lent.
const STEPS: u32 = 8;
/// The least step, 64 MiB.
const LEAST_STEP: u32 = 16;
/// No disk is filled faster than this, bytes per second: a look is due before the reserve can be reached.
const FASTEST_FILL: u64 = 4 << 30;
const SOONEST: Duration = Duration::from_millis(25);
/// A file can be given its space in an instant, so this is never long. A look costs some ten microseconds.
const LATEST: Duration = Duration::from_millis(100);

/// What the storage file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub used: SlotCount,
    pub capacity: SlotCount,
}

/// What to do with the storage file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Keep,
    Resize(SlotCount),
}

/// Decides the size; remembers the terms of the last look, and since when there has been room to grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizer {
    terms: Option<Terms>,
    room_since: Option<Instant>,
}

impl Sizer {
    /// What to do now.
    pub fn decide(&mut self, now: Instant, terms: &Terms, space: Space, held: Held) -> Decision {
        let lent = terms.slots(space.total);
        let step = SlotCount((lent.0 / STEPS).max(LEAST_STEP));
        let allowed = allowed(terms, space, held.used);
        if held.capacity.0 > lent.0.min(allowed.saturating_add(step.0)) || held.used.0 > allowed {
            self.room_since = None;
            return Decision::Resize(SlotCount(allowed.min(lent.0).min(held.capacity.0)));
        }
        let changed = self.terms.replace(*terms).is_some_and(|before| before != *terms);
        if changed && lent.0.min(allowed) > held.capacity.0 {
            self.room_since = None;
            return Decision::Resize(SlotCount(lent.0.min(allowed)));
        }
        let wanted = held.capacity.0.saturating_add(step.0).min(lent.0);
        // A step beyond what it grows by, so that growing does not lead to shrinking.
        if wanted == held.capacity.0 || allowed < held.capacity.0.saturating_add(2 * step.0) {
            self.room_since = None;
            return Decision::Keep;
        }
        let since = *self.room_since.get_or_insert(now);
        if now.saturating_duration_since(since) < QUIET {
            return Decision::Keep;
        }
        self.room_since = None;
        Decision::Resize(SlotCount(wanted))
    }

    /// When to look again: sooner the nearer the owner is to the reserve.
    #[must_use]
    pub fn next_look(terms: &Terms, space: Space) -> Duration {
        let left = space.available.0.saturating_sub(terms.kept_free(space.total).0);
        Duration::from_millis(left.saturating_mul(1000) / FASTEST_FILL).clamp(SOONEST, LATEST)
    }
}

/// Slots that a new storage file may have: what is lent, as far as the disk has room for it.
#[must_use]
pub fn first_size(terms: &Terms, space: Space) -> SlotCount {
    SlotCount(terms.slots(space.total).0.min(allowed(terms, space, SlotCount(0))))
}

/// Slots that could be full without touching the reserve.
fn allowed(terms: &Terms, space: Space, used: SlotCount) -> u32 {
    let reserve = terms.kept_free(space.total);
    let slots = |bytes: u64| u32::try_from(bytes / SEGMENT_MAX_BYTES as u64).unwrap_or(u32::MAX);
    let ByteCount(available) = space.available;
    if available >= reserve.0 {
        used.0.saturating_add(slots(available - reserve.0))
    } else {
        let missing = (reserve.0 - available).div_ceil(SEGMENT_MAX_BYTES as u64);
        used.0.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lending::Amount;

    const SLOT: u64 = SEGMENT_MAX_BYTES as u64;

    fn terms(lend_slots: u32, reserve_slots: u64) -> Terms {
        Terms {
            lend: Amount::Bytes(SlotCount(lend_slots).file_bytes()),
            reserve: Some(Amount::Bytes(ByteCount(reserve_slots * SLOT))),
            daily_writes: None,
        }
    }

    fn space(available_slots: u64) -> Space {
        Space { total: ByteCount(100_000 * SLOT), available: ByteCount(available_slots * SLOT) }
    }

    fn held(used: u32, capacity: u32) -> Held {
        Held { used: SlotCount(used), capacity: SlotCount(capacity) }
    }

    fn resize(slots: u32) -> Decision {
        Decision::Resize(SlotCount(slots))
    }

    #[test]
    fn what_is_missing_to_the_reserve_is_given_up_at_once() {
        let (terms, now) = (terms(800, 1000), Instant::now());
        let mut sizer = Sizer::default();
        assert_eq!(sizer.decide(now, &terms, space(1000), held(500, 500)), Decision::Keep);
        assert_eq!(sizer.decide(now, &terms, space(990), held(500, 500)), resize(490));
        assert_eq!(sizer.decide(now, &terms, space(100), held(500, 800)), resize(0));
        // Half a slot missing is a slot.
        let almost = Space { available: ByteCount(1000 * SLOT - 1), ..space(0) };
        assert_eq!(sizer.decide(now, &terms, almost, held(500, 500)), resize(499));
    }

    #[test]
    fn the_owner_may_lend_less_at_any_time() {
        let mut sizer = Sizer::default();
        let decided = sizer.decide(Instant::now(), &terms(300, 0), space(5000), held(500, 800));
        assert_eq!(decided, resize(300));
    }

    #[test]
    fn a_promise_that_the_disk_cannot_keep_is_taken_back_before_it_is_called_in() {
        // 100 held, 800 promised, room for 50 more: a step is 100.
        let mut sizer = Sizer::default();
        let now = Instant::now();
        assert_eq!(sizer.decide(now, &terms(800, 1000), space(1050), held(100, 800)), resize(150));
        // Less than a step is not worth a word.
        assert_eq!(
            sizer.decide(now, &terms(800, 1000), space(1050), held(100, 240)),
            Decision::Keep
        );
    }

    #[test]
    fn it_grows_back_by_an_eighth_a_minute_and_only_while_there_is_room() {
        let (terms, start) = (terms(800, 1000), Instant::now());
        let mut sizer = Sizer::default();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(sizer.decide(start, &terms, space(3000), held(50, 100)), Decision::Keep);
        assert_eq!(sizer.decide(after(59), &terms, space(3000), held(50, 100)), Decision::Keep);
        // A moment without room starts the minute anew.
        assert_eq!(sizer.decide(after(60), &terms, space(1100), held(50, 100)), Decision::Keep);
        assert_eq!(sizer.decide(after(61), &terms, space(3000), held(50, 100)), Decision::Keep);
        assert_eq!(sizer.decide(after(121), &terms, space(3000), held(50, 100)), resize(200));
        assert_eq!(sizer.decide(after(122), &terms, space(3000), held(50, 200)), Decision::Keep);
        // The last step ends at what is lent.
        assert_eq!(sizer.decide(after(182), &terms, space(3000), held(50, 790)), resize(800));
        assert_eq!(sizer.decide(after(999), &terms, space(3000), held(50, 800)), Decision::Keep);
    }

    #[test]
    fn what_the_owner_newly_lends_is_there_at_once() {
        let (now, mut sizer) = (Instant::now(), Sizer::default());
        assert_eq!(sizer.decide(now, &terms(300, 0), space(5000), held(200, 300)), Decision::Keep);
        assert_eq!(sizer.decide(now, &terms(800, 0), space(5000), held(200, 300)), resize(800));
        assert_eq!(sizer.decide(now, &terms(800, 0), space(5000), held(200, 800)), Decision::Keep);
        // As far as the disk has room for it.
        assert_eq!(sizer.decide(now, &terms(1600, 0), space(700), held(200, 800)), resize(900));
    }

    #[test]
    fn it_looks_often_when_the_reserve_is_near() {
        let terms = terms(800, 1000);
        assert_eq!(Sizer::next_look(&terms, space(900)), SOONEST);
        assert_eq!(Sizer::next_look(&terms, space(1000 + 51)), Duration::from_millis(49));
        assert_eq!(Sizer::next_look(&terms, space(90_000)), LATEST);
    }

    #[test]
    fn a_new_file_is_as_large_as_is_lent_or_as_the_disk_allows() {
        assert_eq!(first_size(&terms(800, 1000), space(5000)), SlotCount(800));
        assert_eq!(first_size(&terms(800, 1000), space(1010)), SlotCount(10));
        assert_eq!(first_size(&terms(800, 1000), space(10)), SlotCount(0));
    }

    proptest! {
        #[test]
        fn one_decision_brings_it_in_order(
            lend in 0..2000_u32, reserve in 0..3000_u64, available in 0..6000_u64,
            used in 0..2000_u32, beyond in 0..2000_u32,
        ) {
            let (terms, now) = (terms(lend, reserve), Instant::now());
            let mut sizer = Sizer::default();
            let before = held(used, used + beyond);
            let Decision::Resize(capacity) = sizer.decide(now, &terms, space(available), before) else {
                return Ok(());
            };
            // What is given up becomes available.
            let after = held(used.min(capacity.0), capacity.0);
            let freed = u64::from(used - after.used.0);
            prop_assert!(capacity.0 <= lend);
            prop_assert!(available + freed >= reserve || after.used.0 == 0);
            prop_assert_eq!(sizer.decide(now, &terms, space(available + freed), after), Decision::Keep);
        }

        #[test]
        fn growing_alone_never_leads_to_shrinking(
            lend in 1..2000_u32, reserve in 0..3000_u64, free in 0..6000_u64,
        ) {
            let terms = terms(lend, reserve);
            let start = first_size(&terms, space(free));
            let (mut sizer, mut now, mut capacity) = (Sizer::default(), Instant::now(), start.0);
            for _ in 0..40 {
                // The fleet fills whatever is offered.
                let left = free.saturating_sub(u64::from(capacity));
                if let Decision::Resize(next) = sizer.decide(now, &terms, space(left), held(capacity, capacity)) {
                    prop_assert!(next.0 > capacity);
                    capacity = next.0;
                }
                now += QUIET;
            }
        }
    }
}
