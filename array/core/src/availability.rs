//! How often each client is there, hour by hour of the week, and in which hours that matters.
//!
//! ```text
//!   clients there   ▂▂▂▂▂▂▂▆████████▆▂▂▂▂▂ …        expected, from what was seen
//!                          ├────────┤               hours of use: at least half of the best hour's
//!                          ▲                        the worst of them: k and m follow from it
//! ```
//!
//! A fleet of desktops sleeps at night and on Sundays: no k and m make an image readable then without the server, and
//! planning for those hours would cost space and promise nothing. So the plan is made for the worst of the hours in
//! which the fleet is in use, and the other hours are named.
//!
//! Invariants: an estimate lies strictly between 0 and 1; a look moves it by less the more was seen; what was seen
//! long ago fades.

use crate::planner::DEFAULT_AVAILABILITY;

/// Hours of a week.
pub const HOURS: usize = 168;
/// Looks that the assumption before any measurement counts as much as: an hour of them, one a minute.
const PRIOR_LOOKS: f64 = 60.0;
/// More looks than this (eight weeks, one a minute) are halved, so that a client that changes its habits is known by the
/// new ones within a season.
const MAX_LOOKS: u32 = 480;

/// An hour of the week in UTC; 0 is Monday from 00:00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HourOfWeek(u8);

impl HourOfWeek {
    /// At so many seconds since 1970-01-01, which was a Thursday.
    #[must_use]
    pub const fn at(unix_seconds: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "less than 168")]
        Self(((unix_seconds / 3600 + 72) % HOURS as u64) as u8)
    }

    /// `None` from 168 on.
    #[must_use]
    pub const fn new(hour: u8) -> Option<Self> {
        if (hour as usize) < HOURS { Some(Self(hour)) } else { None }
    }

    /// Its number, 0 to 167.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl std::fmt::Display for HourOfWeek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        let day = days.get(usize::from(self.0 / 24)).unwrap_or(&"");
        write!(f, "{day} {:02}:00 UTC", self.0 % 24)
    }
}

/// How often one client was looked for in one hour of the week, and was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub looks: u32,
    pub there: u32,
}

impl Tally {
    /// Counts one look.
    #[must_use]
    pub const fn and(self, there: bool) -> Self {
        let halved = if self.looks >= MAX_LOOKS {
            Self { looks: self.looks / 2, there: self.there / 2 }
        } else {
            self
        };
        Self { looks: halved.looks + 1, there: halved.there + there as u32 }
    }

    /// The probability that it is there in this hour.
    #[must_use]
    pub fn estimate(self) -> f64 {
        let there = f64::from(self.there.min(self.looks));
        (there + PRIOR_LOOKS * DEFAULT_AVAILABILITY) / (f64::from(self.looks) + PRIOR_LOOKS)
    }
}

/// A week of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Week([Tally; HOURS]);

impl Default for Week {
    fn default() -> Self {
        Self([Tally::default(); HOURS])
    }
}

impl Week {
    /// Sets what was counted in one hour.
    pub fn set(&mut self, hour: HourOfWeek, tally: Tally) {
        if let Some(place) = self.0.get_mut(usize::from(hour.0)) {
            *place = tally;
        }
    }

    /// The probability that the client is there in this hour.
    #[must_use]
    pub fn estimate(&self, hour: HourOfWeek) -> f64 {
        self.0.get(usize::from(hour.0)).copied().unwrap_or_default().estimate()
    }
}

/// The hour that plans are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorstHour {
    pub hour: HourOfWeek,
    /// Hours of the week in which less than half as many clients are there as in the best one.
    pub out_of_use: u8,
    /// Every hour of the week was seen; before that, much is assumed.
    pub measured: bool,
}

