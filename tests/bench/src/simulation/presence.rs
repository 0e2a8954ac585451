//! When simulated clients are switched on.

use std::ops::Range;

use crate::random::Random;

pub(super) const DAY: u32 = 24;
pub(super) const WEEK: u32 = 7 * DAY;
pub(super) const YEAR: u32 = 52 * WEEK;

#[derive(Debug, Clone, Copy)]
enum Habit {
    /// Weekdays from 7 to 18, when its user comes.
    Office,
    /// Six days from 8 to 22.
    Lab,
    /// A server, or a machine that nobody switches off.
    Always,
}

#[derive(Debug, Clone)]
pub(super) struct Presence {
    habit: Habit,
    /// Two weeks in which nobody switches it on.
    holiday: Option<Range<u32>>,
    seed: u64,
}

impl Presence {
    pub(super) fn draw(random: &mut Random, holidays: bool) -> Self {
        let habit = match random.below(10) {
            0 => Habit::Always,
            1 | 2 => Habit::Lab,
            _ => Habit::Office,
        };
        let goes = random.happens(0.3);
        let begin = u32::try_from(random.below(u64::from(YEAR))).unwrap_or(0);
        let holiday = (goes && holidays).then(|| begin..begin + 2 * WEEK);
        Self { habit, holiday, seed: random.number() }
    }

    /// Whether it is on in this hour; hour 0 is a Monday's first.
    pub(super) fn is_on(&self, hour: u32) -> bool {
        if self.holiday.as_ref().is_some_and(|holiday| holiday.contains(&hour)) {
            return false;
        }
        let (day, of_day) = (hour / DAY, hour % DAY);
        let (open, when, often) = match self.habit {
            Habit::Office => (day % 7 < 5 && (7..18).contains(&of_day), day, 0.93),
            Habit::Lab => (day % 7 < 6 && (8..22).contains(&of_day), day, 0.95),
            Habit::Always => (true, hour, 0.995),
        };
        open && Random::new(self.seed ^ (u64::from(when) << 32)).happens(often)
    }
}
