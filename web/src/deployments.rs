//! Deployments, live: each machine's install with how far it is and where its bytes come from.

use askama::Template;

use crate::text::{Ago, Bytes, Percent, Rate, Span, counted, listed};

/// The page.
#[derive(Debug, Template)]
#[template(path = "deployments.html")]
pub struct DeploymentsPage<'a> {
    pub live: &'a Deployments,
}

/// Its live part, `/parts/deployments`.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "deployments_live.html")]
pub struct Deployments {
    /// Deployments to several machines that are not over.
    pub maps: Vec<Map>,
    /// Installs that are not over, those that somebody should look at first.
    pub open: Vec<Install>,
    /// How many more there are.
    pub open_more: usize,
    /// Those that are, newest first.
    pub over: Vec<Install>,
}

/// A deployment with a cell for each machine.
#[derive(Clone, Debug)]
pub struct Map {
    pub deployment: i64,
    /// `classroom, version 3`.
    pub image: String,
    /// Machines that did not begin wait.
    pub paused: bool,
    /// What each machine receives at most, `50 Mbit/s`.
    pub rate_limit: Option<String>,
    pub cells: Vec<Cell>,
    /// How many clients hold each segment of the image.
    pub holders: Holders,
}

/// How many clients that are there hold each segment, in the order of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(pub Vec<u32>);

/// A column of their picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    x: usize,
    class: &'static str,
}

impl Holders {
    /// At most [`COLUMNS`], each as the worst of the segments that it stands for.
    fn columns(&self) -> Vec<Column> {
        let each = self.0.len().div_ceil(COLUMNS).max(1);
        let class = |held: &[u32]| match held.iter().min() {
            None | Some(0) => "none",
            Some(1) => "some",
            Some(2) => "half",
            Some(3) => "many",
            Some(_) => "most",
        };
        let columns = self.0.chunks(each).enumerate();
        columns.map(|(x, held)| Column { x: x * COLUMN, class: class(held) }).collect()
    }

    fn width(&self) -> usize {
        self.columns().len() * COLUMN
    }

    fn sentence(&self) -> String {
        let alone = self.0.iter().filter(|held| **held == 0).count();
        let alone = u64::try_from(alone).unwrap_or(u64::MAX);
        let least = self.0.iter().min().copied().unwrap_or(0);
        match alone {
            0 => format!(
                "Every segment is with {} that is there, or more.",
                counted(least.into(), "client", "clients")
            ),
            _ => format!(
                "{} of {} with no client that is there: made of their stripes, or from the server.",
                counted(alone, "segment", "segments"),
                self.0.len()
            ),
        }
    }
}

/// A machine on a map.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Of the install, hex.
    pub id: String,
    pub machine: String,
    pub state: InstallState,
    pub progress: Option<Progress>,
}

/// One machine's share of a deployment.
#[derive(Clone, Debug, Template)]
#[template(path = "install.html")]
pub struct Install {
    /// Hex.
    pub id: String,
    pub deployment: i64,
    /// Installs of the same deployment that are not over, this one included: they are cancelled together.
    pub together: u64,
    /// It failed or was cancelled, and its machine has nothing else to do: it can be tried again.
    pub again: bool,
    /// What happened, when that is shown.
    pub log: Vec<(Ago, String)>,
    /// Its deployment is.
    pub paused: bool,
    /// What its machine receives at most, as its deployment says: `50 Mbit/s`.
    pub rate_limit: Option<String>,
    /// What the machine is called.
    pub machine: String,
    /// `classroom, version 3`.
    pub image: String,
    pub state: InstallState,
    pub progress: Option<Progress>,
    /// Why it failed and what to do.
    pub error: Option<String>,
    /// For what it waits, although its machine is there.
    pub waits: Option<String>,
    /// When its machine was last heard of, when that is too long ago.
    pub silent: Option<Ago>,
    pub created: Ago,
    /// How long it took or has taken.
    pub took: Option<Span>,
}