/// The worst of a fleet's hours of use.
#[must_use]
pub fn worst_hour<'a>(weeks: impl IntoIterator<Item = &'a Week>) -> WorstHour {
    let mut expected = [0.0; HOURS];
    let mut looks = [0_u64; HOURS];
    for week in weeks {
        for ((expected, looks), tally) in expected.iter_mut().zip(&mut looks).zip(&week.0) {
            *expected += tally.estimate();
            *looks += u64::from(tally.looks);
        }
    }
    let best = expected.iter().copied().fold(0.0, f64::max);
    let in_use = |there: &f64| *there >= best / 2.0;
    let worst = (0_u8..).zip(&expected).filter(|(_, there)| in_use(there));
    let worst = worst.min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(hour, _)| hour);
    let out_of_use = expected.iter().filter(|there| !in_use(there)).count();
    WorstHour {
        hour: HourOfWeek(worst),
        out_of_use: u8::try_from(out_of_use).unwrap_or(0),
        measured: looks.iter().all(|looks| *looks > 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hour(number: u8) -> HourOfWeek {
        HourOfWeek::new(number).unwrap()
    }

    fn seen(looks: u32, there: u32) -> Tally {
        Tally { looks, there }
    }

    /// An office: there on weekdays from 7 to 19, with some luck.
    fn office(there: u32) -> Week {
        let mut week = Week::default();
        for number in 0..168 {
            let open = number < 120 && (7..19).contains(&(number % 24));
            week.set(hour(number), seen(480, if open { there } else { 0 }));
        }
        week
    }

    #[test]
    fn hours_count_from_monday() {
        assert_eq!(HourOfWeek::at(0).to_string(), "Thu 00:00 UTC");
        // 2026-11-30 was a Monday.
        assert_eq!(HourOfWeek::at(1_795_996_800), hour(0));
        assert_eq!(HourOfWeek::at(1_795_996_800 - 1).to_string(), "Sun 23:00 UTC");
        assert_eq!(HourOfWeek::new(168), None);
    }

    #[test]
    fn nothing_measured_is_as_assumed_and_much_measured_is_as_measured() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(Tally::default().estimate(), DEFAULT_AVAILABILITY));
        assert!(seen(480, 480).estimate() > 0.97);
        assert!(seen(480, 0).estimate() < 0.1);
        // One minute off says little.
        assert!(Tally::default().and(false).estimate() > 0.78);
    }

    #[test]
    fn new_habits_are_learnt() {
        let mut tally = seen(480, 480);
        for _ in 0..480 {
            tally = tally.and(false);
        }
        assert!(tally.estimate() < 0.4, "{tally:?}");
        assert!(tally.looks <= MAX_LOOKS);
    }

    #[test]
    fn the_plan_is_for_the_worst_hour_in_which_the_fleet_is_in_use() {
        let mut fleet = vec![office(460); 10];
        // On Friday afternoons three leave early.
        for week in &mut fleet[..3] {
            week.set(hour(4 * 24 + 17), seen(480, 0));
        }
        let worst = worst_hour(&fleet);
        assert_eq!(worst.hour.to_string(), "Fri 17:00 UTC");
        assert_eq!((worst.out_of_use, worst.measured), (168 - 60, true));
        assert!(fleet[0].estimate(worst.hour) < 0.2 && fleet[9].estimate(worst.hour) > 0.9);
    }

    #[test]
    fn a_fleet_that_was_never_seen_is_in_use_at_all_hours() {
        let worst = worst_hour(&[Week::default(), Week::default()]);
        assert_eq!(worst, WorstHour { hour: hour(0), out_of_use: 0, measured: false });
        assert!(!worst_hour([]).measured);
    }

    proptest! {
        #[test]
        fn estimates_are_probabilities(looks in any::<u32>(), there in any::<u32>(), next in any::<bool>()) {
            let tally = seen(looks.min(MAX_LOOKS), there.min(looks.min(MAX_LOOKS)));
            for tally in [tally, tally.and(next)] {
                prop_assert!(tally.there <= tally.looks && tally.looks <= MAX_LOOKS + 1);
                prop_assert!(0.0 < tally.estimate() && tally.estimate() < 1.0);
            }
        }
    }
}
