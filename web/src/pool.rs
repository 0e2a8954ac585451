//! What clients lend together: when they are there, and what would be lost without some of them.

use crate::text::{counted, listed};

const HOURS: usize = 24;
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
/// Of a cell, in the picture.
const CELL: usize = 20;

/// How many of the clients are there, hour by hour of the week: in percent, Monday 00:00 UTC first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence(pub Vec<u8>);

/// A cell of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) class: &'static str,
}

impl Presence {
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let class = |percent| match percent {
            0..20 => "few",
            20..40 => "some",
            40..60 => "half",
            60..80 => "many",
            _ => "most",
        };
        let cell = |(hour, percent): (usize, &u8)| Cell {
            x: hour % HOURS * CELL,
            y: hour / HOURS * CELL,
            class: class(*percent),
        };
        self.0.iter().enumerate().map(cell).collect()
    }

    /// The first hour with the fewest, and the first with most.
    pub(crate) fn sentence(&self) -> String {
        let hours = || self.0.iter().copied().enumerate();
        let least = hours().min_by_key(|(hour, percent)| (*percent, *hour));
        let most = hours().min_by_key(|(hour, percent)| (100 - percent, *hour));
        let (Some((worst, few)), Some((best, many))) = (least, most) else {
            return "Nothing is known yet of when clients are there.".to_owned();
        };
        let name = |hour: usize| {
            let day = DAYS.get(hour / HOURS % DAYS.len()).copied().unwrap_or_default();
            format!("{day} {:02}:00 UTC", hour % HOURS)
        };
        if few == many {
            return format!("At every hour of the week {many} % of the clients are there.");
        }
        format!(
            "Most clients are there on {} ({many} %), fewest on {} ({few} %).",
            name(best),
            name(worst)
        )
    }

    /// The first letters of the days, with their height.
    pub(crate) fn days() -> impl Iterator<Item = (&'static str, usize)> {
        DAYS.iter().enumerate().map(|(day, name)| (name.get(..2).unwrap_or(name), day * CELL + 15))
    }
}

/// How the clients came and went, day by day; the last is today.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Churn(pub Vec<Day>);

/// One day of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Day {
    /// Times that a client came, or went.
    pub came: u64,
    pub went: u64,
    /// Clients that were approved, and that left for good.
    pub joined: u64,
    pub gone: u64,
}

/// A bar of a picture, standing or hanging at its middle line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) x: usize,
    pub(crate) y: u64,
    pub(crate) height: u64,
    pub(crate) class: &'static str,
}

impl Churn {
    /// Of one bar at most.
    const HEIGHT: u64 = 40;

    fn sum(&self, of: fn(&Day) -> u64) -> u64 {
        self.0.iter().map(of).fold(0, u64::saturating_add)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|day| *day == Day::default())
    }

    pub(crate) fn sentence(&self) -> String {
        let times = |count| counted(count, "time", "times");
        format!(
            "In {}: {} joined and {} left for good; clients came {} and went {}.",
            counted(u64::try_from(self.0.len()).unwrap_or(u64::MAX), "day", "days"),
            self.sum(|day| day.joined),
            self.sum(|day| day.gone),
            times(self.sum(|day| day.came)),
            times(self.sum(|day| day.went)),
        )
    }

    /// Who came or joined stands above the line, who went or left hangs below it.
    pub(crate) fn bars(&self) -> Vec<Bar> {
        let up = |day: &Day| day.came.saturating_add(day.joined);
        let down = |day: &Day| day.went.saturating_add(day.gone);
        let most = self.0.iter().map(|day| up(day).max(down(day))).max().unwrap_or(0).max(1);
        let scale = |count: u64| {
            let height = u128::from(count) * u128::from(Self::HEIGHT) / u128::from(most);
            u64::try_from(height).unwrap_or(Self::HEIGHT).max(u64::from(count > 0))
        };
        let bars = self.0.iter().enumerate().flat_map(|(place, day)| {
            let (x, up, down) = (place * CELL, scale(up(day)), scale(down(day)));
            [
                Bar { x, y: Self::HEIGHT - up, height: up, class: "came" },
                Bar { x, y: Self::HEIGHT + 1, height: down, class: "went" },
            ]
        });
        bars.filter(|bar| bar.height > 0).collect()
    }

    pub(crate) fn width(&self) -> usize {
        self.0.len() * CELL
    }
}

