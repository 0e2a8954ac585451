//! The block array: the store's devices, and the volumes with their snapshots.

use askama::Template;

use crate::text::{Ago, Bytes, Percent, Span, counted};

/// The page.
#[derive(Debug, Template)]
#[template(path = "array.html")]
pub struct ArrayPage<'a> {
    pub live: &'a Array,
    /// What a new volume may begin as: `NAME@N` of images.
    pub images: Vec<String>,
}

/// The live part, `/parts/array`.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "array_live.html")]
pub struct Array {
    pub devices: Vec<Device>,
    /// Why the devices cannot be looked at.
    pub problem: Option<String>,
    pub scrub: Scrub,
    /// Segments move to the devices with most room.
    pub evening: Option<Running>,
    pub volumes: Vec<Volume>,
}

/// A device of the store.
#[derive(Clone, Debug)]
pub struct Device {
    pub name: String,
    /// `None` where there is no such limit.
    pub free: Option<Bytes>,
}

/// How the store was last read through.
#[derive(Clone, Debug, Default)]
pub struct Scrub {
    pub running: Option<Running>,
    pub last: Option<LastScrub>,
}

/// How far something is that runs now.
#[derive(Clone, Debug, Default)]
pub struct Running {
    pub share: Percent,
    pub left: Option<Span>,
}

/// What the last pass found.
#[derive(Clone, Debug)]
pub struct LastScrub {
    pub ended: Ago,
    pub checked: u64,
    pub damaged: u64,
    pub repaired: u64,
}

/// A volume.
#[derive(Clone, Debug)]
pub struct Volume {
    pub name: String,
    pub size: Bytes,
    /// Sealed bytes in the store.
    pub stored: Bytes,
    /// What it began as.
    pub origin: Option<String>,
    /// `mirror`, …
    pub layout: String,
    /// How many clients have all of its journal, when some are to.
    pub tail_holders: Option<u64>,
    /// What may be lost, in words.
    pub redundancy: Option<String>,
    /// How far clients hold what they are to hold; none of a volume on the server only.
    pub placed: Option<Percent>,
    pub state: VolumeState,
    /// Why it is not well.
    pub reason: Option<String>,
    pub connections: u64,
    /// The machine that comes up from it.
    pub machine: Option<String>,
    /// The address for programs on the server.
    pub address: String,
    pub snapshots: Vec<Snapshot>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub name: String,
    pub created: Ago,
    /// Volumes that began as it.
    pub clones: Vec<String>,
}

/// How a volume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    Well,
    /// Writes fail once its journal is full.
    Blocked,
    Faulty,
    Unavailable,
    /// It is being made or removed.
    Changing,
}

impl VolumeState {
    const fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Blocked => "the store takes nothing",
            Self::Faulty => "faulty",
            Self::Unavailable => "cannot be opened",
            Self::Changing => "is being changed",
        }
    }

    /// The class of its mark.
    const fn tone(self) -> &'static str {
        match self {
            Self::Well => "good",
            Self::Blocked => "warn",
            Self::Faulty | Self::Unavailable => "bad",
            Self::Changing => "busy",
        }
    }
}

impl Volume {
    fn uses(&self) -> String {
        counted(self.connections, "connection", "connections")
    }
}

impl Array {
    /// What all volumes make together.
    fn sum(&self) -> String {
        let (size, stored) = self.volumes.iter().fold((0_u64, 0_u64), |(size, stored), volume| {
            (size.saturating_add(volume.size.0), stored.saturating_add(volume.stored.0))
        });
        let count = counted(self.volumes.len() as u64, "volume", "volumes");
        format!("{count} of {} in all; {} is stored.", Bytes(size), Bytes(stored))
    }
}

