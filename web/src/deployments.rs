//! Deployments, live: each machine's install with how far it is and where its bytes come from.

use askama::Template;

use crate::text::{Ago, Bytes, Percent, Rate, Span, counted};

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
    /// Installs that are not over.
    pub open: Vec<Install>,
    /// Those that are, newest first.
    pub over: Vec<Install>,
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

    fn percent(&self) -> Percent {
        Percent::of(self.got(), self.total.0)
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

impl Install {
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
                let far = one.progress.map(|progress| progress.percent().coarse());
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
            machine: "pc-<14>".into(),
            image: "classroom, version 3".into(),
            state,
            progress: Some(Progress {
                total: Bytes(1000 << 20),
                from_peers: Bytes(500 << 20),
                from_server: Bytes(50 << 20),
                rebuilt: Bytes(30 << 20),
                already: Bytes(2 << 30),
                written: Bytes(900 << 20),
                rate: Some(Rate(98_000_000)),
                left: Some(Span { seconds: 64 }),
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
        let live = Deployments { open: vec![install(InstallState::Writing)], over: vec![] };
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
        let html = Deployments { open: vec![], over: vec![failed] }.render().unwrap();
        assert!(html.contains("the disk is too small"), "{html}");
        assert!(!html.contains("/cancel"), "{html}");
    }

    #[test]
    fn a_silent_install_says_since_when_and_what_to_do() {
        let silent = Install {
            silent: Some(Ago { at: "2026-11-23T10:00:00Z".into(), seconds: 180 }),
            ..install(InstallState::Silent)
        };
        let html = Deployments { open: vec![silent], over: vec![] }
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
        let html = Deployments { open: vec![waits], over: vec![] }.render().unwrap();
        assert!(html.contains("Waits for its turn: without client a"), "{html}");
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