/// Where an install stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallState {
    Scheduled,
    Ticketed,
    Planning,
    Writing,
    Verifying,
    Finishing,
    /// Its machine does not say how it is.
    Silent,
    Done,
    Failed,
    Cancelled,
}

/// How far an install is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Share of the whole install, reading back included.
    pub percent: Percent,
    /// Sealed bytes that it needs to fetch.
    pub total: Bytes,
    pub from_peers: Bytes,
    pub from_server: Bytes,
    /// Sealed bytes rebuilt from parity instead of fetched.
    pub rebuilt: Bytes,
    /// Plain bytes that were right on the disk already.
    pub already: Bytes,
    /// Plain bytes written.
    pub written: Bytes,
    pub rate: Option<Rate>,
    pub left: Option<Span>,
    /// What holds it up.
    pub bottleneck: Option<Bottleneck>,
}

/// What holds an install up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    Network,
    Disk,
    Processor,
}

impl Bottleneck {
    const fn words(self) -> &'static str {
        match self {
            Self::Network => "it waits for the network",
            Self::Disk => "its disk holds it up, the network waits",
            Self::Processor => "its processor holds it up, disk and network wait",
        }
    }
}

/// A piece of the bar, in thousandths of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    class: &'static str,
    x: u64,
    width: u64,
}

impl InstallState {
    const fn word(self) -> &'static str {
        match self {
            Self::Scheduled => "Waits for its machine",
            Self::Ticketed => "Starting",
            Self::Planning => "Planning",
            Self::Writing => "Writing",
            Self::Verifying => "Verifying",
            Self::Finishing => "Finishing",
            Self::Silent => "Not heard of",
            Self::Done => "Done",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }

    const fn tone(self) -> &'static str {
        match self {
            Self::Scheduled | Self::Cancelled => "quiet",
            Self::Ticketed | Self::Planning | Self::Writing | Self::Verifying | Self::Finishing => {
                "busy"
            }
            Self::Done => "good",
            Self::Failed | Self::Silent => "bad",
        }
    }

    /// Whether nothing happens to it any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl Progress {
    /// Sealed bytes that are there, wherever from.
    #[must_use]
    pub const fn got(&self) -> u64 {
        self.from_peers.0.saturating_add(self.from_server.0).saturating_add(self.rebuilt.0)
    }

    fn pieces(&self) -> Vec<Piece> {
        let whole = u128::from(self.total.0.max(self.got()).max(1));
        let mut x = 0;
        [("peers", self.from_peers), ("rebuilt", self.rebuilt), ("server", self.from_server)]
            .into_iter()
            .filter_map(|(class, bytes)| {
                let width = u64::try_from(u128::from(bytes.0) * 1000 / whole).unwrap_or(1000);
                let piece = Piece { class, x, width };
                x += width;
                (width > 0).then_some(piece)
            })
            .collect()
    }
}

/// A machine is slow that has less than this part of the pace that half of the others have.
const SLOW: u64 = 2;
/// Machines of a deployment from which on each is shown with little.
const LARGE: usize = 60;
/// Of the picture of who holds segments, and the width of one.
const COLUMNS: usize = 128;
const COLUMN: usize = 8;

impl Cell {
    fn percent(&self) -> Percent {
        match self.state {
            InstallState::Done => Percent::ALL,
            _ => self.progress.map_or(Percent::ZERO, |progress| progress.percent),
        }
    }

    fn pace(&self) -> Option<u64> {
        let writes = self.state == InstallState::Writing;
        self.progress?.rate.filter(|_| writes).map(|rate| rate.0)
    }
}

impl Map {
    /// The pace that half of the machines that write have or exceed.
    fn median(&self) -> Option<u64> {
        let mut paces: Vec<_> = self.cells.iter().filter_map(Cell::pace).collect();
        paces.sort_unstable();
        paces.get(paces.len() / 2).copied()
    }