impl LastScrub {
    const fn tone(&self) -> &'static str {
        if self.damaged > self.repaired { "bad" } else { "good" }
    }

    fn words(&self) -> String {
        let checked = counted(self.checked, "segment", "segments");
        match (self.damaged, self.damaged.saturating_sub(self.repaired)) {
            (0, _) => format!("{checked} read, all good"),
            (damaged, 0) => {
                format!("{checked} read, {damaged} were damaged or missing and are back")
            }
            (damaged, lost) => {
                format!(
                    "{checked} read, {damaged} were damaged or missing, {lost} of them are lost"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago() -> Ago {
        Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 7300 }
    }

    fn volume(name: &str) -> Volume {
        Volume {
            name: name.into(),
            size: Bytes(10 << 30),
            stored: Bytes(3 << 30),
            origin: Some("debian@2".into()),
            layout: "mirror".into(),
            tail_holders: Some(0),
            redundancy: Some("Either the server or any client may be lost.".into()),
            placed: Some(Percent::of(1, 2)),
            state: VolumeState::Well,
            reason: None,
            connections: 1,
            machine: Some("pc-01".into()),
            address: format!("nbd://127.0.0.1:10809/{name}"),
            snapshots: vec![Snapshot { name: "monday".into(), created: ago(), clones: vec![] }],
        }
    }

    #[test]
    fn a_volume_says_what_it_is_where_it_is_and_what_may_be_lost() {
        let live = Array { volumes: vec![volume("desk7")], ..Array::default() };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "desk7",
            "10 GiB",
            "3 GiB",
            "debian@2",
            "mirror",
            "50 %",
            "no client has its journal: flushes wait for one",
            "Either the server or any client may be lost.",
            "nbd://127.0.0.1:10809/desk7",
            "1 connection",
            "pc-01",
            "monday",
            r#"action="/array/desk7/snapshots""#,
            r#"action="/array/desk7/snapshots/monday/remove""#,
            "1 volume of 10 GiB in all; 3 GiB is stored.",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_is_taken_for_markup() {
        let mut bad = volume("v");
        bad.state = VolumeState::Unavailable;
        bad.reason = Some("<b>no root</b>".into());
        let live = Array {
            volumes: vec![bad],
            problem: Some("store device /srv/b is missing".into()),
            ..Array::default()
        };
        let html = live.render().unwrap();
        assert!(html.contains("cannot be opened") && html.contains("/srv/b is missing"), "{html}");
        assert!(!html.contains("<b>"), "{html}");
    }

    #[test]
    fn what_runs_is_shown_with_the_time_left() {
        let device = |name: &str| Device { name: name.into(), free: Some(Bytes(1 << 30)) };
        let running = Running { share: Percent::of(2, 5), left: Some(Span { seconds: 130 }) };
        let idle = Array { devices: vec![device("/a"), device("/b")], ..Array::default() };
        let html = idle.render().unwrap();
        assert!(html.contains(r#"action="/array/rebalance""#), "{html}");
        let live = Array { evening: Some(running), ..idle };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        assert!(html.contains("most room, 40 %, 2 min 10 s left"), "{html}");
        assert!(!html.contains("/array/rebalance"), "{html}");
    }

    #[test]
    fn a_scrub_that_lost_something_is_not_shown_as_good() {
        let last = |damaged, repaired| LastScrub { ended: ago(), checked: 10, damaged, repaired };
        assert_eq!(
            (last(0, 0).tone(), last(3, 3).tone(), last(3, 1).tone()),
            ("good", "good", "bad")
        );
        assert!(last(0, 0).words().contains("all good"));
        assert!(last(3, 3).words().contains("are back"));
        assert!(last(3, 1).words().contains("2 of them are lost"));
    }

    #[test]
    fn a_page_without_volumes_says_what_they_are_for() {
        let live = Array::default();
        let html = ArrayPage { live: &live, images: vec!["debian@2".into()] }.render().unwrap();
        assert!(html.contains("No volumes yet"), "{html}");
        assert!(html.contains(r#"<option value="debian@2">"#), "{html}");
    }
}