/// Without whom it was looked what is left.
#[derive(Clone, Debug, Default)]
pub struct WhatIf {
    pub clients: Vec<Client>,
    /// None: nobody asked yet.
    pub left: Option<Left>,
}

/// A client that may be taken away.
#[derive(Clone, Debug)]
pub struct Client {
    /// Hex.
    pub id: String,
    pub name: String,
    pub gone: bool,
}

/// What would be left.
#[derive(Clone, Debug, Default)]
pub struct Left {
    pub clients: u64,
    /// How many images, and volumes that clients hold, could be read.
    pub readable: u64,
    pub lost: Vec<Lost>,
}

/// What could not be read any more.
#[derive(Clone, Debug)]
pub struct Lost {
    pub name: String,
    /// `image`, `volume`.
    pub kind: &'static str,
    pub stripes: u64,
    pub unreadable: u64,
}

impl WhatIf {
    /// Who is taken away.
    pub(crate) fn gone(&self) -> String {
        let gone = self.clients.iter().filter(|it| it.gone).map(|it| it.name.as_str());
        listed(&std::iter::once("the server").chain(gone).collect::<Vec<_>>())
    }
}

impl Left {
    pub(crate) fn sentence(&self) -> String {
        let by = counted(self.clients, "client that is left", "clients that are left");
        let lost = u64::try_from(self.lost.len()).unwrap_or(u64::MAX);
        match (self.readable, lost) {
            (0, 0) => "There is nothing that clients hold.".to_owned(),
            (_, 0) => format!("Everything can be read from the {by}."),
            (_, lost) => format!(
                "{} could not be read from the {by}.",
                counted(lost, "of these", "of these")
            ),
        }
    }
}

impl Lost {
    pub(crate) fn why(&self) -> String {
        match (self.stripes, self.unreadable) {
            (0, _) => "no client holds any of it".to_owned(),
            (stripes, unreadable) => format!("{unreadable} of {stripes} stripes are lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_week_is_told_in_a_sentence_and_painted() {
        let mut week = vec![50; 168];
        week[24 + 9] = 90;
        week[6 * 24 + 3] = 10;
        let presence = Presence(week);
        let said = presence.sentence();
        assert!(said.contains("Tuesday 09:00 UTC (90 %)"), "{said}");
        assert!(said.contains("Sunday 03:00 UTC (10 %)"), "{said}");
        let cells = presence.cells();
        assert_eq!(cells[24 + 9], Cell { x: 9 * CELL, y: CELL, class: "most" });
        assert_eq!(
            Presence(vec![80; 168]).sentence(),
            "At every hour of the week 80 % of the clients are there."
        );
        assert!(Presence(Vec::new()).sentence().starts_with("Nothing is known"));
    }

    #[test]
    fn days_are_told_in_a_sentence_and_painted_about_a_line() {
        let day = |came, went, joined, gone| Day { came, went, joined, gone };
        let churn = Churn(vec![day(30, 31, 1, 0), day(0, 1, 0, 0), Day::default()]);
        let said = churn.sentence().replace('\u{a0}', " ");
        assert_eq!(
            said,
            "In 3 days: 1 joined and 0 left for good; clients came 30 times and went 32 times."
        );
        let bar = |x, y, height, class| Bar { x, y, height, class };
        // The least is seen, too.
        let wanted = [bar(0, 0, 40, "came"), bar(0, 41, 40, "went"), bar(CELL, 41, 1, "went")];
        assert_eq!(churn.bars(), wanted);
        assert!(!churn.is_empty() && Churn(vec![Day::default(); 14]).is_empty());
    }

    #[test]
    fn who_is_gone_and_what_is_left_is_told() {
        let client = |name: &str, gone| Client { id: "aa".into(), name: name.into(), gone };
        let what = WhatIf { clients: vec![client("a", true), client("b", false)], left: None };
        assert_eq!(what.gone(), "the server and a");
        assert_eq!(WhatIf::default().gone(), "the server");
        let left = Left { clients: 2, readable: 3, lost: Vec::new() };
        assert_eq!(
            left.sentence().replace('\u{a0}', " "),
            "Everything can be read from the 2 clients that are left."
        );
        let lost = Lost { name: "x".into(), kind: "image", stripes: 4, unreadable: 1 };
        assert_eq!(lost.why(), "1 of 4 stripes are lost");
    }
}