    /// Each machine, and whether it is slow beside the others.
    fn judged(&self) -> impl Iterator<Item = (&Cell, bool)> {
        let median = self.median().unwrap_or(0);
        let is_slow =
            move |cell: &Cell| cell.pace().is_some_and(|pace| pace.saturating_mul(SLOW) < median);
        self.cells.iter().map(move |cell| (cell, is_slow(cell)))
    }

    /// So many that each is shown with little.
    fn is_large(&self) -> bool {
        self.cells.len() > LARGE
    }

    /// What is installed where, and how far that is.
    #[must_use]
    pub fn headline(&self) -> String {
        format!("{} on {} machines: {}", self.image, self.cells.len(), self.sentence())
    }

    /// How far all of them are, how long it takes still, and who holds it up.
    fn sentence(&self) -> String {
        let count = |wanted: fn(InstallState) -> bool| {
            self.cells.iter().filter(|cell| wanted(cell.state)).count()
        };
        let mut parts = vec![format!(
            "{} of {} done",
            count(|state| state == InstallState::Done),
            self.cells.len()
        )];
        for (count, word) in [
            (count(|state| state == InstallState::Scheduled), "not there yet"),
            (count(|state| state == InstallState::Silent), "not heard of"),
            (count(|state| state == InstallState::Failed), "failed"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {word}"));
            }
        }
        let left =
            self.cells.iter().filter_map(|cell| cell.progress?.left).map(|left| left.seconds);
        if let Some(seconds) = left.max() {
            parts.push(format!("{} left", Span { seconds }));
        }
        let slow: Vec<_> = self.judged().filter(|(_, slow)| *slow).map(|(cell, _)| cell).collect();
        if let (Some(median), Some(first)) = (self.median(), slow.first()) {
            let names: Vec<_> = slow.iter().map(|cell| cell.machine.as_str()).collect();
            let pace = Rate(first.pace().unwrap_or(0));
            let why = first.progress.and_then(|progress| progress.bottleneck);
            let why = why.map(|why| format!(" ({})", why.words())).unwrap_or_default();
            let verb = if slow.len() == 1 { "is slow" } else { "are slow" };
            parts.push(format!(
                "{} {verb}: {pace} where half of them have {} or more{why}",
                listed(&names),
                Rate(median)
            ));
        }
        format!("{}.", parts.join(", "))
    }

    /// Of what was fetched so far, where it came from.
    fn sources(&self) -> Vec<Piece> {
        let mut all = Progress::default();
        for progress in self.cells.iter().filter_map(|cell| cell.progress) {
            all.from_peers.0 = all.from_peers.0.saturating_add(progress.from_peers.0);
            all.from_server.0 = all.from_server.0.saturating_add(progress.from_server.0);
            all.rebuilt.0 = all.rebuilt.0.saturating_add(progress.rebuilt.0);
        }
        all.pieces()
    }

    /// The same in words.
    fn shares(&self) -> String {
        let [peers, rebuilt, server] = ["peers", "rebuilt", "server"].map(|class| {
            let piece = self.sources().into_iter().find(|piece| piece.class == class);
            piece.map_or(0, |piece| piece.width / 10)
        });
        format!("{peers} % from peers, {rebuilt} % rebuilt from parity, {server} % from the server")
    }
}

impl Install {
    /// Whether it is the only one of its deployment under way; otherwise the map says what goes for all.
    const fn is_alone(&self) -> bool {
        self.together == 1 && !self.state.is_over()
    }

    fn shows_progress(&self) -> bool {
        !matches!(self.state, InstallState::Scheduled | InstallState::Cancelled)
    }
}

impl Deployments {
    /// What is read aloud; changes every ten percent.
    fn spoken(&self) -> String {
        let running: Vec<_> =
            self.open.iter().filter(|install| install.state != InstallState::Scheduled).collect();
        match running.as_slice() {
            [] => "No install is running.".to_owned(),
            [one] => {
                let far = one.progress.map(|progress| progress.percent.coarse());
                let far = far.map(|far| format!(", {far}")).unwrap_or_default();
                format!("{}: {}{far}.", one.machine, one.state.word())
            }
            many => {
                let count = u64::try_from(many.len()).unwrap_or(u64::MAX);
                format!("{} running.", counted(count, "install is", "installs are"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(state: InstallState) -> Install {
        Install {
            id: "cc".repeat(16),
            deployment: 7,
            together: 1,
            log: Vec::new(),
            again: state == InstallState::Failed,
            paused: false,
            rate_limit: None,
            machine: "pc-<14>".into(),
            image: "classroom, version 3".into(),
            state,
            progress: Some(Progress {
                percent: Percent::of(58, 100),
                total: Bytes(1000 << 20),
                from_peers: Bytes(500 << 20),
                from_server: Bytes(50 << 20),
                rebuilt: Bytes(30 << 20),
                already: Bytes(2 << 30),
                written: Bytes(900 << 20),
                rate: Some(Rate(98_000_000)),
                left: Some(Span { seconds: 64 }),
                bottleneck: Some(Bottleneck::Network),
            }),
            error: None,
            waits: None,
            silent: None,
            created: Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 60 },
            took: Some(Span { seconds: 12 }),
        }
    }

    #[test]
    fn a_running_install_shows_phase_speed_time_left_and_where_bytes_come_from() {
        let open = vec![install(InstallState::Writing)];
        let live = Deployments { open, ..Deployments::default() };
        let html = live.render().unwrap().replace('\u{a0}', " ");
        for wanted in [
            "pc-&#60;14&#62;",
            "classroom, version 3",
            "Writing",
            "58 %",
            "98 MB/s",
            "1 min 4 s left",
            "500 MiB",
            "50 MiB",
            "30 MiB",
            "2 GiB",
            r#"action="/deployments/7/cancel""#,
            "pc-&#60;14&#62;: Writing, 50 %.",
        ] {
            assert!(html.contains(wanted), "{wanted}: {html}");
        }
    }

    #[test]
    fn a_failed_install_says_why_and_cannot_be_cancelled() {
        let failed = Install {
            error: Some("the disk is too small: choose a disk of at least 20 GiB".into()),
            ..install(InstallState::Failed)
        };
        let live = Deployments { over: vec![failed], ..Deployments::default() };
        let html = live.render().unwrap();
        assert!(html.contains("the disk is too small"), "{html}");
        assert!(html.contains(r#"action="/deployments/7/retry""#), "{html}");
        assert!(!html.contains("/cancel"), "{html}");
    }

    #[test]
    fn a_silent_install_says_since_when_and_what_to_do() {
        let silent = Install {
            silent: Some(Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 180 }),
            ..install(InstallState::Silent)
        };
        let html = Deployments { open: vec![silent], ..Deployments::default() }
            .render()
            .unwrap()
            .replace('\u{a0}', " ");
        assert!(html.contains("Not heard of") && html.contains("3 min ago"), "{html}");
        assert!(html.contains("look at its screen") && html.contains("/cancel"), "{html}");
    }

    #[test]
    fn an_install_that_waits_says_for_what() {
        let waits = Install {
            waits: Some("without client a the clients could not read b any more".into()),
            ..install(InstallState::Scheduled)
        };
        let live = Deployments { open: vec![waits], ..Deployments::default() };
        let html = live.render().unwrap();
        assert!(html.contains("Waits for its turn: without client a"), "{html}");
    }

    #[test]
    fn a_map_says_how_far_all_are_and_who_is_slow() {
        let cell = |machine: &str, state, megabytes: u64, seconds| Cell {
            id: "cc".repeat(16),
            machine: machine.into(),
            state,
            progress: (megabytes > 0).then(|| Progress {
                percent: Percent::of(50, 100),
                total: Bytes(100),
                from_peers: Bytes(45),
                from_server: Bytes(5),
                rate: Some(Rate(megabytes * 1_000_000)),
                left: Some(Span { seconds }),
                ..Progress::default()
            }),
        };
        let mut disk_bound = cell("<d>", InstallState::Writing, 38, 125);
        if let Some(progress) = &mut disk_bound.progress {
            progress.bottleneck = Some(Bottleneck::Disk);
        }
        let map = Map {
            deployment: 7,
            image: "classroom, version 3".into(),
            paused: false,
            rate_limit: None,
            cells: vec![
                cell("a", InstallState::Done, 90, 0),
                cell("b", InstallState::Writing, 90, 40),
                cell("c", InstallState::Writing, 95, 38),
                disk_bound,
                cell("e", InstallState::Scheduled, 0, 0),
                cell("f", InstallState::Failed, 0, 0),
            ],
            holders: Holders(vec![3, 0, 2]),
        };
        let said = map.sentence().replace('\u{a0}', " ");
        assert_eq!(
            said,
            "1 of 6 done, 1 not there yet, 1 failed, 2 min 5 s left, <d> is slow: 38 MB/s where half of them have 90 MB/s or more (its disk holds it up, the network waits)."
        );
        assert_eq!(map.shares(), "90 % from peers, 0 % rebuilt from parity, 10 % from the server");
        let html = Deployments { maps: vec![map], ..Deployments::default() }.render().unwrap();
        assert!(html.contains("&#60;d&#62;") && html.contains("cell warn"), "{html}");
        assert!(html.contains("1\u{a0}segment of 3 with no client"), "{html}");
    }

    #[test]
    fn who_holds_segments_is_painted_by_the_worst() {
        let many = Holders((0..1000).map(|number| if number == 500 { 1 } else { 5 }).collect());
        let columns = many.columns();
        assert_eq!((columns.len(), many.width()), (125, 125 * COLUMN));
        assert_eq!(columns[62], Column { x: 62 * COLUMN, class: "some" });
        assert_eq!(columns.iter().filter(|column| column.class == "most").count(), 124);
        assert!(many.sentence().contains("1\u{a0}client that is there"), "{}", many.sentence());
        assert!(Holders::default().columns().is_empty());
    }

    #[test]
    fn a_large_map_has_a_small_cell_for_each_machine() {
        let cell = |number: usize| Cell {
            id: format!("{number:032x}"),
            machine: format!("pc-{number}"),
            state: InstallState::Writing,
            progress: None,
        };
        let render = |count: usize| {
            let cells = (0..count).map(cell).collect();
            let image = "classroom, version 3".into();
            let map = Map {
                deployment: 7,
                image,
                paused: true,
                rate_limit: None,
                cells,
                holders: Holders::default(),
            };
            Deployments { maps: vec![map], ..Deployments::default() }.render().unwrap()
        };
        let (small, large) = (render(LARGE), render(1000));
        assert!(small.contains("/deployments/7/resume") && small.contains("Paused"), "{small}");
        assert!(small.contains("<progress") && !large.contains("<progress"));
        assert!(large.contains("pc-999") && large.len() < 60_000, "{}", large.len());
    }

    #[test]
    fn the_bar_never_overflows() {
        let progress = Progress {
            total: Bytes(10),
            from_peers: Bytes(u64::MAX),
            from_server: Bytes(9),
            ..Progress::default()
        };
        let pieces = progress.pieces();
        assert!(pieces.iter().map(|piece| piece.width).sum::<u64>() <= 1000, "{pieces:?}");
        assert_eq!(Progress::default().pieces(), []);
        let half = Progress {
            total: Bytes(4),
            from_peers: Bytes(1),
            from_server: Bytes(1),
            ..Progress::default()
        };
        assert_eq!(
            half.pieces(),
            [
                Piece { class: "peers", x: 0, width: 250 },
                Piece { class: "server", x: 250, width: 250 }
            ]
        );
    }
}
